//! Hypercalls: the only instruction by which a guest leaves itself. Numbers and arguments: [`foraker_abi::hypercall`].

use foraker_abi::hypercall as abi;

/// Why a hypercall did nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// No hypercall of this number.
    Unknown,
    /// An argument is outside its range.
    Invalid,
    /// An (address, length) pair is not within the guest's memory.
    Address,
    /// A limit of this guest is reached.
    Limit,
    /// Not offered by this VMM or to this guest.
    Unsupported,
    /// A code this version does not know.
    Other(i64),
}

impl core::fmt::Display for Error {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Error::Unknown => f.write_str("no such hypercall"),
            Error::Invalid => f.write_str("argument outside its range"),
            Error::Address => f.write_str("address outside the guest's memory"),
            Error::Limit => f.write_str("a limit is reached"),
            Error::Unsupported => f.write_str("not offered here"),
            Error::Other(code) => write!(f, "unknown error {code}"),
        }
    }
}

impl core::error::Error for Error {}

fn check(result: i64) -> Result<u64, Error> {
    match result {
        0.. => Ok(result.unsigned_abs()),
        abi::E_UNKNOWN => Err(Error::Unknown),
        abi::E_INVALID => Err(Error::Invalid),
        abi::E_ADDRESS => Err(Error::Address),
        abi::E_LIMIT => Err(Error::Limit),
        abi::E_UNSUPPORTED => Err(Error::Unsupported),
        code => Err(Error::Other(code)),
    }
}

/// Makes hypercall `number` with all five arguments, and returns RAX.
///
/// # Safety
/// Some calls change memory or start cores: the caller keeps to what [`foraker_abi::hypercall`] says of this number.
#[cfg(not(test))]
#[inline(always)]
pub unsafe fn raw(number: u64, a: u64, b: u64, c: u64, d: u64, e: u64) -> i64 {
    let result: i64;
    // SAFETY: only RAX changes (and memory, which is not declared untouched); flags and the stack stay as they are.
    unsafe {
        core::arch::asm!(
            "out {port}, al",
            port = const abi::PORT,
            inlateout("rax") number => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e,
            options(nostack, preserves_flags),
        );
    }
    result
}

/// A hypercall with at most two arguments; what the remaining registers hold does not matter.
///
/// # Safety
/// As for [`raw`].
#[cfg(not(test))]
#[inline(always)]
unsafe fn raw2(number: u64, a: u64, b: u64) -> i64 {
    let result: i64;
    // SAFETY: as in `raw`.
    unsafe {
        core::arch::asm!(
            "out {port}, al",
            port = const abi::PORT,
            inlateout("rax") number => result,
            in("rdi") a, in("rsi") b,
            options(nostack, preserves_flags),
        );
    }
    result
}

#[cfg(test)]
use crate::testing::hypercall as raw;

#[cfg(test)]
unsafe fn raw2(number: u64, a: u64, b: u64) -> i64 {
    // SAFETY: passed on.
    unsafe { raw(number, a, b, 0, 0, 0) }
}

/// Crosses to the VMM and back, and does nothing.
#[inline]
pub fn nop() {
    // SAFETY: the call does nothing.
    let _ = unsafe { raw2(abi::NOP, 0, 0) };
}

/// Has every ring served, then gives up the core until an interrupt is pending or `until` (guest time in
/// nanoseconds, `u64::MAX` for no deadline).
#[inline]
pub fn idle(until: u64) {
    // SAFETY: the VMM writes to buffers that the rings' owner gave away, and to nothing else.
    let _ = unsafe { raw2(abi::IDLE, until, 0) };
}

/// Lets another guest run.
#[inline]
pub fn yield_core() {
    // SAFETY: no memory is touched.
    let _ = unsafe { raw2(abi::YIELD, 0, 0) };
}

/// Ends the guest with `status`. Keep to 0..=119: the VMM's own command uses higher ones for its reports.
#[cfg_attr(not(test), inline)]
pub fn terminate(status: i32) -> ! {
    loop {
        // SAFETY: does not return; the loop says so to the compiler.
        let _ = unsafe { raw2(abi::TERMINATE, u64::from(status.cast_unsigned()), 0) };
    }
}

/// Writes bytes to the console; returns how many were taken, at most [`abi::CONSOLE_MAX`].
///
/// # Errors
/// [`Error::Limit`] when the console's rate limit is reached.
#[inline]
pub fn console(bytes: &[u8]) -> Result<usize, Error> {
    let length = bytes.len().min(4096);
    // SAFETY: the VMM reads `length` bytes of a slice that is borrowed for the time of the call.
    let taken = check(unsafe { raw2(abi::CONSOLE, bytes.as_ptr() as u64, length as u64) })?;
    Ok(usize::try_from(taken).map_or(length, |n| n.min(length)))
}

/// Has the rings of `devices` ([`abi::DEVICE_NET`], ...) served before it returns.
#[inline]
pub fn doorbell(devices: u64) {
    // SAFETY: as for `idle`.
    let _ = unsafe { raw2(abi::DOORBELL, devices, 0) };
}

/// Wakes whoever serves the rings, and returns before they are served: cheaper than [`doorbell`].
#[inline]
pub fn doorbell_async() {
    #[cfg(not(test))]
    // SAFETY: the port is wired to the doorbell; no register or flag changes.
    unsafe {
        core::arch::asm!("out {port}, al", port = const abi::DOORBELL_PORT, options(nostack, preserves_flags));
    }
    #[cfg(test)]
    crate::testing::doorbell_async();
}

/// Says that initialisation is done: others may start from here. Such a guest returns with its own addresses, arguments and entropy, and its network
/// uses them. Returns whether this is one.
pub fn ready() -> bool {
    // SAFETY: no memory is touched that the program can see.
    let again = unsafe { raw2(abi::READY, 0, 0) } == abi::READY_AGAIN;
    if again {
        crate::net::take_identity();
    }
    again
}

/// Gives advice on a page-aligned range of the guest's memory that loses no content: every operation of
/// [`abi::memory`] except [`abi::memory::DISCARD`].
///
/// # Errors
/// [`Error::Invalid`] for a range that is not page-aligned, for `DISCARD` and for an unknown operation; others as the VMM answers.
pub fn advise(operation: u64, address: u64, length: u64) -> Result<(), Error> {
    if operation == abi::memory::DISCARD {
        return Err(Error::Invalid);
    }
    // SAFETY: the remaining operations do not change content.
    check(unsafe { raw(abi::MEMORY, operation, address, length, 0, 0) }).map(drop)
}

/// Gives the content of a page-aligned range up: it reads as zeros and costs nothing until it is written again.
///
/// # Safety
/// Nothing that is in use may lie in the range.
///
/// # Errors
/// As the VMM answers.
pub unsafe fn discard(address: u64, length: u64) -> Result<(), Error> {
    // SAFETY: the caller's promise.
    check(unsafe { raw(abi::MEMORY, abi::memory::DISCARD, address, length, 0, 0) }).map(drop)
}

/// Asks for and gives back cores: the operations of [`abi::resources`].
///
/// # Safety
/// `CORE_START` runs code at any address on any stack: the caller vouches for both.
///
/// # Errors
/// As the VMM answers.
pub unsafe fn resources(operation: u64, a: u64, b: u64, c: u64, d: u64) -> Result<u64, Error> {
    // SAFETY: the caller's promise.
    check(unsafe { raw(abi::RESOURCES, operation, a, b, c, d) })
}
