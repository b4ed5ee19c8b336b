//! Looking into a guest's memory from outside, for dumps and debuggers: it costs the guest no page, and nobody else notices.
//!
//! A page that is missing is read from where the pager would fill it from. What a debugger writes into text or read-only data goes into a copy that is
//! this guest's alone.

use std::ops::Range;
use std::sync::Arc;

use foraker_abi::layout::{CONTROL, DATA_BASE, FAULT_STACK, PAGE_SIZE};
use foraker_image::Rights;

use crate::guest::GuestMemory;
use crate::plan::{Access, STACK_TOP};
use crate::shared::Shared;
use crate::template::{Content, as_size};
use crate::{MemoryError, Plan};

impl GuestMemory {
    /// What the guest can reach, in the order of addresses, and with which rights.
    pub fn visible(&self) -> impl Iterator<Item = (Range<u64>, Rights)> {
        self.plan().ranges.iter().filter_map(|(range, access)| match access {
            Access::User(rights) if !range.is_empty() => Some((range.clone(), *rights)),
            _ => None,
        })
    }

    /// Copies what the guest would read there, up to where it can read nothing. Returns how many bytes.
    ///
    /// For a guest that does not run. Its virtual network may still put frames there meanwhile.
    #[must_use]
    pub fn peek(&self, address: u64, to: &mut [u8]) -> usize {
        let mut done = 0;
        while let Some(rest) = to.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let Some(at) = address.checked_add(done as u64) else { break };
            let Some(end) = self.visible().find(|(range, _)| range.contains(&at)).map(|(range, _)| range.end)
            else {
                break;
            };
            let piece = (end.min((at + 1).next_multiple_of(PAGE_SIZE)) - at).min(rest.len() as u64);
            let Some(piece) = rest.get_mut(..as_size(piece)) else { break };
            if !self.peek_page(at, piece) {
                break;
            }
            done += piece.len();
        }
        done
    }

    /// The same within a page. `false` if the guest's memory is laid out otherwise than the plan says.
    fn peek_page(&self, at: u64, to: &mut [u8]) -> bool {
        let plan = self.plan();
        if at < plan.shared_end {
            return match self.private_copy() {
                Some(copy) => copy.peek(at, to),
                None => self.read(at, to),
            };
        }
        let offset = at - plan.memory_start;
        if self.range().has(offset & !(PAGE_SIZE - 1)) {
            return self.read(at, to);
        }
        match self.range().missing(self.template().content(offset), offset) {
            Content::Bytes(bytes) => match bytes.get(..to.len()) {
                Some(bytes) => to.copy_from_slice(bytes),
                // Content ends with a page.
                None => return false,
            },
            Content::Zeros(_) => to.fill(0),
        }
        true
    }

    /// Whether the guest has instructions there.
    #[must_use]
    pub fn is_text(&self, address: u64) -> bool {
        self.visible().any(|(range, rights)| rights == Rights::Execute && range.contains(&address))
    }

    /// Within a range of what the guest can reach, the next part that may hold anything but zeros: whole pages, as far as they have that in common.
    #[must_use]
    pub fn next_content(&self, range: Range<u64>) -> Option<Range<u64>> {
        let plan = self.plan();
        if range.is_empty() || range.end <= plan.shared_end {
            return Some(range).filter(|range| !range.is_empty());
        }
        let start = plan.memory_start;
        let of =
            |offsets: Range<u64>| offsets.start + start..offsets.end.saturating_add(start).min(range.end);
        let from = range.start - start;
        let there = self.range().next_present(from).map(of).filter(|found| found.start < range.end);
        let template = self.template().next_content(from).map(of).filter(|found| found.start < range.end);
        [there, template].into_iter().flatten().min_by_key(|found| found.start)
    }

    /// Whether the guest's memory started with something other than zeros in this page: its image's file may say so, too.
    #[must_use]
    pub fn started_with_content(&self, page: u64) -> bool {
        let Plan { shared_end, memory_start, .. } = *self.plan();
        page < shared_end
            || matches!(self.template().content(page.saturating_sub(memory_start)), Content::Bytes(_))
    }

    /// Writes where the guest itself can write, or, once it has a copy of its own of those ([`Self::make_private`]), into its text and read-only data. For a
    /// guest that does not run. `false` when that is not all within one of these; then nothing is written.
    #[must_use]
    pub fn poke(&self, address: u64, from: &[u8]) -> bool {
        let Some(end) = address.checked_add(from.len() as u64) else { return false };
        let within = |range: Range<u64>| range.start <= address && end <= range.end;
        let plan = self.plan();
        let heap_end = plan.memory_end.min(plan.memory_start.saturating_add(self.range().kept()));
        if within(plan.memory_start..STACK_TOP) || within(CONTROL..FAULT_STACK) || within(DATA_BASE..heap_end)
        {
            return self.write(address, from);
        }
        let read_only = |(range, rights): (Range<u64>, Rights)| {
            rights != Rights::Write && range.end <= plan.shared_end && within(range)
        };
        self.visible().any(read_only) && self.private_copy().is_some_and(|copy| copy.poke(address, from))
    }

    /// Gives the guest a copy of its own of what it shares with others, if it has none. Its machine is to be given it, too, before the copy differs. It
    /// lasts as long as the guest's memory.
    ///
    /// # Errors
    /// The host has no memory to give.
    pub fn make_private(&self) -> Result<(), MemoryError> {
        if self.private_copy().is_none() {
            self.keep_private_copy(Arc::new(self.template().shared().copy()?));
        }
        Ok(())
    }
}

