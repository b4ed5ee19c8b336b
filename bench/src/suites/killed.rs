//! `kill -9` of a supervisor that holds guests, each with `--restart always`, and another one started at once.
//!
//! - `N/answers`: from the kill to the first answer that lists all N guests.
//! - `N/guests`: from the kill until all of them run again.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::Session;
use crate::figure::Figure;
use crate::stats::Samples;
use crate::supervisor::Supervisor;

const CELLS: usize = 10;
const GUEST: [&str; 7] = ["--no-net", "--memory", "256K", "--restart", "always", "--name", "g"];

/// Measures everything of this ID.
///
/// # Errors
/// When a guest is lost, or does not come back.
pub fn run(session: &mut Session) -> Result<()> {
    let artifacts = session.artifacts()?;
    let image = artifacts.image("probe")?.to_string_lossy().into_owned();
    let guest = [&GUEST[..], &[&image, "idle"]].concat();
    for count in [300, 10_000] {
        let mut supervisor = Supervisor::start(&artifacts.vmm, CELLS)?;
        supervisor.storm(count, &guest)?;
        let (mut answers, mut guests) = (Samples::default(), Samples::default());
        for _ in 0..session.runs {
            let killed = Instant::now();
            supervisor.kill_and_follow()?;
            supervisor.wait("the next one does not answer", || supervisor.control().is_ok())?;
            let mut control = supervisor.control()?;
            let there = control.guests()?.len() as u64;
            answers.push(killed.elapsed().as_secs_f64());
            ensure!(there == count, "{there} guests of {count} are known");
            supervisor.wait("not every guest is back", || control.running().is_ok_and(|n| n == count))?;
            guests.push(killed.elapsed().as_secs_f64());
        }
        (session.report)(&Figure::absolute("killed", format!("{count}/answers"), "s", &answers)?)?;
        (session.report)(&Figure::absolute("killed", format!("{count}/guests"), "s", &guests)?)?;
    }
    Ok(())
}
