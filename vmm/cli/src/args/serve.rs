//! `vmm serve`, and the processes that it has beside itself.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use foraker_api::Amounts;
use foraker_api::system::Discipline;
use foraker_supervisor::LogSizes;

use super::{Listening, LogLevel, subnet};
use crate::units;

/// `vmm serve`.
#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Processes that run guests; each holds about a thousand at most
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub(crate) cells: u8,
    /// Worker threads of each cell [default: one for each processor]
    #[arg(long, value_name = "N")]
    pub(crate) workers: Option<usize>,
    /// Machines of each cell; guests beyond that share them, as long as some rest [default: one for each guest]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) machines: Option<u32>,
    /// The first cell's subnet, of 16 bits; the next ones follow
    #[arg(long, value_name = "A.B.0.0", default_value = "10.100.0.0")]
    pub(crate) first_subnet: Ipv4Addr,
    #[command(flatten)]
    pub(crate) budget: Budget,
    /// Most guests that wait for room; half of them of one owner
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    pub(crate) max_waiting: u32,
    /// Who is admitted next
    #[arg(long, value_enum, default_value_t = AdmissionOrder::Fair, hide_short_help = true)]
    pub(crate) admission: AdmissionOrder,
    /// Where it keeps what must outlive it [default: /var/lib/foraker, or foraker in $XDG_STATE_HOME]
    #[arg(long, value_name = "FOLDER")]
    state: Option<PathBuf>,
    /// How much of each guest's log is kept
    #[arg(long, value_name = "SIZE", value_parser = units::size, default_value_t = LogSizes::default().each)]
    pub(crate) log_size: u64,
    /// How much of all guests' logs together: the longest are shortened first
    #[arg(long, value_name = "SIZE", value_parser = units::size, default_value_t = LogSizes::default().all, hide_short_help = true)]
    pub(crate) log_total: u64,
    #[command(flatten)]
    pub(crate) socket: Listening,
    /// Serve also clients on other machines, on this address; they and the supervisor show each other certificates
    #[arg(long, value_name = "ADDRESS:PORT", requires = "tls")]
    pub(crate) listen: Option<SocketAddr>,
    /// Folder of the supervisor's certificate cert.pem, its key key.pem and its clients' authorities ca.pem
    #[arg(long, value_name = "FOLDER", requires = "listen")]
    pub(crate) tls: Option<PathBuf>,
    /// Serve a live page on this address
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) ui: Option<SocketAddr>,
    /// Let the page start, stop, kill, pause and resume guests, for whoever has the key in its address
    #[arg(long, requires = "ui")]
    pub(crate) ui_writable: bool,
    /// Who may use the socket, as a file mode
    #[arg(long, value_name = "MODE", default_value = "600", value_parser = mode)]
    pub(crate) socket_mode: u32,
    /// How much the supervisor says about itself
    #[arg(long, value_enum, default_value_t = LogLevel::Warn)]
    pub(crate) log_level: LogLevel,
}

impl Serve {
    /// Where it keeps what must outlive it.
    pub(crate) fn state(&self) -> PathBuf {
        // SAFETY: a system call without arguments that cannot fail.
        let root = unsafe { libc::geteuid() } == 0;
        let own = || {
            let of = |name, below| Some(PathBuf::from(std::env::var_os(name)?).join(below));
            of("XDG_STATE_HOME", "").or_else(|| of("HOME", ".local/state")).filter(|_| !root)
        };
        let usual = || own().unwrap_or_else(|| PathBuf::from("/var/lib")).join("foraker");
        self.state.clone().unwrap_or_else(usual)
    }
}

/// What all guests may have together.
#[derive(Debug, Args)]
pub(crate) struct Budget {
    /// Memory for all guests together [at first: the host's, without an eighth]
    #[arg(long, value_name = "SIZE", value_parser = units::size)]
    pub(crate) memory: Option<u64>,
    /// Processors for all guests whose --cpus are limited [at first: the host's]
    #[arg(long, value_name = "N", value_parser = units::permille)]
    cpus: Option<u32>,
    /// Bytes per second for all guests with limits, both directions together [at first: no bound]
    #[arg(long, value_name = "SIZE", value_parser = units::size)]
    bandwidth: Option<u64>,
    /// Most guests at a time [at first: what the cells hold]
    #[arg(long, value_name = "N")]
    max_guests: Option<u64>,
}

impl Budget {
    /// What is said; the rest is as it is otherwise.
    pub(crate) fn or(&self, otherwise: Amounts) -> Amounts {
        Amounts {
            memory: self.memory.or(otherwise.memory),
            cpus: self.cpus.map(u64::from).or(otherwise.cpus),
            bandwidth: self.bandwidth.or(otherwise.bandwidth),
            guests: self.max_guests.or(otherwise.guests),
            machines: otherwise.machines,
        }
    }
}

fn mode(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o777)
        .ok_or_else(|| format!("'{text}' is no file mode: write three octal digits, such as 660"))
}

/// Who is admitted next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AdmissionOrder {
    /// The owner with the least dominant share
    Fair,
    /// Who asked first, whoever the owner is (for comparison)
    FirstCome,
}

impl AdmissionOrder {
    pub(crate) fn discipline(self) -> Discipline {
        match self {
            AdmissionOrder::Fair => Discipline::Fair,
            AdmissionOrder::FirstCome => Discipline::FirstCome,
        }
    }
}

/// `vmm launcher`.
#[derive(Debug, Args)]
pub(crate) struct LauncherProcess {
    /// How many cells there may be
    #[arg(long)]
    pub(crate) cells: u8,
    /// The first one's subnet
    #[arg(long)]
    pub(crate) first_subnet: Ipv4Addr,
    /// Where images are
    #[arg(long)]
    pub(crate) state: PathBuf,
    /// Socket that is removed at the end
    #[arg(long)]
    pub(crate) socket: Option<PathBuf>,
    /// How much it says about itself
    #[arg(long, value_enum)]
    pub(crate) log_level: LogLevel,
    /// Command line of a cell
    #[arg(last = true, required = true)]
    pub(crate) arguments: Vec<OsString>,
}

/// `vmm cell`.
#[derive(Debug, Args)]
pub(crate) struct CellProcess {
    /// Its number
    #[arg(long)]
    pub(crate) number: usize,
    /// Its subnet
    #[arg(long, value_parser = subnet)]
    pub(crate) subnet: (Ipv4Addr, u8),
    /// First and last address of all cells' subnets
    #[arg(long, value_parser = range)]
    pub(crate) subnets: Option<(Ipv4Addr, Ipv4Addr)>,
    /// Worker threads
    #[arg(long)]
    pub(crate) workers: usize,
    /// Most machines
    #[arg(long)]
    pub(crate) machines: Option<usize>,
    /// Folder of the images
    #[arg(long, value_name = "FOLDER")]
    pub(crate) images: PathBuf,
    /// How much it says about itself
    #[arg(long, value_enum)]
    pub(crate) log_level: LogLevel,
}

fn range(text: &str) -> Result<(Ipv4Addr, Ipv4Addr), String> {
    text.split_once('-')
        .and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)))
        .ok_or_else(|| format!("'{text}' is not a range: write FIRST-LAST"))
}
