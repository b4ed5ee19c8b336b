//! Collections, a page at a time.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Most items of a page, and how many there are in one if nobody says otherwise.
pub const MOST: usize = 10_000;

/// A part of a collection.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// The items, in their order.
    pub items: Vec<T>,
    /// What to give as `after` to have the next part; absent in the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}
