//! Frames that wait for a guest's buffers, in memory of the VMM's: others need not wait behind them.
//!
//! A burst finds a guest that rests with few buffers, or one that waits for its turn on a processor. Dropped, a first segment of TCP comes again after a
//! second; and a guest that was woken gives more buffers within microseconds of running. What waits is bounded for each guest and for all of a cell.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Most frames of one guest.
const FRAMES: usize = 256;
/// Most bytes of one guest: sixteen of the largest frames, about what a sender has under way.
const BYTES: usize = 1 << 20;
/// Most bytes of all guests that share a [`Room`].
const ALL: usize = 32 << 20;

/// Room for the backlogs of all ports.
#[derive(Clone, Debug, Default)]
pub(crate) struct Room(Arc<Used>);

/// What of it is in use.
#[derive(Debug, Default)]
struct Used {
    bytes: AtomicUsize,
    frames: AtomicUsize,
}

impl Room {
    /// Frames that wait.
    pub(crate) fn frames(&self) -> usize {
        self.0.frames.load(Ordering::Relaxed)
    }
}

/// Frames with their offload headers, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    frames: VecDeque<Box<[u8]>>,
    bytes: usize,
    room: Room,
}

impl Backlog {
    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Whether one more frame from inside the cell may wait: only while at most a quarter of each bound is in use, so that they keep nothing out that comes
    /// from the host.
    pub(crate) fn has_room_for_neighbours(&self, length: usize, room: &Room) -> bool {
        self.frames.len() < FRAMES / 4
            && self.bytes + length <= BYTES / 4
            && room.0.bytes.load(Ordering::Relaxed) + length <= ALL / 4
    }

    /// Keeps a frame, if there is room.
    pub(crate) fn push(&mut self, frame: &[u8], room: &Room) -> bool {
        if self.frames.len() >= FRAMES || self.bytes + frame.len() > BYTES {
            return false;
        }
        if room.0.bytes.fetch_add(frame.len(), Ordering::Relaxed) + frame.len() > ALL {
            room.0.bytes.fetch_sub(frame.len(), Ordering::Relaxed);
            return false;
        }
        room.0.frames.fetch_add(1, Ordering::Relaxed);
        if self.is_empty() {
            self.room = room.clone();
        }
        self.bytes += frame.len();
        self.frames.push_back(frame.into());
        true
    }

    /// Takes the oldest frame. Whoever cannot deliver it gives it back by [`Self::unpop`].
    pub(crate) fn pop(&mut self) -> Option<Box<[u8]>> {
        let frame = self.frames.pop_front()?;
        self.bytes -= frame.len();
        self.room.0.bytes.fetch_sub(frame.len(), Ordering::Relaxed);
        self.room.0.frames.fetch_sub(1, Ordering::Relaxed);
        if self.is_empty() {
            // Most guests never need it again.
            self.frames = VecDeque::new();
        }
        Some(frame)
    }

    /// The frame that was taken last is the oldest again.
    pub(crate) fn unpop(&mut self, frame: Box<[u8]>) {
        self.bytes += frame.len();
        self.room.0.bytes.fetch_add(frame.len(), Ordering::Relaxed);
        self.room.0.frames.fetch_add(1, Ordering::Relaxed);
        self.frames.push_front(frame);
    }
}

impl Drop for Backlog {
    fn drop(&mut self) {
        self.room.0.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.room.0.frames.fetch_sub(self.frames.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounded_for_each_and_for_all() {
        let room = Room::default();
        let mut all: Vec<Backlog> = Vec::new();
        loop {
            let mut one = Backlog::default();
            let mut kept = 0;
            while one.push(&[7; 60_000], &room) {
                kept += 1;
            }
            all.push(one);
            if kept < BYTES / 60_000 {
                break;
            }
        }
        assert!((ALL - 60_000..=ALL).contains(&room.0.bytes.load(Ordering::Relaxed)), "{room:?}");
        // What one takes back is there for another.
        assert!(all[0].pop().is_some_and(|frame| frame.len() == 60_000));
        let last = all.last_mut().unwrap();
        assert!(last.push(&[1], &room) && last.push(&[2], &room));
        let there = room.frames();
        let first = last.pop().unwrap();
        assert_eq!(room.frames(), there - 1);
        last.unpop(first);
        assert_eq!(room.frames(), there);
        all.clear();
        assert_eq!((room.0.bytes.load(Ordering::Relaxed), room.frames()), (0, 0));
        let mut small = Backlog::default();
        let may = |backlog: &Backlog, length| backlog.has_room_for_neighbours(length, &room);
        assert!(may(&small, BYTES / 4) && !may(&small, BYTES / 4 + 1));
        room.0.bytes.store(ALL / 4, Ordering::Relaxed);
        assert!(!may(&small, 1));
        room.0.bytes.store(0, Ordering::Relaxed);
        assert_eq!((0..1000).filter(|_| small.push(&[0; 64], &room)).count(), FRAMES);
        assert!(!may(&small, 1));
    }
}
