//! Command lines of what asks a supervisor.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use foraker_api::{Filter, Restart};

use super::{GuestOptions, Socket, variable};
use crate::format::Format;
use crate::units;

/// `vmm run`.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Print the id when it runs, and leave it running
    #[arg(long, short)]
    pub(crate) detach: bool,
    /// With --detach: do not wait until it runs
    #[arg(long, requires = "detach")]
    pub(crate) no_wait: bool,
    /// Forget it when it has ended
    #[arg(long)]
    pub(crate) rm: bool,
    /// How many; more than one are left running
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub(crate) count: u64,
    /// When it comes back after its end: no, on-failure, always
    #[arg(long, value_name = "POLICY", default_value = "no")]
    pub(crate) restart: Restart,
    /// Whose it is
    #[arg(long, value_name = "NAME", default_value = foraker_api::owner::DEFAULT)]
    pub(crate) owner: String,
    /// How important it is among those of its owner, from 0 to 255
    #[arg(long, value_name = "N", default_value_t = foraker_api::guest::DEFAULT_PRIORITY)]
    pub(crate) priority: u8,
    /// A label
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = variable)]
    pub(crate) label: Vec<String>,
    /// Should it fault, keep its memory and registers for `vmm dump`
    #[arg(long)]
    pub(crate) keep_core: bool,
    #[command(flatten)]
    pub(crate) socket: Socket,
    #[command(flatten)]
    pub(crate) guest: GuestOptions,
}

/// How a list is printed.
#[derive(Debug, Args)]
pub(crate) struct Printed {
    /// `table`, `json` (one object on each line), or a template such as '{{ id }} {{ name }}'
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub(crate) format: Format,
    /// Print ids or names only
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

/// Which guests.
#[derive(Debug, Default, Args)]
pub(crate) struct Chosen {
    /// Guests that meet this: name=, owner=, image=, state=, label=; all of them if given more than once
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = condition)]
    pub(crate) filter: Vec<(String, String)>,
}

impl Chosen {
    /// The filter of the API.
    pub(crate) fn filter(&self) -> anyhow::Result<Filter> {
        let mut filter = Filter::default();
        for (key, value) in &self.filter {
            match key.as_str() {
                "name" => filter.name = Some(value.clone()),
                "owner" => filter.owner = Some(value.clone()),
                "image" => filter.image = Some(value.clone()),
                "label" => filter.label = Some(value.clone()),
                _ => {
                    for state in value.split(',') {
                        filter.states.push(state.parse().map_err(anyhow::Error::msg)?);
                    }
                }
            }
        }
        Ok(filter)
    }
}

fn condition(text: &str) -> Result<(String, String), String> {
    const KEYS: [&str; 5] = ["name", "owner", "image", "state", "label"];
    match text.split_once('=') {
        Some((key, value)) if KEYS.contains(&key) => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!(
            "'{text}' is no filter: write one of {}",
            KEYS.map(|k| format!("{k}=...")).join(", ")
        )),
    }
}

/// `vmm ps`.
#[derive(Debug, Args)]
pub(crate) struct Ps {
    /// Those that have ended, too
    #[arg(long, short)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) chosen: Chosen,
    #[command(flatten)]
    pub(crate) printed: Printed,
    #[command(flatten)]
    pub(crate) socket: Socket,
}

/// `vmm start`, `stop`, `kill`, `pause`, `resume`.
#[derive(Debug, Args)]
pub(crate) struct Act {
    /// Ids or names of guests
    #[arg(value_name = "GUEST", required_unless_present_any = ["all", "filter"])]
    pub(crate) guests: Vec<String>,
    /// All guests
    #[arg(long, conflicts_with = "guests")]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) chosen: Chosen,
    #[command(flatten)]
    pub(crate) socket: Socket,
}

/// `vmm rm`.
#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// Ids or names of guests
    #[arg(value_name = "GUEST", required = true)]
    pub(crate) guests: Vec<String>,
    /// End those that have not ended
    #[arg(long, short)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) socket: Socket,
}

/// Guests by their names or ids.
#[derive(Debug, Args)]
pub(crate) struct Guests {
    /// Ids or names of guests
    #[arg(value_name = "GUEST", required = true)]
    pub(crate) guests: Vec<String>,
    #[command(flatten)]
    pub(crate) socket: Socket,
}

/// One guest.
#[derive(Debug, Args)]
pub(crate) struct One {
    /// Id or name of the guest
    #[arg(value_name = "GUEST")]
    pub(crate) guest: String,
    #[command(flatten)]
    pub(crate) socket: Socket,
}

