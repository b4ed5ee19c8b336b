//! The arena: one sparse mapping from which all guests of a process get their memory.
//!
//! Linux announces each change of a process' memory map to every VM in it, so the map is changed once, here. It is a mapping of one
//! memory file, registered with `userfaultfd` from the start: what a guest's missing pages hold is decided by its template, and filled in by the
//! arena's own thread, the *pager* (`pager.rs`). Giving a range back drops its pages; the mapping stays. Guests that are always hot get large pages, which
//! memory files do not have on most hosts, from an arena of anonymous memory without a pager.
//!
//! Where the host lets nobody open a `userfaultfd`, missing pages are the kernel's to fill with zeros, and templates are copied whole.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foraker_abi::layout::{LARGE_PAGE_SIZE, PAGE_SIZE};

use crate::MemoryError;
use crate::pager::{Bounds, Pager};
use crate::template::{Content, Template, as_size};
use crate::uffd::Uffd;

/// A sparse mapping, and what of it is free.
#[derive(Debug)]
pub struct Arena {
    base: *mut u8,
    size: u64,
    /// Free ranges as (offset, bytes), sorted by offset, never adjacent.
    free: Mutex<Vec<(u64, u64)>>,
    /// The file behind it; none for large pages.
    file: Option<OwnedFd>,
    pager: Option<Pager>,
}

// SAFETY: the mapping belongs to the arena for its whole life; `base` is never changed.
unsafe impl Send for Arena {}
// SAFETY: as above; the only mutable state is behind a mutex.
unsafe impl Sync for Arena {}

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Arena {
    /// Reserves `size` bytes of address space; pages are allocated when they are first touched.
    ///
    /// # Errors
    /// The host has no address space, file or thread to give.
    pub fn new(size: u64) -> Result<Arc<Arena>, MemoryError> {
        const NAME: &CStr = c"guests";
        let size = size.next_multiple_of(LARGE_PAGE_SIZE);
        // SAFETY: a system call with a valid string.
        let fd = unsafe { libc::memfd_create(NAME.as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(MemoryError::Map(std::io::Error::last_os_error()));
        }
        // SAFETY: a new descriptor that nobody else owns.
        let file = unsafe { OwnedFd::from_raw_fd(fd) };
        let length = libc::off_t::try_from(size).map_err(|_| MemoryError::TooMuch(size))?;
        // SAFETY: a call on an open descriptor.
        if unsafe { libc::ftruncate(fd, length) } != 0 {
            return Err(MemoryError::Map(std::io::Error::last_os_error()));
        }
        let base = map(size, libc::MAP_SHARED | libc::MAP_NORESERVE, fd)?;
        let mut arena =
            Arena { base, size, free: Mutex::new(vec![(0, size)]), file: Some(file), pager: None };
        match Uffd::open() {
            Ok(uffd) => arena.pager = Some(Pager::start(uffd, base as u64, size)?),
            Err(e) => log::debug!("no userfaultfd, so templates are copied whole: {e}"),
        }
        Ok(Arc::new(arena))
    }

    /// The same without a file and a pager, for ranges with large pages.
    ///
    /// # Errors
    /// The host has no address space to give.
    pub fn of_large_pages(size: u64) -> Result<Arc<Arena>, MemoryError> {
        let size = size.next_multiple_of(LARGE_PAGE_SIZE);
        let base = map(size, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, -1)?;
        Ok(Arc::new(Arena { base, size, free: Mutex::new(vec![(0, size)]), file: None, pager: None }))
    }

    /// Takes a range for a guest that starts from `template`: all its pages are missing. In an arena of large pages it is placed so that large
    /// pages of the guest are large pages of the host.
    ///
    /// # Errors
    /// No free range is large enough.
    pub fn allocate(self: &Arc<Self>, template: &Arc<Template>) -> Result<Range, MemoryError> {
        let plan = template.plan();
        let base = self.base as u64;
        let skip = |offset: u64| match self.file {
            Some(_) => 0,
            None => plan.memory_start.wrapping_sub(base + offset) % LARGE_PAGE_SIZE,
        };
        let (offset, size) = self.take(plan.memory_size, skip)?;
        let bounds = Arc::new(Bounds::new());
        if let Some(pager) = &self.pager {
            pager.take_up(offset, size, Arc::clone(&bounds), Arc::clone(template));
        }
        Ok(Range { arena: Arc::clone(self), offset, size, bounds })
    }

    /// Takes a range that starts `skip` bytes, a function of the offset, behind the start of a free one.
    fn take(&self, size: u64, skip: impl Fn(u64) -> u64) -> Result<(u64, u64), MemoryError> {
        let size = size.next_multiple_of(PAGE_SIZE);
        let mut free = locked(&self.free);
        let at = free
            .iter()
            .position(|(offset, bytes)| bytes.saturating_sub(skip(*offset)) >= size)
            .ok_or(MemoryError::ArenaFull(size))?;
        let (offset, bytes) = free.remove(at);
        let start = offset + skip(offset);
        let rest = (start + size, offset + bytes - (start + size));
        for part in [rest, (offset, start - offset)] {
            if part.1 > 0 {
                free.insert(at, part);
            }
        }
        Ok((start, size))
    }

    fn release(&self, offset: u64, size: u64) {
        let mut free = locked(&self.free);
        let at = free.partition_point(|(o, _)| *o < offset);
        free.insert(at, (offset, size));
        free.dedup_by(|next, kept| {
            let adjacent = kept.0 + kept.1 == next.0;
            if adjacent {
                kept.1 += next.1;
            }
            adjacent
        });
    }

    /// Bytes that are not given out.
    #[must_use]
    pub fn available(&self) -> u64 {
        locked(&self.free).iter().map(|(_, bytes)| bytes).sum()
    }

    /// Pages that somebody waits for now, and how many were filled so far; nothing where no page is ever waited for.
    #[must_use]
    pub fn paging(&self) -> (usize, u64) {
        self.pager.as_ref().map_or((0, 0), Pager::counts)
    }

    fn advise(&self, offset: u64, bytes: u64, advice: i32) {
        let start = self.base.wrapping_add(as_size(offset));
        // SAFETY: the part lies within the mapping, in a range that its owner alone uses; the owner's guest alone sees the change.
        unsafe { libc::madvise(start.cast(), as_size(bytes), advice) };
    }
}

fn map(size: u64, flags: i32, fd: i32) -> Result<*mut u8, MemoryError> {
    let length = usize::try_from(size).map_err(|_| MemoryError::TooMuch(size))?;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at an address that the kernel chooses.
    let base = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, fd, 0) };
    if base == libc::MAP_FAILED {
        return Err(MemoryError::Map(std::io::Error::last_os_error()));
    }
    Ok(base.cast())
}

