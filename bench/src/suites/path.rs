//! The path of a packet: how much of an echo's latency is the VMM and the crossing, while the guest looks at its rings.
//!
//! A client of the host sends UDP packets through the TAP device to a guest, one at a time. The time-stamp counter
//! is read at each step:
//!
//! ```text
//! client send | host stack, wake-up | VMM: TAP read .. ring | crossing | guest: ring, stack, handler, stack, ring |
//!             | crossing | VMM: ring .. TAP write | host stack, wake-up | client receive
//! ```
//!
//! The figure is the two VMM parts and the two crossings; its baseline is the whole. A crossing lasts from the moment
//! when the index of a ring is in shared memory to the moment when the other side has read it. Waking the VMM's
//! thread when a frame arrives, and the client when the answer does, are the host's, as for any process.
//! For comparison, the whole round trip stands beside that of a native echo server behind veth.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::Session;
use crate::bulk::SINK_PORT;
use crate::echo::{self, Client, Echo};
use crate::figure::Figure;
use crate::netns::Namespace;
use crate::stats::Samples;
use crate::trace::{Trace, Way};

/// Echoes that may be unclear (another frame passed at the same time), in per cent.
const MOST_UNCLEAR: usize = 10;

/// Measures `vmm_share` and, beside native, `round_trip`.
///
/// # Errors
/// When the guest or the network fails, or the trace is not clear.
pub fn run(session: &mut Session) -> Result<()> {
    let namespace = Namespace::new()?;
    echo::start_native(&namespace)?;
    let scale = echo::ticks_per_microsecond();
    let (mut share, mut whole, mut native) = (Samples::default(), Samples::default(), Samples::default());
    for _ in 0..session.runs {
        let ways = guest_run(session)?;
        let micros =
            |ticks: fn(&Way) -> u64| -> Samples { ways.iter().map(|w| ticks(w) as f64 / scale).collect() };
        share.push(micros(|w| w.vmm + w.crossing).median().context("no clear echo")?);
        whole.push(micros(|w| w.whole).median().context("no clear echo")?);
        native.push(echo::median_round_trip(&mut Client::connect(namespace.address())?)?);
    }
    (session.report)(&Figure::against("D1", "vmm_share", "us", &share, "whole round trip", &whole)?)?;
    (session.report)(&Figure::against("D1", "round_trip", "us", &whole, "native echo, veth", &native)?)
}

fn guest_run(session: &mut Session) -> Result<Vec<Way>> {
    let file = std::env::temp_dir().join(format!("foraker-bench-{}.trace", std::process::id()));
    let result = traced_echoes(session, &file);
    // Absent when the launch failed.
    let _ = fs::remove_file(&file);
    result
}

fn traced_echoes(session: &mut Session, file: &std::path::Path) -> Result<Vec<Way>> {
    let path = file.to_str().context("the path of the temporary folder is not text")?;
    let options = ["--service", "uplink", "--trace", path];
    let guest = session.artifacts()?.serve(&mut session.subnets, &options, "probe", &["net"], SINK_PORT)?;
    let echoes = Client::connect(guest.address)?.echoes()?;
    let (report, console) = guest.stop()?;
    ensure!(report.ended_well(), "the guest failed: {report:?}\n{console}");
    let trace = Trace::read(file)?;
    // The guest cannot write into a packet when it was sent: each answer holds that of the one before.
    let clear = |pair: &[Echo]| match pair {
        [echo, next] => trace.way(echo, echo.stamps[0], next.stamps[1]),
        _ => None,
    };
    let ways: Vec<Way> = echoes.windows(2).filter_map(clear).collect();
    let unclear = echoes.len() - 1 - ways.len();
    ensure!(
        unclear * 100 <= echoes.len() * MOST_UNCLEAR,
        "{unclear} of {} echoes are not clear",
        echoes.len()
    );
    Ok(ways)
}
