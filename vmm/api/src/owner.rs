//! Owners: whose guests are, and what they may have.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Whose a guest is of which nothing is said.
pub const DEFAULT: &str = "default";
/// Longest name of an owner, a network, an image or a guest, bytes.
pub const LONGEST_NAME: usize = 64;

/// Whether a text is a name of an owner, a network, an image or a guest.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let usual = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !text.is_empty() && text.len() <= LONGEST_NAME && text.chars().all(usual)
}

/// A name, as the API describes it: the key of a map.
#[derive(Debug, ToSchema)]
#[schema(pattern = "^[A-Za-z0-9._-]{1,64}$")]
pub struct Name(#[expect(dead_code, reason = "only described")] String);

/// So much of each resource; absent where nothing is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Amounts {
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 9_007_199_254_740_991_u64)]
    pub memory: Option<u64>,
    /// Machines of KVM.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 9_007_199_254_740_991_u64)]
    pub machines: Option<u64>,
    /// Thousandths of a processor.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 9_007_199_254_740_991_u64)]
    pub cpus: Option<u64>,
    /// Bytes per second, both directions together.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 9_007_199_254_740_991_u64)]
    pub bandwidth: Option<u64>,
    /// Guests.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 9_007_199_254_740_991_u64)]
    pub guests: Option<u64>,
}

/// What is settled for an owner. What is not said has its default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OwnerSettings {
    /// An owner of weight 2 is given twice as much as one of weight 1.
    #[schema(value_type = u64, minimum = 1, maximum = 4_294_967_295_u64)]
    pub weight: NonZeroU32,
    /// Most that its guests may have together.
    pub most: Amounts,
    /// What is kept for it, and lent to others while it is unused.
    pub provision: Amounts,
    /// Cells that run its guests and no others: a process apart, should a guest ever break out of its machine. 0: its guests share cells with those of
    /// other owners.
    #[schema(maximum = 100)]
    pub cells: u8,
}

impl Default for OwnerSettings {
    fn default() -> Self {
        OwnerSettings {
            weight: NonZeroU32::MIN,
            most: Amounts::default(),
            provision: Amounts::default(),
            cells: 0,
        }
    }
}

/// An owner.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Owner {
    /// Its name.
    pub name: String,
    /// What is settled for it.
    pub settings: OwnerSettings,
    /// What its admitted guests have.
    pub has: Amounts,
    /// The largest part that it has of what the host gives of a resource, from 0 to 1.
    pub dominant_share: f64,
    /// Its guests in line.
    pub waiting: usize,
}
