//! The template of a guest, as somebody new uses it: copied to another folder, built with the stock toolchain,
//! launched, and greeted by.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{Context, stages::BUILD, totals::Totals, usable_kvm};
use crate::{
    process, sources, terminal,
    workspace::{TARGET, Workspace},
};

const FOLDER: &str = "guest/template";
const NAME: &str = "greeter";
/// The port at which it greets.
const PORT: u16 = 2000;
/// How long it may take to greet, and to stop.
const LIMIT: Duration = Duration::from_secs(20);

pub(super) fn run(context: &Context) -> Result<Totals> {
    let folder = env::temp_dir().join(format!("foraker-template-{}", std::process::id()));
    let result = build_and_launch(context, &folder);
    let _ = fs::remove_dir_all(&folder);
    result
}

fn build_and_launch(context: &Context, folder: &Path) -> Result<Totals> {
    let workspace = &context.workspace;
    copy(workspace, folder)?;
    let target = workspace.generated("template");
    let mut build = workspace.cargo(&["build", "--release", "--target-dir"]);
    // Flags from outside would replace those of the template's own configuration.
    build.arg(&target).current_dir(folder).env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    context.stream(&mut build, BUILD, &mut |_| {})?;
    if let Err(reason) = usable_kvm() {
        terminal::note(&format!("{reason}: the guest made from the template was built and not launched"));
        return Ok(Totals { skipped: 1, ..Totals::one(true) });
    }
    let vmm = workspace.build_vmm()?;
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    let mut launch = Command::new(vmm);
    launch.args(["launch", "-p", &format!("127.0.0.1:{port}:{PORT}")]);
    launch.arg(target.join(TARGET).join("release").join(NAME)).stdin(Stdio::null());
    println!("{}", terminal::paint(terminal::Style::Dim, &format!("$ {}", process::show(&launch))));
    let mut guest = Running(launch.spawn().with_context(|| process::cannot_start(&launch))?);
    let greeting = greeting(&mut guest, port)?;
    println!("{greeting}");
    if !greeting.starts_with("Hello, visitor") {
        bail!("that is no greeting");
    }
    guest.stop()?;
    Ok(Totals::one(true))
}

/// Copies the template, with the library OS where it is.
fn copy(workspace: &Workspace, folder: &Path) -> Result<()> {
    for file in sources::list(workspace)? {
        let Ok(name) = file.strip_prefix(FOLDER) else { continue };
        let to = folder.join(name);
        fs::create_dir_all(to.parent().context("a file has a folder")?)?;
        fs::copy(workspace.root.join(&file), &to)
            .with_context(|| format!("cannot copy {}", file.display()))?;
    }
    let manifest = folder.join("Cargo.toml");
    let text = fs::read_to_string(&manifest).with_context(|| format!("there is no {FOLDER}/Cargo.toml"))?;
    let libos = workspace.root.join("guest-libos");
    let changed = text.replace("../../guest-libos", &libos.display().to_string());
    if changed == text {
        bail!("{FOLDER}/Cargo.toml does not name ../../guest-libos");
    }
    fs::write(&manifest, changed)?;
    Ok(())
}

/// Connects until somebody greets.
fn greeting(guest: &mut Running, port: u16) -> Result<String> {
    let deadline = Instant::now() + LIMIT;
    while Instant::now() < deadline {
        if let Some(status) = guest.0.try_wait()? {
            bail!("vmm ended with {status} before the guest greeted");
        }
        if let Ok(stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            let mut line = String::new();
            if BufReader::new(stream).read_line(&mut line).is_ok_and(|length| length > 0) {
                return Ok(line.trim_end().to_owned());
            }
        }
        thread::sleep(Duration::from_millis(20));
    }
    bail!("nobody greeted within {}", terminal::time(LIMIT))
}

/// A launched guest, which does not outlive the test.
struct Running(Child);

impl Running {
    /// Asks it to stop; it must do so, with status 0.
    fn stop(&mut self) -> Result<()> {
        let pid = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw);
        rustix::process::kill_process(pid.context("a process has a number")?, rustix::process::Signal::TERM)?;
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            match self.0.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("the guest was asked to stop, and vmm ended with {status}"),
                None => thread::sleep(Duration::from_millis(20)),
            }
        }
        bail!("the guest did not stop within {}", terminal::time(LIMIT))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}
