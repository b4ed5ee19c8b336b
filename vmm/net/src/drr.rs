//! Deficit round robin (Shreedhar and Varghese, SIGCOMM '95): who sends next, and how much, when several have something to send.
//!
//! Those who do stand in a line. Whoever is in front may send a quantum more than it has left from its last turn; what it cannot use because its next frame
//! is larger, it keeps. So shares are equal in bytes, whatever the sizes of frames, and each step takes constant time. Whoever has nothing more to send
//! leaves the line and keeps nothing: nobody saves up for a burst. Pure.

use std::collections::{HashSet, VecDeque};

use rustc_hash::FxBuildHasher;

/// The line.
#[derive(Debug)]
pub struct DeficitRoundRobin<T> {
    quantum: usize,
    largest: usize,
    line: VecDeque<Turn<T>>,
    /// Who stands in the line or has its turn.
    members: HashSet<u64, FxBuildHasher>,
}

/// A turn of one sender.
#[derive(Debug)]
pub struct Turn<T> {
    id: u64,
    sender: T,
    credit: usize,
}

impl<T> Turn<T> {
    /// Who may send.
    #[must_use]
    pub fn sender(&self) -> &T {
        &self.sender
    }

    /// Most bytes.
    #[must_use]
    pub fn credit(&self) -> usize {
        self.credit
    }
}

impl<T> DeficitRoundRobin<T> {
    /// An empty line. A turn is worth `quantum` bytes, and never less than the `largest` frame, so that each turn sends something.
    #[must_use]
    pub fn new(quantum: usize, largest: usize) -> Self {
        DeficitRoundRobin {
            quantum: quantum.max(largest),
            largest,
            line: VecDeque::new(),
            members: HashSet::default(),
        }
    }

    /// How many stand in the line.
    #[must_use]
    pub fn len(&self) -> usize {
        self.line.len()
    }

