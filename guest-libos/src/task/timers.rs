//! Deadlines in an indexed binary heap: pure, with the time passed in.
//!
//! Setting a deadline later than it stands, what a timeout does with every sign of life, costs a store: the entry
//! stays where it is and is put right when it comes up. Other changes cost O(log n); nothing is searched.

use alloc::vec::Vec;
use slab::Slab;

/// A timer of a [`Timers`].
pub(crate) type Key = usize;

/// Mark for an entry that is not in the heap.
const NOWHERE: u32 = u32::MAX;

struct Entry<T> {
    value: T,
    /// When it is due; `u64::MAX` for never.
    deadline: u64,
    /// Where in the heap it stands.
    place: u32,
}

/// Timers that each carry a `T`.
pub(crate) struct Timers<T> {
    entries: Slab<Entry<T>>,
    /// (deadline or earlier, key), the smallest first.
    heap: Vec<(u64, u32)>,
}

impl<T> Timers<T> {
    pub(crate) const fn new() -> Self {
        Timers { entries: Slab::new(), heap: Vec::new() }
    }

    /// Adds a timer that is not set.
    pub(crate) fn insert(&mut self, value: T) -> Key {
        self.entries.insert(Entry { value, deadline: u64::MAX, place: NOWHERE })
    }

    pub(crate) fn remove(&mut self, key: Key) -> T {
        self.unlink(key);
        self.entries.remove(key).value
    }

    pub(crate) fn value_mut(&mut self, key: Key) -> &mut T {
        &mut self.entries[key].value
    }

    #[cfg(test)]
    pub(crate) fn deadline(&self, key: Key) -> u64 {
        self.entries[key].deadline
    }

    /// Sets when the timer is due: `u64::MAX` for never.
    pub(crate) fn set(&mut self, key: Key, deadline: u64) {
        let entry = &mut self.entries[key];
        entry.deadline = deadline;
        let place = entry.place;
        if place == NOWHERE {
            if deadline != u64::MAX {
                self.push(key, deadline);
            }
        } else if deadline < self.heap[place as usize].0 {
            self.heap[place as usize].0 = deadline;
            self.rise(place as usize);
        }
    }

    /// No timer is due before this. It may be early by what [`set`](Self::set) put off.
    pub(crate) fn next(&self) -> Option<u64> {
        self.heap.first().map(|&(deadline, _)| deadline)
    }

    /// As [`next`](Self::next), of all timers but one.
    pub(crate) fn next_without(&self, key: Key) -> Option<u64> {
        let second = || self.heap.get(1..3.min(self.heap.len()))?.iter().min();
        let first = self.heap.first().filter(|(_, first)| *first as usize != key).or_else(second);
        first.map(|&(deadline, _)| deadline)
    }

    /// Takes a timer that is due at `now`; it stays, unset.
    pub(crate) fn pop(&mut self, now: u64) -> Option<Key> {
        loop {
            let &(at, key) = self.heap.first().filter(|(at, _)| *at <= now)?;
            let key = key as usize;
            let deadline = self.entries[key].deadline;
            if deadline <= now {
                self.unlink(key);
                self.entries[key].deadline = u64::MAX;
                return Some(key);
            }
            debug_assert!(at < deadline);
            if deadline == u64::MAX {
                self.unlink(key);
            } else {
                self.heap[0].0 = deadline;
                self.sink(0);
            }
        }
    }

    fn push(&mut self, key: Key, deadline: u64) {
        let place = self.heap.len();
        self.heap.push((deadline, key as u32));
        self.entries[key].place = place as u32;
        self.rise(place);
    }

    fn unlink(&mut self, key: Key) {
        let place = core::mem::replace(&mut self.entries[key].place, NOWHERE);
        if place == NOWHERE {
            return;
        }
        let place = place as usize;
        self.heap.swap_remove(place);
        if let Some(&(_, moved)) = self.heap.get(place) {
            self.entries[moved as usize].place = place as u32;
            self.rise(place);
            self.sink(place);
        }
    }

    fn rise(&mut self, mut place: usize) {
        while place > 0 {
            let parent = (place - 1) / 2;
            if self.heap[parent].0 <= self.heap[place].0 {
                break;
            }
            self.swap(parent, place);
            place = parent;
        }
    }

    fn sink(&mut self, mut place: usize) {
        loop {
            let mut child = 2 * place + 1;
            if child >= self.heap.len() {
                break;
            }
            if child + 1 < self.heap.len() && self.heap[child + 1].0 < self.heap[child].0 {
                child += 1;
            }
            if self.heap[place].0 <= self.heap[child].0 {
                break;
            }
            self.swap(place, child);
            place = child;
        }
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.heap.swap(a, b);
        self.entries[self.heap[a].1 as usize].place = a as u32;
        self.entries[self.heap[b].1 as usize].place = b as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_up_in_order_of_deadlines() {
        let mut timers = Timers::new();
        let keys: Vec<_> = (0..10).map(|n| timers.insert(n)).collect();
        for (n, &key) in keys.iter().enumerate() {
            timers.set(key, [50, 10, 90, 30, 70, 20, 80, 40, 60, 100][n]);
        }
        timers.remove(keys[3]);
        assert_eq!(timers.next(), Some(10));
        let mut seen = Vec::new();
        while let Some(key) = timers.pop(75) {
            seen.push(*timers.value_mut(key));
        }
        assert_eq!(seen, [1, 5, 7, 0, 8, 4]);
        assert_eq!(timers.next(), Some(80));
    }

    #[test]
    fn putting_off_needs_no_move_and_is_kept() {
        let mut timers = Timers::new();
        let key = timers.insert(());
        timers.set(key, 10);
        for later in 11..100 {
            timers.set(key, later);
        }
        assert_eq!(timers.pop(98), None);
        assert_eq!(timers.next(), Some(99));
        assert_eq!(timers.pop(99), Some(key));
        assert_eq!(timers.deadline(key), u64::MAX);
        assert_eq!(timers.next(), None);
    }

    #[test]
    fn agrees_with_a_sorted_list_under_random_use() {
        let mut random = 12345u64;
        let mut next = move || {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            random >> 33
        };
        let mut timers = Timers::new();
        let mut model: Vec<(Key, u64)> = Vec::new();
        let mut now = 0;
        for _ in 0..20_000 {
            match next() % 5 {
                0 => {
                    let key = timers.insert(());
                    let at = now + next() % 1000;
                    timers.set(key, at);
                    model.push((key, at));
                }
                1 | 2 if !model.is_empty() => {
                    let at = next() as usize % model.len();
                    let deadline = if next() % 10 == 0 { u64::MAX } else { now + next() % 1000 };
                    model[at].1 = deadline;
                    timers.set(model[at].0, deadline);
                }
                3 if !model.is_empty() => {
                    let (key, _) = model.swap_remove(next() as usize % model.len());
                    timers.remove(key);
                }
                _ => {
                    now += next() % 50;
                    let mut due: Vec<_> =
                        model.iter().filter(|(_, at)| *at <= now).map(|(key, _)| *key).collect();
                    let mut popped = Vec::new();
                    while let Some(key) = timers.pop(now) {
                        popped.push(key);
                        timers.remove(key);
                    }
                    due.sort_unstable();
                    popped.sort_unstable();
                    assert_eq!(due, popped);
                    model.retain(|(_, at)| *at > now);
                    let least = model.iter().map(|(_, at)| *at).min().unwrap_or(u64::MAX);
                    assert!(timers.next().unwrap_or(u64::MAX) <= least);
                }
            }
        }
    }
}
