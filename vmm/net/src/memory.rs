//! A guest's memory as its network device may use it: two sets of windows, and the rings within.
//!
//! The windows' host addresses are taken once, at set-up, so that translating a descriptor is a few comparisons. Guest memory
//! never becomes a Rust reference: it is reached by raw copies and, in the rings, by atomics of the width that the
//! contract names, because the guest (and the VMM on the guest's behalf) may write to it at any time.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use foraker_abi::ring::{AVAIL_OFFSET, DESC_OFFSET, Descriptor, QUEUE_SIZE, RING_SIZE, USED_OFFSET};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::ring::RingMemory;

/// Most regions in one set of windows.
pub const MAX_REGIONS: usize = 4;

/// The windows do not suit a network device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// More than [`MAX_REGIONS`] regions in one set.
    #[error("more than {MAX_REGIONS} memory regions for one network device")]
    TooManyRegions,
    /// A ring is not within one region of the writable windows, or not aligned in the host.
    #[error("the ring at {0:#x} is not in the guest's writable memory")]
    Ring(u64),
}

/// A range of guest memory at its place in the host's address space.
#[derive(Clone, Copy, Debug)]
struct Region {
    start: u64,
    size: u64,
    host: NonNull<u8>,
}

/// Some regions; the one that most buffers are in comes first.
#[derive(Clone, Copy, Debug)]
struct Windows {
    regions: [Option<Region>; MAX_REGIONS],
}

impl Windows {
    fn new(memory: &GuestMemoryMmap) -> Result<Self, MemoryError> {
        let mut regions = [None; MAX_REGIONS];
        let mut slots = regions.iter_mut();
        for region in memory.iter() {
            let slot = slots.next().ok_or(MemoryError::TooManyRegions)?;
            *slot = NonNull::new(region.as_ptr()).map(|host| Region {
                start: region.start_addr().raw_value(),
                size: region.len(),
                host,
            });
        }
        regions.sort_by_key(|region| std::cmp::Reverse(region.map_or(0, |region| region.size)));
        Ok(Windows { regions })
    }

    /// Where `length` bytes at the guest's `address` are, if they are within one region.
    #[inline]
    fn translate(&self, address: u64, length: u32) -> Option<NonNull<u8>> {
        for region in self.regions.iter().flatten() {
            let offset = address.wrapping_sub(region.start);
            if offset < region.size && u64::from(length) <= region.size - offset {
                // SAFETY: `offset` is within the region's mapping, whose `size` bytes start at `host`.
                return Some(unsafe { region.host.add(usize::try_from(offset).ok()?) });
            }
        }
        None
    }
}

/// Keeps the regions' owners alive as long as their addresses are in use.
type Owners = Arc<(GuestMemoryMmap, GuestMemoryMmap)>;

/// The windows that one ring's buffers may lie in.
#[derive(Clone, Debug)]
pub(crate) struct Buffers {
    windows: Windows,
    _owners: Owners,
}

impl Buffers {
    /// Where these bytes of the guest are.
    #[inline]
    pub(crate) fn translate(&self, address: u64, length: u32) -> Option<NonNull<u8>> {
        self.windows.translate(address, length)
    }
}

// SAFETY: the addresses stay valid in every thread as long as `_owners` lives (or, for raw regions, as their creator
// promised to `MmapRegion::build_raw`), and memory behind them is only reached by raw copies and atomics.
unsafe impl Send for Buffers {}
// SAFETY: as above; there is no interior mutability besides the guest's memory itself.
unsafe impl Sync for Buffers {}

/// The windows of one guest.
#[derive(Clone, Debug)]
pub struct DeviceMemory {
    readable: Buffers,
    writable: Buffers,
}

impl DeviceMemory {
    /// `readable`: what transmit buffers may lie in. `writable`: what receive buffers and the rings may lie in.
    /// Neither is touched.
    ///
    /// Regions made by `MmapRegion::build_raw` must stay mapped until the port is closed ([`crate::Switch::remove`] has returned).
    ///
    /// # Errors
    /// Too many regions, or a ring outside of `writable`.
    pub fn new(readable: GuestMemoryMmap, writable: GuestMemoryMmap) -> Result<Self, MemoryError> {
        let (read, write) = (Windows::new(&readable)?, Windows::new(&writable)?);
        let owners = Arc::new((readable, writable));
        Ok(DeviceMemory {
            readable: Buffers { windows: read, _owners: Arc::clone(&owners) },
            writable: Buffers { windows: write, _owners: owners },
        })
    }

