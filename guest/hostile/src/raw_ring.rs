//! The rings as raw memory: every field can be set to anything.

use core::sync::atomic::{AtomicU16, Ordering, fence};

use foraker_abi::hypercall as hc;
use foraker_abi::layout::{NET_RX, NET_TX};
use foraker_abi::net::{HEADER_SIZE, Header};
use foraker_abi::ring::{AVAIL_OFFSET, DESC_OFFSET, Descriptor, QUEUE_SIZE, USED_OFFSET};

use crate::guest::call;

/// A ring at its fixed address.
#[derive(Clone, Copy)]
pub(crate) struct Ring {
    base: u64,
}

/// The ring on which the guest transmits.
pub(crate) const TX: Ring = Ring { base: NET_TX };
/// The ring on which it receives.
pub(crate) const RX: Ring = Ring { base: NET_RX };

impl Ring {
    fn word(self, offset: u64) -> &'static AtomicU16 {
        // SAFETY: rings are mapped for the guest's whole life, and callers stay within `RING_SIZE` at even offsets.
        unsafe { &*((self.base + offset) as *const AtomicU16) }
    }

    /// Writes a descriptor.
    pub(crate) fn describe(self, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        let place = (self.base + DESC_OFFSET + u64::from(index) * 16) as *mut Descriptor;
        // SAFETY: within the descriptor table, as all callers' indices are below `QUEUE_SIZE`.
        unsafe { place.write_volatile(Descriptor { address, length, flags, next }) };
    }

    /// The available ring's index.
    pub(crate) fn avail_index(self) -> &'static AtomicU16 {
        self.word(AVAIL_OFFSET + 2)
    }

    /// The used ring's index.
    pub(crate) fn used_index(self) -> &'static AtomicU16 {
        self.word(USED_OFFSET + 2)
    }

    /// Makes the chain that starts at `head` available.
    pub(crate) fn publish(self, head: u16) {
        let index = self.avail_index().load(Ordering::Relaxed);
        self.word(AVAIL_OFFSET + 4 + u64::from(index % QUEUE_SIZE) * 2).store(head, Ordering::Relaxed);
        fence(Ordering::Release);
        self.avail_index().store(index.wrapping_add(1), Ordering::Release);
    }

    /// Overwrites the used ring, index included.
    pub(crate) fn scribble_used(self, byte: u8) {
        for offset in 0..4 + u64::from(QUEUE_SIZE) * 8 {
            crate::guest::poke(self.base + USED_OFFSET + offset, byte);
        }
    }

    /// Overwrites the whole ring.
    pub(crate) fn scribble(self, mut byte: impl FnMut() -> u8) {
        for offset in 0..foraker_abi::ring::RING_SIZE {
            crate::guest::poke(self.base + offset, byte());
        }
    }
}

/// Has the rings served.
pub(crate) fn serve() -> i64 {
    call(hc::DOORBELL, [hc::DEVICE_NET, 0, 0, 0, 0])
}

/// Bytes of a [`Buffer`].
pub(crate) const BUFFER: usize = 4096;

/// Memory for frames.
#[repr(C, align(4096))]
pub(crate) struct Buffer(core::cell::UnsafeCell<[u8; BUFFER]>);

// SAFETY: cases run on one core; the VMM is the other side, and all accesses are volatile.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Zeros.
    pub(crate) const fn new() -> Self {
        Buffer(core::cell::UnsafeCell::new([0; BUFFER]))
    }

    /// Its address.
    pub(crate) fn address(&self) -> u64 {
        self.0.get() as u64
    }

    /// Puts a header and a frame into it; returns their length.
    pub(crate) fn fill(&self, header: Header, frame: &[u8]) -> u32 {
        let bytes = header.to_bytes().into_iter().chain(frame.iter().copied());
        let mut length = 0;
        for (at, byte) in (0u64..BUFFER as u64).zip(bytes) {
            crate::guest::poke(self.address() + at, byte);
            length = at as u32 + 1;
        }
        length
    }

    /// Copies `out.len()` bytes of the frame behind the header.
    pub(crate) fn frame(&self, out: &mut [u8]) {
        for (at, byte) in (HEADER_SIZE as u64..BUFFER as u64).zip(out) {
            *byte = crate::guest::peek(self.address() + at);
        }
    }
}

/// Where cases build what they send.
pub(crate) static OUT: Buffer = Buffer::new();
/// Where cases receive.
pub(crate) static IN: [Buffer; 8] = [const { Buffer::new() }; 8];
