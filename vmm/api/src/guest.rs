//! Guests: what one is to be, and what it is.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::owner::DEFAULT;

/// How important a guest is of which nothing is said.
pub const DEFAULT_PRIORITY: u8 = 100;
/// Most guests of one request.
pub const MOST_AT_ONCE: u64 = 1_000_000;

/// The greatest number that every client of JSON can tell from the next one: no id is greater.
pub const GREATEST: u64 = (1 << 53) - 1;

/// When a guest comes back after its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// Never.
    #[default]
    No,
    /// Unless it ended by itself with status 0, or somebody ended it.
    OnFailure,
    /// Unless somebody ended it.
    Always,
}

impl Restart {
    /// Every policy, by its name.
    pub const ALL: [(&'static str, Restart); 3] =
        [("no", Restart::No), ("on-failure", Restart::OnFailure), ("always", Restart::Always)];
}

impl std::str::FromStr for Restart {
    type Err = String;

    fn from_str(text: &str) -> Result<Restart, String> {
        let found = Restart::ALL.into_iter().find(|(name, _)| *name == text);
        found
            .map(|(_, policy)| policy)
            .ok_or_else(|| format!("no restart policy {text}: choose no, on-failure or always"))
    }
}

impl std::fmt::Display for Restart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(Restart::ALL.iter().find(|(_, policy)| policy == self).map_or("", |(name, _)| name))
    }
}

/// How finely a guest's time on a processor is cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Grain {
    /// Fine until it computes for 30 ms without resting.
    #[default]
    Auto,
    /// Turns of 100 ms, interrupted by those with fine ones.
    Coarse,
    /// Turns of 1 ms, soon after it wakes.
    Fine,
}

/// A port of the host, and the guest's behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// Address and port of the host, such as `127.0.0.1:8080`.
    #[schema(
        value_type = String,
        example = "127.0.0.1:8080",
        pattern = r"^(((25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\.){3}(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])|\[::1?\]):([1-9][0-9]{0,3}|[1-5][0-9]{4})$"
    )]
    pub host: SocketAddr,
    /// Port of the guest.
    #[schema(minimum = 1, maximum = 65_535)]
    pub guest: u16,
}

/// A guest's part of the processors. What is not said has its default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessorOptions {
    /// Its share beside other guests, in proportion to theirs: 1 to 10,000; 100 otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 10_000)]
    pub shares: Option<u32>,
    /// Most that it may use, thousandths of a processor; all otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1_000_000)]
    pub limit: Option<u32>,
    /// What is kept for it, thousandths of a processor.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1_000_000)]
    pub provision: Option<u32>,
    /// How finely its turns are cut.
    pub grain: Grain,
}

/// A guest's part of the network. What is not said is as its image says, and unlimited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkOptions {
    /// Whether it has one; what its image says otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// The name of its network; otherwise its owner's own, which for the owner `default` is everybody's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its IPv4 address; otherwise the next free one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = Ipv4)]
    pub ipv4: Option<Ipv4Addr>,
    /// Its name server; otherwise the host's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = Ipv4)]
    pub dns: Option<Ipv4Addr>,
    /// Bytes per second that it may receive.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 9_007_199_254_740_991_u64)]
    pub rx_bandwidth: Option<u64>,
    /// Bytes per second that it may send.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 9_007_199_254_740_991_u64)]
    pub tx_bandwidth: Option<u64>,
    /// Frames per second that it may send.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 9_007_199_254_740_991_u64)]
    pub tx_packets: Option<u64>,
    /// Ports of the host that are passed on to it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 64)]
    pub publish: Vec<Port>,
}

