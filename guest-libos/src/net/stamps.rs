//! When the driver last saw a frame in the receive ring, and last showed the VMM one in the transmit ring: for a guest
//! that measures the path of a packet. Off, a stamp costs one load.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

static ON: AtomicBool = AtomicBool::new(false);
static RECEIVED: AtomicU64 = AtomicU64::new(0);
static SENT: AtomicU64 = AtomicU64::new(0);

/// Stamps of the driver, by the time-stamp counter; 0 for none yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamps {
    /// It took a frame from the receive ring.
    pub received: u64,
    /// Frames stood in the transmit ring, and the VMM could see them.
    pub sent: u64,
}

/// Takes stamps from now on.
pub fn enable_stamps() {
    ON.store(true, Ordering::Relaxed);
}

/// The last stamps.
#[must_use]
pub fn stamps() -> Stamps {
    Stamps { received: RECEIVED.load(Ordering::Relaxed), sent: SENT.load(Ordering::Relaxed) }
}

#[inline(always)]
pub(super) fn received() {
    stamp(&RECEIVED);
}

#[inline(always)]
pub(super) fn sent() {
    stamp(&SENT);
}

#[inline(always)]
fn stamp(of: &AtomicU64) {
    if ON.load(Ordering::Relaxed) {
        of.store(crate::time::tsc(), Ordering::Relaxed);
    }
}
