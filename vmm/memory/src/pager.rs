//! The pager: the thread that fills a guest's missing pages with what its template says, when somebody waits for them.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use foraker_abi::layout::PAGE_SIZE;
use foraker_confine::Kind;

use crate::MemoryError;
use crate::arena::locked;
use crate::template::{Content, FIRST_PAGES, Template, as_size};
use crate::uffd::Uffd;

/// Most bytes of zeros that one fault brings.
const MOST_AHEAD: u64 = 512 << 10;

/// The pager of an arena. Its thread ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Pager {
    filling: Arc<Filling>,
    thread: Option<JoinHandle<()>>,
}

/// What its thread shares with everybody.
#[derive(Debug)]
struct Filling {
    uffd: Uffd,
    base: u64,
    /// Readable: the pager is to stop.
    stop: OwnedFd,
    owners: Mutex<BTreeMap<u64, Owner>>,
    /// Pages that somebody waits for now, as far as was read, and all that were filled.
    waiting: AtomicUsize,
    filled: AtomicU64,
}

/// Whose a range is.
#[derive(Debug)]
struct Owner {
    size: u64,
    bounds: Arc<Bounds>,
    template: Arc<Template>,
    /// Pages for which it has waited.
    waited: u32,
    /// Where the last fault's zeros ended, and how many they were: a guest that goes through its memory is given more at a time.
    ahead: (u64, u64),
}

/// What of a range its guest has given back.
#[derive(Debug)]
pub(crate) struct Bounds {
    /// The offsets: empty at first.
    pub(crate) start: AtomicU64,
    pub(crate) end: AtomicU64,
    /// From here to `end` it once was: missing pages there are zeros, whatever the template says.
    pub(crate) lowest: AtomicU64,
    /// A page of it was touched.
    pub(crate) crossed: AtomicBool,
}

impl Bounds {
    pub(crate) fn new() -> Bounds {
        let nowhere = || AtomicU64::new(u64::MAX);
        Bounds {
            start: nowhere(),
            end: AtomicU64::new(0),
            lowest: nowhere(),
            crossed: AtomicBool::new(false),
        }
    }

    /// What a page holds when it is missing, by what the template says.
    pub(crate) fn content<'a>(&self, at: u64, template: Content<'a>) -> Content<'a> {
        let (lowest, end) = (self.lowest.load(Ordering::SeqCst), self.end.load(Ordering::SeqCst));
        match template {
            Content::Bytes(bytes) if (lowest..end).contains(&at) => Content::Zeros(bytes.len() as u64),
            // Zeros may reach beyond, where they are zeros, too.
            content => content,
        }
    }

    /// How far the guest may go from an offset on; nothing if that was given back.
    pub(crate) fn room(&self, at: u64) -> u64 {
        let (start, end) = (self.start.load(Ordering::SeqCst), self.end.load(Ordering::SeqCst));
        if at >= end { u64::MAX } else { start.saturating_sub(at) }
    }
}

impl Pager {
    /// Registers the arena and starts the pager's thread.
    pub(crate) fn start(uffd: Uffd, base: u64, size: u64) -> Result<Pager, MemoryError> {
        uffd.register(base, size).map_err(MemoryError::Map)?;
        // SAFETY: a system call with numbers.
        let stop = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if stop < 0 {
            return Err(MemoryError::Map(std::io::Error::last_os_error()));
        }
        // SAFETY: a new descriptor that nobody else owns.
        let stop = unsafe { OwnedFd::from_raw_fd(stop) };
        let filling = Arc::new(Filling {
            uffd,
            base,
            stop,
            owners: Mutex::default(),
            waiting: AtomicUsize::new(0),
            filled: AtomicU64::new(0),
        });
        let own = Arc::clone(&filling);
        let thread = std::thread::Builder::new()
            .name("pager".to_owned())
            .stack_size(128 << 10)
            .spawn(move || {
                foraker_confine::enter(Kind::Pager);
                own.serve();
            })
            .map_err(MemoryError::Map)?;
        Ok(Pager { filling, thread: Some(thread) })
    }

