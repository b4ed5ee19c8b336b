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
use std::path::Path;

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

/// Measures `vmm_share` and its parts, `exits_per_echo` and, beside native, `round_trip`.
///
/// # Errors
/// When the guest or the network fails, or the trace is not clear.
pub fn run(session: &mut Session) -> Result<()> {
    let namespace = Namespace::new()?;
    echo::start_native(&namespace)?;
    let scale = echo::ticks_per_microsecond();
    let (mut share, mut vmm) = (Samples::default(), Samples::default());
    let (mut crossing_in, mut crossing_out) = (Samples::default(), Samples::default());
    let (mut whole, mut native, mut exits) = (Samples::default(), Samples::default(), Samples::default());
    for _ in 0..session.runs {
        let run = guest_run(session)?;
        let micros = |ticks: fn(&Way) -> u64| -> Result<f64> {
            let samples: Samples = run.ways.iter().map(|w| ticks(w) as f64 / scale).collect();
            samples.median().context("no clear echo")
        };
        share.push(micros(|w| w.vmm + w.crossing_in + w.crossing_out)?);
        vmm.push(micros(|w| w.vmm)?);
        crossing_in.push(micros(|w| w.crossing_in)?);
        crossing_out.push(micros(|w| w.crossing_out)?);
        whole.push(micros(|w| w.whole)?);
        exits.push(run.exits_per_echo);
        native.push(echo::median_round_trip(&mut Client::connect(namespace.address())?)?);
    }
    let against_whole = |what, value: &Samples| -> Result<()> {
        (session.report)(&Figure::against("D1", what, "us", value, "whole round trip", &whole)?)
    };
    against_whole("vmm_share", &share)?;
    against_whole("vmm_share/vmm", &vmm)?;
    against_whole("vmm_share/crossing_in", &crossing_in)?;
    against_whole("vmm_share/crossing_out", &crossing_out)?;
    // Near 0 while the guest looks; near 1 when it idles between packets, and the crossing is an exit.
    (session.report)(&Figure::absolute("D1", "exits_per_echo", "exits", &exits)?)?;
    (session.report)(&Figure::against("D1", "round_trip", "us", &whole, "native echo, veth", &native)?)
}

/// What one launch gave.
struct Run {
    ways: Vec<Way>,
    exits_per_echo: f64,
}

fn guest_run(session: &mut Session) -> Result<Run> {
    let file = std::env::temp_dir().join(format!("foraker-bench-{}.trace", std::process::id()));
    let result = traced_echoes(session, &file);
    // Absent when the launch failed.
    let _ = fs::remove_file(&file);
    result
}

fn traced_echoes(session: &mut Session, file: &Path) -> Result<Run> {
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
    let exits_per_echo = report.counter("exits")? as f64 / echoes.len() as f64;
    Ok(Run { ways, exits_per_echo })
}
