//! The address space of a guest: one flat map, virtual = guest-physical, 4 KiB pages (2 MiB where a range allows).
//!
//! | range | what | guest's rights |
//! |---|---|---|
//! | `0 .. SUPERVISOR_BASE` | nothing, page 0 included | none |
//! | `SUPERVISOR_BASE .. SUPERVISOR_END` | descriptor tables, task states, fault stubs | none |
//! | `VISIT` | a routine of the VMM's that reads pages | r-x |
//! | `IMAGE_BASE ..` | text, then read-only data, shared by all guests of an image | r-x, r-- |
//! | `.. memory_start` | nothing, a guard page at least | none |
//! | `memory_start .. REGISTERS` | stack of core 0 | rw- |
//! | `REGISTERS` | virtual registers, then arguments and environment if there is room | r-- |
//! | `CONTROL` | control page: pending interrupts, upcalls | rw- |
//! | `NET_RX, NET_TX` | rings of the virtual ethernet | rw- |
//! | `FAULT_STACK` | where the processor reports a fault | none |
//! | `BLOCK` | ring of the block device (reserved) | none |
//! | `BOOT` | arguments and environment that need more room | r-- |
//! | `DATA_BASE ..` | data and bss | rw- |
//! | `heap_start .. memory_end` | heap | rw- |

/// Bytes of a page.
pub const PAGE_SIZE: u64 = 4096;
/// Bytes of a large page.
pub const LARGE_PAGE_SIZE: u64 = 2 << 20;

/// Start of the supervisor pages (not visible to the guest).
pub const SUPERVISOR_BASE: u64 = 0x20_0000;
/// Interrupt descriptor table: 32 gates of 16 bytes.
pub const IDT: u64 = SUPERVISOR_BASE;
/// Global descriptor table: null, kernel code, kernel data, user data, user code.
pub const GDT: u64 = SUPERVISOR_BASE + 0x800;
/// Fault stubs: [`FAULT_STUB_SIZE`] bytes for each vector, then the one of `syscall`.
pub const FAULT_STUBS: u64 = SUPERVISOR_BASE + 0x1000;
/// Bytes of one fault stub.
pub const FAULT_STUB_SIZE: u64 = 16;
/// Vectors that have a gate and a stub.
pub const VECTORS: u64 = 32;
/// The stub that `syscall` reaches on back ends that execute it: the last one.
pub const SYSCALL_STUB: u64 = FAULT_STUBS + VECTORS * FAULT_STUB_SIZE;
/// Task states, [`TASK_STATE_SIZE`] bytes for each core.
pub const TASK_STATES: u64 = SUPERVISOR_BASE + 0x2000;
/// Bytes from one core's task state to the next: 104 of the TSS, 16 of I/O bitmap, the closing 0xff, padding.
pub const TASK_STATE_SIZE: u64 = 128;
/// End of the supervisor pages in use.
pub const SUPERVISOR_END: u64 = SUPERVISOR_BASE + 0x4000;
/// A routine of the VMM's that a machine runs before it has a guest: it reads a byte at each address of a list, so that the host has those pages in place.
/// A guest may look at it and even call it, which is of no use to it.
pub const VISIT: u64 = SUPERVISOR_END;

/// Where an image's text starts: close to the supervisor pages, so that one page table serves both.
pub const IMAGE_BASE: u64 = 0x21_0000;
/// End of what an image's text and read-only data may fill. A guest's own memory starts above, where its stack ends.
pub const PRIVATE_BASE: u64 = 0x1000_0000;

