//! Rings: virtio's split virtqueues (OASIS VIRTIO 1.2, section 2.7), at fixed addresses, ready at boot.
//!
//! Addresses in descriptors are guest addresses. Indirect descriptors and event indices are not offered. Used
//! buffers come back in the order in which they were made available (`VIRTIO_F_IN_ORDER`), one used element for each.
//!
//! `used.flags` bit 0 (`NO_NOTIFY`) says that somebody looks at the ring: the guest need not ring the doorbell.
//! `avail.flags` bit 0 (`NO_INTERRUPT`) says that the guest does not want an interrupt for used buffers.

use core::sync::atomic::AtomicU16;

/// Entries of every ring.
pub const QUEUE_SIZE: u16 = 256;
/// The buffer continues in the descriptor `next`.
pub const DESC_NEXT: u16 = 1;
/// The VMM writes to the buffer (otherwise it reads).
pub const DESC_WRITE: u16 = 2;
/// Bit in `used.flags`: no doorbell is needed.
pub const NO_NOTIFY: u16 = 1;
/// Bit in `avail.flags`: no interrupt is needed.
pub const NO_INTERRUPT: u16 = 1;

/// Offset of the descriptor table from the start of a ring.
pub const DESC_OFFSET: u64 = 0;
/// Offset of the ring of available descriptors.
pub const AVAIL_OFFSET: u64 = 0x1000;
/// Offset of the ring of used descriptors.
pub const USED_OFFSET: u64 = 0x1400;
/// Bytes of a ring.
pub const RING_SIZE: u64 = 0x2000;

/// A descriptor.
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug, Default)]
pub struct Descriptor {
    /// Guest address of the buffer.
    pub address: u64,
    /// Bytes of the buffer.
    pub length: u32,
    /// [`DESC_NEXT`], [`DESC_WRITE`].
    pub flags: u16,
    /// The descriptor in which the buffer continues.
    pub next: u16,
}

/// An element of the used ring.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct UsedElement {
    /// Index of the first descriptor of the used buffer.
    pub id: u32,
    /// Bytes written to it.
    pub length: u32,
}

/// The ring of available buffers, written by the guest.
#[repr(C)]
#[derive(Debug)]
pub struct Avail {
    /// [`NO_INTERRUPT`].
    pub flags: AtomicU16,
    /// Where the guest puts the next entry, modulo 2^16.
    pub index: AtomicU16,
    /// Indices of first descriptors.
    pub ring: [AtomicU16; QUEUE_SIZE as usize],
}

/// Head of the ring of used buffers, written by the VMM; the elements follow at offset 4.
#[repr(C, align(4))]
#[derive(Debug)]
pub struct Used {
    /// [`NO_NOTIFY`].
    pub flags: AtomicU16,
    /// Where the VMM puts the next element, modulo 2^16.
    pub index: AtomicU16,
    /// Used elements. Read only those below `index`.
    pub ring: [UsedElement; QUEUE_SIZE as usize],
}

const _: () = {
    use core::mem::offset_of;
    assert!(QUEUE_SIZE.is_power_of_two());
    assert!(size_of::<Descriptor>() == 16 && size_of::<UsedElement>() == 8);
    assert!(QUEUE_SIZE as u64 * 16 <= AVAIL_OFFSET - DESC_OFFSET);
    assert!(size_of::<Avail>() as u64 <= USED_OFFSET - AVAIL_OFFSET);
    assert!(USED_OFFSET + size_of::<Used>() as u64 <= RING_SIZE);
    assert!(offset_of!(Avail, index) == 2 && offset_of!(Avail, ring) == 4);
    assert!(offset_of!(Used, index) == 2 && offset_of!(Used, ring) == 4);
};
