//! Calling a thread out of the guest that it runs.
//!
//! A thread that is about to enter a guest says so, then looks at its flag; whoever wants it sets the flag, then looks whether it is
//! in a guest, and only then pays for a signal. The handler sets the flag and `immediate_exit` of the `kvm_run` page in use, so that a signal that comes
//! between the look and the entry is not lost either.

use std::cell::Cell;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU32, Ordering};
use std::time::Duration;

use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

thread_local! {
    static MINE: Cell<*const Attention> = const { Cell::new(ptr::null()) };
    static IMMEDIATE_EXIT: Cell<*const AtomicU8> = const { Cell::new(ptr::null()) };
}

/// One thread's flag: somebody wants it.
#[derive(Debug, Default)]
pub struct Attention {
    wanted: AtomicBool,
    in_guest: AtomicBool,
    thread: AtomicI32,
    processor: AtomicU32,
}

extern "C" fn on_signal(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let mine = MINE.get();
    // SAFETY: null, or set by `Attention::adopt` to a value that lives as long as the process.
    if let Some(attention) = unsafe { mine.as_ref() } {
        attention.wanted.store(true, Ordering::SeqCst);
    }
    let exit = IMMEDIATE_EXIT.get();
    // SAFETY: null, or set by `Attention::enter` to a byte that stays mapped until `enter` clears the pointer.
    if let Some(byte) = unsafe { exit.as_ref() } {
        byte.store(1, Ordering::SeqCst);
    }
}

/// The signal that means "leave the guest".
fn signal() -> libc::c_int {
    SIGRTMIN()
}

impl Attention {
    /// Makes this the flag of the calling thread. Lives as long as the process, because a signal may come at any time.
    ///
    /// # Errors
    /// The handler cannot be installed.
    pub fn adopt(&'static self) -> std::io::Result<()> {
        register_signal_handler(signal(), on_signal)
            .map_err(|e| std::io::Error::from_raw_os_error(e.errno()))?;
        // SAFETY: a system call without arguments that cannot fail.
        let thread = unsafe { libc::gettid() };
        self.thread.store(thread, Ordering::SeqCst);
        MINE.set(self);
        Ok(())
    }

    /// Calls the thread out of its guest, or keeps it from entering one.
    pub fn call(&self) {
        if !self.wanted.swap(true, Ordering::SeqCst) && self.in_guest.load(Ordering::SeqCst) {
            // SAFETY: sends a signal whose handler is installed to a thread of this process.
            unsafe {
                libc::syscall(libc::SYS_tgkill, libc::getpid(), self.thread.load(Ordering::SeqCst), signal())
            };
        }
    }

    /// Whether somebody called since the last time, and forgets it.
    pub fn take(&self) -> bool {
        self.wanted.load(Ordering::Relaxed) && self.wanted.swap(false, Ordering::SeqCst)
    }

    /// Whether this is the calling thread's.
    #[must_use]
    pub fn is_mine(&self) -> bool {
        ptr::eq(MINE.get(), self)
    }

    /// Whether the thread is in a guest.
    #[must_use]
    pub fn in_guest(&self) -> bool {
        self.in_guest.load(Ordering::SeqCst)
    }

    /// The thread's id; 0 before it has adopted this.
    #[must_use]
    pub fn thread(&self) -> i32 {
        self.thread.load(Ordering::Relaxed)
    }

    /// The processor on which the thread last entered a guest.
    #[must_use]
    pub fn processor(&self) -> usize {
        self.processor.load(Ordering::Relaxed) as usize
    }

    /// Runs `enter` unless somebody called; `None` when somebody did. `immediate_exit` is the byte of the `kvm_run` page.
    pub(crate) fn enter<T>(&self, immediate_exit: &AtomicU8, enter: impl FnOnce() -> T) -> Option<T> {
        // SAFETY: a call without arguments.
        let processor = unsafe { libc::sched_getcpu() };
        self.processor.store(u32::try_from(processor).unwrap_or(0), Ordering::Relaxed);
        IMMEDIATE_EXIT.set(immediate_exit);
        self.in_guest.store(true, Ordering::SeqCst);
        let result = if self.wanted.load(Ordering::SeqCst) { None } else { Some(enter()) };
        self.in_guest.store(false, Ordering::SeqCst);
        IMMEDIATE_EXIT.set(ptr::null());
        immediate_exit.store(0, Ordering::Relaxed);
        result
    }
}

/// A timer that calls the thread that made it.
#[derive(Debug)]
pub struct Alarm {
    timer: libc::timer_t,
    armed: bool,
}

// SAFETY: a timer's id means the same in every thread of the process.
unsafe impl Send for Alarm {}

impl Alarm {
    /// Makes a timer for the calling thread, which must have adopted an [`Attention`].
    ///
    /// # Errors
    /// The host has no timer to give.
    pub fn new() -> std::io::Result<Alarm> {
        // SAFETY: all-zero is a valid value of this plain structure.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = signal();
        // SAFETY: a system call without arguments that cannot fail.
        event.sigev_notify_thread_id = unsafe { libc::gettid() };
        let mut timer = ptr::null_mut();
        // SAFETY: both pointers are valid for the call.
        if unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(Alarm { timer, armed: false })
    }

    /// Calls the thread after `delay`; replaces what was set before.
    pub fn set(&mut self, delay: Duration) {
        self.armed = true;
        self.settime(delay.max(Duration::from_nanos(1)));
    }

    /// Calls nobody.
    pub fn clear(&mut self) {
        if self.armed {
            self.armed = false;
            self.settime(Duration::ZERO);
        }
    }

    fn settime(&self, delay: Duration) {
        let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let value = libc::timespec {
            tv_sec: libc::time_t::try_from(delay.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: libc::c_long::from(delay.subsec_nanos()),
        };
        let setting = libc::itimerspec { it_interval: zero, it_value: value };
        // SAFETY: the timer is ours and the setting valid for the call.
        unsafe { libc::timer_settime(self.timer, 0, &raw const setting, ptr::null_mut()) };
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        // SAFETY: the timer is ours and not used again.
        unsafe { libc::timer_delete(self.timer) };
    }
}
