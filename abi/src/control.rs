//! The control page: what the VMM and a guest both write, one slot of 64 bytes for each core.
//!
//! The VMM trusts nothing in it: it sets bits in `pending`, and reads the upcall fields once at an entry.

use core::sync::atomic::{AtomicU32, AtomicU64};

/// One core's slot.
///
/// **Upcalls.** When `upcall_enabled` is 1 and `pending & upcall_mask` is not 0, the VMM enters the guest at
/// `upcall_handler` at its next entry of that core (after an exit, a preemption or a wake-up), having set
/// `upcall_enabled` to 0 and pushed, below the 128-byte red zone: RIP, then RFLAGS (RSP points to RFLAGS). The handler saves what it uses,
/// takes the pending bits, sets `upcall_enabled` to 1 and returns with `popfq; ret 128`; only RSP, RIP and the
/// direction, trap and alignment flags differ at its first instruction.
///
/// **Awaited acknowledgements.** Most of what a quiet server hears is that its last answer has arrived: a TCP segment without data that nobody waits for,
/// and that would wake the guest for as long as the answer took. Before it idles, a guest may say which one it expects; when that comes from
/// the host, it lies in the receive ring like any frame, but raises no interrupt, and the core rests on until `awaited_until`. Core 0's slot counts.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct CoreControl {
    /// Pending interrupts (see [`crate::interrupt`]). The VMM sets bits; the guest takes them all with an exchange.
    pub pending: AtomicU64,
    /// Which interrupts cause an upcall.
    pub upcall_mask: AtomicU64,
    /// Where an upcall enters.
    pub upcall_handler: AtomicU64,
    /// 1 when upcalls may be delivered. Cleared by the VMM at delivery.
    pub upcall_enabled: AtomicU32,
    /// Not used; 0.
    pub reserved0: AtomicU32,
    /// The acknowledgement that is no reason to wake the guest: the remote port in bits 48 to 63, the local one in bits 32 to 47, the
    /// acknowledgement number below; 0 for none. One that has any flag but ACK, or data, is another.
    pub awaited: AtomicU64,
    /// Until when the core rests once it has come (guest time in nanoseconds, `u64::MAX` for no deadline): what holds then instead of the
    /// deadline of `idle`, which is most likely there to send the answer again.
    pub awaited_until: AtomicU64,
    /// Not used; 0.
    pub reserved1: [u64; 2],
}

/// The value of [`CoreControl::awaited`] for an acknowledgement.
#[must_use]
pub const fn awaited(remote_port: u16, local_port: u16, number: u32) -> u64 {
    (remote_port as u64) << 48 | (local_port as u64) << 32 | number as u64
}

/// Bytes below RSP that an upcall leaves alone, as the System V ABI promises to leaf functions.
pub const RED_ZONE: u64 = 128;

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<CoreControl>() == 64);
    assert!(offset_of!(CoreControl, pending) == 0);
    assert!(offset_of!(CoreControl, upcall_mask) == 8);
    assert!(offset_of!(CoreControl, upcall_handler) == 16);
    assert!(offset_of!(CoreControl, upcall_enabled) == 24);
    assert!(offset_of!(CoreControl, awaited) == 32);
    assert!(offset_of!(CoreControl, awaited_until) == 40);
};
