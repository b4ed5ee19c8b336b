//! A supervisor with its cells, as `vmm serve` makes them, for benchmarks with thousands of guests.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::control::Control;

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often it is asked whether something has happened.
const LOOK: Duration = Duration::from_millis(5);
/// What counts the lines of all guests.
const LINES: &str = "foraker_console_lines_total";

/// A supervisor. Ends with its guests when it is dropped.
#[derive(Debug)]
pub struct Supervisor {
    child: Child,
    vmm: PathBuf,
    socket: PathBuf,
    state: PathBuf,
    arguments: Vec<String>,
}

impl Supervisor {
    /// Starts one and waits until its cells are there.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(vmm: &Path, cells: usize) -> Result<Supervisor> {
        Supervisor::start_with(vmm, cells, &[])
    }

    /// The same with further options of `vmm serve`.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_with(vmm: &Path, cells: usize, options: &[&str]) -> Result<Supervisor> {
        let own = |what: &str| std::env::temp_dir().join(format!("bench-{}.{what}", std::process::id()));
        let (socket, state) = (own("sock"), own("state"));
        let cells = ["--cells".to_owned(), cells.to_string()];
        let arguments: Vec<_> = cells.into_iter().chain(options.iter().map(|o| (*o).to_owned())).collect();
        let child = serve(vmm, &socket, &state, &arguments)?;
        let supervisor = Supervisor { child, vmm: vmm.to_path_buf(), socket, state, arguments };
        supervisor.wait("the supervisor does not answer", || supervisor.control().is_ok())?;
        Ok(supervisor)
    }

    /// Ends its process at once, as `kill -9` does, and starts another one with the same state.
    ///
    /// # Errors
    /// When that does not start.
    pub fn kill_and_follow(&mut self) -> Result<()> {
        self.child.kill().context("the supervisor cannot be killed")?;
        let next = serve(&self.vmm, &self.socket, &self.state, &self.arguments)?;
        std::mem::replace(&mut self.child, next).wait().context("the killed supervisor")?;
        Ok(())
    }

    /// Its process.
    #[must_use]
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// A connection to its control socket.
    ///
    /// # Errors
    /// When it has gone.
    pub fn control(&self) -> Result<Control> {
        Control::connect(&self.socket)
    }

    /// Lines of a guest that hold these words.
    ///
    /// # Errors
    /// When it is not there.
    pub fn heard(&self, guest: &str, words: &str) -> Result<Vec<String>> {
        let log = self.ask(&["logs", guest])?;
        Ok(log.lines().filter(|line| line.contains(words)).map(str::to_owned).collect())
    }

    /// Waits for something.
    ///
    /// # Errors
    /// When it does not come.
    pub fn wait(&self, what: &str, mut done: impl FnMut() -> bool) -> Result<()> {
        let since = Instant::now();
        while !done() {
            if since.elapsed() > PATIENCE {
                bail!("{what}");
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Runs a client's command. Returns what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub fn ask(&self, arguments: &[&str]) -> Result<String> {
        // The verb is one word, or two after a noun.
        let words = if arguments.first() == Some(&"owner") { 2 } else { 1 };
        let (verb, rest) = arguments.split_at_checked(words).context("no command")?;
        let output = Command::new(&self.vmm)
            .args(verb)
            .arg("--socket")
            .arg(&self.socket)
            .args(rest)
            .stdin(Stdio::null())
            .output()
            .context("cannot start a client")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {}", verb.join(" "), said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Starts `count` guests by one request. Returns the time until the last of them has written the one line that each writes.
    ///
    /// # Errors
    /// When one does not.
    pub fn storm(&self, count: u64, guest: &[&str]) -> Result<Duration> {
        let mut control = self.control()?;
        let before = control.metric(LINES)?;
        let number = count.to_string();
        let start = Instant::now();
        self.ask(&[&["run", "--detach", "--no-wait", "--count", &number], guest].concat())?;
        let lines = std::cell::Cell::new(0);
        self.wait("not every guest has written its line", || {
            lines.set(control.metric(LINES).map_or(0, |now| now - before));
            lines.get() >= count
        })?;
        let elapsed = start.elapsed();
        ensure!(lines.get() == count, "{} lines of {count} guests", lines.get());
        // The supervisor hears of them in batches.
        self.wait("not every guest runs", || control.running().is_ok_and(|running| running == count))?;
        Ok(elapsed)
    }
}

fn serve(vmm: &Path, socket: &Path, state: &Path, arguments: &[String]) -> Result<Child> {
    let mut command = Command::new(vmm);
    command.arg("serve").arg("--socket").arg(socket).arg("--state").arg(state).args(arguments);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    child.with_context(|| format!("cannot start {}", vmm.display()))
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        // SAFETY: asks a process that this value has started, and waits for below.
        unsafe { libc::kill(self.child.id().cast_signed(), libc::SIGTERM) };
        if let Err(e) = self.child.wait() {
            eprintln!("bench: {e}");
        }
        // Nobody needs what outlives it.
        let _ = std::fs::remove_dir_all(&self.state);
    }
}
