//! Lending: what is provisioned for an owner and unused is lent, and comes back when the owner asks.
//!
//! Provisioning apart from allocation is Akaros' (Rhoden, Klues, Zhu, Brewer: "Improving per-node efficiency in the datacenter with new
//! OS abstractions", SoCC '11).
//!
//! A request is *backed* if its owner stays within its provision with it. Backed requests come before all others. If the host has not
//! enough, what is missing is asked back from owners that have more of it than is provisioned for them: first from the one whose excess
//! is the largest dominant share, of its guests first the least important, then the youngest. Until they are gone the request is a
//! *claim*, and nobody else is admitted, so that nobody takes what comes back.
//!
//! The provisions of all owners together are at most what the host has, so that what a backed request misses is always with owners that have
//! more than their provision.

use super::resources::{Kind, PerKind, Resources};
use super::{Decision, Gatekeeper, OwnerId, State};

/// What became of an owner's wish for what is its own.
pub(super) enum Asked {
    /// Nothing: its next request is not backed, or what it misses was not lent.
    No,
    /// It waits for what others give back already.
    Later,
    /// It is admitted, or guests are asked back for it.
    Now(Decision),
}

impl Gatekeeper {
    /// Admits an owner's next request before all others, or asks back for it what was lent, if it is backed.
    pub(super) fn ask_back(&mut self, owner: OwnerId) -> Asked {
        let o = &self.owners[owner.0];
        let Some(head) = o.head.filter(|h| o.is_backed(&h.demand)) else { return Asked::No };
        if !o.settings.budget.holds(&o.with(&head.demand)) {
            return Asked::No;
        }
        let provision = o.settings.provision;
        let mut missing = self.missing(&head.demand);
        if Kind::ALL.into_iter().any(|k| missing[k] > 0 && provision[k] == 0) {
            return Asked::No;
        }
        if missing.is_nothing() && self.fits(&head.demand) {
            return Asked::Now(Decision::Admit(self.admit_head(owner, head.id)));
        }
        let mut lent = Vec::new();
        for kind in Kind::ALL {
            while missing[kind] > 0 {
                let Some(id) = self.last_borrower(kind) else {
                    // What is missing is with claims of others, which were admitted to it first.
                    lent.into_iter().for_each(|id| self.mark(id, State::Admitted));
                    return Asked::No;
                };
                self.mark(id, State::Leaving);
                lent.push(id);
                missing = self.missing(&head.demand);
            }
        }
        self.claim(owner, head.id);
        if lent.is_empty() { Asked::Later } else { Asked::Now(Decision::Reclaim { owner, lent }) }
    }

    /// What the host lacks for `demand`, when everything asked back has come and all claims are served.
    fn missing(&self, demand: &Resources) -> Resources {
        let wanted = self.allocated.minus(&self.leaving).plus(&self.claimed).plus(demand);
        PerKind::from_fn(|k| self.host[k].map_or(0, |most| wanted[k].saturating_sub(most)))
    }

    /// The guest that is the first to give back what it has of a kind.
    fn last_borrower(&self, kind: Kind) -> Option<u64> {
        let (_, owner) = self.over[kind].last()?;
        self.owners[owner.0].holders[kind].last().map(|place| place.id)
    }

    /// Turns an admitted guest into one that was asked back, or the other way round.
    pub(super) fn mark(&mut self, id: u64, state: State) {
        let Some(guest) = self.guests.get_mut(&id) else { return };
        let (owner, demand, place) = (guest.owner, guest.demand, guest.place(id));
        guest.state = state;
        let leaves = state == State::Leaving;
        let o = &mut self.owners[owner.0];
        o.hold(place, &demand, !leaves);
        for sum in [&mut o.leaving, &mut self.leaving] {
            *sum = if leaves { sum.plus(&demand) } else { sum.minus(&demand) };
        }
        self.index_excess(owner);
    }

    /// The head of an owner's line no longer waits for its turn, but for what was asked back.
    fn claim(&mut self, owner: OwnerId, id: u64) {
        self.claim_count += 1;
        let number = self.claim_count;
        let Some(guest) = self.guests.get_mut(&id) else { return };
        guest.state = State::Claiming(number);
        let (demand, place) = (guest.demand, guest.place(id));
        self.claims.insert((number, id));
        let o = &mut self.owners[owner.0];
        o.line.remove(&place);
        o.claimed = o.claimed.plus(&demand);
        o.claims += 1;
        self.claimed = self.claimed.plus(&demand);
        self.index_head(owner);
    }

    /// A claim is served or given up.
    pub(super) fn end_claim(&mut self, number: u64, id: u64) {
        let Some(guest) = self.guests.get(&id) else { return };
        let (owner, demand) = (guest.owner, guest.demand);
        self.claims.remove(&(number, id));
        let o = &mut self.owners[owner.0];
        o.claimed = o.claimed.minus(&demand);
        o.claims -= 1;
        self.claimed = self.claimed.minus(&demand);
    }
}
