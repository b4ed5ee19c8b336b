//! Events: what has happened, in its order.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Something that has happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Its place: later events have greater numbers, also those of a later daemon.
    pub id: u64,
    /// When, milliseconds since 1970.
    pub at_ms: u64,
    /// What happened to what: `guest.create`, `guest.start`, `guest.end`, `cell.die`, `owner.set`, ...
    pub kind: String,
    /// What it happened to: the id of a guest, the name of an owner, an image or a network, the number of a cell.
    pub subject: String,
    /// The name of the guest.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Whose guest it is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub owner: String,
    /// More about it, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}
