//! An owner: its settings, what its guests have, and its part of the line.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::num::NonZeroU32;

use super::resources::{Budget, Kind, PerKind, Resources, Share};

/// What is settled for an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// An owner of weight 2 is given twice as much as one of weight 1.
    pub weight: NonZeroU32,
    /// Most that its guests may have together.
    pub budget: Budget,
    /// What is kept for it. Unused, it is lent to others until it asks.
    pub provision: Resources,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { weight: NonZeroU32::MIN, budget: Budget::default(), provision: Resources::default() }
    }
}

/// A guest's place among those of its owner: the most important first, then the oldest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) priority: Reverse<u8>,
    pub(super) age: u64,
    pub(super) id: u64,
}

/// Who is the next of an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) id: u64,
    pub(super) age: u64,
    pub(super) demand: Resources,
}

/// An owner.
#[derive(Debug, Default)]
pub(super) struct Owner {
    pub(super) settings: Settings,
    /// What its admitted guests have, those that were asked back included.
    pub(super) allocated: Resources,
    /// The part of it that was asked back.
    pub(super) leaving: Resources,
    /// What its requests need for which something was asked back.
    pub(super) claimed: Resources,
    /// How many these are.
    pub(super) claims: usize,
    /// Its requests that wait.
    pub(super) line: BTreeSet<Place>,
    /// Its guests that may come back.
    pub(super) away: usize,
    /// Its admitted guests that have something of a kind, without those asked back. The last is the first to give it back.
    pub(super) holders: PerKind<BTreeSet<Place>>,
    /// The first of the line.
    pub(super) head: Option<Head>,
    /// How often others were admitted before the head because they fit and it did not.
    pub(super) passed: u32,
    /// When the head became the head.
    pub(super) turn: u64,
    /// Its key among the owners whose head may be admitted.
    pub(super) ready: Option<(Share, u64)>,
    /// Its key among the owners with more than their provision of a kind.
    pub(super) over: PerKind<Option<Share>>,
}

impl Owner {
    /// What it has and does not give back.
    pub(super) fn kept(&self) -> Resources {
        self.allocated.minus(&self.leaving)
    }

    /// One of its admitted guests may be asked back from now on, or no longer.
    pub(super) fn hold(&mut self, place: Place, demand: &Resources, holds: bool) {
        for kind in Kind::ALL.into_iter().filter(|k| demand[*k] > 0) {
            if holds {
                self.holders[kind].insert(place);
            } else {
                self.holders[kind].remove(&place);
            }
        }
    }

    /// What it would have with `demand` more.
    pub(super) fn with(&self, demand: &Resources) -> Resources {
        self.allocated.plus(&self.claimed).plus(demand)
    }

    /// Whether `demand` is within what is provisioned for it: of each kind of which it has a provision and needs something.
    pub(super) fn is_backed(&self, demand: &Resources) -> bool {
        let (provision, with) = (&self.settings.provision, self.with(demand));
        !provision.is_nothing()
            && Kind::ALL.into_iter().all(|k| demand[k] == 0 || provision[k] == 0 || with[k] <= provision[k])
    }
}
