//! Thousands of guests: how fast they start, and what memory they take.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::Session;
use crate::figure::Figure;
use crate::memory::Used;
use crate::stats::Samples;
use crate::supervisor::Supervisor;

/// Guests.
const GUESTS: u64 = 10_000;
/// Processes that they are spread over, on both sides.
const CELLS: usize = 10;
/// A guest that writes a line and rests.
const GUEST: [&str; 5] = ["--no-net", "--memory", "256K", "--name", "g"];

/// Machines of each cell when most guests are to be without.
const FEW_MACHINES: &str = "8";

/// Guests started by one request, each with its machine and its first console line, per second; beside as many raw machines in as many
/// processes, each with its first exit.
///
/// # Errors
/// When a guest or a machine fails.
pub fn run(session: &mut Session) -> Result<()> {
    let artifacts = session.artifacts()?;
    let image = artifacts.image("probe")?.to_string_lossy().into_owned();
    let guest = [&GUEST[..], &[&image, "idle"]].concat();
    let (mut value, mut baseline) = (Samples::default(), Samples::default());
    // One warm-up of each is not counted: the first machines of a host pay for others.
    for run in 0..=session.runs.div_ceil(2) {
        let supervisor = Supervisor::start(&artifacts.vmm, CELLS)?;
        let elapsed = supervisor.storm(GUESTS, &guest)?;
        drop(supervisor);
        let floor = floor_storm(&artifacts.floor)?;
        if run > 0 {
            value.push(GUESTS as f64 / elapsed.as_secs_f64());
            baseline.push(floor);
        }
    }
    (session.report)(&Figure::against("storm", GUESTS.to_string(), "1/s", &value, "raw floor", &baseline)?)
}

/// What each of them takes of the host's memory, with a machine of its own and without.
///
/// # Errors
/// When a guest fails, or the kernel does not say.
pub fn density(session: &mut Session) -> Result<()> {
    let artifacts = session.artifacts()?;
    let image = artifacts.image("probe")?.to_string_lossy().into_owned();
    let guest = [&GUEST[..], &[&image, "idle"]].concat();
    for (what, options) in [("resident", &[][..]), ("warm", &["--machines", FEW_MACHINES])] {
        let mut total = Samples::default();
        let mut components: Vec<(&str, Samples)> = Vec::new();
        for _ in 0..session.runs.div_ceil(2) {
            let supervisor = Supervisor::start_with(&artifacts.vmm, CELLS, options)?;
            let before = Used::now()?;
            supervisor.storm(GUESTS, &guest)?;
            let after = Used::now()?;
            total.push(each(after.total - before.total));
            for (name, kib) in after.since(&before) {
                match components.iter_mut().find(|(known, _)| *known == name) {
                    Some((_, samples)) => samples.push(each(kib)),
                    None => components.push((name, std::iter::once(each(kib)).collect())),
                }
            }
        }
        (session.report)(&Figure::absolute("density", what, "KiB", &total)?)?;
        for (name, samples) in &components {
            (session.report)(&Figure::absolute("density", format!("{what}/{name}"), "KiB", samples)?)?;
        }
    }
    Ok(())
}

/// KiB of each guest.
fn each(kib: i64) -> f64 {
    kib as f64 / GUESTS as f64
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
