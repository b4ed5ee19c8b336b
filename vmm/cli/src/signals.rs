//! Ctrl-C and its kin, as something to wait for.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// SIGINT, SIGTERM and SIGHUP, read from a descriptor instead of interrupting threads.
#[derive(Debug)]
pub(crate) struct Signals(OwnedFd);

impl Signals {
    /// Takes the signals over for this thread and all that it starts later: call it first.
    pub(crate) fn take() -> std::io::Result<Signals> {
        // SAFETY: all-zero is a valid value of the set, which `sigemptyset` then initialises.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: a valid set.
        unsafe { libc::sigemptyset(&raw mut set) };
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            // SAFETY: a valid set and signal.
            unsafe { libc::sigaddset(&raw mut set, signal) };
        }
        // SAFETY: a valid set; the old mask is not wanted.
        let refused = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if refused != 0 {
            return Err(std::io::Error::from_raw_os_error(refused));
        }
        // SAFETY: a valid set; a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and belongs to nobody else.
        Ok(Signals(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Waits for a signal, for `other` to become readable, or for `timeout`. Returns whether a signal came.
    pub(crate) fn wait(&self, other: &impl AsRawFd, timeout: Option<Duration>) -> bool {
        let entry = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut polls = [entry(self.0.as_raw_fd()), entry(other.as_raw_fd())];
        let spec = timeout.map(|t| libc::timespec {
            tv_sec: libc::time_t::try_from(t.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: libc::c_long::from(t.subsec_nanos()),
        });
        let spec = spec.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: the array and the time are valid for the call.
        unsafe { libc::ppoll(polls.as_mut_ptr(), 2, spec, std::ptr::null()) };
        if polls[0].revents == 0 {
            return false;
        }
        let mut information = [0u8; size_of::<libc::signalfd_siginfo>()];
        // SAFETY: the buffer is valid for the call.
        unsafe { libc::read(self.0.as_raw_fd(), information.as_mut_ptr().cast(), information.len()) > 0 }
    }
}
