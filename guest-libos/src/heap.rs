//! The heap: from `heap_start` to `memory_end`, by the allocator `talc`.
//!
//! Memory is given to the allocator in growing steps from the low end, so that a small program touches few pages; a
//! page that was never touched costs the host nothing.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use talc::DefaultBinning;
use talc::base::{Talc, binning::Binning};
use talc::source::Source;

/// First step of growth, bytes. Later steps double the heap, up to [`LARGEST_STEP`].
const FIRST_STEP: usize = 64 << 10;
/// Largest step of growth, bytes.
const LARGEST_STEP: usize = 16 << 20;

/// Memory that the allocator does not have yet.
#[derive(Debug)]
struct Rest {
    start: usize,
    /// 0 before the first use.
    next: usize,
    /// What the allocator calls the end of what it has.
    heap_end: Option<NonNull<u8>>,
}

// SAFETY: does not allocate.
unsafe impl Source for Rest {
    /// Gives the allocator at least what `layout` needs, if there is as much.
    #[cold]
    fn acquire<B: Binning>(talc: &mut Talc<Self, B>, layout: Layout) -> Result<(), ()> {
        let registers = crate::registers();
        let rest = &mut talc.source;
        if rest.next == 0 {
            rest.start = registers.heap_start as usize;
            rest.next = rest.start;
        }
        let given = rest.next - rest.start;
        // The allocator needs room for its own words and for alignment beside the block itself.
        let needed = layout.size().checked_add(layout.align()).and_then(|n| n.checked_add(8192)).ok_or(())?;
        let step = given.clamp(FIRST_STEP, LARGEST_STEP).max(needed.next_multiple_of(4096));
        let step = step.min((crate::memory::end() as usize).saturating_sub(rest.next));
        if step < 4096 {
            return Err(());
        }
        let (start, end) = (rest.next as *mut u8, (rest.next + step) as *mut u8);
        let before = rest.heap_end;
        // SAFETY: the heap's range is the guest's own and used by nobody else; each part is given once, in order.
        let after = unsafe {
            match before {
                None => talc.claim(start, step),
                Some(before) => Some(talc.extend(before, end)),
            }
        };
        let after = after.filter(|after| before.is_none_or(|before| *after > before)).ok_or(())?;
        talc.source.next += step;
        talc.source.heap_end = Some(after);
        Ok(())
    }
}

/// The global allocator of guests.
pub struct Heap {
    state: UnsafeCell<Talc<Rest, DefaultBinning>>,
    locked: AtomicBool,
    used: AtomicUsize,
}

// SAFETY: `state` is only reached while `locked` is held, or while there is one core only.
unsafe impl Sync for Heap {}

#[cfg_attr(not(test), global_allocator)]
static HEAP: Heap = Heap {
    state: UnsafeCell::new(Talc::new(Rest { start: 0, next: 0, heap_end: None })),
    locked: AtomicBool::new(false),
    used: AtomicUsize::new(0),
};

impl Heap {
    #[inline]
    fn with<R>(&self, f: impl FnOnce(&mut Talc<Rest, DefaultBinning>) -> R) -> R {
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

// SAFETY: blocks come from the allocator, which gives each byte to one owner; no method unwinds.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the size is not 0, as the caller promises.
        match self.with(|talc| unsafe { talc.allocate(layout) }) {
            Some(block) => {
                self.used.add_local(layout.size());
                block.as_ptr()
            }
            None => null_mut(),
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's block, allocated here with this layout.
        self.with(|talc| unsafe { talc.deallocate(block, layout) });
        self.used.add_local(0usize.wrapping_sub(layout.size()));
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's block, allocated here with this layout; the size is not 0.
        if self.with(|talc| unsafe { talc.try_realloc_in_place(block, layout, size) }) {
            self.used.add_local(size.wrapping_sub(layout.size()));
            return block;
        }
        // SAFETY: `size` does not overflow when rounded up to the alignment, as the caller promises.
        let wanted = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        // SAFETY: not of size 0.
        let moved = unsafe { self.alloc(wanted) };
        if !moved.is_null() {
            // SAFETY: two blocks, both at least as long as the shorter.
            unsafe { moved.copy_from_nonoverlapping(block, layout.size().min(size)) };
            // SAFETY: the caller's block, which nobody uses any more.
            unsafe { self.dealloc(block, layout) };
        }
        moved
    }
}

/// A counter that costs a plain addition; with several cores it may miss some.
trait LocalCounter {
    fn add_local(&self, by: usize);
}

impl LocalCounter for AtomicUsize {
    #[inline(always)]
    fn add_local(&self, by: usize) {
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
    /// Bytes of the whole heap, without what was given back.
    pub size: usize,
}

/// How much of the heap is in use.
#[must_use]
pub fn usage() -> Usage {
    let grown = HEAP.with(|talc| talc.source.next - talc.source.start);
    let registers = crate::registers();
    let size = crate::memory::end().saturating_sub(registers.heap_start) as usize;
    Usage { used: HEAP.used.load(Ordering::Relaxed), grown, size }
}

/// Bytes at the end of the heap that the allocator never had.
pub(crate) fn unused() -> u64 {
    let next = HEAP.with(|talc| talc.source.next as u64);
    crate::memory::end().saturating_sub(next.max(crate::registers().heap_start))
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
