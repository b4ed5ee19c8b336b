//! Ctrl-C and its kin, as something to wait for.
//!
//! They are blocked in all threads, and let in only while the one that waits for them sleeps. A descriptor of signals (`signalfd`) would do, too, but whoever
//! polls one is woken by every signal of the process, those by which workers are called out of guests among them.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use vmm_sys_util::signal::register_signal_handler;

/// Signals that came and that nobody has heard of.
static CAME: AtomicU32 = AtomicU32::new(0);

extern "C" fn on_signal(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    CAME.fetch_add(1, Ordering::SeqCst);
}

/// SIGINT, SIGTERM and SIGHUP, which interrupt nobody but who waits for them.
pub(crate) struct Signals {
    /// What the thread blocked before.
    before: libc::sigset_t,
}

impl Signals {
    /// Takes the signals over for this thread and all that it starts later: call it first.
    pub(crate) fn take() -> std::io::Result<Signals> {
        // SAFETY: all-zero is a valid value of the set, which `sigemptyset` then initialises.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: a valid set.
        unsafe { libc::sigemptyset(&raw mut set) };
        let mut before = set;
        let ours = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];
        for signal in ours {
            // SAFETY: a valid set and signal.
            unsafe { libc::sigaddset(&raw mut set, signal) };
        }
        // SAFETY: two valid sets.
        let refused = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, &raw mut before) };
        if refused != 0 {
            return Err(std::io::Error::from_raw_os_error(refused));
        }
        for signal in ours {
            // Whoever started this may have blocked them.
            // SAFETY: a valid set and signal.
            unsafe { libc::sigdelset(&raw mut before, signal) };
            register_signal_handler(signal, on_signal)
                .map_err(|e| std::io::Error::from_raw_os_error(e.errno()))?;
        }
        Ok(Signals { before })
    }

    /// Waits for a signal, for `other` to become readable, or for `timeout`. Returns whether a signal came.
    pub(crate) fn wait(&self, other: &impl AsRawFd, timeout: Option<Duration>) -> bool {
        let mut poll = libc::pollfd { fd: other.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let spec = timeout.map(|t| libc::timespec {
            tv_sec: libc::time_t::try_from(t.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: libc::c_long::from(t.subsec_nanos()),
        });
        let spec = spec.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        if CAME.load(Ordering::SeqCst) == 0 {
            // SAFETY: the entry, the time and the set are valid for the call. A signal that comes before it waits, and ends it at once.
            unsafe { libc::ppoll(&raw mut poll, 1, spec, &raw const self.before) };
        }
        CAME.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |came| came.checked_sub(1)).is_ok()
    }
}