    /// What the transmit ring's buffers may lie in, and what the receive ring's may: each ring keeps its own half, because there is one for every
    /// port of a large cell.
    pub(crate) fn into_halves(self) -> (Buffers, Buffers) {
        (self.readable, self.writable)
    }

    /// The ring at this address of the contract.
    ///
    /// # Errors
    /// It is not in one region of the writable windows.
    pub fn ring(&self, address: u64) -> Result<MappedRing, MemoryError> {
        let size = u32::try_from(RING_SIZE).map_err(|_| MemoryError::Ring(address))?;
        let base = self.writable.translate(address, size).ok_or(MemoryError::Ring(address))?;
        if !base.cast::<Descriptor>().is_aligned() {
            return Err(MemoryError::Ring(address));
        }
        Ok(MappedRing { base })
    }
}

/// A ring in guest memory.
///
/// Invariant: [`RING_SIZE`] bytes at `base`, aligned to 16, are mapped as long as the [`DeviceMemory`] that this came
/// from, or a half of it, is in use; queues keep both together.
#[derive(Debug)]
pub struct MappedRing {
    base: NonNull<u8>,
}

// SAFETY: as for `Buffers`.
unsafe impl Send for MappedRing {}

#[expect(clippy::cast_possible_truncation, reason = "constants below the size of a ring")]
impl MappedRing {
    #[inline]
    fn u16_at(&self, offset: u64) -> &AtomicU16 {
        debug_assert!(offset + 2 <= RING_SIZE && offset.is_multiple_of(2));
        // SAFETY: callers pass offsets of the contract below `RING_SIZE`; mapped by the type's invariant.
        let place = unsafe { self.base.add(offset as usize) };
        // SAFETY: `place` is aligned to 2 and mapped, and the word is only accessed atomically by the VMM.
        unsafe { AtomicU16::from_ptr(place.as_ptr().cast()) }
    }

    #[inline]
    fn u32_at(&self, offset: u64) -> &AtomicU32 {
        debug_assert!(offset + 4 <= RING_SIZE && offset.is_multiple_of(4));
        // SAFETY: as in `u16_at`.
        let place = unsafe { self.base.add(offset as usize) };
        // SAFETY: as in `u16_at`, aligned to 4.
        unsafe { AtomicU32::from_ptr(place.as_ptr().cast()) }
    }

    #[inline]
    fn u64_at(&self, offset: u64) -> &AtomicU64 {
        debug_assert!(offset + 8 <= RING_SIZE && offset.is_multiple_of(8));
        // SAFETY: as in `u16_at`.
        let place = unsafe { self.base.add(offset as usize) };
        // SAFETY: as in `u16_at`, aligned to 8.
        unsafe { AtomicU64::from_ptr(place.as_ptr().cast()) }
    }
}

impl RingMemory for MappedRing {
    #[inline]
    fn avail_index(&self) -> u16 {
        self.u16_at(AVAIL_OFFSET + 2).load(Ordering::Acquire)
    }

    #[inline]
    fn avail_flags(&self) -> u16 {
        self.u16_at(AVAIL_OFFSET).load(Ordering::Relaxed)
    }

    #[inline]
    fn avail_entry(&self, slot: u16) -> u16 {
        self.u16_at(AVAIL_OFFSET + 4 + 2 * u64::from(slot % QUEUE_SIZE)).load(Ordering::Relaxed)
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "takes the word apart")]
    fn descriptor(&self, index: u16) -> Descriptor {
        let offset = DESC_OFFSET + 16 * u64::from(index % QUEUE_SIZE);
        let rest = self.u64_at(offset + 8).load(Ordering::Relaxed);
        Descriptor {
            address: self.u64_at(offset).load(Ordering::Relaxed),
            length: rest as u32,
            flags: (rest >> 32) as u16,
            next: (rest >> 48) as u16,
        }
    }

    #[inline]
    fn set_used_element(&self, slot: u16, id: u32, length: u32) {
        let offset = USED_OFFSET + 4 + 8 * u64::from(slot % QUEUE_SIZE);
        self.u32_at(offset).store(id, Ordering::Relaxed);
        self.u32_at(offset + 4).store(length, Ordering::Relaxed);
    }

    #[inline]
    fn set_used_index(&self, index: u16) {
        self.u16_at(USED_OFFSET + 2).store(index, Ordering::Release);
    }

    #[inline]
    fn set_used_flags(&self, flags: u16) {
        self.u16_at(USED_OFFSET).store(flags, Ordering::Relaxed);
    }

    #[inline]
    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
}