    /// Whether nobody does.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.line.is_empty()
    }

    /// The sender of this id has something to send: it stands in the line from now on, at its end, unless it does already.
    pub fn join(&mut self, id: u64, sender: T) {
        if self.members.insert(id) {
            self.line.push_back(Turn { id, sender, credit: 0 });
        }
    }

    /// Whoever is in front, with what it may send. To be followed by [`Self::finish`].
    #[must_use]
    pub fn begin(&mut self) -> Option<Turn<T>> {
        let mut turn = self.line.pop_front()?;
        turn.credit += self.quantum;
        Some(turn)
    }

    /// A turn is over, in which so many bytes were `sent`. If there is `more` to send, the sender stands in line again.
    pub fn finish(&mut self, mut turn: Turn<T>, sent: usize, more: bool) {
        if more {
            // What is left is less than the frame that did not fit, unless something else than bytes ended the turn: that is not saved up either.
            turn.credit = turn.credit.saturating_sub(sent).min(self.largest);
            self.line.push_back(turn);
        } else {
            self.members.remove(&turn.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const LARGEST: usize = 65_536;

    /// Sends a sender's frames while they fit.
    fn send(frames: &mut VecDeque<usize>, credit: usize) -> usize {
        let mut sent = 0;
        while let Some(&frame) = frames.front()
            && sent + frame <= credit
        {
            sent += frame;
            frames.pop_front();
        }
        sent
    }

    fn frames(count: usize) -> impl Strategy<Value = Vec<usize>> {
        let size = prop_oneof![Just(60), Just(1514), Just(LARGEST), 60..=LARGEST];
        // Senders of one kind of frame as well as of a mixture.
        prop_oneof![
            size.clone().prop_map(move |size| vec![size; count]),
            proptest::collection::vec(size, count)
        ]
    }

    #[test]
    fn one_who_is_alone_always_has_the_turn() {
        let mut line = DeficitRoundRobin::new(10, 10);
        line.join(1, "a");
        line.join(1, "a");
        assert_eq!(line.len(), 1);
        for left in [3, 0, 10, 10] {
            let turn = line.begin().expect("it is there");
            assert_eq!(*turn.sender(), "a");
            let credit = turn.credit();
            line.finish(turn, credit - left, true);
        }
        assert_eq!(line.begin().map(|turn| turn.credit()), Some(20), "no more than a frame is kept");
    }

    #[test]
    fn who_has_nothing_more_keeps_nothing() {
        let mut line = DeficitRoundRobin::new(100, 10);
        line.join(1, ());
        let turn = line.begin().expect("it is there");
        // It joins while it has its turn: still once.
        line.join(1, ());
        line.finish(turn, 5, false);
        assert!(line.is_empty() && line.begin().is_none());
        line.join(1, ());
        assert_eq!(line.begin().map(|turn| turn.credit()), Some(100));
    }

    proptest! {
        /// However frames are cut, at any time those who always had something to send have sent the same, to a quantum and a frame.
        #[test]
        fn shares_are_equal_in_bytes(
            mut queues in proptest::collection::vec(frames(600), 2..6),
            quantum in LARGEST..8 * LARGEST,
            turns in 1_usize..200,
        ) {
            let mut line = DeficitRoundRobin::new(quantum, LARGEST);
            let mut queues: Vec<VecDeque<usize>> = queues.drain(..).map(VecDeque::from).collect();
            let mut sent = vec![0_usize; queues.len()];
            (0..queues.len()).for_each(|sender| line.join(sender as u64, sender));
            let mut rounds = 0;
            for _ in 0..turns {
                let turn = line.begin().expect("all have frames");
                let sender = *turn.sender();
                let bytes = send(&mut queues[sender], turn.credit());
                prop_assert!(bytes > 0, "a turn sends something");
                sent[sender] += bytes;
                if queues.iter().any(VecDeque::is_empty) {
                    break;
                }
                line.finish(turn, bytes, true);
                let (least, most) = (sent.iter().min(), sent.iter().max());
                prop_assert!(most.unwrap() - least.unwrap() <= quantum + LARGEST, "{sent:?}");
                rounds += 1;
            }
            // Nobody starves.
            if rounds >= queues.len() {
                prop_assert!(sent.iter().all(|&bytes| bytes > 0));
            }
        }

        /// Whoever comes and goes neither gains by it nor harms the others: over any stretch in which two always have frames, they get the same, to a quantum
        /// and two frames.
        #[test]
        fn others_who_come_and_go_change_nothing(
            arrivals in proptest::collection::vec((2_u64..8, 60..=LARGEST), 1..300),
            start in 0_usize..100,
        ) {
            let quantum = 2 * LARGEST;
            let mut line = DeficitRoundRobin::new(quantum, LARGEST);
            let mut queues: HashMap<u64, VecDeque<usize>> = HashMap::new();
            queues.insert(0, VecDeque::from(vec![1514; 100_000]));
            queues.insert(1, VecDeque::from(vec![61_000; 3_000]));
            let mut sent: HashMap<u64, usize> = HashMap::new();
            let mut at_start = (0, 0);
            let of = |sent: &HashMap<u64, usize>, id| sent.get(&id).copied().unwrap_or(0);
            for (step, (id, frame)) in arrivals.into_iter().enumerate() {
                queues.entry(id).or_default().push_back(frame);
                for id in [0, 1, id] {
                    line.join(id, id);
                }
                if step == start {
                    at_start = (of(&sent, 0), of(&sent, 1));
                }
                let turn = line.begin().expect("two always have frames");
                let id = *turn.sender();
                let queue = queues.get_mut(&id).expect("it has one");
                let bytes = send(queue, turn.credit());
                prop_assert!(turn.credit() < quantum + LARGEST);
                *sent.entry(id).or_default() += bytes;
                let more = !queue.is_empty();
                line.finish(turn, bytes, more);
                prop_assert_eq!(line.len(), queues.values().filter(|queue| !queue.is_empty()).count());
                if step >= start {
                    let (zero, one) = (of(&sent, 0) - at_start.0, of(&sent, 1) - at_start.1);
                    prop_assert!(zero.abs_diff(one) <= quantum + 2 * LARGEST, "{zero} {one}");
                }
            }
        }
    }
}
