//! The daemon itself.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::owner::Amounts;

/// Which daemon it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Version {
    /// The version of the program.
    pub version: String,
    /// The version of the API.
    pub api: String,
    /// The version of the virtual architecture.
    pub abi: u32,
}

/// A cell: a process that runs guests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Cell {
    /// Its number.
    pub number: usize,
    /// Its process; absent while there is none.
    pub process: Option<u32>,
    /// Its TAP device.
    pub tap: Option<String>,
    /// Guests on it.
    pub guests: usize,
    /// How often it was started again.
    pub restarts: u32,
    /// The owner that has it alone.
    pub owner: Option<String>,
}

/// Whether all is well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// Every cell is there.
    pub healthy: bool,
    /// Cells that are not there now.
    pub missing_cells: usize,
    /// Since when the daemon runs, milliseconds since 1970.
    pub since_ms: u64,
}

/// Who is admitted next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Discipline {
    /// A guest of the owner with the least dominant share.
    #[default]
    Fair,
    /// Who asked first, whoever the owner is.
    FirstCome,
}

/// Admission: what there is to give, what is given, and who waits.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Gatekeeper {
    /// What all guests may have together.
    pub budget: Amounts,
    /// What they have.
    pub has: Amounts,
    /// Guests in line.
    pub waiting: usize,
    /// Most guests in line.
    pub most_waiting: usize,
    /// Who is admitted next.
    pub discipline: Discipline,
    /// Guests by where they are in their lives.
    pub states: BTreeMap<String, usize>,
    /// Requests refused since the daemon started.
    pub refused: u64,
}
