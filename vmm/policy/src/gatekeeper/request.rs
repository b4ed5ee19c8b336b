//! A guest that asks, what is decided for it, and where it stands.

use std::cmp::Reverse;

use super::amount::Amount;
use super::ledger::Sums;
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
    /// What of it is kept for this guest alone. More than it needs counts as what it needs.
    pub provision: Resources,
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
    /// This guest has the memory that it asked for, or keeps what it had: see [`Gatekeeper::resize`](super::Gatekeeper::resize).
    Resized {
        /// Who asked.
        id: u64,
        /// Whether it has it.
        granted: bool,
    },
}

/// What a guest waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// To be admitted.
    Admission,
    /// To have so many bytes of memory in all.
    Memory(u64),
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
    /// It has what it needed, and more was asked back for it.
    Growing {
        /// Its number among the claims.
        number: u64,
        /// Bytes of memory that it is to have in all.
        memory: u64,
    },
    /// It has what it needs and was asked to give it back.
    Leaving,
    /// It has nothing and may come back.
    Away,
}

/// A guest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Guest {
    pub(super) owner: OwnerId,
    pub(super) priority: u8,
    pub(super) age: u64,
    /// What it needs now.
    pub(super) demand: Resources,
    /// What is kept for it alone, needed now or not.
    pub(super) provision: Resources,
    /// Bytes of memory that it was offered with.
    pub(super) offered: u64,
    pub(super) state: State,
}

impl Guest {
    pub(super) fn place(&self, id: u64) -> Place {
        Place { priority: Reverse(self.priority), age: self.age, id }
    }

    /// What it needs now.
    pub(super) fn need(&self) -> Amount {
        Amount::of(self.demand, &self.provision)
    }

    /// What it needs more for what it wishes.
    pub(super) fn wants(&self, wish: Wish) -> Amount {
        match wish {
            Wish::Admission => self.need(),
            Wish::Memory(memory) => {
                Amount::of(Resources { memory, ..self.demand }, &self.provision).minus(&self.need())
            }
        }
    }

    /// What something was asked back for, with its number among the claims.
    pub(super) fn claim(&self) -> Option<(u64, Wish)> {
        match self.state {
            State::Claiming(number) => Some((number, Wish::Admission)),
            State::Growing { number, memory } => Some((number, Wish::Memory(memory))),
            State::Waiting | State::Admitted | State::Leaving | State::Away => None,
        }
    }

    /// What it counts for.
    pub(super) fn counts(&self) -> Sums {
        let need = self.need();
        let claimed = self.claim().map_or_else(Amount::default, |(_, wish)| self.wants(wish));
        let nothing = Sums { claimed, ..Sums::default() };
        match self.state {
            State::Waiting | State::Claiming(_) => Sums { waiting: 1, ..nothing },
            State::Admitted | State::Growing { .. } => Sums { allocated: need, ..nothing },
            State::Leaving => Sums { allocated: need, leaving: need, ..nothing },
            State::Away => Sums { away: 1, ..nothing },
        }
    }
}
