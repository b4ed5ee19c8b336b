//! A supervisor with its cells, as `vmm serve` makes them, for benchmarks with thousands of guests.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::control::Control;

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// A supervisor. Ends with its guests when it is dropped.
#[derive(Debug)]
pub struct Supervisor {
    child: Child,
    vmm: PathBuf,
    socket: PathBuf,
    lines: Arc<AtomicU64>,
    /// Lines that hold the words that are listened for.
    heard: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
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
        Supervisor::listen(vmm, cells, options, None)
    }

    /// The same, and keeps guests' lines that hold these words.
    ///
    /// # Errors
    /// When it does not start.
    pub fn listen(
        vmm: &Path,
        cells: usize,
        options: &[&str],
        words: Option<&'static str>,
    ) -> Result<Supervisor> {
        let socket = std::env::temp_dir().join(format!("bench-{}.sock", std::process::id()));
        let mut child = Command::new(vmm)
            .args(["serve", "--cells", &cells.to_string(), "--socket"])
            .arg(&socket)
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", vmm.display()))?;
        let lines = Arc::new(AtomicU64::new(0));
        let output = child.stdout.take().context("no output")?;
        let heard = Arc::default();
        let (counted, kept) = (Arc::clone(&lines), Arc::<Mutex<Vec<String>>>::clone(&heard));
        let reader = std::thread::spawn(move || {
            // Ends with the last process that holds the pipe.
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if words.is_some_and(|words| line.contains(words)) {
                    kept.lock().unwrap_or_else(PoisonError::into_inner).push(line);
                }
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        let supervisor =
            Supervisor { child, vmm: vmm.to_path_buf(), socket, lines, heard, reader: Some(reader) };
        supervisor.wait("the supervisor does not answer", || supervisor.ask(&["ps"]).is_ok())?;
        Ok(supervisor)
    }

    /// A connection to its control socket.
    ///
    /// # Errors
    /// When it has gone.
    pub fn control(&self) -> Result<Control> {
        Control::connect(&self.socket)
    }

    /// What was heard so far.
    #[must_use]
    pub fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for something.
    ///
    /// # Errors
    /// When it does not come.
    pub fn wait(&self, what: &str, done: impl Fn() -> bool) -> Result<()> {
        let since = Instant::now();
        while !done() {
            if since.elapsed() > PATIENCE {
                bail!("{what}");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Runs a client's command. Returns what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub fn ask(&self, arguments: &[&str]) -> Result<String> {
        // The verb is one word, or two after `owner`.
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
        let before = self.lines.load(Ordering::Relaxed);
        let number = count.to_string();
        let start = Instant::now();
        self.ask(&[&["run", "--detach", "--count", &number], guest].concat())?;
        let lines = || self.lines.load(Ordering::Relaxed) - before;
        self.wait("not every guest has written its line", || lines() >= count)?;
        let elapsed = start.elapsed();
        // The supervisor hears of them in batches.
        let running = |list: String| list.lines().filter(|l| l.ends_with("  running")).count() as u64;
        self.wait("not every guest runs", || self.ask(&["ps"]).is_ok_and(|list| running(list) == count))?;
        ensure!(lines() == count, "{} lines of {count} guests", lines());
        Ok(elapsed)
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        // SAFETY: asks a process that this value has started, and waits for below.
        unsafe { libc::kill(self.child.id().cast_signed(), libc::SIGTERM) };
        if let Err(e) = self.child.wait() {
            eprintln!("bench: {e}");
        }
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}