/// `vmm logs`.
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Id or name of the guest
    #[arg(value_name = "GUEST")]
    pub(crate) guest: String,
    /// Go on with what it writes, until it has ended
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// The last so many lines only
    #[arg(long, short = 'n', value_name = "LINES")]
    pub(crate) tail: Option<usize>,
    #[command(flatten)]
    pub(crate) socket: Socket,
}

/// `vmm stats`.
#[derive(Debug, Args)]
pub(crate) struct Stats {
    /// Ids or names of guests [default: all that run]
    #[arg(value_name = "GUEST")]
    pub(crate) guests: Vec<String>,
    /// Print once instead of every second
    #[arg(long)]
    pub(crate) no_stream: bool,
    #[command(flatten)]
    pub(crate) printed: Printed,
    #[command(flatten)]
    pub(crate) socket: Socket,
}

/// `vmm debug`.
#[derive(Debug, Args)]
pub(crate) struct Debug {
    /// Id or name of the guest
    #[arg(value_name = "GUEST")]
    pub(crate) guest: String,
    /// Wait there for one gdb, on an address of this host such as 127.0.0.1:1234, instead of speaking with it over the standard input and output
    #[arg(long, value_name = "ADDRESS:PORT", conflicts_with = "exec")]
    pub(crate) listen: Option<SocketAddr>,
    /// Start gdb, with the symbols of this image
    #[arg(long, value_name = "IMAGE")]
    pub(crate) exec: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) socket: Socket,
}

/// `vmm dump`.
#[derive(Debug, Args)]
pub(crate) struct Dump {
    /// Id or name of the guest
    #[arg(value_name = "GUEST")]
    pub(crate) guest: String,
    /// The file, which is replaced if it is there; - for the standard output [default: core.GUEST]
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// What was kept when the guest faulted last, though it runs again
    #[arg(long)]
    pub(crate) kept: bool,
    /// Write nothing if it would be larger
    #[arg(long, value_name = "SIZE", default_value = "16G", value_parser = units::size)]
    pub(crate) max_size: u64,
    #[command(flatten)]
    pub(crate) socket: Socket,
}

/// `vmm trace`.
#[derive(Debug, Args)]
pub(crate) struct Trace {
    /// Id or name of the guest
    #[arg(value_name = "GUEST")]
    pub(crate) guest: String,
    /// End after this time, such as 500ms, 10s or 5m [default: when the guest ends]
    #[arg(long = "for", value_name = "TIME", value_parser = units::milliseconds)]
    pub(crate) time: Option<u32>,
    /// End after so many lines
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub(crate) count: Option<u64>,
    /// `table`, `json` (one object on each line), or a template such as '{{ at_ns }} {{ what }}'
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub(crate) format: Format,
    #[command(flatten)]
    pub(crate) socket: Socket,
}

/// `vmm top`.
#[derive(Debug, Args)]
pub(crate) struct Top {
    #[command(flatten)]
    pub(crate) socket: Socket,
}

/// `vmm events`.
#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Those after this one, as far as they are known, before new ones
    #[arg(long, value_name = "ID")]
    pub(crate) since: Option<u64>,
    /// Those whose kind begins so, such as guest or cell.die
    #[arg(long, value_name = "KIND")]
    pub(crate) kind: Option<String>,
    /// Only what is known already
    #[arg(long)]
    pub(crate) past: bool,
    #[command(flatten)]
    pub(crate) printed: Printed,
    #[command(flatten)]
    pub(crate) socket: Socket,
}

/// A list of images, owners, networks or cells.
#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    pub(crate) printed: Printed,
    #[command(flatten)]
    pub(crate) socket: Socket,
}

/// `vmm image`.
#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    /// List images
    Ls(List),
    /// Have the supervisor keep an image
    Load {
        /// Its file
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// What it is called [default: the file's name]
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        socket: Socket,
    },
    /// Give an image another name
    Tag {
        /// Name or digest of the image
        #[arg(value_name = "IMAGE")]
        image: String,
        /// The name
        #[arg(value_name = "NAME")]
        name: String,
        #[command(flatten)]
        socket: Socket,
    },
    /// Remove images that no guest needs
    Rm {
        /// Names or digests
        #[arg(value_name = "IMAGE", required = true)]
        images: Vec<String>,
        #[command(flatten)]
        socket: Socket,
    },
}

