//! What the page shows, and who tells it.

use std::borrow::Cow;

use serde::Serialize;

use crate::table::Roll;

/// Where a guest is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// It waits to be admitted.
    Waiting,
    /// It has ended and comes back after a wait.
    Restarting,
    /// It is admitted, and has not run yet.
    Starting,
    /// It runs, or rests until something happens.
    Running,
    /// It is held.
    Paused,
    /// It ended by itself.
    Exited,
    /// It did what it must not, and was ended.
    Faulted,
    /// Somebody ended it.
    Killed,
    /// It was not admitted.
    Refused,
    /// It ended with its cell.
    Lost,
}

impl State {
    /// All of them, by their number.
    pub const ALL: [State; 10] = [
        Self::Waiting,
        Self::Restarting,
        Self::Starting,
        Self::Running,
        Self::Paused,
        Self::Exited,
        Self::Faulted,
        Self::Killed,
        Self::Refused,
        Self::Lost,
    ];

    /// As people read it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Restarting => "restarting",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Exited => "exited",
            Self::Faulted => "faulted",
            Self::Killed => "killed",
            Self::Refused => "refused",
            Self::Lost => "lost",
        }
    }

    /// Its place in [`State::ALL`].
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }
}

/// A guest as it is seen from far.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// Which. Nobody else ever has the same; below 2^53, as browsers count in floating point.
    pub id: u64,
    /// Its name, which stays. At most 64 characters are shown.
    pub name: &'a str,
    /// Whose it is, which stays. At most 64 characters are shown.
    pub owner: &'a str,
    /// Where it is in its life.
    pub state: State,
    /// The number of its cell.
    pub cell: u16,
}

/// A cell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Its number.
    pub number: u16,
    /// Its process; none while it is being started.
    pub process: Option<u32>,
    /// What else tells it from others: its TAP device, say.
    pub label: String,
    /// How often it was started again.
    pub restarts: u32,
}

/// What the whole daemon does. Counters go from its start and only grow; rates are computed here. What is not known is `None`, and is shown
/// as such.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Counter: bytes that guests received.
    pub bytes_in: Option<u64>,
    /// Counter: bytes that guests sent.
    pub bytes_out: Option<u64>,
    /// Counter: exits of all machines.
    pub exits: Option<u64>,
    /// Bytes of memory that guests hold.
    pub memory: Option<u64>,
    /// Bytes of memory that they may hold together.
    pub memory_budget: Option<u64>,
    /// The stages, in the order of [`Graph::stages`].
    pub loads: Vec<Load>,
}

/// What a stage does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Events that wait in its queue.
    pub queue: Option<u64>,
    /// Most that may wait there.
    pub bound: Option<u64>,
    /// Counter: events that passed it.
    pub passed: Option<u64>,
    /// Counter: events that it refused.
    pub refused: Option<u64>,
}

/// A stage in the drawing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stage {
    /// Its name.
    pub name: Cow<'static, str>,
    /// What it does, in a few words.
    pub what: Cow<'static, str>,
    /// Where it is drawn: column, from 0; five at most look well.
    pub column: u8,
    /// Row, from 0; three at most look well.
    pub row: u8,
}

/// From one stage to another, as numbers in [`Graph::stages`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Edge {
    /// From here,
    pub from: u8,
    /// to there.
    pub to: u8,
}

/// The stages, drawn as SEDA draws them (Welsh, Culler, Brewer, SOSP '01): a queue before each, arrows between them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Graph {
    /// The stages.
    pub stages: Vec<Stage>,
    /// The arrows.
    pub edges: Vec<Edge>,
}

impl Graph {
    /// The stages of a cell: `uplink`, `switch`, `gatekeeper`, `cpu`, `timers`, `pager`, `control`, in this order.
    #[must_use]
    pub fn of_a_cell() -> Self {
        let stages = [
            ("uplink", "frames to and from the host", 0, 0),
            ("switch", "whose frame it is", 1, 0),
            ("gatekeeper", "who is admitted", 2, 0),
            ("cpu", "guests run", 3, 0),
            ("timers", "deadlines", 3, 1),
            ("pager", "missing pages", 2, 1),
            ("control", "orders of the supervisor", 1, 1),
        ];
        let edges = [(0, 1), (1, 2), (2, 3), (3, 1), (1, 0), (4, 3), (5, 3), (6, 2)];
        Self {
            stages: stages
                .map(|(name, what, column, row)| Stage { name: name.into(), what: what.into(), column, row })
                .into(),
            edges: edges.map(|(from, to)| Edge { from, to }).into(),
        }
    }
}

