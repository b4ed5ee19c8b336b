//! A hierarchical timing wheel: setting and cancelling a deadline cost the same, however many there are (Varghese and Lauck,
//! "Hashed and Hierarchical Timing Wheels", SOSP '87).
//!
//! Slots are powers of two long; a deadline far away stands in a long slot and moves to shorter ones as its time comes near. Deadlines
//! themselves stay exact: the shortest slots are looked through one by one.

/// Nanoseconds of the shortest slot, as a power of two: 16 us.
const SHORTEST: u32 = 14;
/// Slots of a level, as a power of two.
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
/// Levels: the last one's slots are 4.9 hours long each.
const LEVELS: usize = 6;
/// What is further away than the levels reach stands in one slot of its own, as if that were a level more.
const FAR: usize = LEVELS * SLOTS;
const NONE: u32 = u32::MAX;

/// A deadline that was set, to cancel it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    index: u32,
    /// Tells a place that was given to another deadline.
    generation: u32,
}

#[derive(Debug)]
struct Entry<T> {
    at: u64,
    generation: u32,
    /// Which slot it is in.
    slot: u16,
    next: u32,
    previous: u32,
    value: Option<T>,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    first: u32,
    /// No deadline in the slot is earlier. Too early after a cancellation, which costs a look for nothing.
    earliest: u64,
}

/// Deadlines in nanoseconds of any clock that does not go backwards, each with a value.
#[derive(Debug)]
pub struct Wheel<T> {
    /// The time up to which everything has been handed out, in shortest slots.
    now: u64,
    entries: Vec<Entry<T>>,
    free: u32,
    slots: Box<[Slot]>,
    /// Slots that hold something, by level.
    filled: [u64; LEVELS + 1],
    count: usize,
}

impl<T> Wheel<T> {
    /// A wheel without deadlines that starts at `now`.
    #[must_use]
    pub fn new(now: u64) -> Wheel<T> {
        Wheel {
            now: now >> SHORTEST,
            entries: Vec::new(),
            free: NONE,
            slots: vec![Slot { first: NONE, earliest: u64::MAX }; FAR + 1].into_boxed_slice(),
            filled: [0; LEVELS + 1],
            count: 0,
        }
    }

    /// Deadlines set.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Sets a deadline. One in the past is due at once.
    pub fn insert(&mut self, at: u64, value: T) -> Key {
        let index = if self.free == NONE {
            let index = u32::try_from(self.entries.len()).unwrap_or(NONE);
            assert!(index != NONE, "fewer deadlines than 2^32");
            self.entries.push(Entry { at, generation: 0, slot: 0, next: NONE, previous: NONE, value: None });
            index
        } else {
            let index = self.free;
            self.free = self.entries[index as usize].next;
            index
        };
        let entry = &mut self.entries[index as usize];
        entry.at = at;
        entry.value = Some(value);
        let generation = entry.generation;
        self.count += 1;
        self.link(index);
        Key { index, generation }
    }

