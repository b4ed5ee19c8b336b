//! Ports whose guests are above their limits: frames wait in their rings until the limit allows them.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use foraker_net::Port;

/// Nothing waits.
const NEVER: u64 = u64::MAX;

/// What waits, by when. Times are nanoseconds of the network's clock. A port stands here once, however often its guest asks.
#[derive(Debug)]
pub(crate) struct Throttled {
    /// The earliest of `queue`, to be read without its lock.
    next: AtomicU64,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    by_time: BTreeMap<(u64, u64), Weak<Port>>,
    /// Time by the port's id.
    times: HashMap<u64, u64>,
}

impl Throttled {
    pub(crate) fn new() -> Throttled {
        Throttled { next: AtomicU64::new(NEVER), queue: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the earliest time; called before the lock is given back.
    fn note(&self, queue: &Queue) {
        let next = queue.by_time.first_key_value().map_or(NEVER, |((at, _), _)| *at);
        self.next.store(next, Ordering::SeqCst);
    }

    /// The port's frames wait until `until`. True if nothing waited for so short a time before: whoever sleeps, sleeps too long.
    pub(crate) fn insert(&self, port: &Arc<Port>, until: u64) -> bool {
        let mut queue = self.lock();
        let before = self.next.load(Ordering::SeqCst);
        if queue.times.contains_key(&port.id()) {
            return false;
        }
        queue.times.insert(port.id(), until);
        queue.by_time.insert((until, port.id()), Arc::downgrade(port));
        self.note(&queue);
        until < before
    }

    pub(crate) fn remove(&self, port: &Port) {
        let mut queue = self.lock();
        if let Some(at) = queue.times.remove(&port.id()) {
            queue.by_time.remove(&(at, port.id()));
            self.note(&queue);
        }
    }

    /// Whether the port waits here.
    pub(crate) fn contains(&self, port: &Port) -> bool {
        self.next().is_some() && self.lock().times.contains_key(&port.id())
    }

    /// When the next port is due.
    pub(crate) fn next(&self) -> Option<u64> {
        let next = self.next.load(Ordering::SeqCst);
        (next != NEVER).then_some(next)
    }

    /// Takes a port that is due at `now`.
    pub(crate) fn pop(&self, now: u64) -> Option<Arc<Port>> {
        loop {
            if self.next.load(Ordering::SeqCst) > now {
                return None;
            }
            let mut queue = self.lock();
            let first = queue.by_time.first_entry().filter(|e| e.key().0 <= now)?;
            let ((_, id), port) = first.remove_entry();
            queue.times.remove(&id);
            self.note(&queue);
            if let Some(port) = port.upgrade() {
                return Some(port);
            }
        }
    }
}
