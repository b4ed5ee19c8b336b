//! One guest's memory, and the only way to its bytes.

use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use foraker_abi::control::CoreControl;
use foraker_abi::layout::{
    BOOT, BOOT_SIZE, CONTROL, DATA_BASE, FAULT_FRAME_SIZE, FAULT_STACK, IMAGE_BASE, LARGE_PAGE_SIZE,
    MAX_CORES, PAGE_SIZE, REGISTERS, SMALL_BOOT, SUPERVISOR_BASE,
};
use foraker_abi::registers::Registers;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::MemoryError;
use crate::arena::{Arena, Range};
use crate::plan::{Plan, STACK_TOP};
use crate::shared::Shared;
use crate::template::{Template, as_size};

/// A piece of guest-physical memory, as KVM wants it.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// Guest-physical address.
    pub address: u64,
    /// Bytes.
    pub size: u64,
    /// Where it is in this process.
    pub host: *mut u8,
}

/// What the host backs a guest's heap with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pages {
    /// Pages of 4 KiB: a guest costs what it touches.
    #[default]
    Small,
    /// Pages of 2 MiB where the host has them: each first touch costs 2 MiB and is some thirty times cheaper by the byte, and
    /// addresses are translated faster afterwards. For guests that are always busy and use much memory.
    Large,
}

/// One guest's memory.
#[derive(Debug)]
pub struct GuestMemory {
    template: Arc<Template>,
    plan: Arc<Plan>,
    range: Range,
    readable: GuestMemoryMmap,
    writable: GuestMemoryMmap,
    /// A copy of its own of what it shares with others.
    private_copy: OnceLock<Arc<Shared>>,
}

impl GuestMemory {
    /// The memory of a guest that starts from `template`, with the working set in place.
    ///
    /// # Errors
    /// The arena is full.
    pub fn new(arena: &Arc<Arena>, template: &Arc<Template>) -> Result<GuestMemory, MemoryError> {
        let plan = Arc::clone(template.plan());
        let range = arena.allocate(template)?;
        if template.pages() == Pages::Large {
            let from = plan.heap_start.next_multiple_of(LARGE_PAGE_SIZE).min(plan.memory_end);
            range.use_large_pages(from - plan.memory_start, plan.memory_end - from);
        }
        // A few operations instead of a fault for each page.
        for part in if range.has_pager() { template.working_set() } else { template.everything() } {
            range.fill(template, part);
        }
        let area = Area { base: range.as_ptr(), start: plan.memory_start, size: plan.memory_size };
        let shared = template.shared();
        let image_part = Area { base: shared.as_ptr(), start: SUPERVISOR_BASE, size: shared.size() as u64 };
        let readable = [
            image_part.region(IMAGE_BASE, plan.shared_end)?,
            area.region(plan.memory_start, FAULT_STACK)?,
            area.region(BOOT, BOOT + BOOT_SIZE)?,
            area.region(DATA_BASE, plan.memory_end)?,
        ];
        let writable = [
            area.region(plan.memory_start, STACK_TOP)?,
            area.region(CONTROL, FAULT_STACK)?,
            area.region(DATA_BASE, plan.memory_end)?,
        ];
        let collect = |regions: Vec<GuestRegionMmap>| {
            GuestMemoryMmap::from_regions(regions).map_err(|e| MemoryError::Map(std::io::Error::other(e)))
        };
        Ok(GuestMemory {
            readable: collect(readable.into())?,
            writable: collect(writable.into())?,
            template: Arc::clone(template),
            plan,
            range,
            private_copy: OnceLock::new(),
        })
    }

    /// Writes where guests look first into the page of the virtual registers, as a list of addresses up to a 0, and says where. For a guest that has not
    /// been started: its registers are written afterwards.
    #[must_use]
    pub fn itinerary(&self) -> u64 {
        let most = as_size(PAGE_SIZE) / size_of::<u64>() - 1;
        let stops = self.template.stops().into_iter().take(most).chain([0]);
        for (at, stop) in stops.enumerate() {
            // SAFETY: within the page, which is aligned and the guest's own; no guest runs yet.
            unsafe { self.registers().cast::<u64>().add(at).write(stop) };
        }
        REGISTERS
    }

    /// Makes the page of the virtual registers as it was before [`Self::itinerary`].
    pub fn forget_itinerary(&self) {
        // SAFETY: as above; zeros are valid for every field.
        unsafe { self.registers().cast::<u8>().write_bytes(0, as_size(PAGE_SIZE)) };
    }

    /// Bytes that are there now.
    #[must_use]
    pub fn resident(&self) -> u64 {
        self.range.present().into_iter().map(|range| range.end - range.start).sum()
    }

