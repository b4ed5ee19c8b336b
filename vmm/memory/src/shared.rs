//! The part of an address space that all guests of an image share: supervisor pages, text and read-only data.
//!
//! It is mapped read-only into the VMM and given to each machine as a read-only slot, so that neither a guest nor a mistake
//! of the VMM can change it under the others.

use foraker_abi::fault::{BP, OF};
use foraker_abi::hypercall::{DOORBELL_PORT, FAULT_PORT, PORT};
use foraker_abi::layout::{
    FAULT_FRAME_SIZE, FAULT_STACK, FAULT_STUB_SIZE, FAULT_STUBS, GDT, IDT, KERNEL_CODE, MAX_CORES, PAGE_SIZE,
    SUPERVISOR_BASE, SYSCALL_STUB, TASK_STATE_SIZE, TASK_STATES, VECTORS,
};
use foraker_image::{Image, Rights};

use crate::MemoryError;

/// Size of a 64-bit task state; the I/O bitmap follows.
const TASK_STATE: u64 = 104;
/// Bytes of I/O bitmap: ports 0 to 0x7f.
const IO_BITMAP: u64 = 16;
/// Limit of a task state segment: its last byte is the 0xff that closes the bitmap.
pub const TASK_STATE_LIMIT: u32 = 104 + 16;

/// The shared part of one image.
#[derive(Debug)]
pub struct Shared {
    base: *mut u8,
    size: usize,
}

// SAFETY: the mapping is read-only and lives as long as the value.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// Fills a new mapping with the supervisor pages and the read-only segments of `image`.
    ///
    /// # Errors
    /// The host refuses the mapping.
    pub fn new(image: &Image) -> Result<Shared, MemoryError> {
        let length = image.read_only_end() - SUPERVISOR_BASE;
        let size = usize::try_from(length).map_err(|_| MemoryError::TooMuch(length))?;
        // SAFETY: a new anonymous mapping at an address that the kernel chooses.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(MemoryError::Map(std::io::Error::last_os_error()));
        }
        let shared = Shared { base: base.cast(), size };
        for (address, bytes) in supervisor() {
            shared.fill(address, &bytes);
        }
        for s in image.segments.iter().filter(|s| s.rights != Rights::Write) {
            shared.fill(s.address, &s.content);
        }
        // SAFETY: the whole mapping, which is ours.
        if unsafe { libc::mprotect(base, size, libc::PROT_READ) } != 0 {
            return Err(MemoryError::Map(std::io::Error::last_os_error()));
        }
        Ok(shared)
    }

    fn fill(&self, address: u64, bytes: &[u8]) {
        let offset = usize::try_from(address - SUPERVISOR_BASE).unwrap_or(usize::MAX);
        let fits = offset.checked_add(bytes.len()).is_some_and(|end| end <= self.size);
        assert!(fits, "content of the shared part lies outside it: the image was checked wrongly");
        // SAFETY: the range was just checked to lie within the mapping, which is writable until `new` ends.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.base.add(offset), bytes.len()) };
    }

    /// First byte, the one at `SUPERVISOR_BASE`.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.base
    }

    /// Bytes, a multiple of the page size.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours; machines that use it hold a reference to this value.
        unsafe { libc::munmap(self.base.cast(), self.size) };
    }
}

/// Content of the supervisor pages, as (address, bytes).
fn supervisor() -> Vec<(u64, Vec<u8>)> {
    // Flat segments with their accessed bits set, as the pages cannot be written: kernel code and data, user data and code.
    let gdt: [u64; 5] =
        [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x00cf_f300_0000_ffff, 0x00af_fb00_0000_ffff];
    let mut idt = Vec::new();
    let mut stubs = Vec::new();
    for vector in 0..=VECTORS {
        let stub = FAULT_STUBS + vector * FAULT_STUB_SIZE;
        // `out FAULT_PORT, al`, then a jump to itself that is never reached.
        stubs.extend_from_slice(&[0xe6, FAULT_PORT, 0xeb, 0xfe]);
        stubs.resize(stubs.len().next_multiple_of(16), 0xcc);
        if vector < VECTORS {
            // Interrupt gate, present; a guest may call only those of breakpoint and overflow, as on every PC.
            let open = vector == u64::from(BP) || vector == u64::from(OF);
            let kind: u64 = if open { 0xee } else { 0x8e };
            let low = stub & 0xffff | u64::from(KERNEL_CODE) << 16 | kind << 40 | (stub >> 16 & 0xffff) << 48;
            idt.extend_from_slice(&low.to_le_bytes());
            idt.extend_from_slice(&(stub >> 32).to_le_bytes());
        }
    }
    debug_assert_eq!(FAULT_STUBS + stubs.len() as u64, SYSCALL_STUB + FAULT_STUB_SIZE);
    let mut task_states = Vec::new();
    for core in 0..u64::from(MAX_CORES) {
        let stack = FAULT_STACK + (core + 1) * FAULT_FRAME_SIZE;
        let mut state = vec![0u8; 4];
        state.extend_from_slice(&stack.to_le_bytes());
        state.resize(102, 0);
        state.extend_from_slice(&[TASK_STATE.to_le_bytes()[0], 0]);
        for byte in 0..IO_BITMAP {
            let open = |port: u8| if u64::from(port / 8) == byte { 1u8 << (port % 8) } else { 0 };
            state.push(!(open(PORT) | open(DOORBELL_PORT)));
        }
        state.resize(usize::try_from(TASK_STATE_SIZE).unwrap_or(128), 0xff);
        task_states.extend_from_slice(&state);
    }
    vec![
        (IDT, idt),
        (GDT, gdt.iter().flat_map(|d| d.to_le_bytes()).collect()),
        (FAULT_STUBS, stubs),
        (TASK_STATES, task_states),
    ]
}

const _: () = {
    assert!(TASK_STATE + IO_BITMAP == TASK_STATE_LIMIT as u64 && (TASK_STATE_LIMIT as u64) < TASK_STATE_SIZE);
    assert!(FAULT_STUB_SIZE == 16 && PAGE_SIZE == 4096);
};
