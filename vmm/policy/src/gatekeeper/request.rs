//! A guest that asks, what is decided for it, and where it stands.

use std::cmp::Reverse;

use super::owner::Place;
use super::resources::Resources;

/// An owner's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OwnerId(pub(super) usize);

impl OwnerId {
    /// A small number, different for each owner.
    #[must_use]
    pub fn number(self) -> usize {
        self.0
    }
}

/// A guest that asks to be admitted.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Whose it is.
    pub owner: OwnerId,
    /// Greater is more important, within its owner.
    pub priority: u8,
    /// Less is older.
    pub age: u64,
    /// What it needs.
    pub demand: Resources,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// This guest is admitted, and has what it needs.
    Admit(u64),
    /// These guests are to end, because what they use was lent and this owner asks for it. They count until they are released or away.
    Reclaim {
        /// Who asks.
        owner: OwnerId,
        /// Who is to end.
        lent: Vec<u64>,
    },
}

/// Where a guest stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// In line.
    Waiting,
    /// For what was asked back for it; its number among the claims.
    Claiming(u64),
    /// It has what it needs.
    Admitted,
    /// It has what it needs and was asked to give it back.
    Leaving,
    /// It has nothing and may come back.
    Away,
}

/// A guest.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) owner: OwnerId,
    pub(super) priority: u8,
    pub(super) age: u64,
    pub(super) demand: Resources,
    pub(super) state: State,
}

impl Guest {
    pub(super) fn place(&self, id: u64) -> Place {
        Place { priority: Reverse(self.priority), age: self.age, id }
    }
}
