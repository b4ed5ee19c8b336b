//! Processor time that processes have used, guests' included, as the scheduler accounts for it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

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

/// Kernel threads that have used less than this are not looked at.
const BUSY: Duration = Duration::from_millis(100);
/// What all of them use while something short is measured, most of the time.
const CALM: Duration = Duration::from_micros(300);

/// The kernel's own threads that compute now and then: memory management, work queues, deferred interrupts. On a kernel without preemption one that has a
/// processor keeps it for as long as it wants, milliseconds at times, and whoever is woken there waits.
#[derive(Debug)]
pub struct KernelThreads(Vec<File>);

impl KernelThreads {
    /// Those that have used a tenth of a second or more since the host's start.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn find() -> Result<KernelThreads> {
        let mut busy = Vec::new();
        for process in fs::read_dir("/proc").context("/proc")? {
            let folder = process?.path();
            if is_kernel_thread(&folder)
                && let Ok(file) = File::open(folder.join("schedstat"))
                && used(&file) >= BUSY
            {
                busy.push(file);
            }
        }
        Ok(KernelThreads(busy))
    }

    /// Processor time that they have used.
    #[must_use]
    pub fn used(&self) -> Duration {
        self.0.iter().map(used).sum()
    }

    /// Does something, and says whether they used next to nothing meanwhile.
    ///
    /// # Errors
    /// What `f` returns.
    pub fn calm_during<R>(&self, f: impl FnOnce() -> Result<R>) -> Result<(R, bool)> {
        let before = self.used();
        let result = f()?;
        Ok((result, self.used().saturating_sub(before) < CALM))
    }
}

/// Whether this folder of `/proc` is that of a child of the kernel's `kthreadd`.
fn is_kernel_thread(folder: &Path) -> bool {
    let Ok(text) = fs::read_to_string(folder.join("stat")) else { return false };
    // The name, in parentheses, may hold anything.
    text.rsplit_once(") ").is_some_and(|(_, rest)| rest.split(' ').nth(1) == Some("2"))
}

/// The first number of `schedstat`; 0 of a thread that has ended.
fn used(file: &File) -> Duration {
    let mut text = [0; 96];
    let length = file.read_at(&mut text, 0).unwrap_or(0);
    let first = std::str::from_utf8(&text[..length]).ok().and_then(|text| text.split(' ').next());
    Duration::from_nanos(first.and_then(|first| first.parse().ok()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn only_the_kernels_own_threads_are_looked_at() {
        assert!(!is_kernel_thread(Path::new("/proc/self")));
        let threads = KernelThreads::find().unwrap();
        let before = threads.used();
        let (value, _) = threads.calm_during(|| Ok(7)).unwrap();
        assert!(value == 7 && threads.used() >= before);
    }

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
