//! What a guest's memory holds when it starts: its image's data, or what another guest had when it was `ready`.
//!
//! A template is shared by all guests that start from it. Its *working set*, the pages that guests touch soon after their start, is filled
//! into a new guest's memory before it runs, in few large operations; the rest when it is touched. The working set is learned:
//! the first pages for which guests of a captured template had to wait are in it from then on.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use foraker_abi::layout::{
    BLOCK, BOOT, BOOT_SIZE, CONTROL, DATA_BASE, FAULT_STACK, PAGE_SIZE, REGISTERS, SUPERVISOR_BASE,
};
use foraker_image::{Image, Rights};

use crate::guest::{GuestMemory, Pages};
use crate::plan::{Access, Plan, STACK_TOP};
use crate::shared::Shared;
use crate::{MemoryError, tables};

/// The first pages for which a guest waits say what guests like it need.
pub(crate) const FIRST_PAGES: u32 = 64;
/// Most pages that the working set of a captured template learns: each is memory of every guest that starts there. Those of an image learn
/// nothing, as guests of different owners start from them.
const MOST_LEARNED: u64 = 48;
/// Most bytes of data and bss, or of a captured guest, that are in the working set before it is learned.
const FIRST_WORKING_SET: u64 = 256 << 10;
/// Most ranges of a working set: each is an operation at each start.
const MOST_RANGES: usize = 64;

/// What KVM maps at one fault where page tables are shadowed, bytes: an aligned group of eight pages.
const GROUP: u64 = 8 * PAGE_SIZE;

/// Content of some pages, at an offset into the guest's own memory.
#[derive(Debug)]
struct Run {
    offset: u64,
    bytes: Box<[u8]>,
}

impl Run {
    fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }
}

/// What a place in a guest's memory holds at its start.
pub(crate) enum Content<'a> {
    /// These bytes, to the end of what is known.
    Bytes(&'a [u8]),
    /// Zeros, so many.
    Zeros(u64),
}

/// A start of guests.
#[derive(Debug)]
pub struct Template {
    plan: Arc<Plan>,
    shared: Arc<Shared>,
    pages: Pages,
    page_tables: u64,
    /// Sorted, not overlapping.
    runs: Vec<Run>,
    /// Offsets, sorted, not adjacent.
    working_set: RwLock<Vec<Range<u64>>>,
    /// Pages that it may still learn.
    to_learn: AtomicU64,
}

impl Template {
    /// The start of a guest from its image, with so much memory.
    ///
    /// # Errors
    /// `memory` is too little or too much for the image.
    pub fn of_image(image: &Image, memory: u64, pages: Pages) -> Result<Template, MemoryError> {
        let plan = Plan::new(image, memory)?;
        let mut staging = Staging {
            start: plan.tables.start,
            bytes: vec![0; as_size(plan.tables.end - plan.tables.start)],
        };
        let page_tables = tables::build(&plan, &mut staging);
        let shared = Arc::new(Shared::new(image, &plan, &staging.bytes)?);
        let offset = |address: u64| address - plan.memory_start;
        // Data and what it is followed by: memory without content, as far as it is in the working set.
        let data = (image.data_end() - DATA_BASE).min(FIRST_WORKING_SET);
        let mut runs = Vec::new();
        let written = || image.segments.iter().filter(|s| s.rights == Rights::Write && !s.content.is_empty());
        if let Some(first) = written().map(|s| s.address & !(PAGE_SIZE - 1)).min() {
            let mut bytes: Vec<u8> = Vec::new();
            for s in written() {
                let at = as_size(s.address - first);
                bytes.resize(bytes.len().max(at + s.content.len()), 0);
                if let Some(place) = bytes.get_mut(at..at + s.content.len()) {
                    place.copy_from_slice(&s.content);
                }
            }
            bytes.resize(bytes.len().next_multiple_of(as_size(PAGE_SIZE)), 0);
            runs.push(Run { offset: offset(first), bytes: bytes.into() });
        }
        // The top of the stack, the registers and the control page; data; page tables of its own.
        let mut working_set = vec![
            offset(STACK_TOP - PAGE_SIZE)..offset(CONTROL + PAGE_SIZE),
            offset(DATA_BASE)..offset(DATA_BASE + data),
        ];
        if plan.memory_end < plan.end() {
            runs.push(Run { offset: offset(plan.memory_end), bytes: staging.bytes.into() });
            working_set.push(offset(plan.memory_end)..offset(plan.end()));
        }
        Ok(Template {
            plan: Arc::new(plan),
            shared,
            pages,
            page_tables,
            runs,
            working_set: RwLock::new(joined(working_set)),
            to_learn: AtomicU64::new(0),
        })
    }