    /// What it started from.
    #[must_use]
    pub fn template(&self) -> &Arc<Template> {
        &self.template
    }

    /// What it shares with others, or its own copy of that.
    #[must_use]
    pub fn shared(&self) -> &Arc<Shared> {
        self.private_copy.get().unwrap_or(self.template.shared())
    }

    pub(crate) fn private_copy(&self) -> Option<&Arc<Shared>> {
        self.private_copy.get()
    }

    /// The first one stays.
    pub(crate) fn keep_private_copy(&self, copy: Arc<Shared>) {
        let _ = self.private_copy.set(copy);
    }

    pub(crate) fn range(&self) -> &Range {
        &self.range
    }

    /// Where things lie.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Physical address of the top page table.
    #[must_use]
    pub fn page_tables(&self) -> u64 {
        self.template.page_tables()
    }

    /// What the machine maps. Valid as long as this value lives.
    #[must_use]
    pub fn slots(&self) -> [Slot; 2] {
        [
            self.shared().slot(),
            Slot { address: self.plan.memory_start, size: self.plan.memory_size, host: self.range.as_ptr() },
        ]
    }

    /// What the guest itself can read: where a buffer that the VMM reads may lie.
    #[must_use]
    pub fn readable(&self) -> &GuestMemoryMmap {
        &self.readable
    }

    /// What the guest itself can write, its control page and rings included: where a buffer that the VMM writes may lie.
    #[must_use]
    pub fn writable(&self) -> &GuestMemoryMmap {
        &self.writable
    }

    /// Copies from an (address, length) pair of the guest. `false` when it is not within what the guest can read.
    #[must_use]
    pub fn read(&self, address: u64, to: &mut [u8]) -> bool {
        self.readable.read_slice(to, GuestAddress(address)).is_ok()
    }

    /// Copies to an (address, length) pair of the guest. `false`, with nothing said of what was copied, when it is not
    /// within what the guest can write.
    #[must_use]
    pub fn write(&self, address: u64, from: &[u8]) -> bool {
        self.writable.write_slice(from, GuestAddress(address)).is_ok()
    }

    /// The virtual registers.
    #[must_use]
    pub fn registers(&self) -> *mut Registers {
        self.private(REGISTERS).cast()
    }

    /// The control slot of a core.
    ///
    /// # Panics
    /// When `core` is not below [`MAX_CORES`].
    #[must_use]
    pub fn control(&self, core: u32) -> &CoreControl {
        assert!(core < MAX_CORES);
        let slot = self.private(CONTROL).cast::<CoreControl>().wrapping_add(core as usize);
        // SAFETY: the slot lies in the control page, aligned to 64. The guest writes it at any time, which is why everything
        // that is read through the reference is an atomic.
        unsafe { &*slot }
    }

