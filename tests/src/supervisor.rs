//! A supervisor with its cells, through the real command.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::bounds::{eventually, seconds};
use crate::launch::{Ended, Running};
use crate::leftover::{self, Device};

/// How long anything here may take, before it is stretched.
pub const LIMIT: Duration = Duration::from_secs(60);

/// A guest as `vmm ps --all --format json` lists it.
#[derive(Debug, Deserialize)]
#[serde(from = "Line")]
pub struct Listed {
    /// Its id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Whose it is.
    pub owner: String,
    /// Where it is in its life, and how it ended if it has: `running`, `exit 0`, `killed: it was killed`.
    pub phase: String,
    /// Its cell; a number that no cell has when it is on none.
    pub cell: usize,
    /// Its address.
    pub ipv4: Option<std::net::Ipv4Addr>,
    /// How often it came back.
    pub restarts: u32,
}

/// The line itself.
#[derive(Deserialize)]
struct Line {
    id: u64,
    name: String,
    owner: String,
    state: String,
    status: Option<u64>,
    reason: Option<String>,
    cell: Option<usize>,
    ipv4: Option<std::net::Ipv4Addr>,
    restarts: u32,
}

impl From<Line> for Listed {
    fn from(line: Line) -> Listed {
        let Line { id, name, owner, state, status, reason, cell, ipv4, restarts } = line;
        let why = reason.unwrap_or_default();
        let phase = match state.as_str() {
            "exited" => format!("exit {}", status.unwrap_or(u64::MAX)),
            "faulted" => format!("fault: {why}"),
            "killed" | "refused" => format!("{state}: {why}"),
            "lost" => why,
            _ => state,
        };
        Listed { id, name, owner, phase, cell: cell.unwrap_or(usize::MAX), ipv4, restarts }
    }
}

/// A supervisor with a socket and a state directory of its own.
#[derive(Debug)]
pub struct Serve {
    /// Its process.
    pub running: Running,
    /// Its socket.
    pub socket: PathBuf,
    /// How it is started.
    cells: usize,
    subnet: String,
}

/// A socket for a test.
#[must_use]
pub fn socket(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("foraker-{}-{name}.sock", std::process::id()))
}

/// The state directory that belongs to a socket.
#[must_use]
pub fn state(socket: &Path) -> PathBuf {
    socket.with_extension("state")
}

/// Starts `vmm serve`. `subnet` are the first two numbers of its cells' addresses.
#[must_use]
pub fn serve(socket: &Path, cells: usize, subnet: &str, options: &[&str]) -> Running {
    let (cells, path) = (cells.to_string(), socket.display().to_string());
    let state = state(socket).display().to_string();
    let subnet = format!("{subnet}.0.0");
    let usual = ["serve", "--cells", &cells, "--first-subnet", &subnet, "--socket", &path, "--state", &state];
    Running::start(&[&usual[..], options].concat())
}

/// Verbs of two words begin with one of these.
const NOUNS: [&str; 5] = ["gatekeeper", "owner", "network", "image", "system"];

/// Runs a client's command.
#[must_use]
pub fn ask(socket: &Path, arguments: &[&str]) -> Ended {
    let mut all = arguments.to_vec();
    let path = socket.display().to_string();
    let verb = if arguments.first().is_some_and(|first| NOUNS.contains(first)) { 2 } else { 1 };
    all.splice(verb..verb, ["--socket", &path]);
    Running::start(&all).wait(LIMIT)
}

impl Serve {
    /// Starts one and waits until it answers.
    ///
    /// # Panics
    /// It does not.
    #[must_use]
    pub fn start(name: &str, cells: usize, subnet: &str) -> Serve {
        Serve::start_with(name, cells, subnet, &[])
    }

    /// The same with further options.
    ///
    /// # Panics
    /// It does not answer.
    #[must_use]
    pub fn start_with(name: &str, cells: usize, subnet: &str, options: &[&str]) -> Serve {
        let socket = socket(name);
        let running = serve(&socket, cells, subnet, options);
        Serve { running, socket, cells, subnet: subnet.to_owned() }.up()
    }

    fn up(self) -> Serve {
        let up = eventually(seconds(10), || self.ask(&["ps"]).status == 0);
        assert!(up, "{} {}", self.running.stdout(), self.running.stderr());
        self
    }

    /// Ends its process at once, as nothing else does, and starts another one with the same state.
    ///
    /// # Panics
    /// It does not answer again.
    #[must_use]
    pub fn killed_and_started_again(self) -> Serve {
        self.again(libc::SIGKILL, 128 + 9)
    }

    /// Asks it to end, and starts another one with the same state.
    ///
    /// # Panics
    /// It does not end well, or does not answer again.
    #[must_use]
    pub fn stopped_and_started_again(self) -> Serve {
        self.again(libc::SIGTERM, 0)
    }

    /// Ends its process at once, and starts another one with the same state before the first is gone. Returns what is left of the first, and the other one.
    ///
    /// # Panics
    /// The other one does not answer.
    #[must_use]
    pub fn killed_and_followed(mut self) -> (Running, Serve) {
        self.running.note_devices();
        self.running.signal(libc::SIGKILL);
        let Serve { running: killed, socket, cells, subnet } = self;
        let running = serve(&socket, cells, &subnet, &[]);
        (killed, Serve { running, socket, cells, subnet }.up())
    }

    fn again(mut self, signal: i32, status: i32) -> Serve {
        self.running.note_devices();
        self.running.signal(signal);
        let Serve { running, socket, cells, subnet } = self;
        // Asserts that nothing else of it is left but the socket and the state.
        let ended = running.wait(LIMIT);
        assert_eq!(ended.status, status, "{ended}");
        let running = serve(&socket, cells, &subnet, &[]);
        Serve { running, socket, cells, subnet }.up()
    }

    /// Runs a client's command.
    #[must_use]
    pub fn ask(&self, arguments: &[&str]) -> Ended {
        ask(&self.socket, arguments)
    }

    /// Its guests.
    ///
    /// # Panics
    /// It does not list them.
    #[must_use]
    pub fn guests(&self) -> Vec<Listed> {
        let ended = self.ask(&["ps", "--all", "--format", "json"]);
        assert_eq!(ended.status, 0, "{ended}");
        ended.stdout.lines().map(|line| serde_json::from_str(line).expect("a guest")).collect()
    }

    /// Processes of the cells.
    #[must_use]
    pub fn cells(&self) -> Vec<i32> {
        let ended = self.ask(&["system", "cells"]);
        let process = |line: &str| line.split_whitespace().nth(1).and_then(|p| p.parse().ok());
        ended.stdout.lines().skip(1).filter_map(process).collect()
    }

    /// TAP devices of the cells.
    #[must_use]
    pub fn devices(&self) -> Vec<Device> {
        let pids = self.cells().into_iter().filter_map(|pid| u32::try_from(pid).ok());
        pids.flat_map(leftover::taps_of).collect()
    }

    /// Ends it.
    ///
    /// # Panics
    /// It leaves something behind.
    #[must_use]
    pub fn stop(mut self) -> Ended {
        let devices = self.devices();
        self.running.signal(libc::SIGTERM);
        // Asserts that no process is left.
        let ended = self.running.wait(LIMIT);
        assert!(!self.socket.exists(), "the socket is left behind");
        std::fs::remove_dir_all(state(&self.socket)).expect("its state");
        let gone = eventually(seconds(2), || !devices.iter().any(leftover::exists));
        assert!(gone, "devices are left behind: {devices:?}");
        ended
    }
}
