//! The heap: from `heap_start` to `memory_end`, by two-level segregated fit.
//!
//! Every operation takes constant time (TLSF: Masmano, Ripoll, Crespo, Real, ECRTS '04). Memory is given to the
//! allocator in growing steps from the low end, so that a small program touches few pages; a page that was never
//! touched costs the host nothing.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use rlsf::Tlsf;

/// Blocks of up to 2^(28 + 4) bytes and more; 16 lists for each power of two.
type Allocator = Tlsf<'static, u32, u16, 28, 16>;

/// First step of growth, bytes. Later steps double the heap, up to [`LARGEST_STEP`].
const FIRST_STEP: usize = 64 << 10;
/// Largest step of growth, bytes.
const LARGEST_STEP: usize = 16 << 20;

struct State {
    allocator: Allocator,
    /// Memory that the allocator does not have yet; `end` is 0 before the first use.
    next: usize,
    end: usize,
    start: usize,
}

/// The global allocator of guests.
pub struct Heap {
    state: UnsafeCell<State>,
    locked: AtomicBool,
    used: AtomicUsize,
}

// SAFETY: `state` is only reached while `locked` is held, or while there is one core only.
unsafe impl Sync for Heap {}

#[cfg_attr(not(test), global_allocator)]
static HEAP: Heap = Heap {
    state: UnsafeCell::new(State { allocator: Tlsf::new(), next: 0, end: 0, start: 0 }),
    locked: AtomicBool::new(false),
    used: AtomicUsize::new(0),
};

impl Heap {
    #[inline]
    fn with<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        let shared = crate::cores::started();
        if shared {
            while self.locked.swap(true, Ordering::Acquire) {
                core::hint::spin_loop();
            }
        }
        // SAFETY: one core, or the lock is held; `f` does not come back here.
        let result = f(unsafe { &mut *self.state.get() });
        if shared {
            self.locked.store(false, Ordering::Release);
        }
        result
    }
}

impl State {
    #[inline]
    fn allocate(&mut self, layout: Layout) -> *mut u8 {
        loop {
            if let Some(block) = self.allocator.allocate(layout) {
                return block.as_ptr();
            }
            if !self.grow(layout) {
                return null_mut();
            }
        }
    }

    /// Gives the allocator at least what `layout` needs; false when there is no more.
    #[cold]
    fn grow(&mut self, layout: Layout) -> bool {
        if self.end == 0 {
            let registers = crate::registers();
            self.start = registers.heap_start as usize;
            self.next = self.start;
            self.end = registers.memory_end as usize;
        }
        let given = self.next - self.start;
        // The allocator needs room for its headers and for alignment beside the block itself.
        let Some(needed) = layout.size().checked_add(layout.align()).and_then(|n| n.checked_add(4096)) else {
            return false;
        };
        let step = given.clamp(FIRST_STEP, LARGEST_STEP).max(needed.next_multiple_of(4096));
        let step = step.min(self.end - self.next);
        if step < 4096 {
            return false;
        }
        let block = core::ptr::slice_from_raw_parts_mut(self.next as *mut u8, step);
        let Some(block) = NonNull::new(block) else { return false };
        // SAFETY: the heap's range is the guest's own, used by nobody else, and each part is given once. A part that
        // follows the last one is joined with it.
        let taken = unsafe {
            if given == 0 {
                self.allocator.insert_free_block_ptr(block).map_or(0, |n| n.get())
            } else {
                self.allocator.append_free_block_ptr(block)
            }
        };
        self.next += step;
        taken != 0
    }
}

// SAFETY: blocks come from TLSF, which gives each byte to one owner; no method unwinds.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let block = self.with(|state| state.allocate(layout));
        if !block.is_null() {
            self.used.fetch_add_local(layout.size());
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let Some(block) = NonNull::new(block) else { return };
        // SAFETY: the caller's block, allocated here with this alignment.
        self.with(|state| unsafe { state.allocator.deallocate(block, layout.align()) });
        self.used.fetch_add_local(0usize.wrapping_sub(layout.size()));
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Some(pointer) = NonNull::new(block) else { return null_mut() };
        // SAFETY: `size` is not 0 and does not overflow when rounded up to the alignment, as the caller promises.
        let wanted = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        let moved = self.with(|state| loop {
            // SAFETY: the caller's block, allocated here with this alignment.
            if let Some(moved) = unsafe { state.allocator.reallocate(pointer, wanted) } {
                return moved.as_ptr();
            }
            if !state.grow(wanted) {
                return null_mut();
            }
        });
        if !moved.is_null() {
            self.used.fetch_add_local(size.wrapping_sub(layout.size()));
        }
        moved
    }
}

/// A counter that costs a plain addition; with several cores it may miss some.
trait LocalCounter {
    fn fetch_add_local(&self, by: usize);
}

impl LocalCounter for AtomicUsize {
    #[inline(always)]
    fn fetch_add_local(&self, by: usize) {
        self.store(self.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
    }
}

/// Use of the heap.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Bytes in allocated blocks (approximate when several cores allocate).
    pub used: usize,
    /// Bytes given to the allocator so far; pages beyond were never touched.
    pub grown: usize,
    /// Bytes of the whole heap.
    pub size: usize,
}

/// How much of the heap is in use.
#[must_use]
pub fn usage() -> Usage {
    let grown = HEAP.with(|state| state.next - state.start);
    let registers = crate::registers();
    let size = registers.memory_end.saturating_sub(registers.heap_start) as usize;
    Usage { used: HEAP.used.load(Ordering::Relaxed), grown, size }
}

/// A buffer of `length` bytes of arbitrary content, whose pages are not touched until they are used.
pub(crate) fn buffer(length: usize) -> alloc::vec::Vec<u8> {
    let mut buffer = alloc::vec::Vec::<u8>::with_capacity(length);
    let mut start = buffer.as_mut_ptr();
    // SAFETY: does nothing; as the compiler cannot know that, the bytes count as written from here on.
    unsafe { core::arch::asm!("/* {0} */", inout(reg) start, options(nostack, preserves_flags)) };
    let _ = start;
    // SAFETY: the capacity is `length`, and every bit pattern is a valid byte.
    unsafe { buffer.set_len(length) };
    buffer
}
