//! The pages that the guest shares with the VMM: virtual registers (read only) and the control page.

use core::sync::atomic::Ordering;
#[cfg(not(test))]
use foraker_abi::{control::CoreControl, registers::Registers};

/// The virtual registers.
#[cfg(not(test))]
#[inline(always)]
#[must_use]
pub fn registers() -> &'static Registers {
    // SAFETY: the VMM maps this page before the first instruction and for the guest's whole life. Fields that change
    // while the guest runs are atomics, but for `entropy`, which `entropy()` reads as volatile.
    unsafe { &*(foraker_abi::layout::REGISTERS as *const Registers) }
}

/// The control slot of core 0.
#[cfg(not(test))]
#[inline(always)]
#[must_use]
pub fn control() -> &'static CoreControl {
    // SAFETY: mapped for the guest's whole life; every field is an atomic.
    unsafe { &*(foraker_abi::layout::CONTROL as *const CoreControl) }
}

#[cfg(test)]
pub use crate::testing::{control, registers};

/// Fresh random bytes of this incarnation.
#[must_use]
pub fn entropy() -> [u8; 32] {
    let field = &raw const registers().entropy;
    // SAFETY: part of the register page; volatile because the VMM writes it anew at a restore.
    unsafe { field.read_volatile() }
}

/// The number that changes at each launch, restore or clone.
#[inline]
#[must_use]
pub fn incarnation() -> u64 {
    registers().incarnation.load(Ordering::Acquire)
}
