//! What has happened, in its order: the last part is kept in memory, so that whoever listens can come back after a break and miss nothing.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foraker_api::Event;
use foraker_api::units::now_ms;
use tokio::sync::watch;

/// Events kept for those who come back: ten thousand guests that are made, start and end fit in twice.
const KEPT: usize = 1 << 16;

/// The last events.
#[derive(Clone, Debug)]
pub(crate) struct Events(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    kept: Mutex<Kept>,
    /// The last event's id: whoever waits for the next looks at this.
    last: watch::Sender<u64>,
}

#[derive(Debug)]
struct Kept {
    events: VecDeque<Event>,
    /// The id of the last one.
    last: u64,
}

/// What somebody is told who asks for what came after an event.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Told {
    /// Some between that one and the first of these are gone.
    pub(crate) gap: bool,
    /// Events, the oldest first.
    pub(crate) events: Vec<Event>,
}

impl Events {
    /// Ids begin above `first`.
    pub(crate) fn new(first: u64) -> Events {
        let kept = Mutex::new(Kept { events: VecDeque::new(), last: first });
        Events(Arc::new(Shared { kept, last: watch::channel(first).0 }))
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something has happened. The id and the time are given here.
    pub(crate) fn happened(&self, event: Event) {
        let mut kept = self.lock();
        kept.last += 1;
        let id = kept.last;
        if kept.events.len() >= KEPT {
            kept.events.pop_front();
        }
        kept.events.push_back(Event { id, at_ms: now_ms(), ..event });
        drop(kept);
        self.0.last.send_replace(id);
    }

    /// The last event's id.
    pub(crate) fn last(&self) -> u64 {
        self.lock().last
    }

    /// At most so many events that came after one.
    pub(crate) fn after(&self, id: u64, most: usize) -> Told {
        let kept = self.lock();
        let first = kept.last - kept.events.len() as u64 + 1;
        let skip = usize::try_from((id + 1).saturating_sub(first)).unwrap_or(usize::MAX);
        let events = kept.events.iter().skip(skip).take(most).cloned().collect();
        // An id from the future is that of another registry.
        Told { gap: id + 1 < first || id > kept.last, events }
    }

    /// Changes with each event.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.0.last.subscribe()
    }
}

/// An event of some kind.
pub(crate) fn event(kind: &str, subject: impl ToString) -> Event {
    let (name, owner, detail) = Default::default();
    Event { id: 0, at_ms: 0, kind: kind.to_owned(), subject: subject.to_string(), name, owner, detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(told: &Told) -> Vec<u64> {
        told.events.iter().map(|e| e.id).collect()
    }

    #[test]
    fn who_comes_back_misses_nothing_or_hears_that_it_did() {
        let events = Events::new(100);
        for n in 0..5 {
            events.happened(event("guest.start", n));
        }
        assert_eq!(events.last(), 105);
        let told = events.after(102, 10);
        assert_eq!((ids(&told), told.gap), (vec![103, 104, 105], false));
        assert_eq!(ids(&events.after(100, 2)), [101, 102]);
        assert_eq!(events.after(105, 10), Told { gap: false, events: Vec::new() });
        // Of the daemon before this one.
        let told = events.after(7, 10);
        assert_eq!((told.events.len(), told.gap), (5, true));
        assert!(events.after(1000, 10).gap);
        for n in 0..KEPT {
            events.happened(event("guest.start", n));
        }
        let told = events.after(105, usize::MAX);
        assert_eq!((told.events.len(), told.gap), (KEPT, false));
        assert!(events.after(104, 1).gap);
    }
}