    /// The start of guests from where this one is. None of its cores may run meanwhile.
    #[must_use]
    pub fn capture(guest: &GuestMemory) -> Template {
        let (of, range) = (guest.template(), guest.range());
        let mut runs: Vec<(u64, Vec<u8>)> = Vec::new();
        let mut page = vec![0; as_size(PAGE_SIZE)];
        // What the VMM writes for each guest anew, and what only it can see.
        let start = of.plan.memory_start;
        let own = [REGISTERS..CONTROL, BOOT..BOOT + BOOT_SIZE, FAULT_STACK..BLOCK];
        let of_guest = |offset: &u64| !own.iter().any(|own| own.contains(&(start + offset)));
        for present in range.present() {
            for offset in present.step_by(as_size(PAGE_SIZE)).filter(of_guest) {
                range.copy_out(offset, &mut page);
                match runs.last_mut() {
                    // Pages of zeros are as good as missing.
                    _ if page.iter().all(|b| *b == 0) => {}
                    Some((start, bytes)) if *start + bytes.len() as u64 == offset => {
                        bytes.extend_from_slice(&page);
                    }
                    _ => runs.push((offset, page.clone())),
                }
            }
        }
        let runs: Vec<_> =
            runs.into_iter().map(|(offset, bytes)| Run { offset, bytes: bytes.into() }).collect();
        let mut left = FIRST_WORKING_SET;
        let mut working_set = of.working_set.read().unwrap_or_else(PoisonError::into_inner).clone();
        for run in &runs {
            let taken = (run.bytes.len() as u64).min(left);
            left -= taken;
            working_set.push(run.offset..run.offset + taken);
        }
        Template {
            plan: Arc::clone(&of.plan),
            shared: Arc::clone(&of.shared),
            pages: of.pages,
            page_tables: of.page_tables,
            runs,
            working_set: RwLock::new(joined(working_set)),
            to_learn: AtomicU64::new(MOST_LEARNED),
        }
    }

    /// Where things lie.
    #[must_use]
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// The part that guests share.
    #[must_use]
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// What backs the heap.
    #[must_use]
    pub fn pages(&self) -> Pages {
        self.pages
    }

    /// Physical address of the top page table.
    #[must_use]
    pub fn page_tables(&self) -> u64 {
        self.page_tables
    }

    /// Bytes of content.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.runs.iter().map(|run| run.bytes.len() as u64).sum()
    }

    /// What is filled before a guest runs, as offsets.
    pub(crate) fn working_set(&self) -> Vec<Range<u64>> {
        self.working_set.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where guests that start here look first: one address in each aligned group of pages that the host maps at one fault, of text, read-only data and
    /// the working set.
    pub(crate) fn stops(&self) -> Vec<u64> {
        let image = self
            .plan
            .ranges
            .iter()
            .filter(|(_, access)| matches!(access, Access::User(Rights::Execute | Rights::Read)));
        let image = image.map(|(range, _)| range.clone()).filter(|range| range.end <= self.plan.shared_end);
        let own =
            |range: Range<u64>| self.plan.memory_start + range.start..self.plan.memory_start + range.end;
        // What was learned may be out of the guests' reach: the page in which the processor stores a fault.
        let can_read = |at: &u64| {
            self.plan
                .ranges
                .iter()
                .any(|(range, access)| matches!(access, Access::User(_)) && range.contains(at))
        };
        let mut stops = Vec::new();
        for range in image.chain(self.working_set().into_iter().map(own)) {
            let mut at = range.start;
            while at < range.end {
                stops.extend(Some(at).filter(can_read));
                at = (at + 1).next_multiple_of(GROUP);
            }
        }
        stops
    }

    /// Everything that has content, and the working set: what is filled where nobody fills pages later.
    pub(crate) fn everything(&self) -> Vec<Range<u64>> {
        let runs = self.runs.iter().map(|run| run.offset..run.end());
        joined(runs.chain(self.working_set()).collect())
    }

    /// A guest had to wait for this page, among the first.
    pub(crate) fn learn(&self, pages: Range<u64>) {
        if self.to_learn.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut set = self.working_set.write().unwrap_or_else(PoisonError::into_inner);
        // What another has taught is no news: guests that started together wait for the same pages.
        let known = set.iter().any(|range| range.start <= pages.start && pages.end <= range.end);
        let left = self.to_learn.load(Ordering::Relaxed);
        if !known && left > 0 && set.len() < MOST_RANGES {
            self.to_learn.store(left - 1, Ordering::Relaxed);
            set.push(pages);
            let all = std::mem::take(&mut *set);
            *set = joined(all);
        }
    }

    /// What is at an offset, and on behind it.
    pub(crate) fn content(&self, offset: u64) -> Content<'_> {
        let behind = self.runs.partition_point(|run| run.end() <= offset);
        match self.runs.get(behind) {
            Some(run) if run.offset <= offset => {
                Content::Bytes(run.bytes.get(as_size(offset - run.offset)..).unwrap_or_default())
            }
            Some(run) => Content::Zeros(run.offset - offset),
            None => Content::Zeros(u64::MAX),
        }
    }

    /// The next offsets, from one on, that have content.
    pub(crate) fn next_content(&self, from: u64) -> Option<Range<u64>> {
        let run = self.runs.get(self.runs.partition_point(|run| run.end() <= from))?;
        Some(run.offset.max(from)..run.end())
    }

    /// The contents of a range of offsets, piece by piece.
    pub(crate) fn pieces(&self, range: Range<u64>) -> impl Iterator<Item = (u64, Content<'_>)> {
        let mut at = range.start;
        std::iter::from_fn(move || {
            let left = range.end.checked_sub(at).filter(|left| *left > 0)?;
            let (content, length) = match self.content(at) {
                Content::Bytes(bytes) => {
                    let bytes = bytes.get(..as_size(left)).unwrap_or(bytes);
                    (Content::Bytes(bytes), bytes.len() as u64)
                }
                Content::Zeros(zeros) => (Content::Zeros(zeros.min(left)), zeros.min(left)),
            };
            at += length;
            Some((at - length, content))
        })
    }
}

