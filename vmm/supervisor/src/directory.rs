//! The state directory: one supervisor at a time, and no cells of it while those of an earlier one are still there.
//!
//! Both are told by locks that the kernel lets go when a process ends, however it ends (flock(2)). The supervisor has an open file with a shared lock, its *mark*,
//! which its launcher and each cell inherit; a supervisor that finds the lock starts no cell until the last copy is gone, because those cells still have their TAP
//! devices and ports. It serves its clients meanwhile: thousands of machines take seconds to be taken apart. The launcher waits for its cells, so
//! that its copy is there until they are gone altogether; a cell's own, which may be closed before its TAP device is, is for when somebody ends the launcher as well.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::store::StoreError;

/// The state directory, this process' own.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    _own: File,
    mark: File,
    /// No cell of an earlier supervisor has a mark any more.
    vacant: Mutex<bool>,
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
    /// Makes it, for this user alone, if it is not there, and takes it.
    ///
    /// # Errors
    /// Another supervisor has it, or the file system says no.
    pub fn open(path: &Path) -> Result<Directory, StoreError> {
        let failed = |source| StoreError::Directory { path: path.to_path_buf(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        let own = open(&path.join("lock")).map_err(failed)?;
        if !lock(&own, libc::LOCK_EX).map_err(failed)? {
            return Err(StoreError::InUse(path.to_path_buf()));
        }
        let mark = open(&path.join("cells.lock")).map_err(failed)?;
        // SAFETY: an open descriptor.
        if unsafe { libc::fcntl(mark.as_raw_fd(), libc::F_SETFD, 0) } < 0 {
            return Err(failed(io::Error::last_os_error()));
        }
        Ok(Directory { path: path.to_path_buf(), _own: own, mark, vacant: Mutex::new(false) })
    }

    /// Whether the cells of an earlier supervisor are gone. Once they are, the mark says that this one's are there.
    pub(crate) fn is_vacant(&self) -> io::Result<bool> {
        let mut vacant = self.vacant.lock().unwrap_or_else(PoisonError::into_inner);
        if !*vacant && lock(&self.mark, libc::LOCK_EX)? {
            // Nobody else can have it meanwhile, as the first lock is needed for that.
            *vacant = lock(&self.mark, libc::LOCK_SH)?;
        }
        Ok(*vacant)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::process::Stdio;
    use std::time::{Duration, Instant};

    use super::*;

    /// Takes it soon: a child may still have the first lock when the parent goes on, until its `exec` is through.
    pub(crate) fn soon(path: &Path) -> Directory {
        let since = Instant::now();
        loop {
            match Directory::open(path) {
                Err(StoreError::InUse(_)) if since.elapsed() < Duration::from_secs(10) => {}
                done => return done.unwrap(),
            }
        }
    }

    #[test]
    fn one_at_a_time_and_no_cells_before_the_last_ones_are_gone() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("deep/state");
        let first = Directory::open(&path).unwrap();
        assert!(first.is_vacant().unwrap());
        assert!(matches!(Directory::open(&path), Err(StoreError::InUse(_))));
        let mut cell = std::process::Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        drop(first);
        let second = soon(&path);
        assert_eq!(second.path(), path);
        assert!(!second.is_vacant().unwrap(), "its cell is still there");
        drop(cell.stdin.take());
        cell.wait().unwrap();
        assert!(second.is_vacant().unwrap());
        let mut cell = std::process::Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        assert!(second.is_vacant().unwrap(), "its own cells do not matter");
        drop(cell.stdin.take());
        cell.wait().unwrap();
    }
}
