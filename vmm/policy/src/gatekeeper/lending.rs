//! Lending: what is provisioned for an owner or a guest and unused is lent, and comes back when it is asked for.
//!
//! Provisioning apart from allocation is Akaros' (Rhoden, Klues, Zhu, Brewer: "Improving per-node efficiency in the datacenter with new
//! OS abstractions", SoCC '11).
//!
//! What a guest has within its own provision is its own. What it has *beyond* that is covered by its owner's provision, and what all guests
//! of an owner have beyond both is lent. A request is *backed* if what it needs is within the guest's own provision, or within its
//! owner's together with what the owner has; so is the growth of an admitted guest. Backed requests come before all others. If the host has
//! not enough, what is missing is asked back from those to whom it was lent: first from the owner whose excess is the largest dominant
//! share, of its guests that have more than their own provision first the least important, then the youngest. Until they are gone
//! the request is a *claim*, and nobody else is admitted, so that nobody takes what comes back.
//!
//! The provisions of all owners and all guests together are at most what the host has. So if nothing of a kind is lent, nothing of it is
//! missing for a backed request: what guests have, claim and need within their own provisions is at most these provisions, and what they
//! have, claim and need beyond is at most their owners'. What is missing was lent then, and asking for all of it is enough; unless a claim took
//! it for which nothing of that kind is provisioned.

use super::amount::Amount;
use super::ledger::Sums;
use super::request::{Guest, State, Wish};
use super::resources::{Kind, PerKind, Resources};
use super::{Decision, Gatekeeper, OwnerId};

/// What became of a wish for what is one's own.
pub(super) enum Asked {
    /// Nothing: it is not backed, or what it misses was not lent.
    No,
    /// It waits for what others give back already.
    Later,
    /// It is granted, or guests are asked back for it.
    Now(Decision),
}

impl Gatekeeper {
    /// Admits an owner's next request before all others, or asks back for it what was lent, if it is backed.
    pub(super) fn ask_back(&mut self, owner: OwnerId) -> Asked {
        self.owners[owner.0].head.map_or(Asked::No, |head| self.ask(head.id, Wish::Admission))
    }

    /// Grants a wish before all others, or asks back for it what was lent, if it is backed.
    pub(super) fn ask(&mut self, id: u64, wish: Wish) -> Asked {
        let Some(guest) = self.guests.get(&id) else { return Asked::No };
        let (owner, need) = (guest.owner, guest.wants(wish));
        let o = &self.owners[owner.0];
        if !o.is_backed(&need) || !o.may_have(&need) {
            return Asked::No;
        }
        let missing = self.missing(&need);
        if Kind::ALL.into_iter().any(|k| missing[k] > 0 && !o.covers(&need, k)) {
            return Asked::No;
        }
        if missing.is_nothing() && self.fits(&need) {
            return Asked::Now(self.grant(id, wish));
        }
        let Some(lent) = self.take_back(&need) else { return Asked::No };
        self.claim_count += 1;
        let number = self.claim_count;
        self.change(id, |g| {
            g.state = match wish {
                Wish::Admission => State::Claiming(number),
                Wish::Memory(memory) => State::Growing { number, memory },
            }
        });
        if lent.is_empty() { Asked::Later } else { Asked::Now(Decision::Reclaim { owner, lent }) }
    }

    /// Asks back what is missing for `need`, and says from whom; None, and nobody is asked, if that is not enough.
    fn take_back(&mut self, need: &Amount) -> Option<Vec<u64>> {
        let mut lent: Vec<(u64, Guest)> = Vec::new();
        for kind in Kind::ALL {
            while self.missing(need)[kind] > 0 {
                let Some((id, guest)) = self.last_borrower(kind) else {
                    // What is missing is with claims of others, which were admitted to it first.
                    lent.into_iter().for_each(|(id, guest)| self.record(id, Some(guest)));
                    return None;
                };
                self.record(id, Some(Guest { state: State::Leaving, ..guest }));
                lent.push((id, guest));
            }
        }
        for (id, guest) in &lent {
            if guest.claim().is_some() {
                self.given_up.insert(*id);
                self.index_head(guest.owner);
            }
        }
        Some(lent.into_iter().map(|(id, _)| id).collect())
    }

    /// What the host lacks for `need`, when everything asked back has come and all claims are served.
    fn missing(&self, need: &Amount) -> Resources {
        let Sums { allocated, leaving, claimed, .. } = &self.sums;
        let wanted = allocated.minus(leaving).plus(claimed).plus(need).whole;
        PerKind::from_fn(|k| self.host[k].map_or(0, |most| wanted[k].saturating_sub(most)))
    }

    /// The guest that is the first to give back what it has of a kind.
    fn last_borrower(&self, kind: Kind) -> Option<(u64, Guest)> {
        let (_, owner) = self.over[kind].last()?;
        let id = self.owners[owner.0].holders[kind].last()?.id;
        Some((id, *self.guests.get(&id)?))
    }

    /// A claim is given up: its guest waits in line, or keeps what it has.
    pub(super) fn give_up(&mut self, id: u64) {
        let Some((_, wish)) = self.guests.get(&id).and_then(Guest::claim) else { return };
        let state = match wish {
            Wish::Admission => State::Waiting,
            Wish::Memory(_) => {
                self.given_up.insert(id);
                State::Admitted
            }
        };
        self.change(id, |g| g.state = state);
    }
}