/// The name of a label, as the API describes it.
#[derive(Debug, ToSchema)]
#[schema(pattern = "^[^=]{1,256}$")]
pub struct Label(#[expect(dead_code, reason = "only described")] String);

/// What a label says, as the API describes it.
#[derive(Debug, ToSchema)]
#[schema(pattern = "^[\\s\\S]{0,256}$")]
pub struct LabelValue(#[expect(dead_code, reason = "only described")] String);

/// The name of a variable, as the API describes it.
#[derive(Debug, ToSchema)]
#[schema(pattern = "^[^=\\x00]+$")]
pub struct Variable(#[expect(dead_code, reason = "only described")] String);

/// What a guest is to be. What is not said is as its image's manifest says, and then as everybody has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GuestSpec {
    /// Its name; the image's otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(pattern = "^[A-Za-z0-9._-]{1,64}$")]
    pub name: Option<String>,
    /// What it runs: the name or the digest of an image that the daemon keeps.
    #[schema(min_length = 1, max_length = 64)]
    pub image: String,
    /// Whose it is.
    #[serde(default = "default_owner")]
    #[schema(pattern = "^[A-Za-z0-9._-]{1,64}$")]
    pub owner: String,
    /// How important it is among those of its owner.
    #[serde(default = "default_priority")]
    #[schema(minimum = 0, maximum = 255)]
    pub priority: u8,
    /// When it comes back after its end.
    #[serde(default)]
    pub restart: Restart,
    /// It is forgotten when it has ended.
    #[serde(default)]
    pub remove: bool,
    /// What people call it by, beside its name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<Label, LabelValue>)]
    pub labels: BTreeMap<String, String>,
    /// Its memory, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 68_719_476_736_u64)]
    pub memory: Option<u64>,
    /// What of it is kept for it alone, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 68_719_476_736_u64)]
    pub memory_provision: Option<u64>,
    /// Whether its heap is backed with pages of 2 MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub large_pages: Option<bool>,
    /// Its cores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 64)]
    pub cores: Option<u32>,
    /// Its part of the processors.
    #[serde(default)]
    pub processor: ProcessorOptions,
    /// Its part of the network.
    #[serde(default)]
    pub network: NetworkOptions,
    /// Its arguments after its name; the manifest's otherwise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 1024)]
    pub arguments: Vec<String>,
    /// Its environment, added to the manifest's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<Variable, String>)]
    pub environment: BTreeMap<String, String>,
    /// Bytes per second that it may write to its console.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 9_007_199_254_740_991_u64)]
    pub console_bandwidth: Option<u64>,
    /// Should it fault, its memory and registers are kept in a file, until it faults again or is forgotten.
    #[serde(default)]
    pub keep_core: bool,
    /// Each interrupt forces it out: for comparison.
    #[serde(default)]
    pub immediate: bool,
}

fn default_owner() -> String {
    DEFAULT.to_owned()
}

fn default_priority() -> u8 {
    DEFAULT_PRIORITY
}

impl GuestSpec {
    /// A guest of which nothing is said but its image.
    #[must_use]
    pub fn of(image: &str) -> GuestSpec {
        GuestSpec {
            name: None,
            image: image.to_owned(),
            owner: default_owner(),
            priority: DEFAULT_PRIORITY,
            restart: Restart::No,
            remove: false,
            labels: BTreeMap::new(),
            memory: None,
            memory_provision: None,
            large_pages: None,
            cores: None,
            processor: ProcessorOptions::default(),
            network: NetworkOptions::default(),
            arguments: Vec::new(),
            environment: BTreeMap::new(),
            console_bandwidth: None,
            keep_core: false,
            immediate: false,
        }
    }
}

/// A request for guests.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Create {
    /// How many; with more than one, their names end in their numbers.
    #[serde(default = "one")]
    #[schema(minimum = 1, maximum = 1_000_000)]
    pub count: u64,
    /// Answer only when each runs, has ended or stands in the gatekeeper's line, or so many seconds have passed.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 600)]
    pub wait_seconds: u16,
    /// What each is.
    pub guest: GuestSpec,
}

fn one() -> u64 {
    1
}

impl Create {
    /// One guest, without a wait.
    #[must_use]
    pub fn one(guest: GuestSpec) -> Create {
        Create { count: 1, wait_seconds: 0, guest }
    }
}

/// Guests that were taken: those with ids from the first to the last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Created {
    /// The first id.
    pub first: u64,
    /// The last id.
    pub last: u64,
    /// How many of them neither run nor have ended yet.
    pub open: usize,
    /// Where the first is reached, if it runs already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = Ipv4)]
    pub ipv4: Option<Ipv4Addr>,
}

/// Where a guest is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// For the gatekeeper, or for a cell with room.
    Waiting,
    /// For its time to start again.
    Restarting,
    /// Its cell makes it.
    Starting,
    /// It runs.
    Running,
    /// It is held: its state stays, it does not run.
    Paused,
    /// It has ended by itself.
    Exited,
    /// It did what a guest must not do.
    Faulted,
    /// Somebody or a limit ended it.
    Killed,
    /// It could not be started.
    Refused,
    /// It went with its cell, or with its daemon.
    Lost,
}

impl State {
    /// Every state, by its name.
    pub const ALL: [(&'static str, State); 10] = [
        ("waiting", State::Waiting),
        ("restarting", State::Restarting),
        ("starting", State::Starting),
        ("running", State::Running),
        ("paused", State::Paused),
        ("exited", State::Exited),
        ("faulted", State::Faulted),
        ("killed", State::Killed),
        ("refused", State::Refused),
        ("lost", State::Lost),
    ];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        State::ALL.iter().find(|(_, state)| *state == self).map_or("", |(name, _)| name)
    }

