//! How much of its memory the guest has: it gives back what it does not need, others have it meanwhile, and what is provisioned for the guest comes back
//! when it asks.

use core::cell::{Cell, RefCell};
use core::future::poll_fn;
use core::sync::atomic::Ordering;
use core::task::{Poll, Waker};

use foraker_abi::hypercall::{MEMORY_MAX, resources};
use foraker_abi::layout::PAGE_SIZE;

use crate::core_local::core_local;
use crate::hypercall::{Error, resources as call};

struct Requests {
    /// How often something was decided.
    decided: Cell<u64>,
    waiting: RefCell<Option<Waker>>,
}

core_local! {
    static REQUESTS: Requests = Requests { decided: Cell::new(0), waiting: RefCell::new(None) };
}

/// Bytes of memory that the guest has, of the `memory_size` in the virtual registers.
#[inline]
#[must_use]
pub fn allocated() -> u64 {
    crate::registers().resources.memory_allocated.load(Ordering::Acquire)
}

/// Where the heap ends now.
pub(crate) fn end() -> u64 {
    let registers = crate::registers();
    registers.memory_end.saturating_sub(registers.memory_size.saturating_sub(allocated()))
}

/// Gives back all of the heap that was never used, but for `keep` bytes of it. Returns how much the guest has then.
///
/// # Errors
/// [`Error::Limit`] for more than 16 calls a second or while something is asked for, [`Error::Unsupported`] for a guest with large pages. A part may have been
/// given back.
pub fn give_back_unused(keep: u64) -> Result<u64, Error> {
    let unused = crate::heap::unused().saturating_sub(keep) / PAGE_SIZE * PAGE_SIZE;
    let least = allocated().saturating_sub(unused);
    while allocated() > least {
        let next = least.max(allocated().saturating_sub(MEMORY_MAX));
        // SAFETY: what is given back was never given to the allocator, which takes nothing beyond what the guest has.
        unsafe { call(resources::MEMORY, next, 0, 0, 0) }?;
    }
    Ok(allocated())
}

/// Asks to have `bytes` of memory, whole pages, and waits for the answer: whether they are there. What is provisioned always is, after a moment.
///
/// # Errors
/// [`Error::Invalid`] for more than the guest's size or less than it has, and as [`give_back_unused`].
pub async fn request(bytes: u64) -> Result<bool, Error> {
    if bytes < allocated() {
        return Err(Error::Invalid);
    }
    if bytes == allocated() {
        return Ok(true);
    }
    let before = REQUESTS.with(|requests| requests.decided.get());
    // SAFETY: more memory than before.
    unsafe { call(resources::MEMORY, bytes, 0, 0, 0) }?;
    poll_fn(|context| {
        REQUESTS.with(|requests| {
            if requests.decided.get() != before {
                return Poll::Ready(());
            }
            *requests.waiting.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
    })
    .await;
    Ok(allocated() >= bytes)
}

/// Something was decided.
pub(crate) fn interrupted() {
    let waker = REQUESTS.with(|requests| {
        requests.decided.set(requests.decided.get() + 1);
        requests.waiting.borrow_mut().take()
    });
    if let Some(waker) = waker {
        waker.wake();
    }
}
