//! The kinds of threads.

use caps::Capability;

use crate::call::{Call, Group};
use crate::table::{cell, supervisor};

/// What a thread is for: that decides what it may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Runs guests, and serves their rings.
    Worker,
    /// Serves rings while guests compute.
    Uplink,
    /// Makes machines ahead of need.
    Machines,
    /// Fills pages that somebody waits for.
    Pager,
    /// Tells the host who its neighbours are.
    Neighbours,
    /// Passes connections of published ports on.
    Published,
    /// Tells the supervisor how guests end.
    Ends,
    /// Tells the supervisor what guests ask for.
    Demand,
    /// Has somebody look into a guest: a debugger, a dump, a trace.
    Debug,
    /// A cell's main thread: does what the supervisor says.
    Channel,
    /// The main thread of `vmm launch`.
    Launch,
    /// Serves the supervisor's clients.
    Control,
    /// Keeps the supervisor's databases.
    Store,
    /// Keeps a cell: hears what it says, and has it started again.
    Keeper,
    /// Reads what guests print.
    Console,
    /// Sends to cells what waits for its time.
    Sender,
    /// Keeps the cores of guests that have faulted.
    Cores,
    /// The supervisor's main thread.
    Main,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 18] = [
        Kind::Worker,
        Kind::Uplink,
        Kind::Machines,
        Kind::Pager,
        Kind::Neighbours,
        Kind::Published,
        Kind::Ends,
        Kind::Demand,
        Kind::Debug,
        Kind::Channel,
        Kind::Launch,
        Kind::Control,
        Kind::Store,
        Kind::Keeper,
        Kind::Console,
        Kind::Sender,
        Kind::Cores,
        Kind::Main,
    ];

    /// Its place in [`Kind::ALL`].
    pub(crate) fn index(self) -> usize {
        self as usize
    }

    /// What the book calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::Worker => "worker",
            Kind::Uplink => "uplink",
            Kind::Machines => "machines",
            Kind::Pager => "pager",
            Kind::Neighbours => "neighbours",
            Kind::Published => "published",
            Kind::Ends => "ends",
            Kind::Demand => "demand",
            Kind::Debug => "debug",
            Kind::Channel => "channel",
            Kind::Launch => "launch",
            Kind::Control => "control",
            Kind::Store => "store",
            Kind::Keeper => "keeper",
            Kind::Console => "console",
            Kind::Sender => "sender",
            Kind::Cores => "cores",
            Kind::Main => "main",
        }
    }

    /// What it does, as the book says it.
    #[must_use]
    pub fn purpose(self) -> &'static str {
        match self {
            Kind::Worker => {
                "enters guests, handles their exits, serves their rings and writes their consoles"
            }
            Kind::Uplink => "serves the rings while guests compute, and sends what is above a limit later",
            Kind::Machines => {
                "makes machines and starts of guests ahead of need, and empties those that come back"
            }
            Kind::Pager => "fills pages of guests that somebody waits for",
            Kind::Neighbours => "tells the host which ethernet address is behind a guest's address",
            Kind::Published => "passes connections of published ports on to guests",
            Kind::Ends => "tells the supervisor how guests end, and gives back what they had",
            Kind::Demand => "tells the supervisor how much of the processors guests ask for",
            Kind::Debug => "has a debugger, a dump or a trace look into a guest, over a stream of its own",
            Kind::Channel => "a cell's main thread: starts and ends guests as the supervisor says",
            Kind::Launch => "the main thread of `vmm launch`: starts guests, waits for their ends, reports",
            Kind::Control => {
                "serves the supervisor's clients: the API and the live page, with all threads that these start"
            }
            Kind::Store => "keeps the supervisor's registry, or guests' logs",
            Kind::Keeper => {
                "keeps a cell: has the launcher start it, hears what it says, and again when it has died"
            }
            Kind::Console => "reads what the guests of a cell print",
            Kind::Sender => "sends to cells what they could not take at once, or what waited for its time",
            Kind::Cores => "keeps cores of guests that have faulted, which cells write to streams",
            Kind::Main => "the supervisor's main thread: waits for a signal, and ends the cells",
        }
    }

    pub(crate) fn groups(self) -> &'static [Group] {
        match self {
            Kind::Worker => cell::WORKER,
            Kind::Uplink => cell::UPLINK,
            Kind::Machines => cell::MACHINE_MAKER,
            Kind::Pager => cell::PAGER,
            Kind::Neighbours => cell::NEIGHBOURS,
            Kind::Published => cell::PUBLISHED,
            Kind::Ends => cell::ENDS,
            Kind::Demand => cell::DEMAND,
            Kind::Debug => cell::DEBUG,
            Kind::Channel => cell::CHANNEL_READER,
            Kind::Launch => cell::LAUNCH,
            Kind::Control => supervisor::CONTROL,
            Kind::Store => supervisor::STORE,
            Kind::Keeper => supervisor::KEEPER,
            Kind::Console => supervisor::CONSOLE,
            Kind::Sender => supervisor::SENDER,
            Kind::Cores => supervisor::CORES,
            Kind::Main => supervisor::MAIN,
        }
    }

    /// What it may ask of the kernel. A call may stand there several times: it is allowed if one of them allows it.
    pub fn calls(self) -> impl Iterator<Item = &'static Call> {
        self.groups().iter().flat_map(|group| group.iter())
    }

    /// What it may do that others may not, if the process could to begin with. The uplink's goes, too, where a limit could be raised instead.
    #[must_use]
    pub fn capabilities(self) -> &'static [Capability] {
        match self {
            Kind::Neighbours => &[Capability::CAP_NET_ADMIN],
            Kind::Uplink => &[Capability::CAP_SYS_NICE],
            // A guest may be published on a port below 1024.
            Kind::Channel => &[Capability::CAP_NET_BIND_SERVICE],
            _ => &[],
        }
    }

    /// Whether it starts threads once it is confined.
    #[must_use]
    pub fn starts_threads(self) -> bool {
        matches!(self, Kind::Channel | Kind::Control | Kind::Keeper)
    }
}
