//! The indices that make a decision cheap: who is next, and who has most that was lent.

use super::owner::Head;
use super::resources::{Kind, Share};
use super::{Discipline, Gatekeeper, OwnerId};

impl Gatekeeper {
    /// Brings the owner's keys up to date after its line, what it has, or its settings changed.
    pub(super) fn index_head(&mut self, owner: OwnerId) {
        let o = &mut self.owners[owner.0];
        let head = o.line.first().and_then(|place| {
            self.guests.get(&place.id).map(|g| Head { id: place.id, age: g.age, need: g.need() })
        });
        if head != o.head {
            (o.head, o.passed, o.turn) = (head, 0, self.turns);
            self.turns += 1;
        }
        let key = head.filter(|h| o.may_have(&h.need)).map(|h| match self.discipline {
            Discipline::Fair => (self.host.share(&o.sums.allocated.whole, o.settings.weight), o.turn),
            Discipline::FirstCome => (Share::default(), h.age),
        });
        if key != o.ready {
            if let Some((share, turn)) = o.ready {
                self.ready.remove(&(share, turn, owner));
            }
            o.ready = key;
            if let Some((share, turn)) = key {
                self.ready.insert((share, turn, owner));
            }
        }
        if head.is_some_and(|h| o.has_provision(&h.need)) {
            self.backed.insert(owner);
        } else {
            self.backed.remove(&owner);
        }
    }

    /// Brings up to date by how much an owner is above its provision.
    pub(super) fn index_excess(&mut self, owner: OwnerId) {
        let o = &mut self.owners[owner.0];
        let excess = o.kept().minus(&o.settings.provision);
        let share = self.host.share(&excess, o.settings.weight);
        for kind in Kind::ALL {
            let key = (excess[kind] > 0).then_some(share);
            if key != o.over[kind] {
                if let Some(share) = o.over[kind] {
                    self.over[kind].remove(&(share, owner));
                }
                o.over[kind] = key;
                if let Some(share) = key {
                    self.over[kind].insert((share, owner));
                }
            }
        }
    }
}
