//! The suites of the whole: the same test programs on this machine's `/dev/kvm` and on a stock kernel in QEMU.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::{Context, finish, totals::Totals};
use crate::{
    images, process,
    qemu::{self, Machine},
    terminal,
    workspace::{Executable, Workspace},
};

/// The package of the suites.
pub(super) const PACKAGE: &str = "foraker-tests";
/// Tells a suite which KVM it runs on: `host` or `stock`.
const BACK_END: &str = "BACK_END";
/// Suites that do not run in QEMU, and why.
const HOST_ONLY: [(&str, &str); 5] = [
    ("clients", "needs programs of the host"),
    ("beside", "has a thousand guests, too many for an emulated processor"),
    ("debugging", "needs gdb, which is a program of the host"),
    ("gdb", "needs gdb, which is a program of the host"),
    ("soak", "has some hundred guests that come and go, too many for an emulated processor"),
];
/// How long one test program may take, here or in QEMU.
const PROGRAM_LIMIT: Duration = Duration::from_secs(10 * 60);
/// Times that a program is run in QEMU while the emulated machine stops.
const ATTEMPTS: u32 = 4;
/// What an emulated kernel says when it has stopped.
const STOPPED: [&str; 3] = ["soft lockup", "self-detected stall", "detected stalls on CPUs"];

/// Runs them here, if there is a KVM to run them on.
pub(super) fn host(context: &Context) -> Result<Totals> {
    let workspace = &context.workspace;
    if let Err(reason) = usable_kvm() {
        terminal::note(&format!("{reason}: the suites run on a stock kernel in QEMU only (stage `stock`)"));
        return Ok(Totals::skipped());
    }
    let vmm = workspace.build_vmm()?;
    let folder = workspace.generated("images");
    images::build(workspace, &folder, None)?;
    let mut totals = Totals::default();
    for program in programs(workspace)? {
        let mut command = Command::new(&program.path);
        command.current_dir(workspace.root.join("tests"));
        command.env("VMM", &vmm).env("IMAGES", &folder).env(BACK_END, "host");
        totals += context.tests(&mut command, PROGRAM_LIMIT)?;
    }
    Ok(totals)
}

/// Runs them in QEMU.
pub(super) fn stock(context: &Context) -> Result<Totals> {
    let workspace = &context.workspace;
    let own = qemu::own_files(workspace)?;
    let mut totals = Totals::default();
    for program in programs(workspace)? {
        if let Some((name, reason)) = HOST_ONLY.iter().find(|(name, _)| *name == program.name) {
            terminal::note(&format!("suite `{name}` {reason}: it runs in stage `host` only"));
            totals += Totals::skipped();
            continue;
        }
        totals += emulated(workspace, &own, &program)?;
    }
    Ok(totals)
}

/// Runs one program in a machine of its own, once more when it is the emulated machine that stops.
///
/// QEMU's emulation can lose an interrupt at an exit of the emulated SVM, after which its kernel waits for ever and says so. That is no result of
/// the program: it is shown and run again, [`ATTEMPTS`] times in all; after that the suite counts as skipped, and a note says so.
fn emulated(workspace: &Workspace, own: &[qemu::File], program: &Executable) -> Result<Totals> {
    let to = format!("tests/{}", program.name);
    let mut files = own.to_vec();
    files.push(qemu::File { from: stripped(workspace, program)?, to: to.clone() });
    let machine = Machine {
        // One: an interrupt that the emulation loses between two processors is one that nobody sends again.
        smp: 1,
        memory: "2G".to_owned(),
        limit: PROGRAM_LIMIT,
        files,
        environment: vec![format!("{BACK_END}=stock"), "RUST_BACKTRACE=1".to_owned()],
        append: String::new(),
        script: format!("/{to}"),
        forward: None,
    };
    process::print_line(&format!("\n== {}", program.name));
    for attempt in 1..=ATTEMPTS {
        let mut totals = Totals::default();
        let mut stopped = false;
        let outcome = machine.run(workspace, |line| {
            process::print_line(line);
            totals.take(line);
            if STOPPED.iter().any(|words| line.contains(words)) {
                stopped = true;
                bail!("the emulated machine stopped: {line}");
            }
            Ok(())
        });
        if stopped {
            terminal::note(&format!(
                "the emulated machine, not the program, stopped (attempt {attempt} of {ATTEMPTS})"
            ));
            continue;
        }
        let result = outcome.and_then(|outcome| {
            let (boot, run) = (terminal::time(outcome.boot), terminal::time(outcome.run));
            println!(
                "{}",
                terminal::paint(terminal::Style::Dim, &format!("booted in {boot}, ran for {run}"))
            );
            if outcome.status != 0 {
                bail!("the suite {} ended with status {}", program.name, outcome.status);
            }
            Ok(())
        });
        return finish(totals, result);
    }
    terminal::note(&format!(
        "NO RESULT of the suite `{}` on stock KVM: the emulated machine stopped each time",
        program.name
    ));
    Ok(Totals::skipped())
}

/// Whether guests can run here.
///
/// # Errors
/// The reason why not.
pub(crate) fn usable_kvm() -> Result<(), String> {
    match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("this machine's /dev/kvm cannot be used ({error})")),
    }
}

/// Builds the test programs.
fn programs(workspace: &Workspace) -> Result<Vec<Executable>> {
    let mut built = workspace.build(workspace.cargo(&["test", "--no-run", "--package", PACKAGE]))?;
    // What no user can see, and needs a KVM all the same.
    for (package, tests) in [
        ("foraker-cell", ["--test", "reset", "--test", "pause", "--test", "debugger"].as_slice()),
        ("foraker-debug", &["--test", "gdb"]),
    ] {
        let arguments = ["test", "--no-run", "--package", package];
        built.extend(workspace.build(workspace.cargo(&[&arguments, tests].concat()))?);
    }
    built.retain(|program| program.kind.iter().any(|kind| kind == "test" || kind == "lib"));
    built.sort_by(|a, b| a.name.cmp(&b.name));
    if built.is_empty() {
        bail!("the package {PACKAGE} has no test program");
    }
    Ok(built)
}

/// A copy without debug information, which the initramfs has no room for.
fn stripped(workspace: &Workspace, program: &Executable) -> Result<PathBuf> {
    let folder = workspace.generated("qemu").join("tests");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let copy: &Path = &folder.join(&program.name);
    process::quiet(Command::new("strip").arg("--strip-debug").arg("-o").arg(copy).arg(&program.path))?;
    Ok(copy.to_path_buf())
}
