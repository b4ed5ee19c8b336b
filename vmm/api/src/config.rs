//! Everything that is settled, in one piece.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::guest::GuestSpec;
use crate::network::NetworkSettings;
use crate::owner::{Name, OwnerSettings};
use crate::system::GatekeeperSettings;

/// The configuration of a daemon: what is read back from one can be applied to it, or to another one that has the images.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Configuration {
    /// What the gatekeeper gives, if that was settled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gatekeeper: Option<GatekeeperSettings>,
    /// Owners by name.
    #[schema(value_type = BTreeMap<Name, OwnerSettings>)]
    pub owners: BTreeMap<String, OwnerSettings>,
    /// Networks by name.
    #[schema(value_type = BTreeMap<Name, NetworkSettings>)]
    pub networks: BTreeMap<String, NetworkSettings>,
    /// Guests by name: each is there once, or as often as its `count` says.
    #[schema(value_type = BTreeMap<Name, Declared>)]
    pub guests: BTreeMap<String, Declared>,
}

/// Guests that are to be there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Declared {
    /// How many: with more than one, their names end in their numbers.
    #[serde(default = "one")]
    #[schema(minimum = 1, maximum = 1_000_000)]
    pub count: u64,
    /// What each is.
    pub guest: GuestSpec,
}

fn one() -> u64 {
    1
}

/// What was done to make the configuration true.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Applied {
    /// What the gatekeeper gives was settled.
    pub gatekeeper: bool,
    /// Owners settled.
    pub owners: usize,
    /// Networks made.
    pub networks: usize,
    /// Guests made.
    pub created: usize,
    /// Guests made anew because they were to be something else.
    pub replaced: usize,
    /// Guests that were as they are to be.
    pub unchanged: usize,
    /// Guests that were there and are no longer to be.
    pub removed: usize,
}