/// Everything that is known of a guest.
#[derive(Clone, Debug)]
pub struct Detail {
    /// Which.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Whose it is.
    pub owner: String,
    /// Where it is in its life.
    pub state: State,
    /// The number of its cell.
    pub cell: u16,
    /// Whatever else there is to say, in the order in which it is to be read; 256 at most are shown.
    pub facts: Vec<Fact>,
    /// How it ended, in lines, with whatever helps to find the cause.
    pub report: Option<String>,
}

/// Something known of a guest.
#[derive(Clone, Debug, Serialize)]
pub struct Fact {
    /// Under which heading it stands: `network`, say. Facts of a heading follow one another.
    pub group: Cow<'static, str>,
    /// What it is called.
    pub name: Cow<'static, str>,
    /// What it is.
    #[serde(flatten)]
    pub value: Value,
}

impl Fact {
    /// A fact.
    pub fn new(
        group: impl Into<Cow<'static, str>>,
        name: impl Into<Cow<'static, str>>,
        value: Value,
    ) -> Self {
        Self { group: group.into(), name: name.into(), value }
    }
}

/// A value with its unit.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "kind", content = "value", rename_all = "snake_case")]
pub enum Value {
    /// Words: an address, a path. At most 4,096 characters are shown.
    Text(String),
    /// A number of things.
    Count(u64),
    /// A number of things in each second.
    Rate(f64),
    /// Bytes.
    Bytes(u64),
    /// Nanoseconds.
    Nanoseconds(u64),
    /// A time of day: milliseconds since 1970.
    Time(u64),
    /// A part of a whole, 0 to 1.
    Part(f64),
}

/// A piece of what a guest wrote.
#[derive(Clone, Debug)]
pub struct Console {
    /// Where `bytes` begins, in bytes since the guest's first.
    pub from: u64,
    /// What it wrote, as it wrote it.
    pub bytes: Vec<u8>,
}

/// What can be done to a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start it, or start it again.
    Start,
    /// Ask it to end.
    Stop,
    /// End it.
    Kill,
    /// Hold it.
    Pause,
    /// Let it go on.
    Resume,
}

impl Action {
    /// All of them.
    pub const ALL: [Action; 5] = [Self::Start, Self::Stop, Self::Kill, Self::Pause, Self::Resume];

    /// As it stands in requests.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Kill => "kill",
            Self::Pause => "pause",
            Self::Resume => "resume",
        }
    }
}

/// Why an action was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such guest.
    Unknown,
    /// It makes no sense in this state, or is not granted: why.
    Refused(String),
}

/// Who tells what is shown. Every call is made from a thread that may wait; none should wait for longer than some milliseconds, as a page
/// that is looked at calls [`Source::guests`] and [`Source::figures`] ten times a second. Nothing is called while nobody looks.
pub trait Source: Send + Sync + 'static {
    /// Calls `roll` once for each guest, best always in the same order. The table finds out itself who is new, has changed or is gone.
    fn guests(&self, roll: &mut Roll<'_>);

    /// What the whole daemon does.
    fn figures(&self) -> Figures;

    /// The cells. Asked once a second.
    fn cells(&self) -> Vec<Place>;

    /// The stages. Asked when somebody begins to look.
    fn graph(&self) -> Graph;

    /// One guest. Asked four times a second while somebody looks at it.
    fn guest(&self, id: u64) -> Option<Detail>;

    /// What a guest wrote from byte `from` on, as far as it is still kept, `most` bytes at most; without `from`, the last part. Asked when
    /// [`Source::guest`] is.
    fn console(&self, id: u64, from: Option<u64>, most: usize) -> Option<Console>;

    /// Does something to a guest, or asks for it. Never called when the page is read-only.
    ///
    /// # Errors
    /// There is no such guest, or it cannot be done.
    fn act(&self, id: u64, action: Action) -> Result<(), Refusal>;
}
