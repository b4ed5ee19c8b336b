//! Whole processes, from before the start to after the end; and what this one asks of the scheduler.

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

/// Has the calling thread be scheduled as if it were on another machine.
///
/// A client that sleeps most of the time shares the processors with guests that compute. Woken by an answer, it may wait for the scheduler's next tick, four
/// milliseconds, which is no part of what the answer took. In the real-time class it does not; and it computes for microseconds, which costs the guests
/// nothing.
///
/// # Errors
/// When this process may not do so.
pub fn as_from_elsewhere() -> Result<()> {
    let lowest = libc::sched_param { sched_priority: 1 };
    // SAFETY: a valid parameter; 0 is the calling thread.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const lowest) };
    ensure!(result == 0, "a real-time client is not allowed here: {}", std::io::Error::last_os_error());
    Ok(())
}