    /// Writes the arguments and the environment, each with a closing NUL. Strings hold no NUL themselves. Returns how many bytes they are, and
    /// how far from the registers they start.
    ///
    /// # Errors
    /// They do not fit the boot pages.
    pub fn write_boot<'a>(&self, strings: impl Iterator<Item = &'a str>) -> Result<(u32, u32), MemoryError> {
        let mut bytes = Vec::new();
        for s in strings {
            bytes.extend_from_slice(s.as_bytes());
            bytes.push(0);
        }
        if bytes.len() as u64 > BOOT_SIZE {
            return Err(MemoryError::Boot(bytes.len()));
        }
        let number = |n: u64| u32::try_from(n).map_err(|_| MemoryError::Boot(bytes.len()));
        let size = bytes.len() as u64;
        let place = if size <= CONTROL - SMALL_BOOT { SMALL_BOOT } else { BOOT };
        // SAFETY: both places lie in the private range, with so much room, and the guest cannot write them.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.private(place), bytes.len()) };
        Ok((number(size)?, number(place - REGISTERS)?))
    }

    /// The words that the processor stored at `stack_pointer` when it entered a fault stub of `core`; `None` when that
    /// is not on the core's fault stack.
    #[must_use]
    pub fn fault_frame(&self, core: u32, stack_pointer: u64) -> Option<[u64; 6]> {
        let low = FAULT_STACK + u64::from(core) * FAULT_FRAME_SIZE;
        let high = low + FAULT_FRAME_SIZE;
        if core >= MAX_CORES || !stack_pointer.is_multiple_of(8) || !(low..high).contains(&stack_pointer) {
            return None;
        }
        let mut frame = [0; 6];
        for (word, at) in frame.iter_mut().zip((stack_pointer..high).step_by(8)) {
            // SAFETY: an aligned word within the fault stack's page; nobody writes it while the core is out of the guest.
            *word = unsafe { self.private(at).cast::<u64>().read_volatile() };
        }
        Some(frame)
    }

    /// Drops the pages of a range of the guest's heap or data; they read as zeros. `false` when it is not within them.
    #[must_use]
    pub fn discard(&self, address: u64, bytes: u64) -> bool {
        if !self.owns_pages(address, bytes) {
            return false;
        }
        self.range.discard(address - self.plan.memory_start, bytes);
        true
    }

    /// Allocates the pages of a range of the guest's heap or data. `false` when it is not within them.
    #[must_use]
    pub fn populate(&self, address: u64, bytes: u64) -> bool {
        if !self.owns_pages(address, bytes) {
            return false;
        }
        self.range.populate(address - self.plan.memory_start, bytes);
        true
    }

    /// Whether the guest can be confined to the first so many bytes of its memory: whole pages, and all that is not heap.
    #[must_use]
    pub fn can_be_confined(&self, bytes: u64) -> bool {
        let Plan { memory_size, memory_end, heap_start, .. } = *self.plan;
        bytes.is_multiple_of(PAGE_SIZE)
            && (memory_size - (memory_end - heap_start)..=memory_size).contains(&bytes)
    }

    /// Confines the guest to the first so many bytes of its memory, or to more than until now: the end of its heap is given back, and reads as zeros should it
    /// come again. `false` if it cannot be, or nobody would notice when it touches what it has given back.
    #[must_use]
    pub fn confine(&self, bytes: u64) -> bool {
        let end = self.plan.memory_end - self.plan.memory_start;
        let given_back = self.plan.memory_size.saturating_sub(bytes);
        self.can_be_confined(bytes) && self.range.do_without(end - given_back..end)
    }

    /// Whether the guest has touched memory that it had given back.
    #[must_use]
    pub fn is_out_of_bounds(&self) -> bool {
        self.range.was_crossed()
    }

    /// Whether a page-aligned range lies in the guest's data, stack or heap, and it has not given it back.
    #[must_use]
    pub fn owns_pages(&self, address: u64, bytes: u64) -> bool {
        let within = |range: std::ops::Range<u64>| {
            address >= range.start && address.checked_add(bytes).is_some_and(|end| end <= range.end)
        };
        address.is_multiple_of(PAGE_SIZE)
            && bytes.is_multiple_of(PAGE_SIZE)
            && (within(self.plan.memory_start..STACK_TOP)
                || within(
                    DATA_BASE
                        ..self.plan.memory_end.min(self.plan.memory_start.saturating_add(self.range.kept())),
                ))
    }

    fn private(&self, address: u64) -> *mut u8 {
        debug_assert!((self.plan.memory_start..self.plan.end()).contains(&address));
        self.range
            .as_ptr()
            .wrapping_add(usize::try_from(address - self.plan.memory_start).unwrap_or(usize::MAX))
    }
}

// SAFETY: the raw parts (arena range, shared part) are themselves safe to share; what guests write is read as atomics or volatile.
unsafe impl Sync for GuestMemory {}
// SAFETY: as above.
unsafe impl Send for GuestMemory {}

/// A mapping and where the guest sees it.
struct Area {
    base: *mut u8,
    /// Guest address of `base`.
    start: u64,
    size: u64,
}

impl Area {
    fn at(&self, address: u64, bytes: u64) -> *mut u8 {
        let (start, end) = (self.start, self.start + self.size);
        let inside = address >= start && address.checked_add(bytes).is_some_and(|to| to <= end);
        assert!(inside, "{address:#x} lies outside the guest's memory: the plan is wrong");
        self.base.wrapping_add(usize::try_from(address - start).unwrap_or(usize::MAX))
    }

    fn region(&self, from: u64, to: u64) -> Result<GuestRegionMmap, MemoryError> {
        let failed = |e: &dyn std::fmt::Display| MemoryError::Map(std::io::Error::other(e.to_string()));
        let size = usize::try_from(to - from).map_err(|e| failed(&e))?;
        let host = self.at(from, to - from);
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: the range was checked to lie within the mapping, which outlives the regions: `GuestMemory` owns both.
        let region =
            unsafe { MmapRegion::build_raw(host, size, protection, flags) }.map_err(|e| failed(&e))?;
        GuestRegionMmap::new(region, GuestAddress(from)).ok_or_else(|| failed(&"range wraps"))
    }
}

/// Raises interrupts on a core: sets the bits, and says whether they were all clear before.
pub fn raise(control: &CoreControl, bits: u64) -> bool {
    let pending: &AtomicU64 = &control.pending;
    pending.fetch_or(bits, Ordering::SeqCst) & bits == 0
}

const _: () = assert!(IMAGE_BASE > SUPERVISOR_BASE);
