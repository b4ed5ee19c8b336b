//! The final report: for people on standard error, for programs as JSON.

use std::fmt::Write as _;
use std::path::Path;

use foraker_cell::{Cause, CounterValues, End, Fault, Guest, symbols};
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
    pub(crate) fault: Option<FaultReport>,
    pub(crate) counters: Counters,
    /// Frames dropped, by reason.
    pub(crate) drops: std::collections::BTreeMap<&'static str, u64>,
    pub(crate) ipv4: Option<String>,
    pub(crate) cpu_seconds: f64,
}

/// A fault.
#[derive(Debug, Serialize)]
pub(crate) struct FaultReport {
    pub(crate) vector: Option<u8>,
    pub(crate) mnemonic: &'static str,
    pub(crate) name: &'static str,
    pub(crate) error_code: Option<u64>,
    pub(crate) address: Option<String>,
    /// What a ring or the machine was damaged by.
    pub(crate) detail: Option<String>,
    pub(crate) core: u32,
    pub(crate) rip: String,
    pub(crate) registers: std::collections::BTreeMap<&'static str, String>,
    pub(crate) function: Option<String>,
    pub(crate) file: Option<String>,
    pub(crate) line: Option<u32>,
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
        Some(End::Faulted(f)) => ("fault", None, None, Some(of_fault(f, image))),
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

fn of_fault(fault: &Fault, image: Option<&Path>) -> FaultReport {
    let (vector, error_code, address, detail) = match &fault.cause {
        Cause::Exception { vector, error_code, address } => (Some(*vector), *error_code, *address, None),
        Cause::Ring(text) | Cause::Machine(text) => (None, None, None, Some(text.clone())),
        Cause::GivenBack => (None, None, None, None),
        Cause::Upcall(stack) => (None, None, Some(*stack), None),
    };
    let place = image.and_then(|path| symbols::locate(path, fault.rip)).unwrap_or_default();
    let r = &fault.registers;
    let registers = [
        ("rax", r.rax),
        ("rbx", r.rbx),
        ("rcx", r.rcx),
        ("rdx", r.rdx),
        ("rsi", r.rsi),
        ("rdi", r.rdi),
        ("rsp", r.rsp),
        ("rbp", r.rbp),
        ("r8", r.r8),
        ("r9", r.r9),
        ("r10", r.r10),
        ("r11", r.r11),
        ("r12", r.r12),
        ("r13", r.r13),
        ("r14", r.r14),
        ("r15", r.r15),
        ("rip", r.rip),
        ("rflags", r.rflags),
    ];
    let (mnemonic, name) = fault.cause.name();
    FaultReport {
        vector,
        mnemonic,
        name,
        error_code,
        address: address.map(hex),
        detail,
        core: fault.core,
        rip: hex(fault.rip),
        registers: registers.into_iter().map(|(n, v)| (n, hex(v))).collect(),
        function: place.function,
        file: place.file,
        line: place.line,
    }
}

fn hex(value: u64) -> String {
    format!("{value:#x}")
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
        let f = self.fault.as_ref()?;
        let mut text = format!("guest {name} faulted: {} ({})", f.name, f.mnemonic);
        if let Some(detail) = &f.detail {
            let _ = write!(text, ": {detail}");
        }
        if let Some(code) = f.error_code {
            let _ = write!(text, ", error code {code:#x}");
        }
        if let Some(address) = &f.address {
            let _ = write!(text, ", address {address}");
        }
        if f.detail.is_none() {
            let _ = write!(text, ", at {}", f.rip);
            if let Some(function) = &f.function {
                let _ = write!(text, " in {function}");
            }
            if let (Some(file), Some(line)) = (&f.file, f.line) {
                let _ = write!(text, " ({file}:{line})");
            }
            let order = [
                "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12",
                "r13", "r14", "r15", "rip", "rflags",
            ];
            for row in order.chunks(6) {
                text.push_str("\n ");
                for n in row {
                    let _ = write!(text, " {n:>3} {:<18}", f.registers.get(n).map_or("", String::as_str));
                }
                text.truncate(text.trim_end().len());
            }
        }
        Some(text)
    }
}
