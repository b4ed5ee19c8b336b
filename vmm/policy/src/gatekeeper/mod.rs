//! The gatekeeper: which guests are admitted, which wait in line, and which are refused.
//!
//! - **Budgets** bound what the host and each owner give, of five kinds of resources ([`Kind`]). They are never exceeded, but by what guests have already when a budget is lowered.
//! - **Between owners**, dominant-resource fairness (Ghodsi, Zaharia, Hindman, Konwinski, Shenker, Stoica: "Dominant Resource Fairness",
//!   NSDI '11): the next is of the owner whose dominant share, divided by its weight, is the least; among equals, whose next request has
//!   been next for longer.
//! - **Within an owner**, the most important is next, then the oldest. Nobody overtakes it: if it exceeds what its owner may have now, it
//!   waits for a guest of its owner to end, and so do those behind it.
//! - **Who does not fit** what the host has left is passed by the next owners, [`LOOK`] in all are looked at. But nobody passes who would
//!   have a larger share with it than the passed would have with theirs: else an owner of small guests would take, again and again, the
//!   room that one of larger guests waits for. And a request is passed [`PATIENCE`] times at most; then what becomes free gathers for it. So the request of
//!   an owner with the least share is admitted when enough of what runs has ended.
//! - **The line is bounded**, for all and for each owner. Who is to come back after a restart keeps a place in it.
//! - **Provisions**, of owners and of single guests, are lent and asked back: see `lending.rs`.
//! - **Memory** that an admitted guest does not need it gives to others, and asks for again: see `resize.rs`.
//!
//! Each operation takes O(log n) for n guests and owners, asking back O(log n) for each guest that is asked. There is no clock: age is a number that the caller gives.

mod amount;
mod fairness;
mod index;
mod ledger;
mod lending;
mod owner;
mod refusal;
mod request;
mod resize;
mod resources;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use amount::Amount;
use ledger::Sums;
use lending::Asked;
pub use owner::Settings;
use owner::{Owner, Place};
pub use refusal::{BadSettings, Refusal};
pub use request::{Decision, OwnerId, Request};
use request::{Guest, State, Wish};
pub use resources::{Budget, Kind, PerKind, Resources, Share};

/// Most owners that are looked at for one admission.
pub const LOOK: usize = 16;
/// How often others may pass a request that does not fit.
pub const PATIENCE: u32 = 32;

/// Between owners, who is next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Discipline {
    /// The one with the least dominant share.
    #[default]
    Fair,
    /// The one whose request is the oldest: for comparison.
    FirstCome,
}

/// What a gatekeeper guards.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// What the host gives.
    pub host: Budget,
    /// Most guests that wait, or are to come back.
    pub waiting: usize,
    /// The same for each owner.
    pub waiting_each: usize,
    /// Between owners, who is next.
    pub discipline: Discipline,
}

/// What an owner has, for a list.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// What is settled for it.
    pub settings: Settings,
    /// What its admitted guests have.
    pub allocated: Resources,
    /// Its dominant share of the host, whatever its weight.
    pub share: Share,
    /// Its guests in line.
    pub waiting: usize,
}

/// The gatekeeper.
#[derive(Debug)]
pub struct Gatekeeper {
    host: Budget,
    waiting_most: usize,
    waiting_each: usize,
    discipline: Discipline,
    owners: Vec<Owner>,
    guests: BTreeMap<u64, Guest>,
    /// What all guests count for.
    sums: Sums,
    /// What is provisioned for owners, and for single guests whether they are admitted or not.
    provisioned: Resources,
    /// What was asked back is for these, by when.
    claims: BTreeSet<(u64, u64)>,
    claim_count: u64,
    /// Guests whose growth was given up, and that were not told yet.
    given_up: BTreeSet<u64>,
    /// Owners whose head fits their budget: who is next.
    ready: BTreeSet<(Share, u64, OwnerId)>,
    /// Owners whose head may have become backed.
    backed: BTreeSet<OwnerId>,
    /// Owners with more than their provision of a kind, by how much of the host all of their excess is.
    over: PerKind<BTreeSet<(Share, OwnerId)>>,
    turns: u64,
}

impl Gatekeeper {
    /// A gatekeeper without owners and guests.
    #[must_use]
    pub fn new(limits: &Limits) -> Gatekeeper {
        Gatekeeper {
            host: limits.host,
            waiting_most: limits.waiting,
            waiting_each: limits.waiting_each,
            discipline: limits.discipline,
            owners: Vec::new(),
            guests: BTreeMap::new(),
            sums: Sums::default(),
            provisioned: Resources::default(),
            claims: BTreeSet::new(),
            claim_count: 0,
            given_up: BTreeSet::new(),
            ready: BTreeSet::new(),
            backed: BTreeSet::new(),
            over: PerKind::default(),
            turns: 0,
        }
    }

    /// A new owner, without a budget and a provision.
    #[must_use]
    pub fn add_owner(&mut self) -> OwnerId {
        self.owners.push(Owner::default());
        OwnerId(self.owners.len() - 1)
    }

