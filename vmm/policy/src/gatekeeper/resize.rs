//! Resizing: an admitted guest gives memory back, and asks for it again.
//!
//! What it gives back is there for everybody at once. What it asks for again it gets if there is room and nobody waits, because who waits
//! comes first. If it is backed, by the guest's own provision or by its owner's, it comes before all who wait, and what is missing is
//! asked back as for a request; until that has come, the growth is a claim among the others.
//!
//! A guest never asks itself back: either all its memory is within its own provision then, and none of it is lent, or its owner is within
//! its provision, and none of its guests are asked for memory.

use super::lending::Asked;
use super::request::{State, Wish};
use super::resources::Kind;
use super::{Decision, Gatekeeper};

impl Gatekeeper {
    /// An admitted guest needs `memory` bytes in all from now on, at most what it was offered with. None if there is no such guest, or if it
    /// waits for what is asked back for it: then [`Self::next`] answers. It keeps what it has unless the answer is that it is granted. A
    /// guest that is not admitted, was asked back, or waits for an answer already is granted nothing.
    ///
    /// [`Self::next`] is to be asked afterwards. It answers that nothing is granted after all if meanwhile the guest is asked back or the
    /// settings of its owner change; a guest that leaves gets no answer.
    pub fn resize(&mut self, id: u64, memory: u64) -> Option<Decision> {
        let guest = self.guests.get(&id)?;
        let refused = Some(Decision::Resized { id, granted: false });
        if guest.state != State::Admitted || self.given_up.contains(&id) || memory > guest.offered {
            return refused;
        }
        let wish = Wish::Memory(memory);
        let (o, growth) = (&self.owners[guest.owner.0], guest.wants(wish));
        let nobody_waits = self.claims.is_empty() && self.sums.waiting == 0;
        if growth.whole.is_nothing() || (nobody_waits && o.may_have(&growth) && self.fits(&growth)) {
            return Some(self.grant(id, wish));
        }
        // Here, unlike for a request, an owner's provision of something else than memory is no reason to be the first.
        if !o.covers(&growth, Kind::Memory) {
            return refused;
        }
        match self.ask(id, wish) {
            Asked::Now(decision) => Some(decision),
            Asked::Later => None,
            Asked::No => refused,
        }
    }
}
