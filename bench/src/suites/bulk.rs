//! TCP bulk transfer at MTU 1500 with segmentation offload, of a guest beside native TCP over veth; the latter also
//! without offload, for comparison.
//!
//! The VMM chooses Cubic for the host's side of its subnet, while veth gets the host's default. So that nobody takes the difference between two
//! congestion controls for one between two networks, the transfer to the guest is also measured with Cubic on both.

use anyhow::{Result, ensure};

use super::Session;
use crate::bulk::{self, Direction, SINK_PORT};
use crate::figure::Figure;
use crate::netns::Namespace;
use crate::stats::Samples;

/// Measures `host_to_guest` and `guest_to_host`.
///
/// # Errors
/// When the guest or the network fails.
pub fn run(session: &mut Session) -> Result<()> {
    let artifacts = session.artifacts()?;
    let namespace = Namespace::new()?;
    bulk::start_native(&namespace)?;
    let guest = artifacts.serve(&mut session.subnets, &[], "probe", &["net"], SINK_PORT)?;
    let directions = [("host_to_guest", Direction::ToServer), ("guest_to_host", Direction::FromServer)];
    for (what, direction) in directions {
        let (mut value, mut gso, mut no_gso) = (Samples::default(), Samples::default(), Samples::default());
        for _ in 0..session.runs {
            value.push(bulk::measure(guest.address, direction, None, session.duration())?);
            namespace.set_segmentation_offload(true)?;
            gso.push(bulk::measure(namespace.address(), direction, None, session.duration())?);
            namespace.set_segmentation_offload(false)?;
            no_gso.push(bulk::measure(namespace.address(), direction, None, session.duration())?);
        }
        (session.report)(&Figure::against("D2", what, "Gbit/s", &value, "native veth, GSO", &gso)?)?;
        let what = format!("{what}/no_gso");
        (session.report)(&Figure::against("D2", what, "Gbit/s", &value, "native veth, no GSO", &no_gso)?)?;
    }
    namespace.set_segmentation_offload(true)?;
    let (mut value, mut native) = (Samples::default(), Samples::default());
    for _ in 0..session.runs {
        for (address, samples) in [(guest.address, &mut value), (namespace.address(), &mut native)] {
            samples.push(bulk::measure(address, Direction::ToServer, Some("cubic"), session.duration())?);
        }
    }
    let figure =
        Figure::against("D2", "host_to_guest/cubic", "Gbit/s", &value, "the same, Cubic too", &native)?;
    (session.report)(&figure)?;
    let (report, console) = guest.stop()?;
    ensure!(report.ended_well(), "the guest failed: {report:?}\n{console}");
    Ok(())
}