    /// Settles what an owner may have. Guests that have more keep it until they end. Returns waiting guests that now can never be admitted, with the
    /// reason; they are forgotten. [`Self::next`] is to be asked afterwards.
    ///
    /// # Errors
    /// The provision is more than the owner's budget or the host can hold; nothing is changed.
    pub fn set_owner(
        &mut self,
        owner: OwnerId,
        settings: Settings,
    ) -> Result<Vec<(u64, Refusal)>, BadSettings> {
        let Settings { budget, provision, .. } = settings;
        if let Some((kind, budget)) = budget.exceeded_by(&provision) {
            return Err(BadSettings::BeyondBudget { kind, provision: provision[kind], budget });
        }
        let provisions = self.provisioned.minus(&self.owners[owner.0].settings.provision).plus(&provision);
        if let Some((kind, host)) = self.host.exceeded_by(&provisions) {
            return Err(BadSettings::BeyondHost { kind, provisions: provisions[kind], host });
        }
        self.provisioned = provisions;
        let of_owner = |(_, id): &&(u64, u64)| self.guests.get(id).is_some_and(|g| g.owner == owner);
        let claims: Vec<_> = self.claims.iter().filter(of_owner).copied().collect();
        for (_, id) in claims {
            // What was asked back for it comes, and serves whoever is next.
            self.give_up(id);
        }
        self.owners[owner.0].settings = settings;
        let refused = self.forget_hopeless(owner);
        self.index_head(owner);
        self.index_excess(owner);
        Ok(refused)
    }

    /// Settles what is guarded. Guests that have more than there is now keep it until they end, and nobody is admitted until what is left fits. Returns waiting
    /// guests that now can never be admitted, with the reason; they are forgotten. [`Self::next`] is to be asked afterwards.
    ///
    /// # Errors
    /// More is provisioned than the host would give; nothing is changed.
    pub fn set_limits(&mut self, limits: &Limits) -> Result<Vec<(u64, Refusal)>, BadSettings> {
        if let Some((kind, host)) = limits.host.exceeded_by(&self.provisioned) {
            return Err(BadSettings::BeyondHost { kind, provisions: self.provisioned[kind], host });
        }
        while let Some((_, id)) = self.claims.first() {
            self.give_up(*id);
        }
        self.host = limits.host;
        (self.waiting_most, self.waiting_each) = (limits.waiting, limits.waiting_each);
        self.discipline = limits.discipline;
        let mut refused = Vec::new();
        for owner in (0..self.owners.len()).map(OwnerId) {
            refused.append(&mut self.forget_hopeless(owner));
            // Shares are of the host.
            self.index_head(owner);
            self.index_excess(owner);
        }
        Ok(refused)
    }

    /// Guests in an owner's line that can never be admitted leave it.
    fn forget_hopeless(&mut self, owner: OwnerId) -> Vec<(u64, Refusal)> {
        let refused = |place: &Place| {
            let guest = self.guests.get(&place.id)?;
            Some((place.id, self.can_ever_fit(owner, &guest.demand).err()?))
        };
        let refused: Vec<_> = self.owners[owner.0].line.iter().filter_map(refused).collect();
        for (id, _) in &refused {
            self.release(*id);
        }
        refused
    }

    /// A guest asks to be admitted: None if it waits. `id` is the caller's number for it. What is decided, if anything, is about this
    /// guest; what other guests gain by it, such as a way past a claim, is for [`Self::next`] to say.
    ///
    /// # Errors
    /// Why it is not even put in line.
    pub fn offer(&mut self, id: u64, request: &Request) -> Result<Option<Decision>, Refusal> {
        let Request { owner, priority, age, demand, provision } = *request;
        self.can_ever_fit(owner, &demand)?;
        if self.guests.contains_key(&id) {
            return Err(Refusal::Known);
        }
        let provision = provision.at_most(&demand);
        let provisions = self.provisioned.plus(&provision);
        if let Some((kind, host)) = self.host.exceeded_by(&provisions) {
            return Err(Refusal::ProvisionBeyondHost { kind, provisions: provisions[kind], host });
        }
        // Whatever room there is: who comes back is waited for.
        if self.sums.away > self.waiting_most {
            return Err(Refusal::LineFull(self.waiting_most));
        }
        let (offered, state) = (demand.memory, State::Waiting);
        self.record(id, Some(Guest { owner, priority, age, demand, provision, offered, state }));
        self.index_head(owner);
        let decision = self.decide_for(owner, id);
        let waits = self.guests.get(&id).is_some_and(|g| g.state == State::Waiting);
        let o = &self.owners[owner.0];
        let refusal = if !waits {
            None
        } else if self.sums.waiting + self.sums.away > self.waiting_most {
            Some(Refusal::LineFull(self.waiting_most))
        } else if o.line.len() + o.sums.away > self.waiting_each {
            Some(Refusal::OwnersLineFull(self.waiting_each))
        } else {
            None
        };
        match refusal {
            None => Ok(decision),
            Some(refusal) => {
                self.release(id);
                Err(refusal)
            }
        }
    }

