//! Who gives up its machine when others need one: the second-chance algorithm (as for pages: Corbató, "A Paging Experiment with the Multics
//! System", 1968).
//!
//! A hand goes round those that hold a machine. Who has used it since the hand came by last keeps it for another round.

use std::collections::VecDeque;

/// What the hand finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nobody: it has ended, or holds none any more.
    Gone,
    /// It needs its machine now.
    Busy,
    /// It has used it since the last time.
    Used,
    /// It can do without.
    Idle,
}

/// Those that hold a machine.
#[derive(Debug)]
pub struct Holders<T>(VecDeque<T>);

impl<T> Default for Holders<T> {
    fn default() -> Self {
        Holders(VecDeque::new())
    }
}

impl<T> Holders<T> {
    /// Somebody holds a machine from now on.
    pub fn add(&mut self, holder: T) {
        self.0.push_back(holder);
    }

    /// Forgets those that hold none any more.
    pub fn forget(&mut self, is_gone: impl Fn(&T) -> bool) {
        self.0.retain(|holder| !is_gone(holder));
    }

    /// How many hold one, those not yet seen to be gone included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nobody does.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes out who gives up its machine; none when all are busy. `look` says what the hand finds, and forgets the use that it has seen. Each
    /// is looked at twice at most.
    pub fn victim(&mut self, mut look: impl FnMut(&T) -> Found) -> Option<T> {
        for _ in 0..2 * self.0.len() {
            let holder = self.0.pop_front()?;
            match look(&holder) {
                Found::Gone => {}
                Found::Busy | Found::Used => self.0.push_back(holder),
                Found::Idle => return Some(holder),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_used_have_a_second_chance_and_the_busy_are_left_alone() {
        let mut holders = Holders::default();
        (0..4).for_each(|n| holders.add(n));
        let mut used = [true, true, false, true];
        let mut look = |n: &usize| {
            if *n == 0 {
                Found::Busy
            } else if std::mem::replace(&mut used[*n], false) {
                Found::Used
            } else {
                Found::Idle
            }
        };
        assert_eq!(holders.victim(&mut look), Some(2));
        assert_eq!(holders.victim(&mut look), Some(1));
        assert_eq!(holders.victim(&mut look), Some(3));
        assert_eq!(holders.victim(&mut look), None);
        holders.add(5);
        holders.forget(|n| *n == 5);
        assert_eq!(holders.len(), 1);
        assert_eq!(holders.victim(|_| Found::Gone), None);
        assert!(holders.is_empty());
    }

    proptest! {
        /// Whoever is used all the time stays, as long as anybody is not.
        #[test]
        fn the_idle_go_first(busy in 1usize..20, idle in 1usize..20) {
            let mut holders = Holders::default();
            (0..busy + idle).for_each(|n| holders.add(n));
            for _ in 0..idle {
                let look = |n: &usize| if *n < busy { Found::Used } else { Found::Idle };
                prop_assert!(holders.victim(look).is_some_and(|n| n >= busy));
            }
            prop_assert_eq!(holders.len(), busy);
        }
    }
}