impl Shared {
    fn peek(&self, address: u64, to: &mut [u8]) -> bool {
        let Some(from) = self.place(address, to.len()) else { return false };
        // SAFETY: the range lies within the mapping; nobody writes it while the guest does not run, but for the caller.
        unsafe { std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) };
        true
    }

    fn poke(&self, address: u64, from: &[u8]) -> bool {
        let Some(to) = self.place(address, from.len()).filter(|_| self.is_private()) else { return false };
        // SAFETY: the range lies within the mapping, which is one guest's alone, and that does not run.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Arena, Pages, Template};
    use foraker_abi::layout::{IMAGE_BASE, REGISTERS};
    use foraker_abi::note;
    use foraker_image::{Image, Segment};

    fn guest() -> GuestMemory {
        let segment = |address, content: &[u8], rights| Segment {
            address,
            size: content.len() as u64,
            content: content.to_vec(),
            rights,
        };
        let image = Image {
            entry: IMAGE_BASE,
            note: note::Descriptor::default(),
            manifest: None,
            segments: vec![
                segment(IMAGE_BASE, b"text", Rights::Execute),
                segment(IMAGE_BASE + PAGE_SIZE, b"constant", Rights::Read),
                segment(DATA_BASE, &[7; 3 * 4096], Rights::Write),
            ],
            path: None,
        };
        let template = Arc::new(Template::of_image(&image, 4 << 20, Pages::Small).unwrap());
        GuestMemory::new(&Arena::new(8 << 20).unwrap(), &template).unwrap()
    }

    fn peek<const N: usize>(memory: &GuestMemory, address: u64) -> ([u8; N], usize) {
        let mut bytes = [0xee; N];
        let done = memory.peek(address, &mut bytes);
        (bytes, done)
    }

    #[test]
    fn a_look_costs_no_page_and_stays_within_what_the_guest_can_reach() {
        let memory = guest();
        let before = memory.resident();
        assert_eq!(peek(&memory, IMAGE_BASE), (*b"text", 4));
        assert_eq!(peek(&memory, IMAGE_BASE + PAGE_SIZE), (*b"constant", 8));
        let heap = memory.plan().heap_start;
        assert_eq!(peek(&memory, heap + (1 << 20)), ([0; 16], 16));
        assert_eq!(peek(&memory, heap - 4), ([7, 7, 7, 7, 0, 0], 6));
        assert_eq!(peek(&memory, memory.plan().memory_end - 2), ([0, 0, 0xee, 0xee], 2));
        for outside in [0, memory.plan().memory_start - 1, FAULT_STACK, u64::MAX - 1, memory.page_tables()] {
            assert_eq!(peek(&memory, outside), ([0xee; 4], 0), "{outside:#x}");
        }
        assert_eq!(memory.resident(), before);
    }

    #[test]
    fn what_a_debugger_writes_is_one_guests_alone() {
        let (memory, other) = (guest(), guest());
        for outside in [REGISTERS, FAULT_STACK, 0, memory.plan().memory_end - 1, STACK_TOP - 1, u64::MAX] {
            assert!(!memory.poke(outside, &[1, 2]), "{outside:#x}");
        }
        assert!(memory.poke(DATA_BASE + 4000, &[9; 200]) && !memory.poke(IMAGE_BASE, b"T"));
        memory.make_private().unwrap();
        assert!(memory.poke(IMAGE_BASE, b"T") && memory.poke(IMAGE_BASE + PAGE_SIZE + 3, b"S"));
        assert!(!memory.poke(memory.page_tables(), &[0; 8]) && !memory.poke(IMAGE_BASE - 1, b"xx"));
        memory.make_private().unwrap();
        assert_eq!(peek(&memory, IMAGE_BASE), (*b"Text", 4));
        assert_eq!(peek(&memory, IMAGE_BASE + PAGE_SIZE), (*b"conStant", 8));
        assert_eq!(peek(&memory, DATA_BASE + 4000), ([9; 200], 200));
        assert_eq!(peek(&other, IMAGE_BASE), (*b"text", 4));
        assert!(!Arc::ptr_eq(memory.shared(), memory.template().shared()));
    }

    #[test]
    fn content_is_found_wherever_it_comes_from() {
        let memory = guest();
        let heap = memory.plan().heap_start..memory.plan().memory_end;
        assert!(memory.poke(heap.start + (1 << 20) + 5, b"x"));
        let mut found = Vec::new();
        let mut at = DATA_BASE;
        while let Some(next) = memory.next_content(at..heap.end) {
            assert!(next.start >= at && next.end > next.start && next.end <= heap.end);
            at = next.end;
            found.push(next);
        }
        let has = |address: u64| found.iter().any(|range| range.contains(&address));
        assert!(has(DATA_BASE) && has(DATA_BASE + 3 * PAGE_SIZE - 1) && has(heap.start + (1 << 20)));
        assert!(
            memory.started_with_content(DATA_BASE) && !memory.started_with_content(heap.start + PAGE_SIZE)
        );
        let pages: u64 = found.iter().map(|range| range.end - range.start).sum();
        assert!(pages < 1 << 20, "most of it is nothing");
    }
}
