//! TCP bulk transfer at MTU 1500 with segmentation offload, of a guest beside native TCP over veth; the latter also
//! without offload, for comparison.

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
            value.push(bulk::measure(guest.address, direction, session.duration())?);
            namespace.set_segmentation_offload(true)?;
            gso.push(bulk::measure(namespace.address(), direction, session.duration())?);
            namespace.set_segmentation_offload(false)?;
            no_gso.push(bulk::measure(namespace.address(), direction, session.duration())?);
        }
        (session.report)(&Figure::against("D2", what, "Gbit/s", &value, "native veth, GSO", &gso)?)?;
        let what = format!("{what}/no_gso");
        (session.report)(&Figure::against("D2", what, "Gbit/s", &value, "native veth, no GSO", &no_gso)?)?;
    }
    let (report, console) = guest.stop()?;
    ensure!(report.ended_well(), "the guest failed: {report:?}\n{console}");
    Ok(())
}
