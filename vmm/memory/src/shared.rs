//! The part of an address space that all guests with the same image and memory share: page tables, supervisor pages, text and read-only data.
//!
//! A guest cannot change it under the others, because its page tables, which are out of its reach, give no right to write there; nor can a mistake
//! of the VMM, which reaches it through a read-only mapping. KVM has another mapping of the same pages, and a slot that it could write: it
//! maps neighbouring pages ahead of need in such slots only, and with shadowed page tables each page costs a fault of 28 us otherwise.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use foraker_abi::fault::{BP, OF};
use foraker_abi::hypercall::{DOORBELL_PORT, FAULT_PORT, PORT};
use foraker_abi::layout::{
    FAULT_FRAME_SIZE, FAULT_STACK, FAULT_STUB_SIZE, FAULT_STUBS, GDT, IDT, KERNEL_CODE, MAX_CORES, PAGE_SIZE,
    SUPERVISOR_BASE, SYSCALL_STUB, TASK_STATE_SIZE, TASK_STATES, VECTORS, VISIT,
};
use foraker_image::{Image, Rights};

use crate::MemoryError;
use crate::guest::Slot;
use crate::plan::Plan;
use crate::template::as_size;

/// Size of a 64-bit task state; the I/O bitmap follows.
const TASK_STATE: u64 = 104;
/// Bytes of I/O bitmap: ports 0 to 0x7f.
const IO_BITMAP: u64 = 16;
/// Limit of a task state segment: its last byte is the 0xff that closes the bitmap.
pub const TASK_STATE_LIMIT: u32 = 104 + 16;

/// The shared part of guests with the same image and memory.
#[derive(Debug)]
pub struct Shared {
    /// Where guests see its first byte.
    start: u64,
    /// What KVM gives to machines.
    guests: Mapping,
    /// What the VMM reads. None where it may write, too: a copy for a guest of its own.
    own: Option<Mapping>,
}

#[derive(Debug)]
struct Mapping {
    base: *mut u8,
    size: usize,
}

// SAFETY: nobody writes to either mapping after `Shared::new`, but for the debugger of a guest that has a copy of its own and does not run; they live as
// long as the value.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// Fills a new mapping with the supervisor pages, the read-only segments of `image`, and the page tables if they are shared.
    ///
    /// # Errors
    /// The host refuses the mapping.
    pub(crate) fn new(image: &Image, plan: &Plan, tables: &[u8]) -> Result<Shared, MemoryError> {
        let start = plan.shared_start();
        let length = image.read_only_end() - start;
        let size = usize::try_from(length).map_err(|_| MemoryError::TooMuch(length))?;
        // SAFETY: a system call with a valid string.
        let fd = unsafe { libc::memfd_create(c"image".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(MemoryError::Map(std::io::Error::last_os_error()));
        }
        // SAFETY: a new descriptor that nobody else owns.
        let file = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: a call on an open descriptor.
        if unsafe { libc::ftruncate(fd, libc::off_t::try_from(length).unwrap_or(libc::off_t::MAX)) } != 0 {
            return Err(MemoryError::Map(std::io::Error::last_os_error()));
        }
        let map = |protection| {
            // SAFETY: a new mapping at an address that the kernel chooses.
            let base = unsafe {
                libc::mmap(std::ptr::null_mut(), size, protection, libc::MAP_SHARED, file.as_raw_fd(), 0)
            };
            if base == libc::MAP_FAILED {
                return Err(MemoryError::Map(std::io::Error::last_os_error()));
            }
            Ok(Mapping { base: base.cast(), size })
        };
        let (guests, own) = (map(libc::PROT_READ | libc::PROT_WRITE)?, map(libc::PROT_READ)?);
        let shared = Shared { start, guests, own: Some(own) };
        if plan.tables.start == start {
            shared.fill(start, tables);
        }
        for (address, bytes) in supervisor() {
            shared.fill(address, &bytes);
        }
        for s in image.segments.iter().filter(|s| s.rights != Rights::Write) {
            shared.fill(s.address, &s.content);
        }
        Ok(shared)
    }

    /// A copy for one guest alone, for as long as it is debugged: breakpoints are written into it.
    ///
    /// # Errors
    /// The host has no memory to give.
    pub(crate) fn copy(&self) -> Result<Shared, MemoryError> {
        let size = self.guests.size;
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address that the kernel chooses.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), size, protection, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(MemoryError::Map(std::io::Error::last_os_error()));
        }
        let copy = Shared { start: self.start, guests: Mapping { base: base.cast(), size }, own: None };
        // SAFETY: two mappings of this size; nobody writes to the one, and nobody knows the other yet.
        unsafe { std::ptr::copy_nonoverlapping(self.guests.base, copy.guests.base, size) };
        Ok(copy)
    }

    /// Whether this is one guest's alone.
    #[must_use]
    pub fn is_private(&self) -> bool {
        self.own.is_none()
    }

    /// Where an address is for who may read, or write a copy; none unless so many bytes from there are within it.
    pub(crate) fn place(&self, address: u64, bytes: usize) -> Option<*mut u8> {
        let offset = usize::try_from(address.checked_sub(self.start)?).ok()?;
        let within = offset.checked_add(bytes).is_some_and(|end| end <= self.guests.size);
        within.then(|| self.readable().base.wrapping_add(offset))
    }

    fn readable(&self) -> &Mapping {
        self.own.as_ref().unwrap_or(&self.guests)
    }

    fn fill(&self, address: u64, bytes: &[u8]) {
        let offset = as_size(address - self.start);
        let fits = offset.checked_add(bytes.len()).is_some_and(|end| end <= self.guests.size);
        assert!(fits, "content of the shared part lies outside it: the image was checked wrongly");
        // SAFETY: the range was just checked to lie within the mapping; no guest runs yet.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.guests.base.add(offset), bytes.len()) };
    }

    /// First byte, the one at `SUPERVISOR_BASE`, to be read.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.readable().base.wrapping_add(self.before())
    }

    /// Bytes from there on, a multiple of the page size.
    #[must_use]
    pub fn size(&self) -> usize {
        self.guests.size - self.before()
    }

    /// Bytes in front of it.
    fn before(&self) -> usize {
        as_size(SUPERVISOR_BASE - self.start)
    }

    /// What machines map.
    pub(crate) fn slot(&self) -> Slot {
        Slot { address: self.start, size: self.guests.size as u64, host: self.guests.base }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours; machines that use it hold a reference to the `Shared` that it is a part of.
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
    // `next: mov rax, [rdi]; test rax, rax; jz done; mov al, [rax]; add rdi, 8; jmp next; done: out PORT, al; jmp done`
    let visit: [u8; 20] = [
        0x48, 0x8b, 0x07, 0x48, 0x85, 0xc0, 0x74, 0x08, 0x8a, 0x00, 0x48, 0x83, 0xc7, 0x08, 0xeb, 0xf0, 0xe6,
        PORT, 0xeb, 0xfc,
    ];
    vec![
        (IDT, idt),
        (GDT, gdt.iter().flat_map(|d| d.to_le_bytes()).collect()),
        (FAULT_STUBS, stubs),
        (TASK_STATES, task_states),
        (VISIT, visit.to_vec()),
    ]
}

const _: () = {
    assert!(TASK_STATE + IO_BITMAP == TASK_STATE_LIMIT as u64 && (TASK_STATE_LIMIT as u64) < TASK_STATE_SIZE);
    assert!(FAULT_STUB_SIZE == 16 && PAGE_SIZE == 4096);
};
