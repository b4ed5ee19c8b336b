//! Launching a guest: in a running process, as a process of its own; and what a live idle one costs.

use anyhow::Result;

use super::Session;
use super::baselines::floor_launch;
use crate::figure::Figure;
use crate::floor::Floor;
use crate::launch::Cell;
use crate::memory::{self, Kind};
use crate::process;
use crate::stats::Samples;

/// Launches in a process, for each run.
const LAUNCHES: usize = 20;
/// Whole processes, for each run.
const PROCESSES: usize = 10;

/// Measures `in_process`, `whole_process` and `memory`.
///
/// # Errors
/// When something cannot be launched.
pub fn run(session: &mut Session) -> Result<()> {
    in_process(session)?;
    whole_process(session)?;
    memory_of_idle(session)
}

/// From the call that starts a guest to the first byte on its console, beside the floor's time from nothing to its
/// first exit. One VM of the floor lives all the time, since the first and the last of a host pay for others.
fn in_process(session: &mut Session) -> Result<()> {
    let mut floor = Floor::open()?;
    let live = floor.launch()?;
    let mut cell = Cell::open(&session.artifacts()?.image("hello")?)?;
    let (guest, _) = cell.launch(&[])?;
    cell.finish(guest)?;
    let (mut value, mut baseline) = (Samples::default(), Samples::default());
    for _ in 0..session.runs * LAUNCHES {
        let (guest, time) = cell.launch(&[])?;
        value.push(time.as_secs_f64() * 1e6);
        cell.finish(guest)?;
        baseline.push(floor_launch(&mut floor)?.0);
    }
    drop(live);
    (session.report)(&Figure::against("launch", "in_process", "us", &value, "raw floor", &baseline)?)
}

/// `vmm launch hello` from before its start to after its end, beside the floor's program.
fn whole_process(session: &mut Session) -> Result<()> {
    let artifacts = session.artifacts()?;
    let hello = artifacts.image("hello")?;
    let hello = hello.to_string_lossy();
    let (mut value, mut baseline) = (Samples::default(), Samples::default());
    for _ in 0..session.runs * PROCESSES {
        value.push(process::whole(&artifacts.vmm, &["launch", &hello])?);
        baseline.push(process::whole(&artifacts.floor, &[])?);
    }
    (session.report)(&Figure::against(
        "launch",
        "whole_process",
        "us",
        &value,
        "raw floor program",
        &baseline,
    )?)
}

fn memory_of_idle(session: &mut Session) -> Result<()> {
    let probe = session.artifacts()?.image("probe")?;
    let (mut value, mut baseline) = (Samples::default(), Samples::default());
    for _ in 0..session.runs {
        value.push(memory::measure(Kind::Cell(&probe))?);
        baseline.push(memory::measure(Kind::Floor)?);
    }
    (session.report)(&Figure::against("launch", "memory", "KiB", &value, "raw floor", &baseline)?)
}
