//! The state directory: one supervisor at a time, and none while cells of an earlier one are still there.
//!
//! Both are told by locks that the kernel lets go when a process ends, however it ends (flock(2)). The supervisor has an open file with a shared lock, its *mark*,
//! of which each cell inherits a copy; a supervisor that finds the lock waits until the last copy is gone, because those cells still have their TAP devices and ports.
//! The mark is passed to the launcher with each request for a cell, so that there is no moment between the death of one and the start of the other without it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::store::StoreError;

/// How long cells of an earlier supervisor may take to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// The state directory, this process' own.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    _own: File,
    mark: File,
}

/// Makes it, for this user alone, if it is not there.
///
/// # Errors
/// The file system says no.
pub fn make(path: &Path) -> Result<(), StoreError> {
    let failed = |source| StoreError::Directory { path: path.to_path_buf(), source };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

fn lock(file: &File, operation: i32) -> io::Result<bool> {
    // SAFETY: an open descriptor.
    if unsafe { libc::flock(file.as_raw_fd(), operation | libc::LOCK_NB) } == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        e if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
        e => Err(e),
    }
}

impl Directory {
    /// Makes it if it is not there, and takes it.
    pub(crate) fn open(path: &Path) -> Result<Directory, StoreError> {
        make(path)?;
        let failed = |source| StoreError::Directory { path: path.to_path_buf(), source };
        let own = open(&path.join("lock")).map_err(failed)?;
        if !lock(&own, libc::LOCK_EX).map_err(failed)? {
            return Err(StoreError::InUse(path.to_path_buf()));
        }
        let mark = open(&path.join("cells.lock")).map_err(failed)?;
        let since = Instant::now();
        while !lock(&mark, libc::LOCK_EX).map_err(failed)? {
            if since.elapsed() > PATIENCE {
                let text = "cells of an earlier supervisor do not end: see `ps -C vmm`";
                return Err(failed(io::Error::other(text)));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        // Shared from now on; nobody else can have it meanwhile, as the first lock is needed for that.
        lock(&mark, libc::LOCK_SH).map_err(failed)?;
        Ok(Directory { path: path.to_path_buf(), _own: own, mark })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What each cell is to inherit.
    pub(crate) fn mark(&self) -> BorrowedFd<'_> {
        self.mark.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_not_before_the_cells_are_gone() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("deep/state");
        let first = Directory::open(&path).unwrap();
        assert!(matches!(Directory::open(&path), Err(StoreError::InUse(_))));
        let mark = first.mark().try_clone_to_owned().unwrap();
        let mut child = std::process::Command::new("sleep").arg("0.3").stdin(mark).spawn().unwrap();
        let since = Instant::now();
        drop(first);
        let second = Directory::open(&path).unwrap();
        assert!(since.elapsed() > Duration::from_millis(150), "it waited for the child");
        assert_eq!(second.path(), path);
        child.wait().unwrap();
    }
}
