//! The final report of `vmm launch --json`.

use std::collections::BTreeMap;

use serde::Deserialize;

/// The whole launch.
#[derive(Clone, Debug, Deserialize)]
pub struct Report {
    /// Each guest, in the order of the command line.
    pub guests: Vec<Guest>,
    /// The network, if there was one.
    pub network: Option<Network>,
    /// From start to report, seconds.
    pub seconds: f64,
}

/// The network of a launch.
#[derive(Clone, Debug, Deserialize)]
pub struct Network {
    /// Name of the TAP device.
    pub tap: String,
    /// The host's address.
    pub gateway: String,
    /// Frames dropped that belong to no guest.
    pub drops: BTreeMap<String, u64>,
}

/// One guest.
#[derive(Clone, Debug, Deserialize)]
pub struct Guest {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub id: u64,
    /// `exit`, `fault` or `killed`.
    pub end: String,
    /// Exit status.
    pub status: Option<u64>,
    /// Why it was ended.
    pub reason: Option<String>,
    /// Its fault.
    pub fault: Option<Fault>,
    /// Its counters.
    pub counters: BTreeMap<String, u64>,
    /// Frames dropped, by reason.
    pub drops: BTreeMap<String, u64>,
    /// Its address.
    pub ipv4: Option<String>,
    /// Processor time.
    pub cpu_seconds: f64,
}

/// A fault.
#[derive(Clone, Debug, Deserialize)]
pub struct Fault {
    /// Vector of an exception.
    pub vector: Option<u8>,
    /// `#PF`, or `ring`.
    pub mnemonic: String,
    /// `page fault`.
    pub name: String,
    /// Error code, where the vector has one.
    pub error_code: Option<u64>,
    /// Address of a page fault.
    pub address: Option<String>,
    /// What is damaged.
    pub detail: Option<String>,
    /// The core.
    pub core: u32,
    /// Where.
    pub rip: String,
    /// All registers.
    pub registers: BTreeMap<String, String>,
    /// The function at `rip`.
    pub function: Option<String>,
    /// Its source file.
    pub file: Option<String>,
    /// Its line.
    pub line: Option<u32>,
}

impl Report {
    /// Reads the last line of standard output.
    ///
    /// # Errors
    /// It is no report.
    pub fn parse(stdout: &str) -> Result<Report, String> {
        let line = stdout.lines().last().ok_or("standard output is empty")?;
        serde_json::from_str(line).map_err(|e| format!("{e} in {line}"))
    }

    /// The guest of this name.
    ///
    /// # Panics
    /// There is none.
    #[must_use]
    pub fn guest(&self, name: &str) -> &Guest {
        self.guests.iter().find(|g| g.name == name).unwrap_or_else(|| panic!("no guest {name} in {self:?}"))
    }
}

impl Guest {
    /// A counter.
    ///
    /// # Panics
    /// There is none of this name.
    #[must_use]
    pub fn counter(&self, name: &str) -> u64 {
        *self.counters.get(name).unwrap_or_else(|| panic!("no counter {name} in {:?}", self.counters))
    }

    /// Frames dropped for a reason.
    #[must_use]
    pub fn dropped(&self, reason: &str) -> u64 {
        self.drops.get(reason).copied().unwrap_or(0)
    }
}
