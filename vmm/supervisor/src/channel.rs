//! Messages over a stream: a length of four bytes (little-endian), then JSON. Both ends are of the same binary.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use foraker_api::guest::{Counters, Fault};
use foraker_cell::{End, GuestSpec, LoadedImage, NetworkSpec, Pages, ProcessorSpec};
use foraker_policy::demand::Asked;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Longest message, bytes: room for the list of a cell's guests.
pub const MAX_MESSAGE: usize = 64 << 20;

/// A guest to start: everything that is known of it besides its image's content.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// Its image's file.
    pub image: PathBuf,
    /// Its name.
    pub name: String,
    /// Its memory, bytes.
    pub memory: u64,
    /// What of it is kept for it alone, bytes.
    #[serde(default)]
    pub memory_provision: u64,
    /// Whether its heap is backed with large pages.
    pub large_pages: bool,
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
    /// Ports of the host, and the guest's behind each.
    #[serde(default)]
    pub publish: Vec<(SocketAddr, u16)>,
    /// Its part of the processors.
    pub processor: ProcessorSpec,
    /// Should it fault, its memory and registers are asked for before it is forgotten.
    #[serde(default)]
    pub keep_core: bool,
    /// Each interrupt forces it out.
    pub immediate: bool,
    /// Whose it is.
    pub owner: String,
    /// Greater is more important, among those of its owner.
    pub priority: u8,
}

impl Order {
    /// The guest to start, with its image loaded, and what its console's lines begin with.
    #[must_use]
    pub fn spec(&self, image: Arc<LoadedImage>, console_mark: Option<String>) -> GuestSpec {
        GuestSpec {
            memory: self.memory,
            memory_provision: Some(self.memory_provision),
            pages: if self.large_pages { Pages::Large } else { Pages::Small },
            cores: self.cores,
            arguments: self.arguments.clone(),
            environment: self.environment.clone(),
            network: self.network.clone(),
            console_limit: self.console_limit,
            console_mark,
            processor: self.processor,
            from_template: Some(self.owner.clone()),
            keep_core: self.keep_core,
            immediate: self.immediate,
            ..GuestSpec::new(image, &self.name)
        }
    }
}

/// What the supervisor tells a cell.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToCell {
    /// Start guests: their ids and orders.
    Start(Vec<(u64, Order)>),
    /// Ask guests to end, or end them.
    Stop {
        /// Which.
        ids: Vec<u64>,
        /// Do not ask.
        kill: bool,
    },
    /// A guest may have so many bytes of its memory, or may not.
    Memory {
        /// Which.
        id: u64,
        /// What it asked for.
        bytes: u64,
        /// Whether it may.
        granted: bool,
    },
    /// Hold guests, or have them run on.
    Hold {
        /// Which.
        ids: Vec<u64>,
        /// Hold them.
        hold: bool,
    },
    /// Say what guests have used: these, or all.
    Survey {
        /// Comes back with the answer.
        number: u64,
        /// Which.
        of: Surveyed,
    },
    /// Somebody looks into a guest, over a stream of its own, which the cell answers on with a [`Begun`] first.
    Look {
        /// Which.
        id: u64,
        /// How.
        how: Look,
        /// The cell's end. It goes beside the message; none has arrived where the cell has no descriptor left.
        #[serde(skip)]
        stream: Option<UnixStream>,
    },
    /// The supervisor ends in order: have guests end themselves.
    End,
}

/// How somebody looks into a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Look {
    /// gdb's remote protocol, both ways.
    Debug,
    /// A dump.
    Dump {
        /// Most bytes that it may have.
        most: u64,
    },
    /// The dump of a guest that has ended with a fault, which the cell has asked to be taken ([`FromCell::Core`]): it is forgotten when that is over.
    Core {
        /// Most bytes that it may have.
        most: u64,
    },
    /// What happens to it: a [`foraker_api::Traced`] on each line.
    Trace {
        /// For so long at most, milliseconds.
        milliseconds: Option<u64>,
        /// So many at most.
        count: Option<u64>,
    },
}

/// What a cell says first on a stream for whoever looks into a guest: of how many bytes what follows is, if that is known, or why nothing follows.
pub type Begun = Result<Option<u64>, String>;

/// Longest [`Begun`], bytes.
pub const LONGEST_BEGUN: usize = 4096;

impl ToCell {
    /// Guests that it is about.
    pub(crate) fn guests(&self) -> usize {
        match self {
            ToCell::Start(orders) => orders.len(),
            ToCell::Stop { ids, .. } | ToCell::Hold { ids, .. } => ids.len(),
            ToCell::Memory { .. } | ToCell::Survey { .. } | ToCell::Look { .. } | ToCell::End => 1,
        }
    }
}

