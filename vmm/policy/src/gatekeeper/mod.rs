//! The gatekeeper: which guests are admitted, which wait in line, and which are refused.
//!
//! - **Budgets** bound what the host and each owner give, of five kinds of resources ([`Kind`]). They are never exceeded.
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
//! - **Provisions** are lent and asked back: see `lending.rs`.
//!
//! Each operation takes O(log n) for n guests and owners, asking back O(log n) for each guest that is asked. There is no clock: age is a number that the caller gives.

mod fairness;
mod index;
mod lending;
mod owner;
mod refusal;
mod request;
mod resources;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use lending::Asked;
pub use owner::Settings;
use owner::{Owner, Place};
pub use refusal::{BadSettings, Refusal};
pub use request::{Decision, OwnerId, Request};
use request::{Guest, State};
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
    /// What admitted guests have, those asked back included.
    allocated: Resources,
    /// The part of it that was asked back.
    leaving: Resources,
    /// What claims need.
    claimed: Resources,
    provisioned: Resources,
    /// Requests for which something was asked back, by when.
    claims: BTreeSet<(u64, u64)>,
    claim_count: u64,
    /// Owners whose head fits their budget: who is next.
    ready: BTreeSet<(Share, u64, OwnerId)>,
    /// Owners whose head may have become backed.
    backed: BTreeSet<OwnerId>,
    /// Owners with more than their provision of a kind, by how much of the host all of their excess is.
    over: PerKind<BTreeSet<(Share, OwnerId)>>,
    waiting: usize,
    away: usize,
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
            allocated: Resources::default(),
            leaving: Resources::default(),
            claimed: Resources::default(),
            provisioned: Resources::default(),
            claims: BTreeSet::new(),
            claim_count: 0,
            ready: BTreeSet::new(),
            backed: BTreeSet::new(),
            over: PerKind::default(),
            waiting: 0,
            away: 0,
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
        for (number, id) in claims {
            // What was asked back for it comes, and serves whoever is next.
            self.end_claim(number, id);
            if let Some(guest) = self.guests.get_mut(&id) {
                guest.state = State::Waiting;
                let place = guest.place(id);
                self.owners[owner.0].line.insert(place);
            }
        }
        self.owners[owner.0].settings = settings;
        let refused = |place: &Place| {
            let guest = self.guests.get(&place.id)?;
            Some((place.id, self.can_ever_fit(owner, &guest.demand).err()?))
        };
        let refused: Vec<_> = self.owners[owner.0].line.iter().filter_map(refused).collect();
        for (id, _) in &refused {
            self.release(*id);
        }
        self.index_head(owner);
        self.index_excess(owner);
        Ok(refused)
    }

    /// A guest asks to be admitted: None if it waits. `id` is the caller's number for it. What is decided, if anything, is about this
    /// guest; what other guests gain by it, such as a way past a claim, is for [`Self::next`] to say.
    ///
    /// # Errors
    /// Why it is not even put in line.
    pub fn offer(&mut self, id: u64, request: &Request) -> Result<Option<Decision>, Refusal> {
        let Request { owner, priority, age, demand } = *request;
        self.can_ever_fit(owner, &demand)?;
        if self.guests.contains_key(&id) {
            return Err(Refusal::Known);
        }
        // Whatever room there is: who comes back is waited for.
        if self.away > self.waiting_most {
            return Err(Refusal::LineFull(self.waiting_most));
        }
        self.guests.insert(id, Guest { owner, priority, age, demand, state: State::Away });
        self.enqueue(id);
        let decision = self.decide_for(owner, id);
        let waits = self.guests.get(&id).is_some_and(|g| g.state == State::Waiting);
        let o = &self.owners[owner.0];
        let refusal = if !waits {
            None
        } else if self.waiting + self.away > self.waiting_most {
            Some(Refusal::LineFull(self.waiting_most))
        } else if o.line.len() + o.away > self.waiting_each {
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
        while let Some(&owner) = self.backed.first() {
            match self.ask_back(owner) {
                Asked::Now(decision) => return Some(decision),
                Asked::Later => {}
                Asked::No => {
                    self.backed.pop_first();
                }
            }
        }
        if let Some(&(number, id)) = self.claims.first() {
            let (owner, demand) = self.guests.get(&id).map(|g| (g.owner, g.demand))?;
            if !self.fits(&demand) {
                return None;
            }
            self.end_claim(number, id);
            self.admit(owner, id);
            return Some(Decision::Admit(id));
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
        self.leave(id);
        if let Some(guest) = self.guests.remove(&id) {
            self.away -= 1;
            self.owners[guest.owner.0].away -= 1;
        }
    }

    /// A guest has ended and is to come back: what it had is free, and a place in the line is kept for it.
    pub fn leave(&mut self, id: u64) {
        let Some(guest) = self.guests.get_mut(&id) else { return };
        let (owner, demand, place) = (guest.owner, guest.demand, guest.place(id));
        let before = std::mem::replace(&mut guest.state, State::Away);
        let o = &mut self.owners[owner.0];
        match before {
            State::Away => return,
            State::Waiting => {
                o.line.remove(&place);
                self.waiting -= 1;
            }
            State::Claiming(number) => {
                self.waiting -= 1;
                self.end_claim(number, id);
            }
            State::Admitted => o.hold(place, &demand, false),
            State::Leaving => {
                o.leaving = o.leaving.minus(&demand);
                self.leaving = self.leaving.minus(&demand);
            }
        }
        let o = &mut self.owners[owner.0];
        if matches!(before, State::Admitted | State::Leaving) {
            o.allocated = o.allocated.minus(&demand);
            self.allocated = self.allocated.minus(&demand);
            self.index_excess(owner);
        }
        self.owners[owner.0].away += 1;
        self.away += 1;
        self.index_head(owner);
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
        self.owners[guest.owner.0].away -= 1;
        self.away -= 1;
        self.enqueue(id);
        Ok(())
    }

    /// These were asked back, and need not go: the requests that they were asked back for were released, and nothing happened since.
    pub fn keep(&mut self, lent: &[u64]) {
        for id in lent {
            if self.guests.get(id).is_some_and(|g| g.state == State::Leaving) {
                self.mark(*id, State::Admitted);
            }
        }
    }

    /// What an owner has.
    #[must_use]
    pub fn usage(&self, owner: OwnerId) -> Usage {
        let o = &self.owners[owner.0];
        let share = self.host.share(&o.allocated, std::num::NonZeroU32::MIN);
        Usage { settings: o.settings, allocated: o.allocated, share, waiting: o.line.len() + o.claims }
    }

    /// What all admitted guests have.
    #[must_use]
    pub fn allocated(&self) -> Resources {
        self.allocated
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

    /// Whether the host has room for `demand` now.
    fn fits(&self, demand: &Resources) -> bool {
        self.host.holds(&self.allocated.plus(demand))
    }

    /// A guest that has nothing gets in line.
    fn enqueue(&mut self, id: u64) {
        let Some(guest) = self.guests.get_mut(&id) else { return };
        guest.state = State::Waiting;
        let (owner, place) = (guest.owner, guest.place(id));
        self.owners[owner.0].line.insert(place);
        self.waiting += 1;
        self.index_head(owner);
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

    fn admit_head(&mut self, owner: OwnerId, id: u64) -> u64 {
        if let Some(guest) = self.guests.get(&id) {
            self.owners[owner.0].line.remove(&guest.place(id));
        }
        self.admit(owner, id);
        id
    }

    /// A guest that has left the line gets what it needs.
    fn admit(&mut self, owner: OwnerId, id: u64) {
        let Some(guest) = self.guests.get_mut(&id) else { return };
        guest.state = State::Admitted;
        let (demand, place) = (guest.demand, guest.place(id));
        let o = &mut self.owners[owner.0];
        o.allocated = o.allocated.plus(&demand);
        o.hold(place, &demand, true);
        self.allocated = self.allocated.plus(&demand);
        self.waiting -= 1;
        self.index_head(owner);
        self.index_excess(owner);
    }
}
