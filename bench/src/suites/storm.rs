//! Thousands of guests: how fast they start, and what memory they take.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::Session;
use crate::figure::Figure;
use crate::memory;
use crate::stats::Samples;
use crate::supervisor::Supervisor;

/// Guests.
const GUESTS: u64 = 10_000;
/// Processes that they are spread over, on both sides.
const CELLS: usize = 10;
/// A guest that writes a line and rests.
const GUEST: [&str; 5] = ["--no-net", "--memory", "256K", "--name", "g"];

/// Guests started by one request, each with its machine and its first console line, per second; beside as many raw machines in as many
/// processes, each with its first exit.
///
/// # Errors
/// When a guest or a machine fails.
pub fn run(session: &mut Session) -> Result<()> {
    let artifacts = session.artifacts()?;
    let image = artifacts.image("probe")?.to_string_lossy().into_owned();
    let guest = [&GUEST[..], &[&image, "idle"]].concat();
    let (mut value, mut baseline, mut bytes) = (Samples::default(), Samples::default(), Samples::default());
    // One warm-up of each is not counted: the first machines of a host pay for others.
    for run in 0..=session.runs.div_ceil(2) {
        let supervisor = Supervisor::start(&artifacts.vmm, CELLS)?;
        let before = memory::machine_kib()?;
        let elapsed = supervisor.storm(GUESTS, &guest)?;
        let kib = (memory::machine_kib()? - before) as f64 / GUESTS as f64;
        drop(supervisor);
        let floor = floor_storm(&artifacts.floor)?;
        if run > 0 {
            value.push(GUESTS as f64 / elapsed.as_secs_f64());
            baseline.push(floor);
            bytes.push(kib);
        }
    }
    let what = GUESTS.to_string();
    (session.report)(&Figure::against("storm", what, "1/s", &value, "raw floor", &baseline)?)?;
    (session.report)(&Figure::absolute("density", "resident", "KiB", &bytes)?)
}

/// Raw machines per second, in [`CELLS`] processes at once.
fn floor_storm(program: &Path) -> Result<f64> {
    let each = GUESTS.div_ceil(CELLS as u64).to_string();
    let start = Instant::now();
    let spawn = |_| Command::new(program).arg(&each).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut children: Vec<Child> = (0..CELLS).map(spawn).collect::<Result<_, _>>().context("the floor")?;
    for child in &mut children {
        // A byte when all of its machines have reached their first exit.
        let output = child.stdout.as_mut().context("no output")?;
        output.read_exact(&mut [0]).context("the floor's program failed")?;
    }
    let elapsed = start.elapsed();
    for mut child in children {
        // It ends when it hears that it may.
        if let Some(mut input) = child.stdin.take() {
            input.write_all(b".").context("the floor's program has gone")?;
        }
        ensure!(child.wait().context("the floor's program")?.success(), "the floor's program failed");
    }
    Ok(GUESTS as f64 / elapsed.as_secs_f64())
}
