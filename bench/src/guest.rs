//! Guests as a user launches them: the real command, release build, real images, and the final report.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{env, io};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::netns::GuestSubnets;

/// Files that the benchmarks run.
#[derive(Clone, Debug)]
pub struct Artifacts {
    /// The command.
    pub vmm: PathBuf,
    /// The raw floor as a program.
    pub floor: PathBuf,
    /// Folder of the images.
    pub images: PathBuf,
    /// Whether what benchmarks need is built first.
    build: bool,
}

/// Folder of the workspace.
fn root() -> Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the package stands in no workspace")
}

fn cargo(arguments: &[&str]) -> Result<()> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(arguments)
        .current_dir(root()?)
        // Standard output is for figures.
        .stdout(io::stderr())
        .status()
        .context("cargo")?;
    ensure!(status.success(), "cargo {} failed", arguments.join(" "));
    Ok(())
}

impl Artifacts {
    /// Finds them beside this program and in the workspace's target folder, or the images in `images`; builds them first
    /// if `build`.
    ///
    /// # Errors
    /// When a build fails or a file is missing.
    pub fn find(build: bool, images: Option<PathBuf>) -> Result<Artifacts> {
        let program = env::current_exe().context("cannot find this program's file")?;
        let folder = program.parent().context("this program stands in no folder")?;
        if build {
            eprintln!("bench: building the command and the images");
            cargo(&[
                "build",
                "--quiet",
                "--release",
                "-p",
                "foraker-vmm",
                "-p",
                "bench",
                "--bin",
                "vmm",
                "--bin",
                "bench-floor",
            ])?;
            cargo(&["xtask", "images"])?;
        }
        let images = match images {
            Some(images) => images,
            None => root()?.join("target/images"),
        };
        Ok(Artifacts { vmm: folder.join("vmm"), floor: folder.join("bench-floor"), images, build })
    }

    /// The image of a guest that stands in a workspace of its own and is no part of the images: the file
    /// without a manifest. Builds it first, unless what is there is to be used.
    ///
    /// # Errors
    /// When the build fails or the file is missing.
    pub fn apart(&self, name: &str) -> Result<PathBuf> {
        let manifest = format!("guest/{name}/Cargo.toml");
        let build =
            ["build", "--quiet", "--release", "--manifest-path", &manifest, "--target-dir", "target/apart"];
        if self.build {
            eprintln!("bench: building guest/{name}");
            cargo(&build)?;
        }
        let path = root()?.join("target/apart/x86_64-unknown-linux-gnu/release").join(name);
        ensure!(path.is_file(), "{} is missing; build it with: cargo {}", path.display(), build.join(" "));
        Ok(path)
    }

