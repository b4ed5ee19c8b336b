//! Interrupts by look: taking the pending bits without an exit.

use core::sync::atomic::{AtomicU64, Ordering};

pub use foraker_abi::interrupt::{ALL, BLOCK, NET_RX, NET_TX, PREEMPT, RESOURCES, STOP, TIMER, WAKE};

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

/// Says for which acknowledgement core 0 is not to be woken (0 for none), and until when it rests once that has come.
#[inline]
pub(crate) fn do_without(awaited: u64, until: u64) {
    let control = crate::registers::control();
    // Another one has to be cleared, before its deadline goes.
    if control.awaited.load(Ordering::Relaxed) != awaited {
        control.awaited.store(0, Ordering::Release);
    }
    if awaited != 0 {
        control.awaited_until.store(until, Ordering::Release);
        control.awaited.store(awaited, Ordering::Release);
    }
}