/// `vmm owner`.
#[derive(Debug, Subcommand)]
pub(crate) enum Owner {
    /// Settle what an owner may have. What is not said has its default.
    Set(Box<OwnerSet>),
    /// List owners, what they have and what is settled
    Ls(List),
    /// Remove owners that have no guests and no networks
    Rm {
        /// The owners
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,
        #[command(flatten)]
        socket: Socket,
    },
}

/// `vmm gatekeeper`.
#[derive(Debug, Subcommand)]
pub(crate) enum Gatekeeper {
    /// Print what there is to give, what is given, and who waits, as JSON
    Show {
        #[command(flatten)]
        socket: Socket,
    },
    /// Settle what all guests may have together, also for supervisors to come. What is not said stays as it is.
    Set(GatekeeperSet),
    /// Have it be again as the command line of `vmm serve` says
    Reset {
        #[command(flatten)]
        socket: Socket,
    },
}

/// `vmm gatekeeper set`.
#[derive(Debug, Args)]
pub(crate) struct GatekeeperSet {
    #[command(flatten)]
    pub(crate) budget: super::Budget,
    /// Most guests that wait for room; half of them of one owner
    #[arg(long, value_name = "N")]
    pub(crate) max_waiting: Option<u32>,
    /// Who is admitted next
    #[arg(long, value_enum)]
    pub(crate) admission: Option<super::AdmissionOrder>,
    #[command(flatten)]
    pub(crate) socket: Socket,
}

/// `vmm owner set`.
#[derive(Debug, Args)]
pub(crate) struct OwnerSet {
    /// The owner
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// An owner of weight 2 is given twice as much as one of weight 1
    #[arg(long, value_name = "W", default_value = "1")]
    pub(crate) weight: std::num::NonZeroU32,
    /// Most guests [default: no bound]
    #[arg(long, value_name = "N")]
    pub(crate) max_guests: Option<u64>,
    /// Most memory [default: no bound]
    #[arg(long, value_name = "SIZE", value_parser = units::size)]
    pub(crate) max_memory: Option<u64>,
    /// Most processors [default: no bound]
    #[arg(long, value_name = "N", value_parser = units::permille)]
    pub(crate) max_cpus: Option<u32>,
    /// Most bytes per second, both directions together [default: no bound]
    #[arg(long, value_name = "SIZE", value_parser = units::size)]
    pub(crate) max_bandwidth: Option<u64>,
    /// Cells that run its guests and no others [default: it shares cells with other owners]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) cells: u8,
    /// Memory that is kept for it: lent to others, it comes back when it asks [default: none]
    #[arg(long, value_name = "SIZE", value_parser = units::size)]
    pub(crate) provision_memory: Option<u64>,
    /// Processors that are kept for it in the same way [default: none]
    #[arg(long, value_name = "N", value_parser = units::permille)]
    pub(crate) provision_cpus: Option<u32>,
    #[command(flatten)]
    pub(crate) socket: Socket,
}

/// `vmm network`.
#[derive(Debug, Subcommand)]
pub(crate) enum Network {
    /// Make a network: its guests reach each other, and no guests of other networks
    Create {
        /// Its name
        #[arg(value_name = "NAME")]
        name: String,
        /// Whose guests may be in it
        #[arg(long, value_name = "NAME", default_value = foraker_api::owner::DEFAULT)]
        owner: String,
        #[command(flatten)]
        socket: Socket,
    },
    /// List networks
    Ls(List),
    /// Remove networks that no guest is in
    Rm {
        /// Their names
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,
        #[command(flatten)]
        socket: Socket,
    },
}

/// `vmm apply`.
#[derive(Debug, Args)]
pub(crate) struct Apply {
    /// What is to be: owners, networks and guests, in TOML (or JSON, as `vmm system config` prints it)
    #[arg(long, short, value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Remove guests that it does not name
    #[arg(long)]
    pub(crate) prune: bool,
    #[command(flatten)]
    pub(crate) socket: Socket,
}

/// `vmm system`.
#[derive(Debug, Subcommand)]
pub(crate) enum System {
    /// Forget guests that have ended, with their logs
    Prune {
        #[command(flatten)]
        socket: Socket,
    },
    /// Say how the supervisor is, what it has to give and what is given
    Info {
        #[command(flatten)]
        socket: Socket,
    },
    /// List cells, the processes that run guests
    Cells(List),
    /// Print everything that is settled, for `vmm apply`
    Config {
        #[command(flatten)]
        socket: Socket,
    },
}

/// `NAME=VALUE`s as a map.
pub(crate) fn map(pairs: &[String]) -> BTreeMap<String, String> {
    let pair = |text: &String| text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    pairs.iter().filter_map(pair).collect()
}