    /// Whether it has ended and does not come back by itself.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, State::Exited | State::Faulted | State::Killed | State::Refused | State::Lost)
    }
}

impl std::str::FromStr for State {
    type Err = String;

    fn from_str(text: &str) -> Result<State, String> {
        State::ALL.into_iter().find(|(name, _)| *name == text).map(|(_, state)| state).ok_or_else(|| {
            let names: Vec<_> = State::ALL.iter().map(|(name, _)| *name).collect();
            format!("no state {text}: choose one of {}", names.join(", "))
        })
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// A guest as lists show it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Guest {
    /// Its id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Whose it is.
    pub owner: String,
    /// The name or digest of its image, as it was asked for.
    pub image: String,
    /// Where it is in its life.
    pub state: State,
    /// The status that it ended with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u64>,
    /// Why it is in this state, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Its cell, while it is on one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cell: Option<usize>,
    /// Its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = Ipv4)]
    pub ipv4: Option<Ipv4Addr>,
    /// How often it came back.
    pub restarts: u32,
    /// When it comes back.
    pub restart: Restart,
    /// Its memory, bytes.
    pub memory: u64,
    /// When it was asked for first, milliseconds since 1970.
    pub created_ms: u64,
    /// Since when it has been in this state, milliseconds since 1970.
    pub since_ms: u64,
    /// From the request (or its coming back) to its first instruction, microseconds; absent until its cell has told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_us: Option<u64>,
    /// Its labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// Everything about a guest.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct GuestDetail {
    /// What lists show.
    #[serde(flatten)]
    pub guest: Guest,
    /// The digest of its image.
    pub digest: String,
    /// What was asked for.
    pub spec: GuestSpec,
    /// What it has used, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counters: Option<Counters>,
    /// The fault that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// Bytes of the core that was kept when it faulted last, if one was (`keep_core`) and is still there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub core_bytes: Option<u64>,
}

/// A fault: what a guest did that it may not do, and where. Addresses and registers are hexadecimal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Fault {
    /// The vector of an exception.
    pub vector: Option<u8>,
    /// Mnemonic of what happened, such as `#PF`.
    pub mnemonic: String,
    /// Its name, such as `page fault`.
    pub name: String,
    /// The error code of an exception that has one.
    pub error_code: Option<u64>,
    /// The address that it used.
    pub address: Option<String>,
    /// What a ring or the machine was damaged by.
    pub detail: Option<String>,
    /// The core.
    pub core: u32,
    /// Where.
    pub rip: String,
    /// The registers there.
    pub registers: BTreeMap<String, String>,
    /// The function there, if its image has symbols.
    pub function: Option<String>,
    /// Its file.
    pub file: Option<String>,
    /// The line.
    pub line: Option<u32>,
}

/// Registers in the order in which people read them.
const REGISTERS: [&str; 18] = [
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15", "rip", "rflags",
];

impl Fault {
    /// What happened, for people: a line, and the registers below it where they matter.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!("{} ({})", self.name, self.mnemonic);
        // Writing to a text does not fail.
        if let Some(detail) = &self.detail {
            let _ = write!(text, ": {detail}");
        }
        if let Some(code) = self.error_code {
            let _ = write!(text, ", error code {code:#x}");
        }
        if let Some(address) = &self.address {
            let _ = write!(text, ", address {address}");
        }
        if self.detail.is_some() {
            return text;
        }
        let _ = write!(text, ", at {}", self.rip);
        if let Some(function) = &self.function {
            let _ = write!(text, " in {}", one_line(function));
        }
        if let (Some(file), Some(line)) = (&self.file, self.line) {
            let _ = write!(text, " ({}:{line})", one_line(file));
        }
        for row in REGISTERS.chunks(6) {
            text.push_str("\n ");
            for name in row {
                let value = self.registers.get(*name).map_or("", String::as_str);
                let _ = write!(text, " {name:>3} {value:<18}");
            }
            text.truncate(text.trim_end().len());
        }
        text
    }
}

/// Most characters of what an image calls a function or a file.
const LONGEST_NAME: usize = 512;

/// What an image calls something, which may hold anything and be of any length, as a part of a line.
fn one_line(name: &str) -> String {
    name.chars().take(LONGEST_NAME).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// What a guest has used since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Counters {
    /// Its id.
    pub id: u64,
    /// Processor time, nanoseconds.
    pub cpu_ns: u64,
    /// Memory that it has touched and not given back, bytes.
    pub resident: u64,
    /// Exits to the VMM.
    pub exits: u64,
    /// Frames received.
    pub rx_frames: u64,
    /// Bytes of them.
    pub rx_bytes: u64,
    /// Frames sent.
    pub tx_frames: u64,
    /// Bytes of them.
    pub tx_bytes: u64,
    /// Frames for it that were dropped.
    pub rx_dropped: u64,
    /// Frames of it that were refused.
    pub tx_dropped: u64,
    /// Console bytes that were dropped.
    pub console_dropped: u64,
}

