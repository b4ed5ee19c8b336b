//! The final report: for people on standard error, for programs as JSON.

use std::path::Path;

use foraker_api::guest::Fault;
use foraker_cell::{CounterValues, End, Guest};
use foraker_supervisor::fault;
use serde::Serialize;

/// The whole launch.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Each guest, in the order of the command line.
    pub(crate) guests: Vec<GuestReport>,
    /// The network, if there was one.
    pub(crate) network: Option<NetworkReport>,
    /// From the first instruction of the launch to the report, seconds.
    pub(crate) seconds: f64,
}

/// The cell's network.
#[derive(Debug, Serialize)]
pub(crate) struct NetworkReport {
    pub(crate) tap: String,
    pub(crate) gateway: String,
    /// Frames dropped that belong to no guest, by reason.
    pub(crate) drops: std::collections::BTreeMap<&'static str, u64>,
}

/// One guest.
#[derive(Debug, Serialize)]
pub(crate) struct GuestReport {
    pub(crate) name: String,
    pub(crate) id: u64,
    /// `exit`, `fault` or `killed`.
    pub(crate) end: &'static str,
    /// Status that it gave to `terminate`.
    pub(crate) status: Option<u64>,
    /// Why it was ended.
    pub(crate) reason: Option<String>,
    pub(crate) fault: Option<Fault>,
    pub(crate) counters: Counters,
    /// Frames dropped, by reason.
    pub(crate) drops: std::collections::BTreeMap<&'static str, u64>,
    pub(crate) ipv4: Option<String>,
    pub(crate) cpu_seconds: f64,
}

/// Counters of a guest.
#[derive(Debug, Serialize)]
pub(crate) struct Counters {
    exits: u64,
    rx_frames: u64,
    rx_bytes: u64,
    tx_frames: u64,
    tx_bytes: u64,
    rx_dropped: u64,
    tx_dropped: u64,
    console_dropped: u64,
}

impl From<CounterValues> for Counters {
    fn from(c: CounterValues) -> Counters {
        Counters {
            exits: c.exits,
            rx_frames: c.rx_frames,
            rx_bytes: c.rx_bytes,
            tx_frames: c.tx_frames,
            tx_bytes: c.tx_bytes,
            rx_dropped: c.rx_dropped,
            tx_dropped: c.tx_dropped,
            console_dropped: c.console_dropped,
        }
    }
}

/// Collects the report of one guest. `image` is where symbols are.
pub(crate) fn of_guest(guest: &Guest, image: Option<&Path>) -> GuestReport {
    let (end, status, reason, fault) = match guest.end() {
        Some(End::Exited(status)) => ("exit", Some(*status), None, None),
        Some(End::Faulted(f)) => ("fault", None, None, Some(fault::report(f, image))),
        Some(End::Killed(why)) => ("killed", None, Some(why.clone()), None),
        None => ("running", None, None, None),
    };
    GuestReport {
        name: guest.name.clone(),
        id: guest.id,
        end,
        status,
        reason,
        fault,
        counters: guest.counter_values().into(),
        drops: guest.drops().into_iter().collect(),
        ipv4: guest.port.as_ref().map(|p| p.ipv4().to_string()),
        cpu_seconds: guest.cpu_time().as_secs_f64(),
    }
}

impl GuestReport {
    /// Status of the process that this guest's end asks for.
    pub(crate) fn process_status(&self) -> u8 {
        match self.end {
            "exit" => u8::try_from(self.status.unwrap_or(0).min(119)).unwrap_or(119),
            "fault" => 120,
            _ => 121,
        }
    }

    /// What people are told about an end that is not a plain exit.
    pub(crate) fn text(&self) -> Option<String> {
        let name = &self.name;
        if let Some(reason) = &self.reason {
            return Some(format!("guest {name} was ended: {reason}"));
        }
        let fault = self.fault.as_ref()?;
        Some(format!("guest {name} faulted: {}", fault.text()))
    }
}
