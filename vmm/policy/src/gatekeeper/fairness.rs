//! Fairness between owners, by dominant resources, and what becomes of requests that do not fit.

use super::amount::Amount;
use super::request::Wish;
use super::resources::Share;
use super::{Decision, Discipline, Gatekeeper, LOOK, OwnerId, PATIENCE};

impl Gatekeeper {
    /// Admits the next by shares, if it fits, and if it is of the owner `only` when there is one.
    pub(super) fn admit_by_share(&mut self, only: Option<OwnerId>) -> Option<Decision> {
        let mut passed = Vec::new();
        let mut found = None;
        for &(.., owner) in self.ready.iter().take(LOOK) {
            let o = &self.owners[owner.0];
            let head = o.head?;
            if self.fits(&head.need) {
                found = Some((owner, head.id));
                break;
            }
            if o.passed >= PATIENCE {
                return None;
            }
            passed.push(owner);
        }
        let (owner, id) = found.filter(|(owner, _)| only.is_none_or(|only| only == *owner))?;
        if self.discipline == Discipline::Fair {
            let least = passed.iter().map(|owner| self.share_with_head(*owner)).min();
            if least.is_some_and(|least| self.share_with_head(owner) > least) {
                return None;
            }
        }
        for owner in passed {
            self.owners[owner.0].passed += 1;
        }
        Some(self.grant(id, Wish::Admission))
    }

    /// The owner's share once its next request is admitted.
    fn share_with_head(&self, owner: OwnerId) -> Share {
        let o = &self.owners[owner.0];
        let with = o.with(&o.head.map_or_else(Amount::default, |h| h.need));
        self.host.share(&with.whole, o.settings.weight)
    }
}
