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
/// Suites that need programs which are not in the machine in QEMU (`curl`, `wrk`).
const HOST_ONLY: [&str; 1] = ["clients"];
/// How long one test program may take, here or in QEMU.
const PROGRAM_LIMIT: Duration = Duration::from_secs(10 * 60);
/// How long all of them may take in QEMU, boot included.
const STOCK_LIMIT: Duration = Duration::from_secs(25 * 60);

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
    let mut files = qemu::own_files(workspace)?;
    let mut script = "failed=0\n".to_owned();
    let mut totals = Totals::default();
    for program in programs(workspace)? {
        if HOST_ONLY.contains(&program.name.as_str()) {
            terminal::note(&format!(
                "suite `{}` needs programs of the host: it runs in stage `host` only",
                program.name
            ));
            totals += Totals::skipped();
            continue;
        }
        let to = format!("tests/{}", program.name);
        let limit = PROGRAM_LIMIT.as_secs();
        script.push_str(&format!(
            "echo; echo '== {name}'\ntimeout {limit} /{to} || {{ echo '{name}: status' $?; failed=$((failed + 1)); }}\n",
            name = program.name
        ));
        files.push(qemu::File { from: stripped(workspace, &program)?, to });
    }
    script.push_str("exit $failed\n");
    let environment = vec![format!("{BACK_END}=stock"), "RUST_BACKTRACE=1".to_owned()];
    let machine = Machine {
        smp: 2,
        memory: "2G".to_owned(),
        limit: STOCK_LIMIT,
        files,
        environment,
        append: String::new(),
        script,
        forward: None,
    };
    let outcome = machine.run(workspace, |line| {
        process::print_line(line);
        totals.take(line);
        Ok(())
    });
    let result = outcome.and_then(|outcome| {
        let (boot, run) = (terminal::time(outcome.boot), terminal::time(outcome.run));
        println!("{}", terminal::paint(terminal::Style::Dim, &format!("booted in {boot}, ran for {run}")));
        if outcome.status != 0 {
            bail!("{} suites failed", outcome.status);
        }
        Ok(())
    });
    finish(totals, result)
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
