//! The ledger: what every guest counts for, for its owner and for all.
//!
//! Sums, lines, holders and claims follow from where the guests stand, and change here alone, together with that.

use std::collections::BTreeSet;

use super::Gatekeeper;
use super::amount::Amount;
use super::request::{Guest, State};
use super::resources::Kind;

/// What guests count for together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sums {
    /// What admitted guests have, those asked back included.
    pub(super) allocated: Amount,
    /// The part of it that was asked back.
    pub(super) leaving: Amount,
    /// What claims need.
    pub(super) claimed: Amount,
    /// Guests that wait to be admitted, in line or for what was asked back for them.
    pub(super) waiting: usize,
    /// Guests that may come back.
    pub(super) away: usize,
}

impl Sums {
    fn plus(&self, other: &Sums) -> Sums {
        Sums {
            allocated: self.allocated.plus(&other.allocated),
            leaving: self.leaving.plus(&other.leaving),
            claimed: self.claimed.plus(&other.claimed),
            waiting: self.waiting + other.waiting,
            away: self.away + other.away,
        }
    }

    fn minus(&self, other: &Sums) -> Sums {
        Sums {
            allocated: self.allocated.minus(&other.allocated),
            leaving: self.leaving.minus(&other.leaving),
            claimed: self.claimed.minus(&other.claimed),
            waiting: self.waiting - other.waiting,
            away: self.away - other.away,
        }
    }
}

impl Gatekeeper {
    /// Changes a guest, and who is next of its owner.
    pub(super) fn change(&mut self, id: u64, change: impl FnOnce(&mut Guest)) {
        let Some(mut guest) = self.guests.get(&id).copied() else { return };
        change(&mut guest);
        self.record(id, Some(guest));
        self.index_head(guest.owner);
    }

    /// Records a guest that is new or has changed, or, with None, forgets it. Who is next of its owner stays to be brought up to date.
    pub(super) fn record(&mut self, id: u64, guest: Option<Guest>) {
        let before = match guest {
            Some(guest) => self.guests.insert(id, guest),
            None => self.guests.remove(&id),
        };
        let Some(owner) = guest.or(before).map(|g| g.owner) else { return };
        let kept = self.owners[owner.0].kept();
        for (guest, counts) in [(before, false), (guest, true)] {
            if let Some(guest) = guest {
                self.count(id, &guest, counts);
            }
        }
        if self.owners[owner.0].kept() != kept {
            self.index_excess(owner);
        }
    }

    /// A guest counts from now on, or no longer.
    fn count(&mut self, id: u64, guest: &Guest, counts: bool) {
        let o = &mut self.owners[guest.owner.0];
        let of_guest = guest.counts();
        for sums in [&mut o.sums, &mut self.sums] {
            *sums = if counts { sums.plus(&of_guest) } else { sums.minus(&of_guest) };
        }
        let provisioned = &mut self.provisioned;
        *provisioned =
            if counts { provisioned.plus(&guest.provision) } else { provisioned.minus(&guest.provision) };
        let place = guest.place(id);
        match guest.state {
            State::Waiting => list(&mut o.line, place, counts),
            State::Admitted | State::Growing { .. } => {
                for kind in Kind::ALL.into_iter().filter(|k| of_guest.allocated.beyond[*k] > 0) {
                    list(&mut o.holders[kind], place, counts);
                }
            }
            State::Claiming(_) | State::Leaving | State::Away => {}
        }
        if let Some((number, _)) = guest.claim() {
            list(&mut self.claims, (number, id), counts);
        }
    }
}

fn list<T: Ord>(set: &mut BTreeSet<T>, entry: T, listed: bool) {
    if listed {
        set.insert(entry);
    } else {
        set.remove(&entry);
    }
}