/// What a cell tells the supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromCell {
    /// It is there, with its TAP device.
    Ready {
        /// Name of the TAP device.
        tap: Option<String>,
    },
    /// Guests run: which, and their addresses.
    Started(Vec<(u64, Option<Ipv4Addr>)>),
    /// Guests ran their first instruction: which, and when by [`monotonic_ns`].
    Entered(Vec<(u64, u64)>),
    /// How much of the processors its guests ask for.
    Demand(Asked),
    /// A guest has given memory back, or asks for it: how many bytes of its own it is to have.
    Memory {
        /// Which.
        id: u64,
        /// How many.
        bytes: u64,
    },
    /// A guest that keeps its core has ended with a fault, and somebody is to look into it ([`Look::Core`]) before its end is told.
    Core {
        /// Which.
        id: u64,
    },
    /// A guest has ended, or could not be started.
    Ended {
        /// Which.
        id: u64,
        /// How.
        end: Ended,
        /// Where it was when it did what it must not do.
        fault: Option<Box<Fault>>,
    },
    /// What guests have used.
    Survey {
        /// As it was asked.
        number: u64,
        /// Those that are there; one that stands for all where the sum was asked for.
        guests: Vec<Counters>,
        /// What waits in the cell.
        load: CellLoad,
    },
}

/// Whose counters are asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Surveyed {
    /// Those of each of these.
    These(Vec<u64>),
    /// Those of each.
    Each,
    /// The sum of all, without what would have to be looked for in memory.
    Sum,
}

/// What waits in a cell's stages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CellLoad {
    /// Cores that wait for a processor.
    pub runnable: usize,
    /// Deadlines.
    pub timers: usize,
    /// Frames that belong to no guest, dropped since its start.
    pub dropped: u64,
    /// Guests that wait for their turn to send.
    pub senders: usize,
    /// Frames that wait for guests' buffers.
    pub frames: usize,
    /// Missing pages that somebody waits for.
    pub missing: usize,
    /// Pages filled since its start.
    pub filled: u64,
}

impl CellLoad {
    /// Of two together. What a cell says may be anything.
    #[must_use]
    pub fn plus(&self, other: &CellLoad) -> CellLoad {
        CellLoad {
            runnable: self.runnable.saturating_add(other.runnable),
            timers: self.timers.saturating_add(other.timers),
            dropped: self.dropped.saturating_add(other.dropped),
            senders: self.senders.saturating_add(other.senders),
            frames: self.frames.saturating_add(other.frames),
            missing: self.missing.saturating_add(other.missing),
            filled: self.filled.saturating_add(other.filled),
        }
    }
}

/// How a guest ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ended {
    /// By itself, with this status.
    Exit(u64),
    /// By a fault: what kind.
    Fault(String),
    /// Somebody or a limit ended it: why.
    Killed(String),
    /// It could not be started: why.
    Refused(String),
    /// Its cell died.
    CellDied,
    /// Its supervisor died, or ended.
    SupervisorGone,
}

impl From<&End> for Ended {
    fn from(end: &End) -> Ended {
        match end {
            End::Exited(status) => Ended::Exit(*status),
            End::Faulted(fault) => {
                let (mnemonic, name) = fault.cause.name();
                Ended::Fault(format!("{name} ({mnemonic}) at {:#x}", fault.rip))
            }
            End::Killed(why) => Ended::Killed(why.clone()),
        }
    }
}

/// The host's monotonic clock, nanoseconds: the same one in every process, as the standard library's [`std::time::Instant`] cannot be sent.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid structure for the call, which cannot fail with this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    let whole = |n: i64| u64::try_from(n).unwrap_or(0);
    whole(time.tv_sec) * 1_000_000_000 + whole(time.tv_nsec)
}

/// Sends a message.
///
/// # Errors
/// The other side is gone.
pub fn send(to: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    to.write_all(&encode(message)?)
}

/// The bytes of a message.
///
/// # Errors
/// It is too long.
pub(crate) fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message).map_err(io::Error::other)?;
    let length = bytes.len() - 4;
    if length > MAX_MESSAGE {
        return Err(io::Error::other("a message is too long"));
    }
    let header = u32::try_from(length).map_err(io::Error::other)?.to_le_bytes();
    bytes.splice(..4, header);
    Ok(bytes)
}

/// Receives a message. None when the other side has closed the stream between two of them.
///
/// # Errors
/// The stream broke, or what came is no message.
pub fn receive<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<Option<T>> {
    let mut header = [0; 4];
    match from.read_exact(&mut header) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(e),
    }
    let length = u32::from_le_bytes(header) as usize;
    if length > MAX_MESSAGE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message is too long"));
    }
    // Grows with what really comes, whatever the header claims.
    let mut bytes = Vec::new();
    from.take(length as u64).read_to_end(&mut bytes)?;
    if bytes.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    serde_json::from_slice(&bytes).map(Some).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_one_by_one() {
        let mut stream = Vec::new();
        send(&mut stream, &ToCell::Stop { ids: vec![1, 2], kill: true }).unwrap();
        send(&mut stream, &FromCell::Ended { id: 7, end: Ended::Exit(3), fault: None }).unwrap();
        let mut from = stream.as_slice();
        let first: Option<ToCell> = receive(&mut from).unwrap();
        assert!(matches!(first, Some(ToCell::Stop { ids, kill: true }) if ids == [1, 2]));
        let second: Option<FromCell> = receive(&mut from).unwrap();
        assert!(matches!(second, Some(FromCell::Ended { id: 7, end: Ended::Exit(3), fault: None })));
        assert!(receive::<ToCell>(&mut from).unwrap().is_none());
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        for bytes in [&b"\x05\0\0\0{}"[..], b"\xff\xff\xff\xff", b"\x02\0\0\0no", b"\x03\0\0\0{} "] {
            assert!(receive::<ToCell>(&mut &bytes[..]).is_err(), "{bytes:?}");
        }
    }
}
