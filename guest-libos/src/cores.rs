//! Further cores, for computation: tasks and the network stay on core 0.
//!
//! What another core may use: memory, atomics, `print!`, time, randomness of its own, hypercalls, and wakers of
//! tasks (a channel's sender, for instance). Anything that belongs to core 0 panics.

use crate::hypercall::{self, Error};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use foraker_abi::{hypercall::resources, layout::MAX_CORES};

/// Low end of each core's stack; 0 for a core that was never started.
static STACKS: [AtomicUsize; MAX_CORES as usize] = [const { AtomicUsize::new(0) }; MAX_CORES as usize];

static STARTED: AtomicBool = AtomicBool::new(false);

/// Whether another core was ever started.
#[inline(always)]
pub(crate) fn started() -> bool {
    STARTED.load(Ordering::Relaxed)
}

/// Bytes of stack that [`start`] gives a core.
pub const STACK: usize = 64 << 10;

/// What a new core finds.
type Run = Box<dyn FnOnce() + Send>;

/// Number of cores that the guest may use, core 0 included.
#[must_use]
pub fn count() -> u32 {
    crate::registers().cores
}

/// Starts `core` (1 to `count() - 1`) with `run`; the core stops when `run` returns, and can be started again. Its
/// stack is [`STACK`] bytes of the heap, kept for the next start. To be called on core 0.
///
/// # Errors
/// [`Error::Invalid`] for a core that does not exist or runs; [`Error::Limit`] and others as the VMM answers.
pub fn start(core: u32, run: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    let Some(slot) = STACKS.get(core as usize).filter(|_| core != 0 && core < count()) else {
        return Err(Error::Invalid);
    };
    if !crate::core_local::on_core_0() {
        return Err(Error::Unsupported);
    }
    STARTED.store(true, Ordering::SeqCst);
    let mut stack = slot.load(Ordering::Relaxed);
    if stack == 0 {
        stack = Vec::<u128>::with_capacity(STACK / 16).leak().as_mut_ptr() as usize;
        slot.store(stack, Ordering::Relaxed);
    }
    let top = (stack + STACK) as u64;
    let run: *mut Run = Box::into_raw(Box::new(Box::new(run)));
    // SAFETY: `enter` is code for just this; the stack is the core's own, and the VMM refuses if the core runs on it.
    let result = unsafe {
        hypercall::resources(
            resources::CORE_START,
            u64::from(core),
            enter as *const () as u64,
            top,
            run as u64,
        )
    };
    if result.is_err() {
        // SAFETY: the core did not start, so the box is still this function's.
        drop(unsafe { Box::from_raw(run) });
    }
    result.map(drop)
}

/// Raises the interrupt `WAKE` on `core`.
///
/// # Errors
/// As the VMM answers.
pub fn wake(core: u32) -> Result<(), Error> {
    // SAFETY: changes one pending bit.
    unsafe { hypercall::resources(resources::CORE_WAKE, u64::from(core), 0, 0, 0) }.map(drop)
}

/// The first instructions of another core: RDI holds the argument.
#[cfg(not(test))]
#[unsafe(naked)]
unsafe extern "C" fn enter() -> ! {
    core::arch::naked_asm!("xor ebp, ebp", "and rsp, -16", "call {run}", "ud2", run = sym run)
}

#[cfg(test)]
fn enter() {}

#[cfg(not(test))]
extern "C" fn run(run: *mut Run) -> ! {
    // SAFETY: `start` made this box for the new core.
    let run = unsafe { Box::from_raw(run) };
    run();
    loop {
        // SAFETY: ends this core; nothing of it is used afterwards.
        let _ = unsafe { hypercall::resources(resources::CORE_STOP, 0, 0, 0, 0) };
    }
}
