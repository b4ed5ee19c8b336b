//! Where everything lies in one guest's address space. Pure.

use foraker_abi::layout::{
    BLOCK, BOOT, BOOT_SIZE, CONTROL, DATA_BASE, DEFAULT_STACK, FAULT_STACK, FAULT_STUBS, IMAGE_BASE,
    LARGE_PAGE_SIZE, MAX_MEMORY, MIN_MEMORY, NET_RX, PAGE_SIZE, PRIVATE_BASE, REGISTERS, SUPERVISOR_BASE,
    SUPERVISOR_END, TASK_STATES,
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

/// One guest's address space.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Bytes of the guest's own memory, page tables included, from `PRIVATE_BASE` on.
    pub memory_size: u64,
    /// End of the shared part.
    pub shared_end: u64,
    /// Lowest byte of core 0's stack; the page below is the guard.
    pub stack_bottom: u64,
    /// Top of core 0's stack.
    pub stack_top: u64,
    /// First byte of the heap.
    pub heap_start: u64,
    /// End of the heap; page tables from here on.
    pub memory_end: u64,
    /// Ranges and rights, in the order of addresses. Ranges of the heap that are whole large pages use them.
    pub ranges: Vec<(std::ops::Range<u64>, Access)>,
}

impl Plan {
    /// Lays out `image` in `memory` bytes.
    ///
    /// # Errors
    /// [`MemoryError::TooLittle`] with what would do, or [`MemoryError::TooMuch`].
    pub fn new(image: &Image, memory: u64) -> Result<Plan, MemoryError> {
        if memory > MAX_MEMORY {
            return Err(MemoryError::TooMuch(memory));
        }
        let memory_size = memory & !(PAGE_SIZE - 1);
        let stack = if image.note.stack_size == 0 { DEFAULT_STACK } else { image.note.stack_size };
        let stack_bottom = image.data_end() + PAGE_SIZE;
        let stack_top = stack_bottom.saturating_add(stack).next_multiple_of(PAGE_SIZE);
        let heap_start = stack_top;
        let shared_end = image.read_only_end();

        // Tables: one each of the two upper levels, directories for every GiB, page tables for the supervisor pages, for the
        // image, for the start of the private part up to the first large page of the heap, and for the heap's tail.
        let image_tables = (shared_end - IMAGE_BASE).div_ceil(LARGE_PAGE_SIZE);
        let tables = |memory_size: u64| {
            let end = PRIVATE_BASE + memory_size;
            let directories = end.div_ceil(1 << 30);
            let head_end = heap_start.next_multiple_of(LARGE_PAGE_SIZE).min(end.max(heap_start));
            let head_tables = (head_end - PRIVATE_BASE).div_ceil(LARGE_PAGE_SIZE);
            2 + directories + 1 + image_tables + head_tables + u64::from(end > head_end)
        };
        let least =
            |memory_size| (heap_start - PRIVATE_BASE + tables(memory_size) * PAGE_SIZE).max(MIN_MEMORY);

        let mut needed = least(memory_size);
        if memory_size < needed {
            // More memory can take another table: what is said to be needed must be enough.
            while least(needed) > needed {
                needed = least(needed);
            }
            return Err(MemoryError::TooLittle { given: memory, needed });
        }
        let tables = tables(memory_size);
        let memory_end = PRIVATE_BASE + memory_size - tables * PAGE_SIZE;

        let mut ranges = vec![
            (SUPERVISOR_BASE..FAULT_STUBS, Access::SupervisorRead),
            (FAULT_STUBS..TASK_STATES, Access::SupervisorExecute),
            (TASK_STATES..SUPERVISOR_END, Access::SupervisorRead),
        ];
        let segments = |write| image.segments.iter().filter(move |s| (s.rights == Rights::Write) == write);
        ranges.extend(segments(false).map(|s| (s.address..s.end(), Access::User(s.rights))));
        ranges.extend([
            (REGISTERS..CONTROL, Access::User(Rights::Read)),
            (CONTROL..BOOT, Access::User(Rights::Write)),
            (BOOT..BOOT + BOOT_SIZE, Access::User(Rights::Read)),
            (NET_RX..BLOCK, Access::User(Rights::Write)),
            (FAULT_STACK..FAULT_STACK + PAGE_SIZE, Access::SupervisorWrite),
        ]);
        ranges.extend(segments(true).map(|s| (s.address..s.end(), Access::User(Rights::Write))));
        ranges.push((stack_bottom..stack_top, Access::User(Rights::Write)));
        ranges.push((heap_start..memory_end, Access::User(Rights::Write)));
        Ok(Plan { memory_size, shared_end, stack_bottom, stack_top, heap_start, memory_end, ranges })
    }

    /// Bytes of page tables at the end of the guest's memory.
    #[must_use]
    pub fn tables_size(&self) -> u64 {
        PRIVATE_BASE + self.memory_size - self.memory_end
    }
}

const _: () = assert!(DATA_BASE == FAULT_STACK + PAGE_SIZE);