impl Drop for Arena {
    fn drop(&mut self) {
        // Its thread ends with it.
        drop(self.pager.take());
        // SAFETY: the mapping is ours, and every range holds a reference to the arena, so none is left.
        unsafe { libc::munmap(self.base.cast(), as_size(self.size)) };
    }
}

/// A range of the arena. Its pages are dropped when it is.
#[derive(Debug)]
pub struct Range {
    arena: Arc<Arena>,
    offset: u64,
    size: u64,
    bounds: Arc<Bounds>,
}

impl Range {
    /// First byte.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        // Offsets are below the size of the mapping, which fits a pointer.
        self.arena.base.wrapping_add(as_size(self.offset))
    }

    /// Bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Its guest does without these offsets, and not without others, from now on: they are given back, and it is noted when they are touched. `false` where
    /// nobody would notice, because there is no pager; then nothing is changed.
    pub(crate) fn do_without(&self, offsets: std::ops::Range<u64>) -> bool {
        if !self.has_pager() {
            return false;
        }
        self.bounds.end.store(offsets.end, Ordering::SeqCst);
        self.bounds.lowest.fetch_min(offsets.start, Ordering::SeqCst);
        let before = self.bounds.start.swap(offsets.start, Ordering::SeqCst);
        if offsets.start < before {
            self.drop_pages(offsets.start, offsets.end.min(before).saturating_sub(offsets.start));
        }
        true
    }

    /// How much of the range the guest has: what lies behind, to its heap's end, it has given back.
    pub(crate) fn kept(&self) -> u64 {
        self.bounds.start.load(Ordering::SeqCst)
    }

    /// Whether something was touched that had been given back.
    pub(crate) fn was_crossed(&self) -> bool {
        self.bounds.crossed.load(Ordering::SeqCst)
    }

    /// A part of the range: what lies outside is cut off.
    fn part(&self, from: u64, bytes: u64) -> (u64, u64) {
        let from = from.min(self.size);
        (self.offset + from, bytes.min(self.size - from))
    }

    /// Has part of the range read as zeros, and gives its memory back. Pages that the template has content for stay: filled anew, they
    /// would have it again.
    pub fn discard(&self, from: u64, bytes: u64) {
        let (offset, bytes) = self.part(from, bytes);
        let from = offset - self.offset;
        let template = self.arena.pager.as_ref().and_then(|pager| pager.template(self.offset));
        let Some(template) = template else {
            self.drop_pages(from, bytes);
            return;
        };
        for (at, content) in template.pieces(from..from + bytes) {
            match content {
                Content::Bytes(old) => {
                    // SAFETY: a piece of this range, which its guest has said it does not need.
                    unsafe { std::ptr::write_bytes(self.as_ptr().wrapping_add(as_size(at)), 0, old.len()) };
                }
                Content::Zeros(zeros) => self.drop_pages(at, zeros),
            }
        }
    }

    fn drop_pages(&self, from: u64, bytes: u64) {
        let (offset, bytes) = self.part(from, bytes);
        let advice = if self.arena.file.is_some() { libc::MADV_REMOVE } else { libc::MADV_DONTNEED };
        self.arena.advise(offset, bytes, advice);
    }

    /// Allocates what is missing of part of the range, with what belongs there, in few operations. What fails is allocated when it is touched.
    pub fn populate(&self, from: u64, bytes: u64) {
        let (offset, bytes) = self.part(from, bytes);
        match &self.arena.pager {
            Some(pager) => {
                if let Some(template) = pager.template(self.offset) {
                    self.fill(&template, offset - self.offset..offset - self.offset + bytes);
                }
            }
            None => self.arena.advise(offset, bytes, libc::MADV_POPULATE_WRITE),
        }
    }

    /// Has large pages back part of the range, where the host has them.
    pub(crate) fn use_large_pages(&self, from: u64, bytes: u64) {
        let (offset, bytes) = self.part(from, bytes);
        self.arena.advise(offset, bytes, libc::MADV_HUGEPAGE);
    }

    /// Whether pages are filled when they are missing. Otherwise everything is to be filled at the start.
    pub(crate) fn has_pager(&self) -> bool {
        self.arena.pager.is_some()
    }

    /// Fills what is missing of a range of offsets.
    pub(crate) fn fill(&self, template: &Template, range: std::ops::Range<u64>) {
        let split = self.bounds.lowest.load(Ordering::SeqCst).clamp(range.start, range.end);
        for (at, content) in template.pieces(range.start..split).chain(template.pieces(split..range.end)) {
            let content = self.bounds.content(at, content);
            let address = self.as_ptr() as u64 + at;
            let Some(pager) = &self.arena.pager else {
                match content {
                    Content::Bytes(bytes) => {
                        // SAFETY: a piece of a range within this one, which no guest uses yet.
                        unsafe {
                            let to = self.as_ptr().wrapping_add(as_size(at));
                            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
                        }
                    }
                    Content::Zeros(zeros) => {
                        self.arena.advise(self.offset + at, zeros, libc::MADV_POPULATE_WRITE);
                    }
                }
                continue;
            };
            let length = match content {
                Content::Bytes(bytes) => bytes.len() as u64,
                Content::Zeros(zeros) => zeros,
            };
            let mut done = 0;
            while done < length {
                let filled = match content {
                    Content::Bytes(bytes) => {
                        pager.uffd().copy(address + done, bytes.get(as_size(done)..).unwrap_or_default())
                    }
                    Content::Zeros(_) => pager.uffd().zero(address + done, length - done),
                };
                // Pages that are there stay as they are.
                done += match filled {
                    Ok(bytes) if bytes > 0 => bytes,
                    Err(e) if e.raw_os_error() == Some(libc::EEXIST) => PAGE_SIZE,
                    // No memory: whoever touches the rest waits for it.
                    _ => break,
                };
            }
        }
    }

    /// The pages that are there, as ranges of offsets.
    pub(crate) fn present(&self) -> Vec<std::ops::Range<u64>> {
        let mut all: Vec<std::ops::Range<u64>> = Vec::new();
        while let Some(next) = self.next_present(all.last().map_or(0, |last| last.end)) {
            all.push(next);
        }
        all
    }

    /// The next pages that are there from an offset on. For an arena without a file, where nobody knows, all.
    pub(crate) fn next_present(&self, from: u64) -> Option<std::ops::Range<u64>> {
        let (from, bytes) = self.part(from, u64::MAX);
        let (start, end) = (self.offset, from + bytes);
        let Some(file) = &self.arena.file else {
            return Some(from - start..end - start).filter(|range| !range.is_empty());
        };
        let seek = |from: u64, whence| {
            let from = libc::off_t::try_from(from).ok()?;
            // SAFETY: a call on an open descriptor; its position is nobody's concern.
            u64::try_from(unsafe { libc::lseek(file.as_raw_fd(), from, whence) }).ok()
        };
        let data = seek(from, libc::SEEK_DATA).filter(|data| *data < end)?;
        let hole = seek(data, libc::SEEK_HOLE).unwrap_or(end).min(end);
        Some(data - start..hole - start)
    }

    /// Whether the page at an offset is there.
    pub(crate) fn has(&self, page: u64) -> bool {
        self.next_present(page).is_some_and(|range| range.start <= page)
    }

    /// What a page holds that is missing, by what the template says.
    pub(crate) fn missing<'a>(&self, template: Content<'a>, at: u64) -> Content<'a> {
        self.bounds.content(at, template)
    }

    /// Copies what is at an offset.
    pub(crate) fn copy_out(&self, offset: u64, to: &mut [u8]) {
        let (_, bytes) = self.part(offset, to.len() as u64);
        // SAFETY: within the range; nobody writes there meanwhile, as the guest does not run.
        unsafe {
            let from = self.as_ptr().wrapping_add(as_size(offset));
            std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), as_size(bytes));
        }
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        if let Some(pager) = &self.arena.pager {
            pager.let_go(self.offset);
        }
        // Pages first: once the range is free, the next owner must find them missing.
        self.drop_pages(0, self.size);
        self.arena.release(self.offset, self.size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::Pages;
    use foraker_abi::layout::{DATA_BASE, IMAGE_BASE};
    use foraker_abi::note;
    use foraker_image::{Image, Rights, Segment};

    fn template(memory: u64, pages: Pages) -> Arc<Template> {
        let segment = |address, size, content: &[u8], rights| Segment {
            address,
            size,
            content: content.to_vec(),
            rights,
        };
        let image = Image {
            entry: IMAGE_BASE,
            note: note::Descriptor::default(),
            manifest: None,
            segments: vec![
                segment(IMAGE_BASE, 1, b"\x90", Rights::Execute),
                segment(DATA_BASE, 3 << 20, b"data", Rights::Write),
            ],
            path: None,
        };
        Arc::new(Template::of_image(&image, memory, pages).unwrap())
    }

    fn read(range: &Range, address: u64) -> [u8; 4] {
        let mut bytes = [0; 4];
        range.copy_out(address, &mut bytes);
        bytes
    }

    fn write(range: &Range, at: u64, bytes: &[u8]) {
        assert!(at + bytes.len() as u64 <= range.size());
        // SAFETY: within the range, which is ours.
        unsafe {
            let to = range.as_ptr().wrapping_add(as_size(at));
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
    }

    #[test]
    fn ranges_come_back_without_what_was_in_them() {
        let arena = Arena::new(16 << 20).unwrap();
        let template = template(6 << 20, Pages::Small);
        let data = DATA_BASE - template.plan().memory_start;
        let a = arena.allocate(&template).unwrap();
        let b = arena.allocate(&template).unwrap();
        assert!(arena.allocate(&template).is_err());
        let at = a.as_ptr();
        // What nobody filled is filled when it is touched.
        let pager = a.has_pager();
        if !pager {
            a.fill(&template, 0..6 << 20);
        }
        assert_eq!((&read(&a, data), read(&a, data + 4096)), (b"data", [0; 4]));
        write(&a, data, b"mine");
        write(&a, 5 << 20, b"mine");
        drop(a);
        let a = arena.allocate(&template).unwrap();
        assert_eq!(a.as_ptr(), at);
        if pager {
            assert_eq!((&read(&a, data), read(&a, 5 << 20)), (b"data", [0; 4]));
            assert_eq!(read(&b, 0), [0; 4]);
        }
        drop((a, b));
        assert_eq!(arena.available(), 16 << 20);
    }

    #[test]
    fn what_is_discarded_reads_as_zeros_whatever_the_template_says() {
        let arena = Arena::new(8 << 20).unwrap();
        let template = template(6 << 20, Pages::Small);
        let data = DATA_BASE - template.plan().memory_start;
        let range = arena.allocate(&template).unwrap();
        range.fill(&template, data..data + (1 << 20));
        write(&range, data + 8192, b"mine");
        range.discard(data, 1 << 20);
        assert_eq!((read(&range, data), read(&range, data + 8192)), ([0; 4], [0; 4]));
        let held: u64 = range.present().into_iter().map(|r| r.end - r.start).sum();
        assert!(held <= 3 * 4096, "{held} bytes are still there");
    }

    /// The data of the template stands for what a captured guest had at the end of its heap.
    #[test]
    fn what_is_given_back_is_nobodys_to_touch_and_comes_back_as_zeros() {
        let arena = Arena::new(16 << 20).unwrap();
        let template = template(6 << 20, Pages::Small);
        let data = DATA_BASE - template.plan().memory_start;
        let range = arena.allocate(&template).unwrap();
        if !range.has_pager() {
            assert!(!range.do_without(data..data + PAGE_SIZE));
            return;
        }
        write(&range, data + PAGE_SIZE, b"mine");
        let pages = data..data + 4 * PAGE_SIZE;
        assert!(range.do_without(pages.clone()));
        assert_eq!((range.kept(), range.was_crossed()), (data, false));
        assert!(
            range.present().iter().all(|there| there.end <= data || there.start >= pages.end),
            "it is free"
        );
        // All of it again: neither what the guest had there nor what the template has.
        assert!(range.do_without(pages.end..pages.end));
        range.populate(data - PAGE_SIZE, 3 * PAGE_SIZE);
        assert_eq!((read(&range, data), read(&range, data + PAGE_SIZE)), ([0; 4], [0; 4]));
        assert_eq!(read(&range, data + 2 * PAGE_SIZE), [0; 4]);
        assert!(!range.was_crossed());
        // Touched without asking.
        assert!(range.do_without(pages.end - PAGE_SIZE..pages.end));
        let _ = read(&range, pages.end - PAGE_SIZE);
        assert!(range.was_crossed());
    }

    #[test]
    fn a_fault_that_goes_on_brings_more_each_time() {
        let arena = Arena::new(8 << 20).unwrap();
        let template = template(7 << 20, Pages::Small);
        let range = arena.allocate(&template).unwrap();
        if !range.has_pager() {
            return;
        }
        for at in (4 << 20..6 << 20).step_by(4096) {
            assert_eq!(read(&range, at), [0; 4]);
        }
        let held: u64 = range.present().into_iter().map(|r| r.end - r.start).sum();
        assert!((2 << 20..3 << 20).contains(&held), "{held}");
    }

    #[test]
    fn large_pages_of_the_guest_are_large_pages_of_the_host() {
        let arena = Arena::of_large_pages(32 << 20).unwrap();
        let template = template(6 << 20, Pages::Large);
        let start = template.plan().memory_start;
        let ranges: Vec<_> = (0..3).map(|_| arena.allocate(&template).unwrap()).collect();
        for range in &ranges {
            assert_eq!((range.as_ptr() as u64).wrapping_sub(start) % LARGE_PAGE_SIZE, 0);
        }
        // What was skipped is still there for others.
        assert_eq!(arena.available(), (32 << 20) - 3 * (6 << 20));
        drop(ranges);
        assert_eq!(arena.available(), 32 << 20);
    }
}
