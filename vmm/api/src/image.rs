//! Images: what guests run.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An image that the daemon keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Image {
    /// SHA-256 of its content, hexadecimal: what it is called for ever.
    pub digest: String,
    /// The names that it has now.
    pub names: Vec<String>,
    /// Its length, bytes.
    pub size: u64,
    /// Memory that a guest has of which nothing is said, bytes.
    pub memory: u64,
    /// Whether a guest has a network of which nothing is said.
    pub network: bool,
    /// When it came, milliseconds since 1970.
    pub created_ms: u64,
    /// Guests of it.
    pub guests: usize,
}