    /// The image of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn image(&self, name: &str) -> Result<PathBuf> {
        let path = self.images.join(name);
        ensure!(path.is_file(), "{} is missing; build it with: cargo xtask images", path.display());
        Ok(path)
    }

    /// `vmm launch --json` with these arguments, its output captured.
    ///
    /// # Errors
    /// When the command is missing.
    pub fn launch(&self, arguments: &[&str]) -> Result<Command> {
        ensure!(
            self.vmm.is_file(),
            "{} is missing; build it with: cargo build --release -p foraker-vmm",
            self.vmm.display()
        );
        let mut command = Command::new(&self.vmm);
        command.args(["launch", "--json"]).args(arguments).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(command)
    }

    /// Runs a guest to its end. Returns its report and what it wrote.
    ///
    /// # Errors
    /// When it does not end well within `timeout`.
    pub fn run(&self, arguments: &[&str], timeout: Duration) -> Result<(GuestReport, String)> {
        let mut running = Running::spawn(self.launch(arguments)?, Ipv4Addr::UNSPECIFIED)?;
        running.wait(timeout)?;
        let (report, console) = running.finish()?;
        ensure!(report.ended_well(), "the guest failed: {report:?}\n{console}");
        Ok((report, console))
    }

    /// Launches a guest with a network of its own, and waits until it takes connections on `port`.
    ///
    /// # Errors
    /// When it ends or takes none within five seconds.
    pub fn serve(
        &self,
        subnets: &mut GuestSubnets,
        options: &[&str],
        image: &str,
        arguments: &[&str],
        port: u16,
    ) -> Result<Running> {
        self.serve_file(subnets, options, &self.image(image)?, arguments, port)
    }

    /// As [`serve`](Self::serve), with the image at a path.
    ///
    /// # Errors
    /// As [`serve`](Self::serve).
    pub fn serve_file(
        &self,
        subnets: &mut GuestSubnets,
        options: &[&str],
        image: &Path,
        arguments: &[&str],
        port: u16,
    ) -> Result<Running> {
        let (subnet, address) = subnets.take()?;
        let image = image.to_str().context("the image's path is not text")?;
        let mut all = vec!["--net", "--subnet", &subnet];
        all.extend(options);
        all.push(image);
        all.extend(arguments);
        let mut running = Running::spawn(self.launch(&all)?, address)?;
        running.wait_for(port)?;
        Ok(running)
    }

    /// Launches guests as the command line says, on a subnet of their own, and waits until the first, which has the subnet's first address, takes
    /// connections on `port`.
    ///
    /// # Errors
    /// As [`serve`](Self::serve).
    pub fn serve_as_given(&self, subnets: &mut GuestSubnets, guests: &[&str], port: u16) -> Result<Running> {
        self.serve_to(Stdio::piped(), subnets, guests, port)
    }

    /// The same with consoles that nobody reads: whoever reads what a guest writes without end takes processor time from those who measure.
    ///
    /// # Errors
    /// As [`Self::serve_as_given`].
    pub fn serve_unheard(&self, subnets: &mut GuestSubnets, guests: &[&str], port: u16) -> Result<Running> {
        self.serve_to(Stdio::null(), subnets, guests, port)
    }

    fn serve_to(
        &self,
        consoles: Stdio,
        subnets: &mut GuestSubnets,
        guests: &[&str],
        port: u16,
    ) -> Result<Running> {
        let (subnet, address) = subnets.take()?;
        let mut command = self.launch(&[&["--subnet", &subnet], guests].concat())?;
        command.stderr(consoles);
        let mut running = Running::spawn(command, address)?;
        running.wait_for(port)?;
        Ok(running)
    }

    /// Launches so many guests of one image in one process, and waits until the last takes connections on `port`. Returns their addresses too.
    ///
    /// # Errors
    /// When they end, or the last takes none within five seconds.
    pub fn serve_many(
        &self,
        subnets: &mut GuestSubnets,
        options: &[&str],
        image: &str,
        guests: usize,
        port: u16,
    ) -> Result<(Running, Vec<Ipv4Addr>)> {
        let (subnet, first) = subnets.take()?;
        let image = self.image(image)?;
        let image = image.to_str().context("the image's path is not text")?;
        let names: Vec<String> = (0..guests).map(|n| format!("g{n}")).collect();
        let mut all = vec!["--subnet", &subnet];
        for name in &names {
            if all.len() > 2 {
                all.push("+");
            }
            all.extend(["--net", "--name", name]);
            all.extend(options);
            all.push(image);
        }
        // They get the addresses of the subnet one after the other.
        let addresses: Vec<_> =
            (0u32..).take(guests).map(|n| Ipv4Addr::from_bits(first.to_bits() + n)).collect();
        let last = addresses.last().copied().context("no guest is wanted")?;
        let mut running = Running::spawn(self.launch(&all)?, last)?;
        running.wait_for(port)?;
        Ok((running, addresses))
    }
}

/// The final report of a launch, as far as it is used here.
#[derive(Debug, Deserialize)]
struct LaunchReport {
    guests: Vec<GuestReport>,
}

/// What the report says of one guest.
#[derive(Debug, Deserialize)]
pub struct GuestReport {
    /// How it ended: `exit`, `fault`, ...
    pub end: String,
    /// Its exit status, if it had one.
    pub status: Option<i64>,
    /// Its counters.
    pub counters: BTreeMap<String, serde_json::Value>,
}

impl GuestReport {
    /// Whether it ended itself, with status 0.
    #[must_use]
    pub fn ended_well(&self) -> bool {
        self.end == "exit" && self.status == Some(0)
    }