    /// Cancels a deadline. None if it was handed out or cancelled before.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        let entry = self.entries.get(key.index as usize)?;
        if entry.generation != key.generation || entry.value.is_none() {
            return None;
        }
        self.unlink(key.index);
        self.release(key.index)
    }

    /// The earliest time at which [`Self::expire`] may have something to do. Never later than the first deadline.
    #[must_use]
    pub fn next(&self) -> Option<u64> {
        // Slots of one level come one after the other, but one of a higher level may begin with deadlines before those of a lower one.
        (0..=LEVELS).filter_map(|level| self.first_slot(level)).map(|slot| self.slots[slot].earliest).min()
    }

    /// Hands out a deadline that has come. None when none is left; call it until then.
    pub fn expire(&mut self, now: u64) -> Option<T> {
        loop {
            if let Some(slot) = self.first_slot(0)
                && self.slots[slot].earliest <= now
            {
                if let Some(index) = self.due_in(slot, now) {
                    self.unlink(index);
                    return self.release(index);
                }
                // Looked at for nothing; `due_in` has set the slot's time right.
                continue;
            }
            // The earliest slot of a longer level, once its time has begun: its deadlines move to shorter ones.
            let level = (1..=LEVELS)
                .filter_map(|level| Some((self.slots[self.first_slot(level)?].earliest, level)))
                .min()
                .filter(|(earliest, _)| *earliest <= now)
                .map(|(_, level)| level);
            let Some(level) = level else {
                self.advance(now >> SHORTEST);
                return None;
            };
            self.spread(level, now >> SHORTEST);
        }
    }

    /// Moves the wheel's time on, but never past a slot that still holds something.
    fn advance(&mut self, to: u64) {
        let first = self.next().map_or(u64::MAX, |at| at >> SHORTEST);
        self.now = self.now.max(to.min(first));
    }

    /// Empties the first slot of a level into shorter ones.
    fn spread(&mut self, level: usize, now: u64) {
        let Some(slot) = self.first_slot(level) else { return };
        // Its earliest is the earliest of all: everything before it has been handed out.
        self.now = self.now.max((self.slots[slot].earliest >> SHORTEST).min(now));
        self.filled[level] &= !(1 << (slot % SLOTS));
        let mut index = std::mem::replace(&mut self.slots[slot].first, NONE);
        while index != NONE {
            let next = self.entries[index as usize].next;
            self.link(index);
            index = next;
        }
    }

    /// The first deadline in a slot that has come; otherwise sets the slot's time right.
    fn due_in(&mut self, slot: usize, now: u64) -> Option<u32> {
        let mut index = self.slots[slot].first;
        let mut earliest = u64::MAX;
        while index != NONE {
            let entry = &self.entries[index as usize];
            if entry.at <= now {
                return Some(index);
            }
            earliest = earliest.min(entry.at);
            index = entry.next;
        }
        self.slots[slot].earliest = earliest;
        None
    }

    /// The slot of a level that comes first, if the level holds anything.
    fn first_slot(&self, level: usize) -> Option<usize> {
        let filled = self.filled[level];
        if filled == 0 {
            return None;
        }
        if level == LEVELS {
            return Some(FAR);
        }
        let here = (self.now >> (SLOT_BITS * u32::try_from(level).unwrap_or(0))) % SLOTS as u64;
        let here = u32::try_from(here).unwrap_or(0);
        let ahead = filled.rotate_right(here).trailing_zeros();
        Some(level * SLOTS + ((here + ahead) as usize % SLOTS))
    }

    /// Puts an entry into the slot of its time.
    fn link(&mut self, index: u32) {
        let at = self.entries[index as usize].at;
        let tick = (at >> SHORTEST).max(self.now);
        // The highest bit in which its time differs from now says how long its slot may be.
        let distance = (tick ^ self.now) | 1;
        let level = ((63 - distance.leading_zeros()) / SLOT_BITS) as usize;
        let (level, place) = if level < LEVELS {
            (level, (tick >> (SLOT_BITS * u32::try_from(level).unwrap_or(0))) % SLOTS as u64)
        } else {
            (LEVELS, 0)
        };
        let slot = level * SLOTS + usize::try_from(place).unwrap_or(0);
        let first = self.slots[slot].first;
        let entry = &mut self.entries[index as usize];
        entry.slot = u16::try_from(slot).unwrap_or(0);
        entry.next = first;
        entry.previous = NONE;
        if first != NONE {
            self.entries[first as usize].previous = index;
        }
        let s = &mut self.slots[slot];
        s.earliest = if first == NONE { at } else { s.earliest.min(at) };
        s.first = index;
        self.filled[level] |= 1 << place;
    }

    fn unlink(&mut self, index: u32) {
        let Entry { slot, next, previous, .. } = self.entries[index as usize];
        let slot = usize::from(slot);
        if previous == NONE {
            self.slots[slot].first = next;
        } else {
            self.entries[previous as usize].next = next;
        }
        if next != NONE {
            self.entries[next as usize].previous = previous;
        }
        if self.slots[slot].first == NONE {
            self.filled[slot / SLOTS] &= !(1 << (slot % SLOTS));
        }
    }

    fn release(&mut self, index: u32) -> Option<T> {
        let entry = &mut self.entries[index as usize];
        entry.generation = entry.generation.wrapping_add(1);
        entry.next = self.free;
        self.free = index;
        self.count -= 1;
        entry.value.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn far_and_near_come_in_their_time() {
        let mut w = Wheel::new(5);
        let day = 86_400_000_000_000;
        w.insert(400 * day, "far");
        w.insert(7, "near");
        let gone = w.insert(9, "gone");
        assert_eq!(w.remove(gone), Some("gone"));
        assert_eq!(w.remove(gone), None);
        assert_eq!(w.expire(6), None);
        assert_eq!(w.expire(7), Some("near"));
        assert_eq!(w.expire(399 * day), None);
        assert_eq!(w.expire(400 * day - 1), None);
        assert_eq!(w.expire(400 * day), Some("far"));
        assert!(w.is_empty() && w.next().is_none());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Set(u64),
        Cancel(usize),
        Pass(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let far = prop_oneof![0u64..100, 0u64..1 << 20, 0u64..1 << 36, 0u64..1 << 56];
        let step = prop_oneof![
            4 => far.clone().prop_map(Step::Set),
            1 => (0usize..64).prop_map(Step::Cancel),
            3 => far.prop_map(Step::Pass),
        ];
        proptest::collection::vec(step, 1..200)
    }

    proptest! {
        /// As a sorted set would do it: each deadline at its time, neither sooner nor later, and never slept through.
        #[test]
        fn behaves_as_a_sorted_set(start in 0u64..1 << 50, steps in steps()) {
            let mut wheel = Wheel::new(start);
            let mut model: BTreeSet<(u64, usize)> = BTreeSet::new();
            let mut keys = Vec::new();
            let mut now = start;
            for step in steps {
                match step {
                    Step::Set(ahead) => {
                        let at = now.saturating_add(ahead);
                        let id = keys.len();
                        keys.push((at, wheel.insert(at, id)));
                        model.insert((at, id));
                    }
                    Step::Cancel(n) => {
                        if let Some((at, key)) = keys.get(n) {
                            prop_assert_eq!(wheel.remove(*key).is_some(), model.remove(&(*at, n)));
                        }
                    }
                    Step::Pass(time) => {
                        now = now.saturating_add(time);
                        let mut due = BTreeSet::new();
                        while let Some(id) = wheel.expire(now) {
                            prop_assert!(keys[id].0 <= now);
                            due.insert((keys[id].0, id));
                        }
                        let rest = model.split_off(&(now + 1, 0));
                        prop_assert_eq!(due, std::mem::replace(&mut model, rest));
                    }
                }
                prop_assert_eq!(wheel.len(), model.len());
                let first = model.first().map(|(at, _)| *at);
                prop_assert!(wheel.next().is_none() == first.is_none());
                prop_assert!(wheel.next() <= first);
            }
            // Sleeping until `next` again and again comes to the first deadline soon.
            if let Some((at, _)) = model.first() {
                let mut looks = 0;
                while let Some(next) = wheel.next() && next < *at {
                    prop_assert!(wheel.expire(next).is_none());
                    looks += 1;
                    prop_assert!(looks < 300);
                }
            }
        }
    }
}
