//! Who is in which square of the page, and what has changed there since the last look.
//!
//! Each guest has a *slot*, a small number that stays its own as long as it is there: a change is then one number for the browser, which keeps
//! arrays by slot. A slot that is free is used again, the lowest first.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use crate::inert;
use crate::source::{Seen, State};

/// Most guests that have a square each; others are only counted.
pub const MOST_SHOWN: usize = 65_536;
/// Most characters of a name.
pub(crate) const NAME: usize = 64;

/// A guest in the table.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) owner: u32,
    pub(crate) state: State,
    pub(crate) cell: u16,
    /// The last look at which it was there.
    look: u64,
}

/// An owner of guests in the table.
#[derive(Debug)]
struct Owner {
    /// As the source says it, to compare.
    name: String,
    guests: usize,
}

/// What a look found.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// Slots that have somebody new.
    pub(crate) new: Vec<u32>,
    /// Slots whose guest is gone, and has no successor yet.
    pub(crate) gone: Vec<u32>,
    /// Slots with another state.
    pub(crate) states: Vec<u32>,
    /// Slots with another cell.
    pub(crate) cells: Vec<u32>,
    /// Owners that are new, or have an old one's number.
    pub(crate) owners: Vec<u32>,
}

/// Everybody.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<Option<Row>>,
    free: BinaryHeap<Reverse<u32>>,
    slots: HashMap<u64, u32>,
    owners: Vec<Owner>,
    free_owners: Vec<u32>,
    owner_numbers: HashMap<String, u32>,
    /// Slots in the order of the last look: as a rule that of the next one too.
    order: Vec<u32>,
    look: u64,
    /// Of this look: by state, shown or not.
    counts: [u64; State::ALL.len()],
    beyond: u64,
    changes: Changes,
    /// Counter: changes of state, guests that came or went.
    changed: u64,
}

impl Table {
    /// Everybody is called by `call`; answers what has changed.
    pub(crate) fn look(&mut self, call: impl FnOnce(&mut Roll<'_>)) -> Changes {
        self.look += 1;
        self.counts = Default::default();
        self.beyond = 0;
        let old = std::mem::take(&mut self.order);
        self.order.reserve(old.len());
        call(&mut Roll { table: self, old: &old, at: 0 });
        self.drop_missing();
        let changes = std::mem::take(&mut self.changes);
        self.changed += (changes.states.len() + changes.new.len() + changes.gone.len()) as u64;
        changes
    }

    /// The rows by slot.
    pub(crate) fn rows(&self) -> impl ExactSizeIterator<Item = Option<&Row>> {
        self.rows.iter().map(Option::as_ref)
    }

    /// The row in a slot.
    pub(crate) fn row(&self, slot: u32) -> Option<&Row> {
        self.rows.get(slot as usize)?.as_ref()
    }

    /// What an owner is called, harmlessly.
    pub(crate) fn owner(&self, number: u32) -> String {
        self.owners.get(number as usize).map_or_else(String::new, |o| inert::line(&o.name, NAME))
    }

    /// All owners, by number; empty where there is none.
    pub(crate) fn owners(&self) -> impl Iterator<Item = String> {
        self.owners.iter().map(|o| if o.guests == 0 { String::new() } else { inert::line(&o.name, NAME) })
    }

    /// How many guests are in each state.
    pub(crate) fn counts(&self) -> [u64; State::ALL.len()] {
        self.counts
    }

    /// How many have no square.
    pub(crate) fn beyond(&self) -> u64 {
        self.beyond
    }

    /// Counter: changes of state, guests that came or went.
    pub(crate) fn changed(&self) -> u64 {
        self.changed
    }

    fn drop_missing(&mut self) {
        let look = self.look;
        for (slot, place) in (0_u32..).zip(self.rows.iter_mut()) {
            if place.as_ref().is_some_and(|row| row.look != look)
                && let Some(row) = place.take()
            {
                self.slots.remove(&row.id);
                self.free.push(Reverse(slot));
                self.changes.gone.push(slot);
                release(&mut self.owners, &mut self.free_owners, &mut self.owner_numbers, row.owner);
            }
        }
    }

    /// Finds or makes the number of an owner, for one more guest.
    fn owner_number(&mut self, name: &str) -> u32 {
        if let Some(number) = self.owner_numbers.get(name) {
            if let Some(owner) = self.owners.get_mut(*number as usize) {
                owner.guests += 1;
            }
            return *number;
        }
        let owner = Owner { name: name.to_owned(), guests: 1 };
        let number = match self.free_owners.pop() {
            Some(number) => {
                if let Some(place) = self.owners.get_mut(number as usize) {
                    *place = owner;
                }
                number
            }
            None => {
                self.owners.push(owner);
                u32::try_from(self.owners.len() - 1).unwrap_or(u32::MAX)
            }
        };
        self.owner_numbers.insert(name.to_owned(), number);
        self.changes.owners.push(number);
        number
    }
}

fn release(owners: &mut [Owner], free: &mut Vec<u32>, numbers: &mut HashMap<String, u32>, number: u32) {
    if let Some(owner) = owners.get_mut(number as usize) {
        owner.guests -= 1;
        if owner.guests == 0 {
            numbers.remove(&owner.name);
            free.push(number);
        }
    }
}

/// Takes down who is there.
#[derive(Debug)]
pub struct Roll<'a> {
    table: &'a mut Table,
    /// Slots in the order of the last look.
    old: &'a [u32],
    /// Where in that order this look is.
    at: usize,
}

