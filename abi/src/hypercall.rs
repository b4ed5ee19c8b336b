//! Hypercalls: `out 0x7e, al`, the number in RAX, arguments in RDI, RSI, RDX, R10 and R8, the result in RAX.
//!
//! No other register and no flag changes. A negative result is one of the `E_*` codes. An unknown number or a
//! malformed argument is answered with a code; it never ends the guest. An argument that points to memory is an
//! (address, length) pair, checked against the guest's own memory.

/// The port of hypercalls. On it both kinds of KVM have advanced RIP past the instruction when the VMM sees it.
pub const PORT: u8 = 0x7e;
/// The port of the asynchronous doorbell: wakes whoever serves the rings, and returns before they are served.
pub const DOORBELL_PORT: u8 = 0x7c;
/// The port on which fault stubs report. To a guest it is a port like any other: using it is a fault.
pub const FAULT_PORT: u8 = 0x7d;

/// Does nothing. Measures the crossing.
pub const NOP: u64 = 0;
/// `idle(until)`: drains every ring, then gives up the core until an interrupt is pending or `until` has come
/// (guest time in nanoseconds; [`FOREVER`] for no deadline). Returns 0. Returns at once when one is pending.
pub const IDLE: u64 = 1;
/// `yield()`: lets another guest run. Returns 0.
pub const YIELD: u64 = 2;
/// `terminate(status)`: ends the guest. Does not return.
pub const TERMINATE: u64 = 3;
/// `console(address, length)`: writes to the console, at most [`CONSOLE_MAX`] bytes (more is [`E_INVALID`]). Returns the bytes taken.
pub const CONSOLE: u64 = 4;
/// `doorbell(devices)`: serves the rings of these devices ([`DEVICE_NET`], ...) before it returns 0.
pub const DOORBELL: u64 = 5;
/// `ready()`: initialisation is done; a template may be taken here. Returns 0, and [`READY_AGAIN`] in a guest that starts from such a template: its
/// identity, addresses, arguments, entropy and incarnation in the virtual registers are its own then, time goes on from where the template stood,
/// and its rings are as they were.
pub const READY: u64 = 6;
/// `memory(op, address, length)`: advice on a page-aligned range of the guest's memory. See [`memory`].
pub const MEMORY: u64 = 7;
/// `resources(op, a, b, c)`: asks for cores and memory and gives them back. See [`resources`].
pub const RESOURCES: u64 = 8;
/// Numbers from here on are unknown.
pub const COUNT: u64 = 9;
/// Result of [`READY`] in a guest that starts from a template.
pub const READY_AGAIN: i64 = 1;

/// `idle` without a deadline.
pub const FOREVER: u64 = u64::MAX;
/// Most bytes that one `console` call takes.
pub const CONSOLE_MAX: u64 = 4096;

/// Bit of the network device in `doorbell`'s mask.
pub const DEVICE_NET: u64 = 1 << 0;
/// Bit of the block device in `doorbell`'s mask (reserved).
pub const DEVICE_BLOCK: u64 = 1 << 1;

/// There is no hypercall of this number.
pub const E_UNKNOWN: i64 = -1;
/// An argument is outside its range.
pub const E_INVALID: i64 = -2;
/// An (address, length) pair is not within the guest's memory.
pub const E_ADDRESS: i64 = -3;
/// A limit of this guest is reached.
pub const E_LIMIT: i64 = -4;
/// This VMM or this guest's configuration does not offer it.
pub const E_UNSUPPORTED: i64 = -5;

/// Most bytes of a range that one `memory` call takes; more is [`E_LIMIT`].
pub const MEMORY_MAX: u64 = 64 << 20;

/// Operations of [`MEMORY`].
pub mod memory {
    /// The content is no longer needed: the pages read as zeros and cost nothing until they are written.
    pub const DISCARD: u64 = 0;
    /// Keep the pages resident.
    pub const PIN: u64 = 1;
    /// Undo [`PIN`].
    pub const UNPIN: u64 = 2;
    /// The pages will be needed soon.
    pub const WILL_NEED: u64 = 3;
    /// The pages will not be needed for some time.
    pub const COLD: u64 = 4;
}

/// Operations of [`RESOURCES`].
pub mod resources {
    /// `(core, entry, stack, argument)`: starts a stopped core at `entry` with RSP = `stack` and RDI = `argument`.
    pub const CORE_START: u64 = 0;
    /// Ends the calling core; it can be started again. Core 0 cannot stop.
    pub const CORE_STOP: u64 = 1;
    /// `(core)`: raises [`crate::interrupt::WAKE`] on another core.
    pub const CORE_WAKE: u64 = 2;
    /// `(bytes)`: wants to have so many bytes of its memory, whole pages, from all but the heap to `memory_size`. Less than it has: the end of the heap is given
    /// back at once, at most [`super::MEMORY_MAX`] bytes with one call; touching it is a fault from then on. More: it is asked for, and
    /// [`crate::interrupt::RESOURCES`] says that it was decided; what comes back reads as zeros. [`super::E_LIMIT`] while something is asked for, and for more
    /// than 16 changes a second; [`super::E_UNSUPPORTED`] for a guest with large pages.
    pub const MEMORY: u64 = 3;
}

const _: () = {
    // The I/O bitmap of a task state covers ports 0 to 0x7f.
    assert!(PORT < 0x80 && DOORBELL_PORT < 0x80 && FAULT_PORT < 0x80);
    assert!(PORT == 0x7e && DOORBELL_PORT == 0x7c && FAULT_PORT == 0x7d);
    assert!(NOP == 0 && IDLE == 1 && YIELD == 2 && TERMINATE == 3 && CONSOLE == 4 && DOORBELL == 5);
    assert!(READY == 6 && MEMORY == 7 && RESOURCES == 8 && COUNT == 9);
};
