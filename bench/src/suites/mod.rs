//! The benchmarks, one module for each ID (the baselines alone in one).

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use crate::figure::Figure;
use crate::guest::Artifacts;
use crate::netns::GuestSubnets;
use crate::plot::Plot;

pub mod admission;
pub mod api;
pub mod baselines;
pub mod bulk;
pub mod documents;
pub mod exit;
pub mod fair;
pub mod grain;
pub mod http;
pub mod http_crate;
pub mod interrupts;
pub mod killed;
pub mod launch;
pub mod page;
pub mod path;
pub mod provision;
pub mod scale;
pub mod start;
pub mod storm;

/// What a benchmark is given.
#[derive(Debug)]
pub struct Session {
    /// Runs of each side.
    pub runs: usize,
    /// Length of one loaded run, seconds.
    pub seconds: u32,
    /// Program files; `None` when only baselines run.
    pub artifacts: Option<Artifacts>,
    /// Subnets for guests.
    pub subnets: GuestSubnets,
    /// Takes each figure as soon as it is there.
    pub report: fn(&Figure) -> Result<()>,
    /// Folder of the plots, if any are wanted.
    pub plots: Option<PathBuf>,
}

impl Session {
    /// Length of one loaded run.
    #[must_use]
    pub fn duration(&self) -> Duration {
        Duration::from_secs(u64::from(self.seconds))
    }

    /// Writes a plot, if plots are wanted.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn plot(&self, name: &str, plot: impl FnOnce() -> Plot) -> Result<()> {
        self.plots.as_ref().map_or(Ok(()), |folder| plot().write(folder, name))
    }

    /// Program files.
    ///
    /// # Errors
    /// When the session runs baselines only.
    pub fn artifacts(&self) -> Result<Artifacts> {
        self.artifacts.clone().ok_or_else(|| anyhow::anyhow!("this session runs baselines only"))
    }
}

/// A benchmark.
#[derive(Clone, Copy, Debug)]
pub struct Suite {
    /// Its ID on the command line and in its figures.
    pub id: &'static str,
    /// What it measures.
    pub about: &'static str,
    /// Runs it.
    pub run: fn(&mut Session) -> Result<()>,
    /// Needs guests; the others are baselines alone, and not part of `all`.
    pub guests: bool,
    /// Needs a network.
    pub network: bool,
}

/// Every benchmark.
pub const SUITES: &[Suite] = &[
    Suite {
        id: "launch",
        about: "launching a guest: in a running process, as a whole process; memory of a live idle one",
        run: launch::run,
        guests: true,
        network: false,
    },
    Suite { id: "exit", about: "round trip of a hypercall", run: exit::run, guests: true, network: false },
    Suite {
        id: "http",
        about: "HTTP requests per second by connections, exits per request, 64 connections beside 4,000 idle ones",
        run: http::run,
        guests: true,
        network: true,
    },
    Suite {
        id: "http_crate",
        about: "HTTP requests per second of a server made of the crate `picoserve`, beside the own one",
        run: http_crate::run,
        guests: true,
        network: true,
    },
    Suite {
        id: "A8",
        about: "dominant shares of owners whose guests need different things, and who all ask for more than there is",
        run: admission::run,
        guests: true,
        network: true,
    },
    Suite {
        id: "D1",
        about: "share of a packet's latency that is the VMM and the crossing",
        run: path::run,
        guests: true,
        network: true,
    },
    Suite { id: "D2", about: "TCP bulk transfer, both ways", run: bulk::run, guests: true, network: true },
    Suite {
        id: "D3",
        about: "HTTP requests per second by size of the document",
        run: documents::run,
        guests: true,
        network: true,
    },
    Suite {
        id: "D4",
        about: "web servers with batched interrupts beside the same with immediate ones, by their number",
        run: interrupts::batching,
        guests: true,
        network: true,
    },
    Suite {
        id: "D5",
        about: "web servers that idle with a timeout beside the same spinning, by their number",
        run: interrupts::idling,
        guests: true,
        network: true,
    },
    Suite {
        id: "storm",
        about: "10,000 guests started by one request",
        run: storm::run,
        guests: true,
        network: true,
    },
    Suite {
        id: "density",
        about: "memory of each of 10,000 guests, processes and kernel included, by component; and of warm ones",
        run: storm::density,
        guests: true,
        network: true,
    },
    Suite {
        id: "start",
        about: "start of one guest under `vmm serve`, from a template and from its image",
        run: start::run,
        guests: true,
        network: true,
    },
    Suite {
        id: "api",
        about: "the control API with 10,000 guests: requests, lists, and what guests notice of it",
        run: api::run,
        guests: true,
        network: true,
    },
    Suite {
        id: "killed",
        about: "`kill -9` of a supervisor with 300 and 10,000 guests: until the next one answers, and until they are back",
        run: killed::run,
        guests: true,
        network: false,
    },
    Suite {
        id: "page",
        about: "the live page over 10,000 guests, in Chromium: first paint, updates, what it costs",
        run: page::run,
        guests: true,
        network: true,
    },
    Suite {
        id: "scale",
        about: "processor time of a request by the number of resident guests, 1 to 10,000",
        run: scale::run,
        guests: true,
        network: true,
    },
    Suite {
        id: "D7",
        about: "throughput by the number of resident guests, 1 to 10,000",
        run: scale::throughput,
        guests: true,
        network: true,
    },
    Suite {
        id: "A1",
        about: "provisioned memory and a provisioned core that are lent out, from the request to the grant",
        run: provision::run,
        guests: true,
        network: true,
    },
    Suite {
        id: "fair",
        about: "a quiet web server beside a greedy guest on the same worker",
        run: fair::run,
        guests: true,
        network: true,
    },
    Suite {
        id: "A2",
        about: "echoes of an interactive guest beside batch guests, with two grains of core and with one",
        run: grain::run,
        guests: true,
        network: true,
    },
    Suite {
        id: "floor",
        about: "baseline alone: raw KVM ioctls",
        run: baselines::floor,
        guests: false,
        network: false,
    },
    Suite {
        id: "native-http",
        about: "baseline alone: epoll HTTP server behind veth",
        run: baselines::http,
        guests: false,
        network: true,
    },
    Suite {
        id: "native-bulk",
        about: "baseline alone: TCP over veth, with and without segmentation offload",
        run: baselines::bulk,
        guests: false,
        network: true,
    },
    Suite {
        id: "native-path",
        about: "baseline alone: UDP round trip over veth",
        run: baselines::path,
        guests: false,
        network: true,
    },
];
