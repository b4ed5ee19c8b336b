//! `cargo xtask qemu`: stock KVM on any machine. A Debian kernel with `kvm-amd` runs in QEMU's software emulation of an
//! AMD processor with nested paging, and in it the same static binaries as here.

mod cpio;
pub(crate) mod initramfs;
mod kernel;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    images, packages,
    process::{self, End},
    terminal::{self, Style},
    workspace::Workspace,
};
pub(crate) use initramfs::File;

/// Two things that an emulated machine needs to be told, so that it does not stop on a busy host:
///
/// - QEMU 7.2 can lose an interrupt that comes just when a guest of the emulated SVM exits (two threads change the
///   word of pending ones, one without the lock). A lost one-shot timer would never be set again; a periodic one, and
///   with it whatever else is pending, comes again at the next tick. Hence no high-resolution timers: an emulated
///   machine's deadlines are up to 4 ms late.
/// - Its time-stamp counters agree, as they are one. Left to find that out, a busy kernel may give up on them and read
///   the time from an emulated device instead, which is slow.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 quiet loglevel=3 panic=-1 highres=off nohz=off tsc=reliable";

#[derive(Args)]
pub(crate) struct Options {
    /// Processors; with more than one the emulation loses interrupts between them at times, and stops
    #[arg(long, value_name = "N", default_value_t = 1)]
    smp: u32,
    /// Memory, as QEMU writes it
    #[arg(long, value_name = "SIZE", default_value = "2G")]
    memory: String,
    /// End it after this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
    /// Another file for the inside, as FROM or FROM:TO
    #[arg(long = "add", value_name = "FILE")]
    add: Vec<String>,
    /// An environment variable for the inside, as NAME=VALUE
    #[arg(short, long = "env", value_name = "NAME=VALUE")]
    environment: Vec<String>,
    /// Arguments for the kernel, such as loglevel=7
    #[arg(long, value_name = "ARGUMENTS", default_value = "", hide_default_value = true)]
    append: String,
    /// Neither build nor bring along vmm and the images
    #[arg(long)]
    bare: bool,
    /// What to run; a shell if nothing is named. Inside are busybox, /bin/vmm and /images/NAME
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// A machine to boot.
pub(crate) struct Machine {
    /// Processors.
    pub(crate) smp: u32,
    /// Memory, as QEMU writes it.
    pub(crate) memory: String,
    /// How long it may take, boot included.
    pub(crate) limit: Duration,
    /// What to bring along.
    pub(crate) files: Vec<File>,
    /// `NAME=VALUE`.
    pub(crate) environment: Vec<String>,
    /// More arguments for the kernel.
    pub(crate) append: String,
    /// What to run, for a shell.
    pub(crate) script: String,
    /// A port of this machine that is passed on to one inside.
    pub(crate) forward: Option<Forward>,
}

/// A port of this machine's loopback address, and where it leads: to `eth0`, at [`Forward::ADDRESS`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Forward {
    pub(crate) here: u16,
    pub(crate) inside: u16,
}

impl Forward {
    /// What QEMU's user network expects of its first guest.
    pub(crate) const ADDRESS: &str = "10.0.2.15";
}

/// How it went.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    /// Exit status of the script.
    pub(crate) status: i32,
    /// From the start of QEMU to the start of the script.
    pub(crate) boot: Duration,
    /// Of the script.
    pub(crate) run: Duration,
}

pub(crate) fn run(workspace: &Workspace, options: Options) -> Result<ExitCode> {
    if options.command.is_empty() && !terminal::interactive() {
        bail!("name a command, as in `cargo xtask qemu -- vmm doctor`: a shell needs a terminal");
    }
    let mut files = if options.bare { Vec::new() } else { own_files(workspace)? };
    for add in &options.add {
        files.push(added(add)?);
    }
    let words: Vec<String> = options.command.iter().map(|w| process::quote(w.as_ref())).collect();
    let machine = Machine {
        smp: options.smp,
        memory: options.memory,
        limit: Duration::from_secs(options.timeout),
        files,
        environment: options.environment,
        append: options.append,
        script: words.join(" "),
        forward: None,
    };
    if words.is_empty() {
        return machine.shell(workspace);
    }
    let outcome = machine.run(workspace, |line| {
        process::print_line(line);
        Ok(())
    })?;
    let (boot, run) = (terminal::time(outcome.boot), terminal::time(outcome.run));
    eprintln!("{}", terminal::paint(Style::Dim, &format!("booted in {boot}, ran for {run}")));
    Ok(ExitCode::from(u8::try_from(outcome.status).unwrap_or(u8::MAX)))
}

/// `vmm` and the images, built if need be.
pub(crate) fn own_files(workspace: &Workspace) -> Result<Vec<File>> {
    let vmm = workspace.build_vmm()?;
    let mut files = vec![File { from: vmm, to: "bin/vmm".to_owned() }];
    for image in images::build(workspace, &workspace.generated("images"), None)? {
        let name = image.file_name().context("an image has a name")?.to_string_lossy().into_owned();
        files.push(File { from: image, to: format!("images/{name}") });
    }
    Ok(files)
}

/// `FROM` (to /bin) or `FROM:TO`.
fn added(text: &str) -> Result<File> {
    let (from, to) = match text.rsplit_once(':') {
        Some((from, to)) => (PathBuf::from(from), to.trim_start_matches('/').to_owned()),
        None => {
            let name = Path::new(text).file_name().with_context(|| format!("`{text}` names no file"))?;
            (PathBuf::from(text), format!("bin/{}", name.to_string_lossy()))
        }
    };
    if !from.is_file() {
        bail!("there is no file {}", from.display());
    }
    Ok(File { from, to })
}

