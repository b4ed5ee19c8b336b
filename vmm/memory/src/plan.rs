//! Where everything lies in one guest's address space. Pure.

use foraker_abi::layout::{
    BLOCK, BOOT, BOOT_SIZE, CONTROL, DEFAULT_STACK, FAULT_STACK, FAULT_STUBS, LARGE_PAGE_SIZE, MAX_MEMORY,
    MAX_STACK, MIN_MEMORY, PAGE_SIZE, REGISTERS, SUPERVISOR_BASE, SUPERVISOR_END, TASK_STATES, VISIT,
};
use foraker_image::{Image, Rights};

use crate::MemoryError;

/// What a page may be used for, as page tables say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Stubs: executable, supervisor only.
    SupervisorExecute,
    /// Descriptor tables: read-only, supervisor only.
    SupervisorRead,
    /// The fault stack: writable, supervisor only.
    SupervisorWrite,
    /// The guest's, with these rights.
    User(Rights),
}

/// Most bytes of page tables that are shared: what there is below the supervisor pages, but for page 0.
const SHARED_TABLES: u64 = SUPERVISOR_BASE - PAGE_SIZE;

/// Top of core 0's stack.
pub const STACK_TOP: u64 = REGISTERS;

/// One guest's address space.
#[derive(Clone, Debug)]
pub struct Plan {
    /// First byte of the guest's own memory, which is the lowest of core 0's stack; the page below is the guard.
    pub memory_start: u64,
    /// Bytes of the guest's own memory.
    pub memory_size: u64,
    /// End of the shared part.
    pub shared_end: u64,
    /// First byte of the heap.
    pub heap_start: u64,
    /// End of the heap.
    pub memory_end: u64,
    /// Where the page tables lie, guest-physical. Virtual addresses equal physical ones, so that the tables of all guests with the same image and
    /// memory are the same: they are part of what these share, below the supervisor pages. Those of a guest with more tables than fit there
    /// lie at the end of its own memory.
    pub tables: std::ops::Range<u64>,
    /// Ranges and rights, in the order of addresses. Ranges of the heap that are whole large pages use them.
    pub ranges: Vec<(std::ops::Range<u64>, Access)>,
}

impl Plan {
    /// Lays out `image` in `memory` bytes.
    ///
    /// # Errors
    /// [`MemoryError::TooLittle`] with what would do, [`MemoryError::TooMuch`] or [`MemoryError::Stack`].
    pub fn new(image: &Image, memory: u64) -> Result<Plan, MemoryError> {
        if memory > MAX_MEMORY {
            return Err(MemoryError::TooMuch(memory));
        }
        let memory_size = memory & !(PAGE_SIZE - 1);
        let stack = if image.note.stack_size == 0 { DEFAULT_STACK } else { image.note.stack_size };
        if stack > MAX_STACK {
            return Err(MemoryError::Stack(stack));
        }
        let memory_start = STACK_TOP - stack.next_multiple_of(PAGE_SIZE);
        let heap_start = image.data_end();
        let shared_end = image.read_only_end();

        // Tables: one each of the two upper levels, directories for every GiB, page tables for the supervisor pages and the
        // image, for the start of the private part up to the first large page of the heap, and for the heap's tail.
        let image_tables = shared_end.div_ceil(LARGE_PAGE_SIZE) - SUPERVISOR_BASE / LARGE_PAGE_SIZE;
        let tables = |memory_size: u64| {
            let end = memory_start + memory_size;
            let directories = end.div_ceil(1 << 30);
            let head_end = heap_start.next_multiple_of(LARGE_PAGE_SIZE).min(end.max(heap_start));
            let head_tables = head_end.div_ceil(LARGE_PAGE_SIZE) - memory_start / LARGE_PAGE_SIZE;
            (2 + directories + image_tables + head_tables + u64::from(end > head_end)) * PAGE_SIZE
        };
        let own_tables = |memory_size| Some(tables(memory_size)).filter(|size| *size > SHARED_TABLES);
        let least =
            |memory_size| (heap_start - memory_start + own_tables(memory_size).unwrap_or(0)).max(MIN_MEMORY);

        let mut needed = least(memory_size);
        if memory_size < needed {
            // More memory can take another table: what is said to be needed must be enough.
            while least(needed) > needed {
                needed = least(needed);
            }
            return Err(MemoryError::TooLittle { given: memory, needed });
        }
        let end = memory_start + memory_size;
        let (memory_end, tables) = match own_tables(memory_size) {
            Some(size) => (end - size, end - size..end),
            None => (end, SUPERVISOR_BASE - tables(memory_size)..SUPERVISOR_BASE),
        };

        let mut ranges = vec![
            (SUPERVISOR_BASE..FAULT_STUBS, Access::SupervisorRead),
            (FAULT_STUBS..TASK_STATES, Access::SupervisorExecute),
            (TASK_STATES..SUPERVISOR_END, Access::SupervisorRead),
            (VISIT..VISIT + PAGE_SIZE, Access::User(Rights::Execute)),
        ];
        let segments = |write| image.segments.iter().filter(move |s| (s.rights == Rights::Write) == write);
        ranges.extend(segments(false).map(|s| (s.address..s.end(), Access::User(s.rights))));
        ranges.extend([
            (memory_start..STACK_TOP, Access::User(Rights::Write)),
            (REGISTERS..CONTROL, Access::User(Rights::Read)),
            (CONTROL..FAULT_STACK, Access::User(Rights::Write)),
            (FAULT_STACK..BLOCK, Access::SupervisorWrite),
            (BOOT..BOOT + BOOT_SIZE, Access::User(Rights::Read)),
        ]);
        ranges.extend(segments(true).map(|s| (s.address..s.end(), Access::User(Rights::Write))));
        ranges.push((heap_start..memory_end, Access::User(Rights::Write)));
        Ok(Plan { memory_start, memory_size, shared_end, heap_start, memory_end, tables, ranges })
    }

    /// Start of the shared part: its page tables if they are shared, the supervisor pages, the image.
    #[must_use]
    pub fn shared_start(&self) -> u64 {
        self.tables.start.min(SUPERVISOR_BASE)
    }

    /// End of the guest's own memory.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.memory_start + self.memory_size
    }
}

const _: () = assert!(BLOCK == FAULT_STACK + PAGE_SIZE);