/// Virtual registers (see [`crate::registers::Registers`]). Core 0's stack grows down from here, and its first page is the first of eight
/// whose number is a multiple of eight: at a fault, KVM's shadow page tables map such a group from its start on, up to a page that is not there.
/// So one fault maps all that every guest touches whenever it runs: stack, registers, control page, rings. Data starts such a group, too.
pub const REGISTERS: u64 = 0x2010_1000;
/// Most bytes of core 0's stack.
pub const MAX_STACK: u64 = REGISTERS - PRIVATE_BASE - PAGE_SIZE;
/// Control page (see [`crate::control::CoreControl`]), one slot for each core.
pub const CONTROL: u64 = REGISTERS + 0x1000;
/// Ring on which the guest receives frames.
pub const NET_RX: u64 = REGISTERS + 0x2000;
/// Ring on which the guest transmits frames.
pub const NET_TX: u64 = REGISTERS + 0x4000;
/// The page in which the processor stores the frame of a fault, [`FAULT_FRAME_SIZE`] bytes for each core.
pub const FAULT_STACK: u64 = REGISTERS + 0x6000;
/// Bytes of the fault stack of one core.
pub const FAULT_FRAME_SIZE: u64 = 64;
/// Ring of the block device (reserved).
pub const BLOCK: u64 = REGISTERS + 0x7000;
/// Boot arguments and environment that do not fit [`SMALL_BOOT`], [`BOOT_SIZE`] bytes.
pub const BOOT: u64 = REGISTERS + 0x9000;
/// Most bytes of boot arguments and environment, with a NUL behind each string.
pub const BOOT_SIZE: u64 = 0x2000;
/// Boot arguments and environment up to the end of the registers' page: most guests have no more than that, and so no page for them.
pub const SMALL_BOOT: u64 = REGISTERS + 0x800;
/// Where an image's writable data starts.
pub const DATA_BASE: u64 = REGISTERS + 0xf000;

/// Most cores of one guest.
pub const MAX_CORES: u32 = 64;
/// Least memory of a guest, bytes.
pub const MIN_MEMORY: u64 = 128 << 10;
/// Most memory of a guest, bytes.
pub const MAX_MEMORY: u64 = 64 << 30;
/// Stack of core 0 when the image's note names none, bytes.
pub const DEFAULT_STACK: u64 = 64 << 10;

/// Selector of the code segment that stubs run in.
pub const KERNEL_CODE: u16 = 0x08;
/// Selector of the data segment that stubs run with.
pub const KERNEL_DATA: u16 = 0x10;
/// Selector of the guest's data segments.
pub const USER_DATA: u16 = 0x1b;
/// Selector of the guest's code segment.
pub const USER_CODE: u16 = 0x23;

const _: () = {
    assert!(IMAGE_BASE / LARGE_PAGE_SIZE == SUPERVISOR_BASE / LARGE_PAGE_SIZE);
    assert!(PRIVATE_BASE.is_multiple_of(LARGE_PAGE_SIZE));
    assert!((REGISTERS / PAGE_SIZE) % 8 == 1);
    // A stack of usual size shares its page table with them.
    assert!(REGISTERS % LARGE_PAGE_SIZE >= 1 << 20);
    assert!(IDT + VECTORS * 16 <= GDT && GDT + 5 * 8 <= FAULT_STUBS);
    assert!(SYSCALL_STUB + FAULT_STUB_SIZE <= TASK_STATES);
    assert!(
        TASK_STATES + MAX_CORES as u64 * TASK_STATE_SIZE <= SUPERVISOR_END && VISIT + PAGE_SIZE <= IMAGE_BASE
    );
    assert!(NET_TX + 2 * PAGE_SIZE <= FAULT_STACK && FAULT_STACK + PAGE_SIZE <= BLOCK);
    assert!(BLOCK + 2 * PAGE_SIZE <= BOOT && BOOT + BOOT_SIZE <= DATA_BASE);
    assert!((DATA_BASE / PAGE_SIZE).is_multiple_of(8));
    assert!(MAX_CORES as u64 * FAULT_FRAME_SIZE <= PAGE_SIZE);
    assert!(MAX_CORES as usize * size_of::<crate::control::CoreControl>() <= PAGE_SIZE as usize);
    assert!(size_of::<crate::registers::Registers>() <= (SMALL_BOOT - REGISTERS) as usize);
    assert!(crate::ring::RING_SIZE <= NET_TX - NET_RX && crate::ring::RING_SIZE <= FAULT_STACK - NET_TX);
};
