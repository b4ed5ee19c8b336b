//! Interrupts by look: taking the pending bits without an exit.

use core::sync::atomic::{AtomicU64, Ordering};

pub use foraker_abi::interrupt::{ALL, BLOCK, NET_RX, NET_TX, PREEMPT, STOP, TIMER, WAKE};

/// Bits that an upcall's handler took, for the executor to see.
pub(crate) static TAKEN_BY_UPCALL: AtomicU64 = AtomicU64::new(0);

/// Takes all pending interrupts of core 0. Costs a load when there are none.
///
/// A program that runs the executor leaves this to it.
#[inline]
pub fn take() -> u64 {
    let pending = &crate::registers::control().pending;
    let mut bits = 0;
    if pending.load(Ordering::Relaxed) != 0 {
        bits = pending.swap(0, Ordering::AcqRel);
    }
    if TAKEN_BY_UPCALL.load(Ordering::Relaxed) != 0 {
        bits |= TAKEN_BY_UPCALL.swap(0, Ordering::AcqRel);
    }
    bits
}

/// The pending interrupts of core 0, left where they are.
#[inline]
#[must_use]
pub fn pending() -> u64 {
    crate::registers::control().pending.load(Ordering::Acquire) | TAKEN_BY_UPCALL.load(Ordering::Relaxed)
}
