//! Children that are confined and then try what they may not.
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part, and shows none of it")]

use std::path::PathBuf;

use foraker_confine::{Files, begin};

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With this status.
    Exit(i32),
    /// By this signal.
    Signal(i32),
}

/// The filter's answer to what is not in the table.
pub const KILLED: End = End::Signal(libc::SIGSYS);

/// A child says this when a call came back that should not have.
pub const CAME_BACK: i32 = 91;

/// Runs `child` in a process of its own, which ends with what it returns, or after ten seconds.
pub fn in_child(child: impl FnOnce() -> i32) -> End {
    // SAFETY: the child goes on with this thread alone; whatever lock another thread of the tests held is not taken there, as nothing is printed.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "{}", std::io::Error::last_os_error());
    if pid == 0 {
        // SAFETY: a call with a number.
        unsafe { libc::alarm(10) };
        let status = child();
        // SAFETY: ends the child without the parent's handlers.
        unsafe { libc::_exit(status) };
    }
    wait(pid)
}

/// Waits for the end of a child.
pub fn wait(pid: i32) -> End {
    let mut status = 0;
    // SAFETY: a child of this process, and a valid place for its status.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    if libc::WIFSIGNALED(status) {
        End::Signal(libc::WTERMSIG(status))
    } else {
        End::Exit(libc::WEXITSTATUS(status))
    }
}

/// Begins to confine the calling process, which may read these.
pub fn begin_reading(images: &[PathBuf]) {
    begin(Files { images: images.to_vec(), written: Vec::new() }).expect("begun");
}

/// A system call with the same argument six times.
pub fn call(number: i64, argument: i64) -> i64 {
    // SAFETY: the tests' arguments are no valid pointers, so that the kernel reads and writes nothing.
    unsafe { libc::syscall(number, argument, argument, argument, argument, argument, argument) }
}

/// The number of the last error.
pub fn error() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}
