//! A supervisor with its cells, through the real command.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::bounds::{eventually, seconds};
use crate::launch::{Ended, Running};
use crate::leftover::{self, Device};

/// How long anything here may take, before it is stretched.
pub const LIMIT: Duration = Duration::from_secs(60);

/// A line of `vmm ps --json`.
#[derive(Debug, Deserialize)]
pub struct Listed {
    /// Its id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Whose it is.
    pub owner: String,
    /// Where it is in its life.
    pub phase: String,
    /// Its cell.
    pub cell: usize,
    /// Its address.
    pub ipv4: Option<std::net::Ipv4Addr>,
    /// How often it came back.
    pub restarts: u32,
}

/// A supervisor with a socket of its own.
#[derive(Debug)]
pub struct Serve {
    /// Its process.
    pub running: Running,
    /// Its socket.
    pub socket: PathBuf,
}

/// A socket for a test.
#[must_use]
pub fn socket(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("foraker-{}-{name}.sock", std::process::id()))
}

/// Starts `vmm serve`. `subnet` are the first two numbers of its cells' addresses.
#[must_use]
pub fn serve(socket: &Path, cells: usize, subnet: &str, options: &[&str]) -> Running {
    let (cells, path) = (cells.to_string(), socket.display().to_string());
    let subnet = format!("{subnet}.0.0");
    let usual = ["serve", "--cells", &cells, "--first-subnet", &subnet, "--socket", &path];
    Running::start(&[&usual[..], options].concat())
}

/// Runs a client's command, whose verb is one word, or two after `owner`.
#[must_use]
pub fn ask(socket: &Path, arguments: &[&str]) -> Ended {
    let mut all = arguments.to_vec();
    let path = socket.display().to_string();
    let verb = if arguments.first() == Some(&"owner") { 2 } else { 1 };
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
        let up = eventually(seconds(10), || ask(&socket, &["ps"]).status == 0);
        assert!(up, "{} {}", running.stdout(), running.stderr());
        Serve { running, socket }
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
        let ended = self.ask(&["ps", "--json"]);
        assert_eq!(ended.status, 0, "{ended}");
        ended.stdout.lines().map(|line| serde_json::from_str(line).expect("a guest")).collect()
    }

    /// Processes of the cells.
    #[must_use]
    pub fn cells(&self) -> Vec<i32> {
        let ended = self.ask(&["ps", "--cells"]);
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
        let gone = eventually(seconds(2), || !devices.iter().any(leftover::exists));
        assert!(gone, "devices are left behind: {devices:?}");
        ended
    }
}
