//! Which cell a guest goes to.

/// What a cell has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// It takes guests.
    pub alive: bool,
    /// Guests on it.
    pub guests: usize,
    /// Memory given to them, bytes.
    pub memory: u64,
}

impl Load {
    /// Whether it takes another guest.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.alive && self.guests < MOST_GUESTS
    }
}

/// Most guests of a cell: beyond about a thousand machines in a process, each change of its memory map costs too much.
pub const MOST_GUESTS: usize = 1024;

/// The cell for a guest: the one with the fewest guests, and among those the one with the least memory given. Each guest costs its cell more than
/// its memory does, because every machine of a process hears of every change of its memory map. Only those that `may` be are looked at. None when every one of
/// them is full or dead.
#[must_use]
pub fn place(cells: &[Load], may: impl Fn(usize) -> bool) -> Option<usize> {
    cells
        .iter()
        .enumerate()
        .filter(|(i, c)| c.has_room() && may(*i))
        .min_by_key(|(_, c)| (c.guests, c.memory))
        .map(|(i, _)| i)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any(_: usize) -> bool {
        true
    }

    #[test]
    fn nobody_is_placed_where_it_may_not_be() {
        let load = |guests| Load { alive: true, guests, memory: 0 };
        assert_eq!(place(&[load(1), load(2), load(3)], |i| i > 0), Some(1));
        assert_eq!(place(&[load(1)], |_| false), None);
    }

    #[test]
    fn nobody_is_placed_on_the_dead_or_the_full() {
        let full = Load { alive: true, guests: MOST_GUESTS, memory: 0 };
        let dead = Load::default();
        assert_eq!(place(&[full, dead], any), None);
        assert_eq!(place(&[full, dead, Load { alive: true, guests: 7, memory: 9 }], any), Some(2));
        assert_eq!(place(&[], any), None);
    }

    proptest! {
        #[test]
        fn guests_are_spread_evenly(cells in 1usize..12, guests in 0usize..2000, memory in 1u64..1 << 30) {
            let mut loads = vec![Load { alive: true, ..Load::default() }; cells];
            for _ in 0..guests.min(cells * MOST_GUESTS) {
                let at = place(&loads, any).expect("room");
                loads[at].guests += 1;
                loads[at].memory += memory;
            }
            let counts = loads.iter().map(|c| c.guests);
            prop_assert!(counts.clone().max().unwrap_or(0) - counts.min().unwrap_or(0) <= 1);
        }
    }
}
