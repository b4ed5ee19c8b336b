//! Whole processes: from before the start to after the end.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

/// Starts a program, waits for its end, and returns the time of it all in microseconds. Its output goes nowhere.
///
/// # Errors
/// When it cannot be started or does not exit with 0.
pub fn whole(program: &Path, arguments: &[&str]) -> Result<f64> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
    let start = Instant::now();
    // `posix_spawn` under the hood: the price of a fork does not depend on this process's size.
    let status = command.status().with_context(|| format!("cannot start {}", program.display()))?;
    let elapsed = start.elapsed();
    ensure!(status.success(), "{} ended with {status}", program.display());
    Ok(elapsed.as_secs_f64() * 1e6)
}