impl Machine {
    /// Boots, hands each line that the script prints to `line`, and returns its status.
    ///
    /// # Errors
    /// When something is missing, or the machine does not come up or to an end in time.
    pub(crate) fn run(
        &self,
        workspace: &Workspace,
        mut line: impl FnMut(&str) -> Result<()>,
    ) -> Result<Outcome> {
        let (mut command, archive) = self.prepare(workspace)?;
        command.args(["-serial", "stdio"]);
        let mut log = Log::default();
        let end = process::stream(&mut command, self.limit, |text| log.take(text, &mut line));
        drop(archive);
        match (log.status, end?) {
            (Some(status), _) => Ok(Outcome { status, boot: log.boot, run: log.run }),
            (None, End::Timeout) if log.running() => {
                bail!("the command did not end within {}", terminal::time(self.limit))
            }
            (None, End::Interrupted) => bail!("interrupted"),
            (None, end) => {
                let last = log.before.join("\n");
                bail!("the machine in QEMU ended without a result ({end:?}); its last words:\n{last}")
            }
        }
    }

    /// A shell inside, on this terminal.
    fn shell(mut self, workspace: &Workspace) -> Result<ExitCode> {
        self.script = "setsid cttyhack sh -i".to_owned();
        let (mut command, archive) = self.prepare(workspace)?;
        println!("{}", terminal::paint(Style::Dim, "Ctrl-D ends it, Ctrl-A x kills QEMU"));
        let status = command.args(["-serial", "mon:stdio"]).stdin(Stdio::inherit()).status();
        drop(archive);
        let status = status.with_context(|| process::cannot_start(&command))?;
        Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn prepare(&self, workspace: &Workspace) -> Result<(Command, Temporary)> {
        packages::require(&[&packages::QEMU, &packages::BUSYBOX])?;
        let kernel = kernel::get(workspace)?;
        let bytes = initramfs::build(&kernel, &self.files, &self.environment, &self.script)?;
        let name = format!("initramfs-{}.cpio", std::process::id());
        let archive = Temporary(workspace.generated("qemu").join(name));
        fs::write(&archive.0, bytes).with_context(|| format!("cannot write {}", archive.0.display()))?;
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max,+svm,+npt"]);
        command.args(["-smp", &self.smp.to_string(), "-m", &self.memory]);
        command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
        command.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(&archive.0);
        command.arg("-append").arg(format!("{KERNEL_ARGUMENTS} {}", self.append));
        if let Some(Forward { here, inside }) = self.forward {
            let rule = format!("hostfwd=tcp:127.0.0.1:{here}-{}:{inside}", Forward::ADDRESS);
            command.args(["-netdev", &format!("user,id=net,restrict=on,{rule}")]);
            command.args(["-device", "e1000,netdev=net,romfile="]);
        }
        eprintln!("{}", terminal::paint(Style::Dim, &format!("stock KVM: {} in QEMU", kernel.package)));
        Ok((command, archive))
    }
}

/// A file that is gone when this is.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Reads the serial line: what comes before the script, what is the script's, and its status.
struct Log {
    started: Instant,
    script: Option<Instant>,
    boot: Duration,
    run: Duration,
    status: Option<i32>,
    /// An empty line that may be the one before the closing marker.
    empty: bool,
    /// The last lines, for the case that nothing more comes.
    before: Vec<String>,
}

impl Default for Log {
    fn default() -> Self {
        let zero = Duration::ZERO;
        let started = Instant::now();
        Log { started, script: None, boot: zero, run: zero, status: None, empty: false, before: Vec::new() }
    }
}

impl Log {
    /// Lines that are kept for an error message.
    const KEPT: usize = 25;

    fn running(&self) -> bool {
        self.script.is_some()
    }

    fn take(&mut self, text: &str, line: &mut impl FnMut(&str) -> Result<()>) -> Result<()> {
        let text = text.trim_end_matches('\r');
        if self.before.len() == Self::KEPT {
            self.before.remove(0);
        }
        self.before.push(text.to_owned());
        if self.status.is_some() {
            return Ok(());
        }
        let Some(script) = self.script else {
            if text.ends_with(initramfs::START) {
                self.script = Some(Instant::now());
                self.boot = self.started.elapsed();
            }
            return Ok(());
        };
        match text.strip_prefix(initramfs::END) {
            Some(status) => {
                self.run = script.elapsed();
                self.status = Some(status.trim().parse().context("the machine reported no exit status")?);
                Ok(())
            }
            None => {
                if std::mem::replace(&mut self.empty, text.is_empty()) {
                    line("")?;
                }
                if text.is_empty() { Ok(()) } else { line(text) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_serial_line_is_told_apart() {
        let mut log = Log::default();
        let mut seen = Vec::new();
        for text in [
            "SeaBIOS",
            "\x1b[2Jx@@foraker-start\r",
            "hello\r",
            "",
            "you",
            "",
            "@@foraker-end 3\r",
            "Power down",
        ] {
            log.take(text, &mut |line| {
                seen.push(line.to_owned());
                Ok(())
            })
            .unwrap();
        }
        assert_eq!(seen, ["hello", "", "you"]);
        assert_eq!(log.status, Some(3));
        assert_eq!(log.before.len(), 8);
    }

    #[test]
    fn a_boot_that_fails_leaves_its_last_words() {
        let mut log = Log::default();
        for number in 0..100 {
            log.take(&format!("line {number}"), &mut |_| panic!("nothing is the script's")).unwrap();
        }
        assert_eq!(log.status, None);
        assert_eq!(log.before.last().map(String::as_str), Some("line 99"));
        assert_eq!(log.before.len(), Log::KEPT);
    }
}