/// Page tables while they are built.
struct Staging {
    start: u64,
    bytes: Vec<u8>,
}

impl Staging {
    fn place(&self, address: u64) -> Range<usize> {
        let at = as_size(address - self.start);
        at..at + 8
    }
}

impl tables::Words for Staging {
    fn read(&self, address: u64) -> u64 {
        let word = self.bytes.get(self.place(address)).and_then(|b| b.try_into().ok());
        word.map_or(0, u64::from_le_bytes)
    }

    fn write(&mut self, address: u64, value: u64) {
        let place = self.place(address);
        let Some(word) = self.bytes.get_mut(place) else {
            unreachable!("{address:#x} lies outside the page tables: the plan is wrong")
        };
        word.copy_from_slice(&value.to_le_bytes());
    }
}

/// Sorts ranges and joins those that touch.
fn joined(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_by_key(|range| range.start);
    ranges.dedup_by(|next, kept| {
        let touch = next.start <= kept.end;
        if touch {
            kept.end = kept.end.max(next.end);
        }
        touch
    });
    ranges
}

/// Lengths within a guest's memory fit the address space of this process.
pub(crate) fn as_size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

const _: () = assert!(SUPERVISOR_BASE < DATA_BASE);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn image() -> Image {
        let text = foraker_image::Segment {
            address: foraker_abi::layout::IMAGE_BASE,
            size: 20 * PAGE_SIZE,
            content: vec![0xc3],
            rights: Rights::Execute,
        };
        Image {
            entry: text.address,
            note: foraker_abi::note::Descriptor::default(),
            manifest: None,
            segments: vec![text],
            path: None,
        }
    }

    #[test]
    fn guests_that_wait_for_the_same_pages_teach_each_once() {
        let mut template = Template::of_image(&image(), 4 << 20, Pages::Small).unwrap();
        template.to_learn = AtomicU64::new(MOST_LEARNED);
        *template.working_set.write().unwrap() = Vec::new();
        let page = |n: u64| (1 << 20) + 2 * n * PAGE_SIZE..(1 << 20) + (2 * n + 1) * PAGE_SIZE;
        // Each of many guests waits for the same three pages, and later for three more.
        (0..100).for_each(|n| template.learn(page(n % 3)));
        (0..100).for_each(|n| template.learn(page(3 + n % 3)));
        assert_eq!(template.working_set(), (0..6).map(page).collect::<Vec<_>>());
        (0..1000).for_each(|n| template.learn(page(n)));
        assert_eq!(template.working_set().len() as u64, MOST_LEARNED);
    }

    #[test]
    fn who_visits_stays_where_guests_may_read() {
        let image = image();
        let template = Template::of_image(&image, 1 << 20, Pages::Small).unwrap();
        // A guest has faulted, among the first things it did; another went through all there is.
        let offset = |address: u64| address - template.plan.memory_start;
        let all = joined(vec![offset(FAULT_STACK)..offset(BLOCK), 0..template.plan.memory_size]);
        *template.working_set.write().unwrap() = all;
        let stops = template.stops();
        let in_text = |at: &&u64| (image.entry..image.entry + 20 * PAGE_SIZE).contains(*at);
        assert_eq!(stops.iter().filter(in_text).count(), 3, "20 pages are in three groups of eight");
        assert!(stops.iter().all(|at| !(FAULT_STACK..BOOT).contains(at)), "{stops:x?}");
        assert!(stops.iter().any(|at| *at >= DATA_BASE) && stops.iter().all(|at| *at < template.plan.end()));
    }

    proptest! {
        #[test]
        fn joined_ranges_cover_the_same(ranges in proptest::collection::vec((0u64..60, 0u64..9), 0..20)) {
            let ranges: Vec<_> = ranges.into_iter().map(|(start, length)| start..start + length).collect();
            let all = joined(ranges.clone());
            for at in 0..80 {
                let before = ranges.iter().any(|r| r.contains(&at));
                prop_assert_eq!(before, all.iter().any(|r| r.contains(&at)));
            }
            prop_assert!(all.windows(2).all(|w| w[0].end < w[1].start));
        }
    }
}
