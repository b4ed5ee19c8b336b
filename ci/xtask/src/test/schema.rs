//! The API against its own description: schemathesis asks a running supervisor all that `/openapi.json` says, with what is right and what is wrong
//! (`tests/schema`).

use std::{
    collections::BTreeMap,
    env, fs,
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use super::{Context, stages::BUILD, totals::Totals, usable_kvm};
use crate::{images, packages, process, terminal, workspace::Workspace};

const FOLDER: &str = "tests/schema";
/// The first subnet of its cells: no test has the same.
const SUBNET: &str = "10.163.0.0";
/// What it does, by the names in its report.
const PHASES: [&str; 4] = ["examples", "coverage", "fuzzing", "stateful"];
/// How long the supervisor may take to start and to stop.
const LIMIT: Duration = Duration::from_secs(30);
/// How long all questions may take.
const QUESTIONS: Duration = Duration::from_secs(10 * 60);
/// What is there before anything is asked, so that ids and names are real; `tests/schema/schemathesis.toml` knows them. IMAGES is the folder of the images.
const THERE: [&[&str]; 6] = [
    &["run", "-d", "--name", "web", "--restart", "always", "-m", "2M", "IMAGES/httpd"],
    &["run", "IMAGES/hello"],
    &["run", "-d", "--name", "idle", "--no-net", "-m", "2M", "IMAGES/probe", "idle"],
    &["owner", "set", "team", "--weight", "2", "--max-guests", "8"],
    &["network", "create", "blue", "--owner", "team"],
    &[
        "run",
        "-d",
        "--name",
        "ours",
        "--owner",
        "team",
        "--network",
        "blue",
        "--net",
        "-m",
        "2M",
        "IMAGES/probe",
        "idle",
    ],
];

pub(super) fn run(context: &Context) -> Result<Totals> {
    if let Err(reason) = usable_kvm() {
        terminal::note(&format!("{reason}: nobody asks the API"));
        return Ok(Totals::skipped());
    }
    packages::require(&[&packages::PYTHON, &packages::SOCAT])?;
    let workspace = &context.workspace;
    let schemathesis = install(context)?;
    let vmm = workspace.build_vmm()?;
    images::build(workspace, &workspace.generated("images"), None)?;
    let scratch = env::temp_dir().join(format!("foraker-schema-{}", std::process::id()));
    fs::create_dir_all(&scratch).with_context(|| format!("cannot create {}", scratch.display()))?;
    let result = ask(context, &vmm, &schemathesis, &scratch);
    let _ = fs::remove_dir_all(&scratch);
    result
}

/// Installs it where nothing else is, unless that is done already; returns the program.
fn install(context: &Context) -> Result<PathBuf> {
    let workspace = &context.workspace;
    let wanted = fs::read_to_string(workspace.root.join(FOLDER).join("requirements.txt"))?;
    let folder = workspace.generated("schemathesis");
    let (program, done) = (folder.join("bin/schemathesis"), folder.join("installed.txt"));
    if program.is_file() && fs::read_to_string(&done).is_ok_and(|installed| installed == wanted) {
        return Ok(program);
    }
    let _ = fs::remove_dir_all(&folder);
    context.stream(Command::new("python3").args(["-m", "venv"]).arg(&folder), BUILD, &mut |_| {})?;
    let mut pip = Command::new(folder.join("bin/pip"));
    pip.args(["install", "--quiet", "--disable-pip-version-check", "--requirement"]);
    pip.arg(workspace.root.join(FOLDER).join("requirements.txt"));
    context.stream(&mut pip, BUILD, &mut |_| {})?;
    fs::write(&done, wanted)?;
    Ok(program)
}

/// Starts a supervisor, fills it, and has everything asked.
fn ask(context: &Context, vmm: &Path, schemathesis: &Path, scratch: &Path) -> Result<Totals> {
    let workspace = &context.workspace;
    let socket = scratch.join("vmm.sock");
    let mut serve = Command::new(vmm);
    serve.args(["serve", "--cells", "1", "--first-subnet", SUBNET, "--memory", "512M"]);
    serve.args(["--max-guests", "64", "--max-waiting", "64", "--socket"]).arg(&socket);
    serve.arg("--state").arg(scratch.join("state")).stdin(Stdio::null()).stdout(Stdio::null());
    let mut supervisor = Running(serve.spawn().with_context(|| process::cannot_start(&serve))?);
    until("the supervisor does not listen", || socket.exists())?;
    fill(workspace, vmm, &socket)?;
    // Schemathesis speaks TCP only. A port that is free now may be taken in a moment: then socat ends, and nobody answers.
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    let mut socat = Command::new("socat");
    socat.arg(format!("TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork,backlog=64"));
    socat.arg(format!("UNIX-CONNECT:{}", socket.display())).stdin(Stdio::null()).stderr(Stdio::null());
    let _bridge = Running(socat.spawn().with_context(|| process::cannot_start(&socat))?);
    until("socat does not listen", || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok())?;

    let report = scratch.join("report.json");
    let mut questions = Command::new(schemathesis);
    questions.arg("--config-file").arg(workspace.root.join(FOLDER).join("schemathesis.toml"));
    questions.arg("run").arg(format!("http://127.0.0.1:{port}/openapi.json")).args(["--checks", "all"]);
    questions.args(["--report", "json", "--report-json-path"]).arg(&report).current_dir(scratch);
    let asked = context.stream(&mut questions, QUESTIONS, &mut |_| {});
    let mut totals =
        fs::read_to_string(&report).context("there is no report").and_then(|text| count(&text))?;
    if let Err(error) = asked {
        terminal::error(&format!("{error:#}"));
        totals.failed = totals.failed.max(1);
    }
    // It is still there, and ends in order.
    if let Err(error) = supervisor.stop() {
        terminal::error(&format!("the supervisor: {error:#}"));
        totals.failed += 1;
    }
    Ok(totals)
}

/// Makes what is to be there.
fn fill(workspace: &Workspace, vmm: &Path, socket: &Path) -> Result<()> {
    let images = workspace.generated("images").display().to_string();
    for words in THERE {
        // Verbs of owners and networks are two words.
        let verb = if matches!(words.first(), Some(&("owner" | "network"))) { 2 } else { 1 };
        let words: Vec<String> = words.iter().map(|word| word.replace("IMAGES", &images)).collect();
        let (verb, rest) = words.split_at(verb);
        process::quiet(Command::new(vmm).args(verb).arg("--socket").arg(socket).args(rest))?;
    }
    Ok(())
}

/// What schemathesis reports of itself.
#[derive(Deserialize)]
struct Report {
    complete: bool,
    operations: Operations,
    phases: BTreeMap<String, Phase>,
    test_cases: Cases,
}

#[derive(Deserialize)]
struct Operations {
    tested: u64,
}

#[derive(Deserialize)]
struct Phase {
    status: String,
}

#[derive(Deserialize)]
struct Cases {
    generated: u64,
    unique_failures: u64,
    errored: u64,
}

/// Counts operations that were asked, and complaints. A phase that did not run is one.
fn count(report: &str) -> Result<Totals> {
    let Report { complete, operations, phases, test_cases } =
        serde_json::from_str(report).context("the report is not what it was")?;
    let mut failed = test_cases.unique_failures + test_cases.errored + u64::from(!complete);
    for name in PHASES {
        let status = phases.get(name).map_or("missing", |phase| phase.status.as_str());
        if status != "success" {
            terminal::error(&format!("phase {name}: {status}"));
            failed = failed.max(1);
        }
    }
    process::print_line(&format!(
        "{} requests to {} operations, {failed} complaints",
        test_cases.generated, operations.tested
    ));
    Ok(Totals { passed: operations.tested, failed, skipped: 0 })
}

fn until(what: &str, ready: impl Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    while !ready() {
        if Instant::now() > deadline {
            bail!("{what} within {}", terminal::time(LIMIT));
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// A program that does not outlive the test.
struct Running(Child);

impl Running {
    /// Asks it to end; it must do so, with status 0.
    fn stop(&mut self) -> Result<()> {
        let pid = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(status) = self.0.try_wait()? {
            bail!("it has ended before, with {status}");
        }
        rustix::process::kill_process(pid.context("a process has a number")?, rustix::process::Signal::TERM)?;
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            match self.0.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("it was asked to end, and ended with {status}"),
                None => thread::sleep(Duration::from_millis(20)),
            }
        }
        bail!("it did not end within {}", terminal::time(LIMIT))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn report(failures: u64, stateful: &str) -> String {
        format!(
            r#"{{"complete": true, "operations": {{"total": 3, "tested": 2}}, "failures": [],
            "phases": {{"examples": {{"status": "success"}}, "coverage": {{"status": "success"}},
                "fuzzing": {{"status": "success"}}, "stateful": {{"status": "{stateful}"}}}},
            "test_cases": {{"generated": 70, "unique_failures": {failures}, "errored": 0}}}}"#
        )
    }

    #[test]
    fn complaints_and_phases_that_did_not_run_are_failures() {
        let of = |text: &str| count(text).map(|totals| (totals.passed, totals.failed)).unwrap();
        assert_eq!(of(&report(0, "success")), (2, 0));
        assert_eq!(of(&report(3, "failure")), (2, 3));
        assert_eq!(of(&report(0, "skip")), (2, 1));
        assert!(count("{}").is_err());
    }
}
