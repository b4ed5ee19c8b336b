//! The arena: one sparse mapping from which all guests of a process get their memory.
//!
//! Linux announces each change of a process' memory map to every VM in it, so the map is changed once, here. Giving a range back
//! drops its pages; the mapping stays.

use std::sync::{Arc, Mutex, PoisonError};

use foraker_abi::layout::{LARGE_PAGE_SIZE, PAGE_SIZE};

use crate::MemoryError;

/// A sparse mapping, and what of it is free.
#[derive(Debug)]
pub struct Arena {
    base: *mut u8,
    size: u64,
    /// Free ranges as (offset, bytes), sorted by offset, never adjacent.
    free: Mutex<Vec<(u64, u64)>>,
}

// SAFETY: the mapping belongs to the arena for its whole life; `base` is never changed.
unsafe impl Send for Arena {}
// SAFETY: as above; the only mutable state is behind a mutex.
unsafe impl Sync for Arena {}

impl Arena {
    /// Reserves `size` bytes of address space; pages are allocated when they are first written.
    ///
    /// # Errors
    /// The host has no address space to give.
    pub fn new(size: u64) -> Result<Arc<Arena>, MemoryError> {
        let size = size.next_multiple_of(LARGE_PAGE_SIZE);
        let length = usize::try_from(size).map_err(|_| MemoryError::TooMuch(size))?;
        // SAFETY: a new anonymous mapping at an address that the kernel chooses.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(MemoryError::Map(std::io::Error::last_os_error()));
        }
        Ok(Arc::new(Arena { base: base.cast(), size, free: Mutex::new(vec![(0, size)]) }))
    }

    /// Takes a range of at least `size` bytes, page-aligned, that reads as zeros.
    ///
    /// # Errors
    /// No free range is large enough.
    pub fn allocate(self: &Arc<Self>, size: u64) -> Result<Range, MemoryError> {
        self.take(size, |_| 0)
    }

    /// The same, for memory that starts at guest-physical `address`: large pages of the guest are large pages of the host.
    ///
    /// # Errors
    /// No free range is large enough.
    pub fn allocate_large(self: &Arc<Self>, size: u64, address: u64) -> Result<Range, MemoryError> {
        let base = self.base as u64;
        self.take(size, |offset| address.wrapping_sub(base + offset) % LARGE_PAGE_SIZE)
    }

    /// Takes a range that starts `skip` bytes, a function of the offset, behind the start of a free one.
    fn take(self: &Arc<Self>, size: u64, skip: impl Fn(u64) -> u64) -> Result<Range, MemoryError> {
        let size = size.next_multiple_of(PAGE_SIZE);
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let at = free
            .iter()
            .position(|(offset, bytes)| bytes.saturating_sub(skip(*offset)) >= size)
            .ok_or(MemoryError::ArenaFull(size))?;
        let (offset, bytes) = free.remove(at);
        let start = offset + skip(offset);
        let rest = (start + size, offset + bytes - (start + size));
        for part in [rest, (offset, start - offset)] {
            if part.1 > 0 {
                free.insert(at, part);
            }
        }
        Ok(Range { arena: Arc::clone(self), offset: start, size })
    }

    fn release(&self, offset: u64, size: u64) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let at = free.partition_point(|(o, _)| *o < offset);
        free.insert(at, (offset, size));
        free.dedup_by(|next, kept| {
            let adjacent = kept.0 + kept.1 == next.0;
            if adjacent {
                kept.1 += next.1;
            }
            adjacent
        });
    }

    /// Bytes that are not given out.
    #[must_use]
    pub fn available(&self) -> u64 {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|(_, bytes)| bytes).sum()
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and every range holds a reference to the arena, so none is left.
        unsafe { libc::munmap(self.base.cast(), usize::try_from(self.size).unwrap_or(0)) };
    }
}

/// A range of the arena. Its pages are dropped, and read as zeros again, when it is.
#[derive(Debug)]
pub struct Range {
    arena: Arc<Arena>,
    offset: u64,
    size: u64,
}

impl Range {
    /// First byte.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        // Offsets are below the size of the mapping, which fits a pointer.
        self.arena.base.wrapping_add(usize::try_from(self.offset).unwrap_or(usize::MAX))
    }

    /// Bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Drops the pages of part of the range; they read as zeros.
    pub fn discard(&self, from: u64, bytes: u64) {
        self.advise(from, bytes, libc::MADV_DONTNEED);
    }

    /// Allocates the pages of part of the range in one operation. Only advice: what fails is allocated at first touch.
    pub fn populate(&self, from: u64, bytes: u64) {
        self.advise(from, bytes, libc::MADV_POPULATE_WRITE);
    }

    /// Gives advice on part of the range; what lies outside is ignored.
    pub fn advise(&self, from: u64, bytes: u64, advice: i32) {
        let from = from.min(self.size);
        let bytes = bytes.min(self.size - from);
        let (Ok(start), Ok(length)) = (usize::try_from(from), usize::try_from(bytes)) else { return };
        // SAFETY: the part lies within this range, which nobody else owns; the caller's guest alone sees the change.
        unsafe { libc::madvise(self.as_ptr().wrapping_add(start).cast(), length, advice) };
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        // Pages first: once the range is free, the next owner must find zeros.
        self.discard(0, self.size);
        self.arena.release(self.offset, self.size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_come_back_and_read_as_zeros() {
        let arena = Arena::new(8 << 20).unwrap();
        let a = arena.allocate(1 << 20).unwrap();
        let b = arena.allocate(1 << 20).unwrap();
        let c = arena.allocate(6 << 20).unwrap();
        assert!(arena.allocate(1).is_err());
        let at = b.as_ptr();
        // SAFETY: `b` is ours and a mebibyte long.
        unsafe { at.write(7) };
        drop(b);
        let b = arena.allocate(1 << 20).unwrap();
        assert_eq!(b.as_ptr(), at);
        // SAFETY: as above.
        assert_eq!(unsafe { at.read() }, 0);
        drop((a, c, b));
        assert_eq!(arena.available(), 8 << 20);
        assert_eq!(arena.allocate(8 << 20).unwrap().size(), 8 << 20);
    }

    #[test]
    fn large_pages_of_the_guest_are_large_pages_of_the_host() {
        let arena = Arena::new(16 << 20).unwrap();
        let before = arena.allocate(5 << 12).unwrap();
        let address = 0x2010_1000 - (64 << 10);
        let ranges: Vec<_> = (0..3).map(|_| arena.allocate_large(3 << 20, address).unwrap()).collect();
        for range in &ranges {
            assert_eq!((range.as_ptr() as u64).wrapping_sub(address) % LARGE_PAGE_SIZE, 0);
        }
        // What was skipped is still there for others.
        assert_eq!(arena.available(), (16 << 20) - 3 * (3 << 20) - (5 << 12));
        let small = arena.allocate(1 << 12).unwrap();
        assert!(small.as_ptr() < ranges[2].as_ptr());
        drop((before, ranges, small));
        assert_eq!(arena.allocate(16 << 20).unwrap().size(), 16 << 20);
    }
}
