//! An owner: its settings, what its guests have, and its part of the line.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::num::NonZeroU32;

use super::amount::Amount;
use super::ledger::Sums;
use super::resources::{Budget, Kind, PerKind, Resources, Share};

/// What is settled for an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// An owner of weight 2 is given twice as much as one of weight 1.
    pub weight: NonZeroU32,
    /// Most that its guests may have together.
    pub budget: Budget,
    /// What is kept for it, beside what is kept for single guests of it. Unused, it is lent to others until it asks.
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
    pub(super) need: Amount,
}

/// An owner.
#[derive(Debug, Default)]
pub(super) struct Owner {
    pub(super) settings: Settings,
    /// What its guests count for.
    pub(super) sums: Sums,
    /// Its requests that wait.
    pub(super) line: BTreeSet<Place>,
    /// Its admitted guests that have more of a kind than is kept for them, without those asked back. The last is the first to give it back.
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
    /// What it has beyond its guests' own provisions and does not give back.
    pub(super) fn kept(&self) -> Resources {
        self.sums.allocated.beyond.minus(&self.sums.leaving.beyond)
    }

    /// What it would have with `need` more.
    pub(super) fn with(&self, need: &Amount) -> Amount {
        self.sums.allocated.plus(&self.sums.claimed).plus(need)
    }

    /// Whether `need` is within its budget.
    pub(super) fn may_have(&self, need: &Amount) -> bool {
        self.settings.budget.holds(&self.with(need).whole)
    }

    /// Whether the owner or the guest that needs this has a provision of anything.
    pub(super) fn has_provision(&self, need: &Amount) -> bool {
        !self.settings.provision.is_nothing() || need.whole != need.beyond
    }

    /// Whether there is a provision for what is needed of a kind: the guest's own for all of it, or the owner's.
    pub(super) fn covers(&self, need: &Amount, kind: Kind) -> bool {
        need.beyond[kind] == 0 || self.settings.provision[kind] > 0
    }

    /// Whether `need` is within what is provisioned: of each kind of which it needs something beyond the guest's own provision, and of
    /// which the owner has one.
    pub(super) fn is_backed(&self, need: &Amount) -> bool {
        let (provision, with) = (&self.settings.provision, self.with(need).beyond);
        let within = |k| need.beyond[k] == 0 || provision[k] == 0 || with[k] <= provision[k];
        self.has_provision(need) && Kind::ALL.into_iter().all(within)
    }
}