impl Counters {
    /// The sum of two; the id is the first one's.
    #[must_use]
    pub fn plus(&self, other: &Counters) -> Counters {
        Counters {
            id: self.id,
            cpu_ns: self.cpu_ns.saturating_add(other.cpu_ns),
            resident: self.resident.saturating_add(other.resident),
            exits: self.exits.saturating_add(other.exits),
            rx_frames: self.rx_frames.saturating_add(other.rx_frames),
            rx_bytes: self.rx_bytes.saturating_add(other.rx_bytes),
            tx_frames: self.tx_frames.saturating_add(other.tx_frames),
            tx_bytes: self.tx_bytes.saturating_add(other.tx_bytes),
            rx_dropped: self.rx_dropped.saturating_add(other.rx_dropped),
            tx_dropped: self.tx_dropped.saturating_add(other.tx_dropped),
            console_dropped: self.console_dropped.saturating_add(other.console_dropped),
        }
    }
}

/// What is done to a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// It runs again if it has ended.
    Start,
    /// It is asked to end.
    Stop,
    /// It ends now.
    Kill,
    /// It is held.
    Pause,
    /// It runs on.
    Resume,
}

impl Action {
    /// Every action, by its name.
    pub const ALL: [(&'static str, Action); 5] = [
        ("start", Action::Start),
        ("stop", Action::Stop),
        ("kill", Action::Kill),
        ("pause", Action::Pause),
        ("resume", Action::Resume),
    ];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        Action::ALL.iter().find(|(_, action)| *action == self).map_or("", |(name, _)| name)
    }
}

impl std::str::FromStr for Action {
    type Err = String;

    fn from_str(text: &str) -> Result<Action, String> {
        Action::ALL
            .into_iter()
            .find(|(name, _)| *name == text)
            .map(|(_, action)| action)
            .ok_or_else(|| format!("no action {text}: choose start, stop, kill, pause or resume"))
    }
}

/// Which guests: those that meet everything that is said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Filter {
    /// These ids; all of them where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = ids)]
    pub ids: Option<Vec<u64>>,
    /// Whose name this is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whose owner this is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// That were asked for with this image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// That are in one of these states.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub states: Vec<State>,
    /// That have this label, or this label with this value: `tier` or `tier=web`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

/// Ids, as the API describes them.
fn ids() -> utoipa::openapi::schema::Array {
    use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, SchemaType, Type};
    let id = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0)).maximum(Some(GREATEST));
    ArrayBuilder::new()
        .schema_type(SchemaType::from_iter([Type::Array, Type::Null]))
        .description(Some("These ids; all of them where nothing is said."))
        .items(id)
        .max_items(Some(1_000_000))
        .build()
}

/// An action on many guests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Bulk {
    /// What is done.
    pub action: Action,
    /// To which.
    #[serde(default)]
    pub filter: Filter,
}

/// How many were concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Done {
    /// Guests, or whatever it was about.
    pub count: usize,
}

impl Filter {
    /// Whether a guest meets it, apart from its ids.
    #[must_use]
    pub fn takes(&self, guest: &Guest) -> bool {
        let is = |wanted: &Option<String>, has: &str| wanted.as_deref().is_none_or(|w| w == has);
        let labelled = |label: &String| match label.split_once('=') {
            Some((name, value)) => guest.labels.get(name).is_some_and(|has| has == value),
            None => guest.labels.contains_key(label),
        };
        is(&self.name, &guest.name)
            && is(&self.owner, &guest.owner)
            && is(&self.image, &guest.image)
            && (self.states.is_empty() || self.states.contains(&guest.state))
            && self.label.as_ref().is_none_or(labelled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_an_image_add_no_line_to_a_report() {
        let plain = Fault { function: Some("f".to_owned()), line: Some(1), ..Fault::default() };
        let hostile = Fault {
            function: Some(format!("f\nvmm: guest other exited{}", "x".repeat(1 << 20))),
            file: Some("a\r\n\u{1b}[2J.rs".to_owned()),
            ..plain.clone()
        };
        let text = hostile.text();
        assert_eq!(text.lines().count(), plain.text().lines().count(), "{text}");
        assert!(!text.contains(['\r', '\u{1b}']) && text.len() < 4096, "{} bytes", text.len());
    }
}
