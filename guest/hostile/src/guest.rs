//! What the cases know of the guest that they run in.

use foraker_abi::control::CoreControl;
use foraker_abi::layout;
pub(crate) use guest_libos::registers;

/// Bytes of core 0's stack, as the image's note asks.
pub(crate) const STACK: u64 = 64 << 10;

/// Lowest address of the stack; the page below is the guard.
pub(crate) fn stack_bottom() -> u64 {
    registers().memory_start
}

/// A core's slot of the control page.
pub(crate) fn control(core: u64) -> &'static CoreControl {
    let address = layout::CONTROL + core * size_of::<CoreControl>() as u64;
    // SAFETY: the page is mapped for the guest's whole life, has a slot for each of `MAX_CORES`, and all fields are
    // atomics.
    unsafe { &*(address as *const CoreControl) }
}

/// A hypercall with any number and any arguments.
pub(crate) fn call(number: u64, arguments: [u64; 5]) -> i64 {
    let [a, b, c, d, e] = arguments;
    // SAFETY: misbehaving is the purpose; callers give no range that this program uses unless that is the case.
    unsafe { guest_libos::hypercall::raw(number, a, b, c, d, e) }
}

/// Writes a byte at an address that may be anything.
pub(crate) fn poke(address: u64, byte: u8) {
    // SAFETY: callers choose addresses that no Rust object lives at.
    unsafe { (address as *mut u8).write_volatile(byte) };
}

/// Reads a byte at an address that may be anything.
pub(crate) fn peek(address: u64) -> u8 {
    // SAFETY: a read of memory that is mapped or faults.
    unsafe { (address as *const u8).read_volatile() }
}
