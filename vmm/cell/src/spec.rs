//! How cells and guests are set up.

use std::net::Ipv4Addr;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::Arc;

use foraker_memory::Pages;
use serde::{Deserialize, Serialize};

use crate::guest::ProcessorSpec;
use crate::image::LoadedImage;
use crate::network::Service;

/// Console bytes per second of a guest, and as many at once, when nobody says otherwise.
pub const DEFAULT_CONSOLE: u64 = 4 << 20;

/// How a cell is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// Worker threads, at least 1.
    pub workers: usize,
    /// Address space for guests' memory, bytes.
    pub arena: u64,
    /// Where consoles go: a descriptor that stays open.
    pub console: RawFd,
    /// The network, if any guest has one.
    pub network: Option<NetworkConfig>,
    /// Machines made ahead of need.
    pub spare_machines: usize,
    /// Most machines of guests that have ended that are kept for others.
    pub kept_machines: usize,
    /// Most machines of guests, as long as any guest can do without its own; none for as many as there are guests.
    pub machines: Option<usize>,
    /// Somebody else decides how much memory guests have, and is told by [`crate::Cell::ended`] when one asks ([`crate::Guest::take_wish`]). Otherwise each
    /// has what it asks for, up to its size.
    pub gatekept: bool,
}

impl Config {
    /// A cell without a network that makes a machine for each guest.
    #[must_use]
    pub fn new(workers: usize, arena: u64, console: RawFd) -> Config {
        Config {
            workers,
            arena,
            console,
            network: None,
            spare_machines: 0,
            kept_machines: 0,
            machines: None,
            gatekept: false,
        }
    }
}

/// How a cell's network is set up.
#[derive(Clone, Debug, Default)]
pub struct NetworkConfig {
    /// An existing TAP device to use; otherwise one is made.
    pub tap: Option<String>,
    /// IPv4 subnet of the cell as (network address, prefix bits); otherwise the first free one of 10.99.0.0/16.
    pub subnet: Option<(Ipv4Addr, u8)>,
    /// Where other cells of the same host have guests, as first and last address, besides the usual ranges. Guests of
    /// networks other than 0 do not reach them.
    pub others: Option<(Ipv4Addr, Ipv4Addr)>,
    /// File that records every frame.
    pub pcap: Option<PathBuf>,
    /// Who serves the rings.
    pub service: Service,
}

/// A guest to start.
#[derive(Clone, Debug)]
pub struct GuestSpec {
    /// What it runs.
    pub image: Arc<LoadedImage>,
    /// Its name; also its first argument.
    pub name: String,
    /// Its memory, bytes.
    pub memory: u64,
    /// What of it is kept for it alone; all where nobody asks for it back.
    pub memory_provision: Option<u64>,
    /// What its heap is backed with.
    pub pages: Pages,
    /// Its cores.
    pub cores: u32,
    /// Arguments after the name.
    pub arguments: Vec<String>,
    /// Environment, as `NAME=value`.
    pub environment: Vec<String>,
    /// Its network, if it has one.
    pub network: Option<NetworkSpec>,
    /// Console bytes per second.
    pub console_limit: u64,
    /// What each of its console's lines begins with.
    pub console_mark: Option<String>,
    /// Its part of the processors.
    pub processor: ProcessorSpec,
    /// Each interrupt forces it out.
    pub immediate: bool,
    /// It is paused before its first instruction.
    pub paused: bool,
    /// Should it fault, the state of all its cores is kept with its memory until it is forgotten, so that a dump is complete.
    pub keep_core: bool,
    /// Whose it is, if it may start from where another guest of the same owner was `ready`, and others from where it is.
    pub from_template: Option<String>,
}

impl GuestSpec {
    /// A guest with what everybody gets: the memory that its image asks for, one core, no network.
    #[must_use]
    pub fn new(image: Arc<LoadedImage>, name: &str) -> GuestSpec {
        GuestSpec {
            memory: image.memory(),
            image,
            name: name.to_owned(),
            pages: Pages::Small,
            cores: 1,
            arguments: Vec::new(),
            environment: Vec::new(),
            network: None,
            console_limit: DEFAULT_CONSOLE,
            console_mark: None,
            processor: ProcessorSpec::default(),
            memory_provision: None,
            immediate: false,
            paused: false,
            keep_core: false,
            from_template: None,
        }
    }
}

/// A guest's share of the network. Rates per second; `None` for no limit.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// Its IPv4 address; otherwise the next free one.
    pub ipv4: Option<Ipv4Addr>,
    /// Its network: guests of different networks are apart. 0 is that of those who asked for none, and alone reaches guests of other cells. Whoever
    /// starts guests numbers their networks: `vmm launch` by the names on its command line, a supervisor by whatever owns them.
    #[serde(default)]
    pub network: u32,
    /// Its name server; otherwise the host's.
    pub dns: Option<Ipv4Addr>,
    /// Bytes received.
    pub rx_bytes: Option<u64>,
    /// Bytes sent.
    pub tx_bytes: Option<u64>,
    /// Frames sent.
    pub tx_packets: Option<u64>,
}