impl Roll<'_> {
    /// A guest is there. One that is called twice in a look counts once.
    pub fn call(&mut self, guest: Seen<'_>) {
        let table = &mut *self.table;
        let hint = self.old.get(self.at).copied();
        self.at += 1;
        let known = match hint {
            Some(slot) if table.row(slot).is_some_and(|row| row.id == guest.id) => Some(slot),
            _ => table.slots.get(&guest.id).copied(),
        };
        let Some(slot) = known else {
            return self.add(guest);
        };
        if let Some(Some(row)) = table.rows.get_mut(slot as usize) {
            if row.look == table.look {
                return;
            }
            row.look = table.look;
            if row.state != guest.state {
                row.state = guest.state;
                table.changes.states.push(slot);
            }
            if row.cell != guest.cell {
                row.cell = guest.cell;
                table.changes.cells.push(slot);
            }
        }
        self.count(guest.state);
        self.table.order.push(slot);
    }

    fn add(&mut self, guest: Seen<'_>) {
        self.count(guest.state);
        // Somebody new moves nobody else's place in the order.
        self.at -= 1;
        let table = &mut *self.table;
        let slot = match table.free.pop() {
            Some(Reverse(slot)) => slot,
            None if table.rows.len() < MOST_SHOWN => {
                table.rows.push(None);
                u32::try_from(table.rows.len() - 1).unwrap_or(u32::MAX)
            }
            None => {
                table.beyond += 1;
                return;
            }
        };
        let owner = table.owner_number(guest.owner);
        let (name, look) = (inert::line(guest.name, NAME), table.look);
        let row = Row { id: guest.id, name, owner, state: guest.state, cell: guest.cell, look };
        if let Some(place) = table.rows.get_mut(slot as usize) {
            *place = Some(row);
        }
        table.slots.insert(guest.id, slot);
        table.changes.new.push(slot);
        table.order.push(slot);
    }

    fn count(&mut self, state: State) {
        if let Some(count) = self.table.counts.get_mut(usize::from(state.number())) {
            *count += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(id: u64, state: State) -> Seen<'static> {
        Seen { id, name: "web", owner: if id.is_multiple_of(2) { "even" } else { "odd" }, state, cell: 1 }
    }

    fn look(table: &mut Table, guests: &[(u64, State)]) -> Changes {
        table.look(|roll| guests.iter().for_each(|(id, state)| roll.call(seen(*id, *state))))
    }

    #[test]
    fn differences_are_found() {
        use State::{Faulted, Running, Waiting};
        let mut table = Table::default();
        let changes = look(&mut table, &[(1, Waiting), (2, Running), (3, Running)]);
        assert_eq!((changes.new, changes.owners), (vec![0, 1, 2], vec![0, 1]));
        let changes = look(&mut table, &[(1, Running), (2, Running), (3, Running)]);
        assert_eq!((changes.states, changes.new, changes.gone), (vec![0], vec![], vec![]));
        // The one in the middle goes, another comes, in another order.
        let changes = look(&mut table, &[(9, Running), (3, Faulted), (1, Running)]);
        assert_eq!((changes.new, changes.gone, changes.states), (vec![3], vec![1], vec![2]));
        assert_eq!(table.counts()[usize::from(Faulted.number())], 1);
        // The lowest free slot is used first, and owners come and go with their guests.
        let changes = look(&mut table, &[(9, Running), (3, Faulted), (1, Running), (10, Running)]);
        assert_eq!((changes.new, changes.owners), (vec![1], vec![1]));
        assert_eq!(table.row(1).unwrap().id, 10);
        assert_eq!(table.changed(), 3 + 1 + 3 + 1);
    }

    #[test]
    fn a_guest_called_twice_counts_once() {
        let mut table = Table::default();
        for _ in 0..2 {
            look(
                &mut table,
                &[(1, State::Running), (2, State::Paused), (1, State::Running), (2, State::Paused)],
            );
            assert_eq!(table.counts().iter().sum::<u64>(), 2);
        }
    }

    #[test]
    fn squares_are_bounded_and_everybody_is_counted() {
        let mut table = Table::default();
        let everybody: Vec<_> = (0..MOST_SHOWN as u64 + 10).map(|id| (id, State::Running)).collect();
        for _ in 0..2 {
            look(&mut table, &everybody);
            assert_eq!((table.beyond(), table.rows().len()), (10, MOST_SHOWN));
            assert_eq!(table.counts().iter().sum::<u64>(), MOST_SHOWN as u64 + 10);
        }
        let changes = look(&mut table, &[]);
        assert_eq!(changes.gone.len(), MOST_SHOWN);
        assert!(table.owners().all(|name| name.is_empty()));
    }
}
