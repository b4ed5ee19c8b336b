//! The round trip of a hypercall: what a guest measures for one that does nothing, through the worker and all that it
//! does at an exit, beside the floor's loop of port exits with synchronised registers.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Session;
use super::baselines::{ROUND_TRIPS, floor_round_trip};
use crate::figure::Figure;
use crate::floor::Floor;
use crate::stats::Samples;

/// Samples of one run.
const BATCHES: usize = 3;
/// How the guest starts each line with a result.
const KEY: &str = "hypercall_ns ";

/// Measures `hypercall`.
///
/// # Errors
/// When the guest or KVM fails.
pub fn run(session: &mut Session) -> Result<()> {
    let artifacts = session.artifacts()?;
    let probe = artifacts.image("probe")?;
    let probe = probe.to_str().context("the image's path is not text")?;
    let (batches, calls) = (BATCHES.to_string(), ROUND_TRIPS.to_string());
    let arguments = ["--no-net", probe, "hypercall", &batches, &calls];
    let mut floor = Floor::open()?;
    let mut instance = floor.launch()?;
    let (mut value, mut baseline) = (Samples::default(), Samples::default());
    for _ in 0..session.runs {
        let (_, console) = artifacts.run(&arguments, Duration::from_secs(20))?;
        let before = value.len();
        for line in console.lines().filter_map(|line| line.split_once(KEY)) {
            let ns: f64 = line.1.trim().parse().with_context(|| format!("no number: {line:?}"))?;
            value.push(ns / 1000.0);
        }
        ensure!(
            value.len() == before + BATCHES,
            "the guest reported other than {BATCHES} results:\n{console}"
        );
        for _ in 0..BATCHES {
            baseline.push(floor_round_trip(&mut instance)?);
        }
    }
    (session.report)(&Figure::against("exit", "hypercall", "us", &value, "raw floor", &baseline)?)
}
