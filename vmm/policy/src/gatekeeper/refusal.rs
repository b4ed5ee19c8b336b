//! Why something is refused.

use thiserror::Error;

use super::resources::Kind;

/// Why a guest is not even put in line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// It can never fit the host.
    #[error("it needs {}, and the host gives {} in all", .kind.text(*.needs), .kind.text(*.most))]
    TooLargeForHost {
        /// Of what.
        kind: Kind,
        /// How much it needs.
        needs: u64,
        /// How much there is.
        most: u64,
    },
    /// It can never fit its owner's budget.
    #[error("it needs {}, and its owner's budget is {} in all", .kind.text(*.needs), .kind.text(*.most))]
    TooLargeForOwner {
        /// Of what.
        kind: Kind,
        /// How much it needs.
        needs: u64,
        /// How much its owner may have.
        most: u64,
    },
    /// More would be provisioned than the host has.
    #[error("with that, {} would be provisioned in all, and the host gives {}", .kind.text(*.provisions), .kind.text(*.host))]
    ProvisionBeyondHost {
        /// Of what.
        kind: Kind,
        /// How much all provisions would be, owners' and guests'.
        provisions: u64,
        /// How much there is.
        host: u64,
    },
    /// Too many wait already.
    #[error("no room now, and the line is full: {0} guests may wait")]
    LineFull(usize),
    /// Too many of its owner wait already.
    #[error("no room now, and its owner's part of the line is full: {0} of its guests may wait")]
    OwnersLineFull(usize),
    /// There is a guest of this number.
    #[error("there is a guest of this number already")]
    Known,
}

/// Why an owner cannot be set up like this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadSettings {
    /// More is provisioned than the owner may have.
    #[error("{} cannot be provisioned within a budget of {}", .kind.text(*.provision), .kind.text(*.budget))]
    BeyondBudget {
        /// Of what.
        kind: Kind,
        /// How much is provisioned.
        provision: u64,
        /// How much the owner may have.
        budget: u64,
    },
    /// More is provisioned than the host has.
    #[error("with that, {} would be provisioned in all, and the host gives {}", .kind.text(*.provisions), .kind.text(*.host))]
    BeyondHost {
        /// Of what.
        kind: Kind,
        /// How much all provisions would be, owners' and guests'.
        provisions: u64,
        /// How much there is.
        host: u64,
    },
}
