//! What a process holds of the host, as `/proc` tells it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A cell's share of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Resident memory that is its own alone, bytes.
    pub private: u64,
    /// Pages of its guests' memory that exist, bytes.
    pub arena: u64,
    /// Open descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: u64,
}

impl Usage {
    /// Of a process; zeros if it has gone.
    #[must_use]
    pub fn of(pid: i32) -> Usage {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let folder = format!("/proc/{pid}/fd");
        let entries: Vec<_> = fs::read_dir(&folder).into_iter().flatten().flatten().collect();
        let guests = |path: &Path| {
            fs::read_link(path).is_ok_and(|to| to.to_string_lossy().starts_with("/memfd:guests"))
        };
        let arena = entries.iter().map(fs::DirEntry::path).filter(|path| guests(path));
        Usage {
            private: number(&status, "RssAnon:") * 1024,
            arena: arena.filter_map(|path| fs::metadata(path).ok()).map(|m| m.blocks() * 512).sum(),
            descriptors: entries.len(),
            threads: number(&status, "Threads:"),
        }
    }
}

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        write!(
            f,
            "{:.1} MiB private, {:.1} MiB of guests, {} descriptors, {} threads",
            mib(self.private),
            mib(self.arena),
            self.descriptors,
            self.threads
        )
    }
}

/// What each thread of a process does now, a line for each: its name, its state, and where in the kernel it waits. KVM's own threads, of which
/// each machine has one, are left out.
#[must_use]
pub fn threads(pid: i32) -> Vec<String> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let of_task = |task: fs::DirEntry| {
        let read = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let (name, status, stack) = (read("comm"), read("status"), read("stack"));
        let state = status.lines().find_map(|line| line.strip_prefix("State:")).unwrap_or_default();
        // [<0>] function+0x1/0x2
        let calls = stack.lines().filter_map(|line| line.split_whitespace().nth(1)).take(6);
        let line = format!("{} {} {}", name.trim(), state.trim(), calls.collect::<Vec<_>>().join(" < "));
        (!name.starts_with("kvm-nx")).then_some(line)
    };
    tasks.flatten().filter_map(of_task).collect()
}

/// Memory that the host could give, bytes.
#[must_use]
pub fn available() -> u64 {
    number(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemAvailable:") * 1024
}

/// Frames that the host dropped on the way to a device's reader.
#[must_use]
pub fn dropped(device: &str) -> u64 {
    let path = format!("/sys/class/net/{device}/statistics/tx_dropped");
    fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// The number behind a name at the start of a line.
fn number(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()).and_then(|word| word.parse().ok()).unwrap_or(0)
}