    /// The way to fill pages that nobody waits for yet.
    pub(crate) fn uffd(&self) -> &Uffd {
        &self.filling.uffd
    }

    /// A range of the arena is somebody's.
    pub(crate) fn take_up(&self, offset: u64, size: u64, bounds: Arc<Bounds>, template: Arc<Template>) {
        let owner = Owner { size, bounds, template, waited: 0, ahead: (0, 0) };
        locked(&self.filling.owners).insert(offset, owner);
    }

    /// It is nobody's any more.
    pub(crate) fn let_go(&self, offset: u64) {
        locked(&self.filling.owners).remove(&offset);
    }

    /// What fills a range.
    pub(crate) fn template(&self, offset: u64) -> Option<Arc<Template>> {
        locked(&self.filling.owners).get(&offset).map(|owner| Arc::clone(&owner.template))
    }

    /// Pages that somebody waits for now, and how many were filled so far.
    pub(crate) fn counts(&self) -> (usize, u64) {
        (self.filling.waiting.load(Ordering::Relaxed), self.filling.filled.load(Ordering::Relaxed))
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight valid bytes for an event counter.
        unsafe { libc::write(self.filling.stop.as_raw_fd(), one.as_ptr().cast(), one.len()) };
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has aborted the process.
            let _ = thread.join();
        }
    }
}

impl Filling {
    fn serve(&self) {
        let mut addresses = Vec::new();
        loop {
            let entry = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
            let mut entries = [entry(self.uffd.as_raw_fd()), entry(self.stop.as_raw_fd())];
            // SAFETY: two valid structures for the call.
            unsafe { libc::poll(entries.as_mut_ptr(), 2, -1) };
            if entries[1].revents != 0 {
                return;
            }
            self.uffd.faults(&mut addresses);
            self.waiting.store(addresses.len(), Ordering::Relaxed);
            for address in addresses.drain(..) {
                self.fill(address & !(PAGE_SIZE - 1));
                self.waiting.fetch_sub(1, Ordering::Relaxed);
                self.filled.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Fills a page that somebody waits for. Nothing here may touch the arena itself.
    fn fill(&self, address: u64) {
        let offset = address.wrapping_sub(self.base);
        let mut owners = locked(&self.owners);
        let owner = owners.range_mut(..=offset).next_back();
        let Some((start, owner)) = owner.filter(|(start, owner)| offset - **start < owner.size) else {
            drop(owners);
            // Nobody's: read after its end, perhaps. Zeros harm nobody.
            let _ = self.uffd.zero(address, PAGE_SIZE);
            self.uffd.wake(address, PAGE_SIZE);
            return;
        };
        let at = offset - start;
        // It gets its page all the same, so that a thread of this process that touched it does not wait for ever, and one at a time: whoever runs the guest
        // ends it.
        let room = owner.bounds.room(at);
        if room == 0 {
            owner.bounds.crossed.store(true, Ordering::SeqCst);
        }
        let template = Arc::clone(&owner.template);
        let young = owner.waited < FIRST_PAGES;
        owner.waited = owner.waited.saturating_add(1);
        // Filled with the owners locked: a range that is given back meanwhile must not get a page afterwards.
        let done = match owner.bounds.content(at, template.content(at)) {
            Content::Bytes(bytes) => {
                self.uffd.copy(address, bytes.get(..as_size(PAGE_SIZE)).unwrap_or(bytes))
            }
            Content::Zeros(zeros) => {
                let (end, last) = owner.ahead;
                let wanted = if at == end { (last * 2).clamp(PAGE_SIZE, MOST_AHEAD) } else { PAGE_SIZE };
                let length = wanted.min(zeros).min(owner.size - at).min(room.max(PAGE_SIZE));
                owner.ahead = (at + length, length);
                self.uffd.zero(address, length)
            }
        };
        drop(owners);
        if done.is_err() {
            // Somebody was faster, or the range was given back: whoever waits shall look again.
            self.uffd.wake(address, PAGE_SIZE);
        }
        if young {
            template.learn(at..at + PAGE_SIZE);
        }
    }
}
