//! What cells weigh beside each other on the host's processors: a control group for each, so that a share means the same in every cell.
//!
//! Both versions of the interface are known. With the second, a group with processes of its own cannot weigh groups below it, so that the supervisor and its launcher have
//! to be alone in their group (or in the root); they then move to one below. Where that is not so, or nothing may be written, cells share the processors alike.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use foraker_policy::demand::{Asked, weights};

/// Where control groups are mounted on every Linux.
const MOUNT: &str = "/sys/fs/cgroup";
/// What a guest has that says nothing else, and what a cell weighs at least, so that whoever wakes up there is not the last.
const LEAST: u64 = foraker_policy::cpu::DEFAULT_SHARE as u64;

/// How weights are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    /// `cpu.shares`, 1024 by default.
    First,
    /// `cpu.weight`, 100 by default.
    Second,
}

/// Puts a process into a group.
fn join(group: &Path, process: u32) -> io::Result<()> {
    fs::write(group.join("cgroup.procs"), process.to_string())
}

/// The groups of this supervisor's cells.
#[derive(Debug)]
pub(crate) struct Weights {
    /// The group that holds them.
    parent: PathBuf,
    version: Version,
    /// What their names begin with.
    prefix: String,
    /// The group below their own that the supervisor and its launcher have moved to.
    moved: Option<PathBuf>,
    /// What each cell asks for.
    asked: Mutex<Vec<Asked>>,
    /// Thousandths of processors that there are.
    host: u64,
}

impl Weights {
    /// Finds out where this process may make groups. `processes` are the supervisor, by which they are named, and others that are no cells.
    ///
    /// # Errors
    /// Nowhere.
    pub(crate) fn of_processes(processes: &[u32]) -> io::Result<Weights> {
        Self::find(Path::new(MOUNT), &fs::read_to_string("/proc/self/cgroup")?, processes)
    }

    fn find(mount: &Path, groups: &str, processes: &[u32]) -> io::Result<Weights> {
        // `hierarchy:controllers:path`; hierarchy 0 is the second version's.
        let of = |wanted: &dyn Fn(&str, &str) -> bool| {
            groups.lines().find_map(|line| {
                let (hierarchy, rest) = line.split_once(':')?;
                let (controllers, path) = rest.split_once(':')?;
                wanted(hierarchy, controllers).then(|| path.trim_start_matches('/').to_owned())
            })
        };
        let prefix = format!("foraker-{}-", processes.first().copied().unwrap_or_default());
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
        let make = |parent, version| {
            let (asked, host) = (Mutex::default(), processors * 1000);
            Weights { parent, version, prefix: prefix.clone(), moved: None, asked, host }
        };
        let has_cpu = |_: &str, controllers: &str| controllers.split(',').any(|c| c == "cpu");
        let weights = if let Some(path) = of(&has_cpu) {
            let parent = mount.join("cpu").join(path);
            make(parent, Version::First)
        } else {
            let path = of(&|hierarchy, _| hierarchy == "0")
                .ok_or_else(|| io::Error::other("this process is in no control group"))?;
            let mut weights = make(mount.join(path), Version::Second);
            weights.delegate(processes)?;
            weights
        };
        weights.sweep();
        // Whether it may is known once it has tried.
        let first = weights.group(0);
        fs::create_dir(&first)?;
        Ok(weights)
    }

    /// Has the groups below this process's own be weighed.
    fn delegate(&mut self, processes: &[u32]) -> io::Result<()> {
        let enable = || fs::write(self.parent.join("cgroup.subtree_control"), "+cpu");
        let Err(busy) = enable() else { return Ok(()) };
        let below = self.parent.join(format!("{}supervisor", self.prefix));
        let moves = |to: &Path| processes.iter().try_for_each(|process| join(to, *process));
        fs::create_dir(&below)?;
        if moves(&below).and_then(|()| enable()).is_err() {
            let _ = moves(&self.parent);
            let _ = fs::remove_dir(&below);
            return Err(busy);
        }
        self.moved = Some(below);
        Ok(())
    }

