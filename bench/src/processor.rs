//! Processor time that processes have used, guests' included, as the scheduler accounts for it.

use std::fs;

use anyhow::{Context, Result};

/// Processor time of all threads of a process, seconds. Threads that have ended are not counted.
///
/// # Errors
/// When there is no such process, or the kernel does not say.
pub fn seconds_of(process: u32) -> Result<f64> {
    let tasks = format!("/proc/{process}/task");
    let mut total = 0;
    for task in fs::read_dir(&tasks).with_context(|| tasks.clone())? {
        // To the nanosecond; the counts of `stat` are in steps of ten milliseconds.
        let file = task?.path().join("schedstat");
        let Ok(text) = fs::read_to_string(&file) else { continue };
        let ns = text.split(' ').next().and_then(|field| field.parse::<u64>().ok());
        total += ns.with_context(|| format!("{} says nothing", file.display()))?;
    }
    Ok(total as f64 / 1e9)
}

/// The same of several processes together.
///
/// # Errors
/// As [`seconds_of`].
pub fn seconds_of_all(processes: &[u32]) -> Result<f64> {
    processes.iter().map(|process| seconds_of(*process)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn what_a_thread_computes_is_counted() {
        let before = seconds_of(std::process::id()).unwrap();
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(50) {
            std::hint::spin_loop();
        }
        let used = seconds_of(std::process::id()).unwrap() - before;
        assert!(used > 0.001, "{used} s");
    }
}