    /// A counter.
    ///
    /// # Errors
    /// When the report has none of this name.
    pub fn counter(&self, name: &str) -> Result<u64> {
        let value = self.counters.get(name).and_then(serde_json::Value::as_u64);
        value.with_context(|| format!("the report has no counter `{name}`"))
    }
}

/// A running `vmm launch`. Dropped, it is ended.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdout: Option<JoinHandle<String>>,
    stderr: Option<JoinHandle<String>>,
    /// Address of the first guest.
    pub address: Ipv4Addr,
}

/// Longest time that a guest and the command get to end when asked to.
const GRACE: Duration = Duration::from_secs(8);

impl Running {
    fn spawn(mut command: Command, address: Ipv4Addr) -> Result<Running> {
        // SAFETY: `prctl` is safe between fork and exec. The command ends with this process, whatever ends it.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
        let mut child = command.spawn().context("cannot start `vmm launch`")?;
        let stdout = child.stdout.take().map(collect);
        let stderr = child.stderr.take().map(collect);
        Ok(Running { child, stdout, stderr, address })
    }

    fn wait_for(&mut self, port: u16) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(5);
        let address = SocketAddr::from((self.address, port));
        while Instant::now() < until {
            if TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok() {
                return Ok(());
            }
            if self.child.try_wait()?.is_some() {
                bail!("`vmm launch` ended early:\n{}", self.output());
            }
            thread::sleep(Duration::from_millis(5));
        }
        self.signal(libc::SIGTERM);
        let _ = self.wait(GRACE);
        bail!("the guest takes no connection on {address}:\n{}", self.output())
    }

    fn output(&mut self) -> String {
        let text =
            |thread: Option<JoinHandle<String>>| thread.and_then(|t| t.join().ok()).unwrap_or_default();
        format!("{}{}", text(self.stderr.take()), text(self.stdout.take()))
    }

    fn signal(&self, signal: libc::c_int) {
        // SAFETY: our own child, which has not been waited for.
        unsafe { libc::kill(self.child.id().cast_signed(), signal) };
    }

    fn wait(&mut self, timeout: Duration) -> Result<()> {
        let until = Instant::now() + timeout;
        while self.child.try_wait()?.is_none() {
            ensure!(Instant::now() < until, "`vmm launch` did not end within {timeout:?}");
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Asks the guest to stop, and returns its report and what it wrote.
    ///
    /// # Errors
    /// When it does not end in time or reports nothing.
    pub fn stop(mut self) -> Result<(GuestReport, String)> {
        self.signal(libc::SIGTERM);
        self.wait(GRACE)?;
        self.finish()
    }

    /// Ends the guests without waiting for those that do not listen.
    ///
    /// # Errors
    /// When the command does not end in time.
    pub fn end(mut self) -> Result<()> {
        self.signal(libc::SIGTERM);
        // Twice means at once, once the first was heard.
        thread::sleep(Duration::from_millis(50));
        if self.child.try_wait()?.is_none() {
            self.signal(libc::SIGTERM);
        }
        self.wait(GRACE)
    }

    fn finish(mut self) -> Result<(GuestReport, String)> {
        let text =
            |thread: Option<JoinHandle<String>>| thread.and_then(|t| t.join().ok()).unwrap_or_default();
        let (stdout, console) = (text(self.stdout.take()), text(self.stderr.take()));
        let line = stdout.lines().last().unwrap_or_default();
        let report: LaunchReport = serde_json::from_str(line)
            .with_context(|| format!("`vmm launch --json` printed no report:\n{stdout}{console}"))?;
        let guest = report.guests.into_iter().next().context("the report names no guest")?;
        Ok((guest, console))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(libc::SIGTERM);
            if self.wait(GRACE).is_err() {
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
        }
    }
}

fn collect(stream: impl Read + Send + 'static) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut text = String::new();
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            text.push_str(&line);
            text.push('\n');
        }
        text
    })
}

/// The raw floor's program, which stands beside this one.
///
/// # Errors
/// When it was not built.
pub fn floor_program() -> Result<PathBuf> {
    let path = env::current_exe().context("cannot find this program's file")?.with_file_name("bench-floor");
    ensure!(
        path.is_file(),
        "{} is missing; build it with: cargo build --release -p bench --bins",
        path.display()
    );
    Ok(path)
}