    /// The next decision that is due: to be asked after each call until it is None.
    #[expect(clippy::should_implement_trait, reason = "it ends only until something changes")]
    pub fn next(&mut self) -> Option<Decision> {
        if let Some(id) = self.given_up.pop_first() {
            return Some(Decision::Resized { id, granted: false });
        }
        while let Some(&owner) = self.backed.first() {
            match self.ask_back(owner) {
                Asked::Now(decision) => return Some(decision),
                Asked::Later => {}
                Asked::No => {
                    self.backed.remove(&owner);
                }
            }
        }
        if let Some((_, id)) = self.claims.first() {
            let guest = self.guests.get(id)?;
            let (id, (_, wish)) = (*id, guest.claim()?);
            return self.fits(&guest.wants(wish)).then(|| self.grant(id, wish));
        }
        if let Some(decision) = self.admit_by_share(None) {
            return Some(decision);
        }
        if self.provisioned.is_nothing() {
            return None;
        }
        // What was no use before may be now, because another kind of resource is free.
        let first: Vec<_> = self.ready.iter().take(LOOK).map(|(.., owner)| *owner).collect();
        first.into_iter().find_map(|owner| match self.ask_back(owner) {
            Asked::Now(decision) => Some(decision),
            Asked::No | Asked::Later => None,
        })
    }

    /// A guest has ended for good, or no longer waits.
    pub fn release(&mut self, id: u64) {
        let Some(owner) = self.guests.get(&id).map(|g| g.owner) else { return };
        self.given_up.remove(&id);
        self.record(id, None);
        self.index_head(owner);
    }

    /// A guest has ended and is to come back: what it had is free, and a place in the line is kept for it. It comes back for all the memory
    /// that it was offered with.
    pub fn leave(&mut self, id: u64) {
        self.given_up.remove(&id);
        self.change(id, |g| {
            g.state = State::Away;
            g.demand.memory = g.offered;
        });
    }

    /// A guest that was away is back, and waits in line at its old age. [`Self::next`] is to be asked afterwards.
    ///
    /// # Errors
    /// What its owner may have was changed, and it can never be admitted; it is forgotten.
    pub fn rejoin(&mut self, id: u64) -> Result<(), Refusal> {
        let Some(guest) = self.guests.get(&id).filter(|g| g.state == State::Away) else { return Ok(()) };
        if let Err(refusal) = self.can_ever_fit(guest.owner, &guest.demand) {
            self.release(id);
            return Err(refusal);
        }
        self.change(id, |g| g.state = State::Waiting);
        Ok(())
    }

    /// These were asked back, and need not go: the requests that they were asked back for were released, and nothing happened since. Growth
    /// that they waited for stays given up, and [`Self::next`] says so.
    pub fn keep(&mut self, lent: &[u64]) {
        for id in lent {
            if self.guests.get(id).is_some_and(|g| g.state == State::Leaving) {
                self.change(*id, |g| g.state = State::Admitted);
            }
        }
    }

    /// What an owner has.
    #[must_use]
    pub fn usage(&self, owner: OwnerId) -> Usage {
        let o = &self.owners[owner.0];
        let allocated = o.sums.allocated.whole;
        let share = self.host.share(&allocated, std::num::NonZeroU32::MIN);
        Usage { settings: o.settings, allocated, share, waiting: o.sums.waiting }
    }

    /// What all admitted guests have.
    #[must_use]
    pub fn allocated(&self) -> Resources {
        self.sums.allocated.whole
    }

    /// What the host gives.
    #[must_use]
    pub fn host(&self) -> Budget {
        self.host
    }

    fn can_ever_fit(&self, owner: OwnerId, demand: &Resources) -> Result<(), Refusal> {
        if let Some((kind, most)) = self.host.exceeded_by(demand) {
            return Err(Refusal::TooLargeForHost { kind, needs: demand[kind], most });
        }
        match self.owners[owner.0].settings.budget.exceeded_by(demand) {
            Some((kind, most)) => Err(Refusal::TooLargeForOwner { kind, needs: demand[kind], most }),
            None => Ok(()),
        }
    }

    /// Whether the host has room for `need` now.
    fn fits(&self, need: &Amount) -> bool {
        self.host.holds(&self.sums.allocated.plus(need).whole)
    }

    /// What can be decided for a newcomer: only if it is its owner's next.
    fn decide_for(&mut self, owner: OwnerId, id: u64) -> Option<Decision> {
        if self.owners[owner.0].head.is_none_or(|h| h.id != id) {
            return None;
        }
        match self.ask_back(owner) {
            Asked::Now(decision) => Some(decision),
            Asked::No if self.claims.is_empty() => self.admit_by_share(Some(owner)),
            Asked::No | Asked::Later => None,
        }
    }

    /// A guest has what it wishes.
    fn grant(&mut self, id: u64, wish: Wish) -> Decision {
        self.change(id, |g| {
            g.state = State::Admitted;
            if let Wish::Memory(memory) = wish {
                g.demand.memory = memory;
            }
        });
        match wish {
            Wish::Admission => Decision::Admit(id),
            Wish::Memory(_) => Decision::Resized { id, granted: true },
        }
    }
}
