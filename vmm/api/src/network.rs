//! Networks: guests of different ones do not reach each other.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// Whose guests may be in it.
    pub owner: String,
    /// How many of them are.
    pub guests: usize,
}

/// What is settled for a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkSettings {
    /// Whose guests may be in it.
    #[serde(default = "default_owner")]
    #[schema(pattern = "^[A-Za-z0-9._-]{1,64}$")]
    pub owner: String,
}

fn default_owner() -> String {
    crate::owner::DEFAULT.to_owned()
}