    /// Removes groups of supervisors that were killed. Those with processes stay: the kernel says so.
    fn sweep(&self) {
        let Ok(entries) = fs::read_dir(&self.parent) else { return };
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with("foraker-")
                && self.moved.as_deref() != Some(&entry.path())
            {
                let _ = fs::remove_dir(entry.path());
            }
        }
    }

    fn group(&self, cell: usize) -> PathBuf {
        self.parent.join(format!("{}{cell}", self.prefix))
    }

    /// Puts a cell's process, just started, into its group.
    pub(crate) fn admit(&self, cell: usize, process: u32) {
        let group = self.group(cell);
        // It is there when the cell was started before.
        let _ = fs::create_dir(&group);
        if let Err(e) = join(&group, process) {
            log::warn!("cell {cell} is in no control group of its own: {e}");
        }
        self.set(cell, Asked::default());
    }

    /// What a cell's guests ask for has changed.
    pub(crate) fn set(&self, cell: usize, asks: Asked) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.len() <= cell {
            asked.resize(cell + 1, Asked::default());
        }
        let promised = |asked: &[Asked]| asked.iter().any(|cell| cell.promised > 0);
        let before = promised(&asked);
        asked[cell] = asks;
        // What is promised to one changes what all others have.
        let all = before || promised(&asked);
        for (other, weight) in weights(&asked, self.host).into_iter().enumerate() {
            if all || other == cell {
                self.weigh(other, weight);
            }
        }
    }

    fn weigh(&self, cell: usize, shares: u64) {
        let shares = shares.max(LEAST);
        let (file, weight) = match self.version {
            Version::First => ("cpu.shares", (shares.saturating_mul(1024) / LEAST).min(262_144)),
            Version::Second => ("cpu.weight", (shares.saturating_mul(100) / LEAST).min(10_000)),
        };
        if let Err(e) = fs::write(self.group(cell).join(file), weight.to_string()) {
            log::debug!("cell {cell} has no weight: {e}");
        }
    }

    /// Takes the groups away, when the cells are gone. `processes` are those that are no cells and still there.
    pub(crate) fn remove(&self, processes: impl Iterator<Item = u32>) {
        if let Some(below) = &self.moved {
            for process in processes {
                let _ = join(&self.parent, process);
            }
            let _ = fs::remove_dir(below);
        }
        let mine = |name: &str| name.starts_with(&self.prefix);
        let entries = fs::read_dir(&self.parent).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_name().to_str().is_some_and(mine)) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree like the kernel's, with ordinary files.
    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str) -> Tree {
            let path = std::env::temp_dir().join(format!("foraker-weights-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).unwrap();
            Tree(path)
        }

        fn text(&self, file: &str) -> String {
            fs::read_to_string(self.0.join(file)).unwrap()
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_first_version() {
        let tree = Tree::new("first");
        fs::create_dir_all(tree.0.join("cpu/here/foraker-1-0")).unwrap();
        let weights = Weights::find(&tree.0, "3:cpuset:/\n2:cpu,cpuacct:/here\n0::/\n", &[77, 78]).unwrap();
        assert!(!tree.0.join("cpu/here/foraker-1-0").exists(), "left by one that was killed");
        weights.admit(1, 4242);
        assert_eq!(tree.text("cpu/here/foraker-77-1/cgroup.procs"), "4242");
        assert_eq!(tree.text("cpu/here/foraker-77-1/cpu.shares"), "1024");
        for (shares, weight) in [(250, "2560"), (1, "1024"), (u64::MAX, "262144")] {
            weights.set(1, Asked { shares, promised: 0 });
            assert_eq!(tree.text("cpu/here/foraker-77-1/cpu.shares"), weight);
        }
        // What is promised to the guests of one cell weighs beside the shares of another.
        let weights = Weights { host: 2000, ..weights };
        weights.set(1, Asked { shares: 300, promised: 0 });
        weights.admit(0, 4243);
        weights.set(0, Asked { shares: 100, promised: 1000 });
        assert_eq!(tree.text("cpu/here/foraker-77-0/cpu.shares"), "5120");
        assert_eq!(tree.text("cpu/here/foraker-77-1/cpu.shares"), "3072");
        weights.set(0, Asked { shares: 100, promised: 0 });
        assert_eq!(tree.text("cpu/here/foraker-77-0/cpu.shares"), "1024");
    }

    #[test]
    fn the_second_version() {
        let tree = Tree::new("second");
        fs::create_dir_all(tree.0.join("slice")).unwrap();
        let weights = Weights::find(&tree.0, "0::/slice\n", &[77, 78]).unwrap();
        assert_eq!(tree.text("slice/cgroup.subtree_control"), "+cpu");
        weights.admit(0, 4242);
        assert_eq!(tree.text("slice/foraker-77-0/cpu.weight"), "100");
        weights.set(0, Asked { shares: 30_000, promised: 0 });
        assert_eq!(tree.text("slice/foraker-77-0/cpu.weight"), "10000");
    }

    #[test]
    fn where_nothing_may_be_written() {
        let tree = Tree::new("none");
        assert!(Weights::find(&tree.0, "0::/elsewhere\n", &[77, 78]).is_err());
        assert!(Weights::find(&tree.0, "", &[77, 78]).is_err());
        assert!(!tree.0.join("elsewhere").exists());
    }
}
