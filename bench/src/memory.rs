//! Memory of live, idle instances, the kernel's included.
//!
//! A fresh process makes one instance, looks at what the whole machine has in use, makes many more, and looks again.
//! The difference by the number of instances is what one costs: its own pages, and the kernel's structures for it,
//! accounted or not. Everything else that happens on the machine meanwhile is noise, which many instances make small.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::floor::Floor;
use crate::launch;

/// Instances of one measurement.
pub const INSTANCES: usize = 200;

/// What is measured in a process of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind<'a> {
    /// Raw KVM.
    Floor,
    /// Guests of a cell, which run this image with the argument `idle`.
    Cell(&'a Path),
}

/// First argument of the process that measures.
pub const CHILD: &str = "--memory-of";

/// Measures in a fresh process of this same program. Returns KiB per instance.
///
/// # Errors
/// When the process fails.
pub fn measure(kind: Kind<'_>) -> Result<f64> {
    let program = std::env::current_exe().context("cannot find this program's file")?;
    let mut command = Command::new(program);
    command.arg(CHILD);
    if let Kind::Cell(image) = kind {
        command.arg(image);
    }
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start the measuring process")?;
    ensure!(output.status.success(), "the measuring process failed");
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().parse().with_context(|| format!("the measuring process printed {text:?}"))
}

/// The measuring process: prints KiB per instance.
///
/// # Errors
/// When an instance cannot be made.
pub fn child(kind: Kind<'_>) -> Result<()> {
    let per_instance = match kind {
        Kind::Floor => {
            let mut floor = Floor::open()?;
            per_instance(|| floor.launch())?
        }
        Kind::Cell(image) => {
            let mut cell = launch::Cell::open(image)?;
            per_instance(|| Ok(cell.launch(&["idle"])?.0))?
        }
    };
    println!("{per_instance}");
    Ok(())
}

fn per_instance<T>(mut make: impl FnMut() -> Result<T>) -> Result<f64> {
    let first = make()?;
    let mut instances = Vec::with_capacity(INSTANCES);
    let before = settled_kib()?;
    for _ in 0..INSTANCES {
        instances.push(make()?);
    }
    let after = settled_kib()?;
    drop((first, instances));
    Ok((after as f64 - before as f64) / INSTANCES as f64)
}

/// What is in use once it no longer changes: the kernel frees what an earlier process held some time after its end.
/// On a machine that never rests, what it is after two seconds.
fn settled_kib() -> Result<i64> {
    const STEP: Duration = Duration::from_millis(100);
    const CALM_KIB: i64 = 256;
    let mut last = used_kib()?;
    for _ in 0..20 {
        thread::sleep(STEP);
        let now = used_kib()?;
        if (now - last).abs() <= CALM_KIB {
            return Ok(now);
        }
        last = now;
    }
    Ok(last)
}

/// KiB in use: all of the machine's memory but what is free, file caches, and what other processes have of their own
/// (whose coming and going would drown the difference).
///
/// Free is also what lies in the processors' private lists, which the usual count of free memory leaves out: with many
/// machines made and ended these hold more than a hundred MiB. Reclaimable slabs count as used, because
/// what KVM takes of them (its debug files) cannot be reclaimed while the VM lives.
fn used_kib() -> Result<i64> {
    let all = all_kib()?;
    let machine = Fields::read("/proc/meminfo")?;
    let this = Fields::read("/proc/self/status")?;
    let processes = machine.get("AnonPages")? + machine.get("PageTables")?;
    let own = this.get("RssAnon")? + this.get("VmPTE")?;
    Ok(all - processes + own)
}

/// What the whole machine has in use, processes included, KiB.
#[derive(Clone, Copy, Debug)]
pub struct Used {
    /// All of it.
    pub total: i64,
    /// Of that, by [`COMPONENTS`].
    parts: [i64; COMPONENTS.len()],
}

/// Names of components, and what the kernel calls them in `/proc/meminfo`.
const COMPONENTS: [(&str, &[&str]); 6] = [
    ("guests_pages", &["Shmem"]),
    ("processes", &["AnonPages"]),
    ("page_tables", &["PageTables"]),
    ("kernel_objects", &["SUnreclaim", "SReclaimable"]),
    ("kernel_stacks", &["KernelStack"]),
    ("per_processor", &["Percpu"]),
];

impl Used {
    /// What is in use once it no longer changes much.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn now() -> Result<Used> {
        thread::sleep(Duration::from_millis(300));
        let total = all_kib()?;
        let machine = Fields::read("/proc/meminfo")?;
        let mut parts = [0; COMPONENTS.len()];
        for (part, (_, names)) in parts.iter_mut().zip(COMPONENTS) {
            *part = names.iter().map(|name| machine.get(name)).sum::<Result<_>>()?;
        }
        Ok(Used { total, parts })
    }

    /// The components of what came since `before`, each with its name. The last one is what the kernel took whole pages for and tells nobody about:
    /// KVM's shadow page tables and its pages for each virtual CPU are there.
    #[must_use]
    pub fn since(&self, before: &Used) -> Vec<(&'static str, i64)> {
        let parts = self.parts.iter().zip(before.parts).map(|(after, before)| after - before);
        let known: i64 = parts.clone().sum();
        let names = COMPONENTS.iter().map(|(name, _)| *name);
        names.zip(parts).chain([("kernel_pages", self.total - before.total - known)]).collect()
    }
}

/// KiB of the machine's memory but what is free and file caches.
fn all_kib() -> Result<i64> {
    // Counts are kept per processor and gathered once a second, unless somebody asks.
    fs::read("/proc/sys/vm/stat_refresh")
        .context("/proc/sys/vm/stat_refresh (memory is measured as root)")?;
    let machine = Fields::read("/proc/meminfo")?;
    let free = machine.get("MemFree")? + private_lists_kib()?;
    // Memory files count as cache, yet cannot be given up.
    let caches = machine.get("Buffers")? + machine.get("Cached")? - machine.get("Shmem")?;
    Ok(machine.get("MemTotal")? - free - caches)
}

/// KiB of free pages in the processors' private lists.
fn private_lists_kib() -> Result<i64> {
    let zones = fs::read_to_string("/proc/zoneinfo").context("/proc/zoneinfo")?;
    let pages =
        zones.lines().filter_map(|line| line.trim().strip_prefix("count:")?.trim().parse::<i64>().ok());
    Ok(pages.sum::<i64>() * 4)
}

/// A file of lines `name: n kB`.
struct Fields {
    file: &'static str,
    text: String,
}

impl Fields {
    fn read(file: &'static str) -> Result<Fields> {
        Ok(Fields { file, text: fs::read_to_string(file).context(file)? })
    }

    fn get(&self, name: &str) -> Result<i64> {
        self.text
            .lines()
            .find_map(|line| {
                line.strip_prefix(name)?.strip_prefix(':')?.trim().strip_suffix(" kB")?.parse().ok()
            })
            .with_context(|| format!("{} has no {name}", self.file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_touched_is_seen() {
        if fs::read("/proc/sys/vm/stat_refresh").is_err() {
            eprintln!("not root: not run");
            return;
        }
        // Instances that are nothing but memory cost what they are, give or take what the machine does meanwhile.
        let kib = per_instance(|| Ok(vec![1u8; 1 << 20])).unwrap();
        assert!((800.0..1400.0).contains(&kib), "{kib} KiB for an instance of 1024 KiB");
    }
}
