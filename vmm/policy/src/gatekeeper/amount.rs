//! Amounts of which a part may be kept for single guests.

use super::resources::Resources;

/// An amount, and the part of it that is beyond the provisions of the single guests that have or need it. What a guest has within its own
/// provision is its own: it is not lent, and its owner's provision need not cover it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Amount {
    pub(super) whole: Resources,
    pub(super) beyond: Resources,
}

impl Amount {
    /// What one guest has or needs for which `provision` is kept.
    pub(super) fn of(whole: Resources, provision: &Resources) -> Amount {
        Amount { whole, beyond: whole.minus(provision) }
    }

    pub(super) fn plus(&self, other: &Amount) -> Amount {
        Amount { whole: self.whole.plus(&other.whole), beyond: self.beyond.plus(&other.beyond) }
    }

    pub(super) fn minus(&self, other: &Amount) -> Amount {
        Amount { whole: self.whole.minus(&other.whole), beyond: self.beyond.minus(&other.beyond) }
    }
}
