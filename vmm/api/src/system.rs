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

/// What the gatekeeper gives, and to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GatekeeperSettings {
    /// What all guests may have together; no bound where nothing is said. Machines are never more than the cells hold.
    #[serde(default)]
    pub budget: Amounts,
    /// Most guests in line; half of them of one owner.
    #[schema(minimum = 0, maximum = 4_294_967_295_u64)]
    pub most_waiting: u32,
    /// Who is admitted next.
    #[serde(default)]
    pub discipline: Discipline,
}

/// Admission: what there is to give, what is given, and who waits.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Gatekeeper {
    /// What holds.
    pub settings: GatekeeperSettings,
    /// What a client has settled, as it was said; absent while the daemon's command line holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settled: Option<GatekeeperSettings>,
    /// What guests have.
    pub has: Amounts,
    /// Guests in line.
    pub waiting: usize,
    /// Guests by where they are in their lives.
    pub states: BTreeMap<String, usize>,
    /// Requests refused since the daemon started.
    pub refused: u64,
}
