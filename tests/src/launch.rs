//! Running the real command, and nothing left of it when a test is over, however it ends.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::bounds::{eventually, seconds};
use crate::leftover::{self, Device};
use crate::report::Report;

/// The workspace's root, where its folders are when the tests run in place.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"))
}

/// The command under test.
#[must_use]
pub fn vmm() -> PathBuf {
    let from_environment = std::env::var_os("VMM").map(PathBuf::from);
    let candidates =
        ["target/x86_64-unknown-linux-gnu/release/vmm", "target/release/vmm"].map(|p| root().join(p));
    let inside = PathBuf::from("/bin/vmm");
    from_environment.or_else(|| candidates.into_iter().chain([inside]).find(|p| p.is_file())).unwrap_or_else(
        || panic!("there is no vmm: run `cargo build --release -p foraker-vmm`, or set VMM to the binary"),
    )
}

/// An image.
#[must_use]
pub fn image(name: &str) -> PathBuf {
    let from_environment = std::env::var_os("IMAGES").map(PathBuf::from);
    let folders =
        from_environment.into_iter().chain([root().join("target/images"), PathBuf::from("/images")]);
    let found = folders.map(|folder| folder.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!("there is no image {name}: run `cargo xtask images`, or set IMAGES to their folder")
    })
}

/// A port of the loopback address that nobody uses.
#[must_use]
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// `vmm launch` with `arguments`.
pub fn launch<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Running {
    let mut all = vec![OsStr::new("launch").to_owned()];
    all.extend(arguments.into_iter().map(|a| a.as_ref().to_owned()));
    Running::start(&all)
}

/// A web server with a published port, and whatever else is to be launched beside it.
#[must_use]
pub fn httpd(options: &[&str], beside: &[String]) -> (Running, SocketAddr) {
    let port = free_port();
    let publish = format!("127.0.0.1:{port}:80");
    let mut arguments: Vec<String> = ["--json", "--name", "web", "-p", &publish].map(str::to_owned).to_vec();
    arguments.extend(options.iter().map(|&o| o.to_owned()));
    arguments.push(image("httpd").display().to_string());
    arguments.extend(beside.iter().cloned());
    let running = launch(&arguments);
    (running, SocketAddr::from(([127, 0, 0, 1], port)))
}

/// What a stream has given so far.
type Text = Arc<Mutex<String>>;

/// A command that runs, or has ended. It is killed when this is dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdout: Text,
    stderr: Text,
    readers: Vec<JoinHandle<()>>,
    devices: Vec<Device>,
    line: String,
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status; 128 and the number of the signal that killed it.
    pub status: i32,
    /// Everything on standard output.
    pub stdout: String,
    /// Everything on standard error.
    pub stderr: String,
}

impl Running {
    /// Starts the command under test.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn start<S: AsRef<OsStr>>(arguments: &[S]) -> Running {
        Running::start_program(&vmm(), arguments)
    }

    /// The same with another file of it.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn start_program<S: AsRef<OsStr>>(program: &Path, arguments: &[S]) -> Running {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A group of its own: what it leaves behind can be told from other tests' processes.
        command.process_group(0);
        let line = format!("{command:?}");
        let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot run {line}: {e}"));
        let (stdout, stderr) = (Text::default(), Text::default());
        let readers = vec![
            collect(child.stdout.take().expect("piped"), Arc::clone(&stdout)),
            collect(child.stderr.take().expect("piped"), Arc::clone(&stderr)),
        ];
        Running { child, stdout, stderr, readers, devices: Vec::new(), line }
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its command line.
    #[must_use]
    pub fn line(&self) -> &str {
        &self.line
    }

    /// Standard output so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        lock(&self.stdout).clone()
    }

    /// Standard error so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        lock(&self.stderr).clone()
    }

    /// Waits until standard output or standard error holds what is looked for.
    ///
    /// # Panics
    /// It does not within `limit` (stretched), or the command ends before.
    pub fn wait_for(&mut self, limit: Duration, what: &str, found: impl Fn(&str) -> bool) {
        let mut ended = false;
        let seen = eventually(limit, || {
            let seen = found(&self.stdout()) || found(&self.stderr());
            ended = !seen && self.child.try_wait().is_ok_and(|s| s.is_some());
            seen || ended
        });
        // What it wrote last may come a moment after its end.
        let seen = seen && (!ended || found(&self.stdout()) || found(&self.stderr()));
        self.note_devices();
        assert!(seen, "{what} did not come\n{}", self.describe());
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_none())
    }

    /// Remembers the network devices that it holds, to see later whether they are gone.
    pub fn note_devices(&mut self) -> &[Device] {
        for device in leftover::taps_of(self.pid()) {
            if !self.devices.contains(&device) {
                self.devices.push(device);
            }
        }
        &self.devices
    }

    /// Sends a signal to this process, and to no other.
    pub fn signal(&mut self, signal: i32) {
        self.note_devices();
        if self.is_running() {
            let pid = libc::pid_t::try_from(self.pid()).expect("a process number");
            // SAFETY: sends a signal to a child that was not waited for yet, so the number is still its own.
            unsafe { libc::kill(pid, signal) };
        }
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// It does not end within `limit` (stretched), or leaves a process or a device behind.
    pub fn wait(mut self, limit: Duration) -> Ended {
        let mut status: Option<ExitStatus> = None;
        let start = Instant::now();
        let ended = eventually(limit, || {
            if start.elapsed() < Duration::from_secs(2) || self.devices.is_empty() {
                self.note_devices();
            }
            status = self.child.try_wait().expect("the child can be waited for");
            status.is_some()
        });
        assert!(ended, "it did not end within {limit:?} (stretched)\n{}", self.describe());
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        let status = status.expect("it ended");
        let ended = Ended {
            status: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            stdout: self.stdout(),
            stderr: self.stderr(),
        };
        let (group, devices) = (self.pid(), &self.devices);
        let gone = eventually(seconds(2), || {
            leftover::members_of(group).is_empty() && !devices.iter().any(leftover::exists)
        });
        assert!(gone, "left behind: processes {:?}, devices {devices:?}", leftover::members_of(group));
        ended
    }

    /// Asks it to stop, and waits for its end.
    pub fn stop(mut self) -> Ended {
        self.signal(libc::SIGTERM);
        self.wait(Duration::from_secs(20))
    }

    fn describe(&self) -> String {
        format!(
            "{}\n--- standard output:\n{}\n--- standard error:\n{}",
            self.line,
            self.stdout(),
            self.stderr()
        )
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Only this child, which is still this process's own, whatever state it is in.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ended {
    /// The report on the last line of standard output.
    ///
    /// # Panics
    /// There is none.
    #[must_use]
    pub fn report(&self) -> Report {
        Report::parse(&self.stdout).unwrap_or_else(|e| panic!("no report: {e}\n{self}"))
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Ended { status, stdout, stderr } = self;
        write!(f, "status {status}\n--- standard output:\n{stdout}\n--- standard error:\n{stderr}")
    }
}

/// Reads a stream line by line until its end.
fn collect(stream: impl std::io::Read + Send + 'static, text: Text) -> JoinHandle<()> {
    /// More than any test needs; what a flood writes beyond it is read and forgotten.
    const MOST: usize = 16 << 20;
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            let mut all = lock(&text);
            if all.len() < MOST || line.starts_with(b"{") {
                all.push_str(&String::from_utf8_lossy(&line));
            }
            drop(all);
            line.clear();
        }
    })
}

fn lock(text: &Text) -> MutexGuard<'_, String> {
    text.lock().unwrap_or_else(PoisonError::into_inner)
}
