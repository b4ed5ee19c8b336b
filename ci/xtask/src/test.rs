//! `cargo xtask test`: everything that CI runs, as named stages. CI itself calls nothing else.

mod package;
mod schema;
mod stages;
mod suites;
mod template;
pub(crate) mod totals;

use std::{
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use clap::Args;

use crate::{
    process::{self, End},
    terminal::{self, Style},
    workspace::Workspace,
};
pub(crate) use stages::BUILD;
pub(crate) use suites::usable_kvm;
use totals::Totals;

#[derive(Args)]
pub(crate) struct Options {
    /// Only the stages that take seconds, for use while writing code
    #[arg(long)]
    quick: bool,
    /// Only this stage; may be given several times
    #[arg(long, value_name = "STAGE")]
    only: Vec<String>,
    /// Show the stages and end
    #[arg(long)]
    list: bool,
}

/// A stage.
struct Stage {
    name: &'static str,
    what: &'static str,
    /// Part of `--quick`.
    quick: bool,
    run: fn(&Context) -> Result<Totals>,
}

/// What a stage works with.
pub(crate) struct Context {
    pub(crate) workspace: Workspace,
}

/// How a stage went.
struct Report {
    name: &'static str,
    totals: Totals,
    time: Duration,
    error: Option<String>,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    if options.list {
        for stage in &stages::ALL {
            println!("{:<14} {}", stage.name, stage.what);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let stages = chosen(options)?;
    let context = Context { workspace: workspace.clone() };
    let started = Instant::now();
    let mut reports = Vec::new();
    for (number, stage) in (1..).zip(&stages) {
        let title = format!("[{number}/{}] {}: {}", stages.len(), stage.name, stage.what);
        process::print_line(&format!("\n{}", terminal::paint(Style::Accent, &title)));
        let report = run_stage(stage, &context);
        if let Some(error) = &report.error {
            terminal::error(&format!("{}: {error}", stage.name));
        }
        // Without its packages nearly every other stage would fail for a reason that has just been shown.
        let stop = report.error.is_some() && stage.name == stages::PACKAGES;
        reports.push(report);
        if stop {
            break;
        }
    }
    Ok(summary(&reports, started.elapsed()))
}

fn chosen(options: &Options) -> Result<Vec<&'static Stage>> {
    for name in &options.only {
        if !stages::ALL.iter().any(|s| s.name == name) {
            let names: Vec<_> = stages::ALL.iter().map(|s| s.name).collect();
            bail!("there is no stage `{name}`; there are: {}", names.join(", "));
        }
    }
    let wanted = |stage: &&Stage| {
        if options.only.is_empty() {
            !options.quick || stage.quick
        } else {
            options.only.iter().any(|n| n == stage.name)
        }
    };
    Ok(stages::ALL.iter().filter(wanted).collect())
}

fn run_stage(stage: &Stage, context: &Context) -> Report {
    let started = Instant::now();
    let (totals, error) = match (stage.run)(context) {
        Ok(totals) if totals.is_empty() => (Totals::one(false), Some("nothing ran".to_owned())),
        Ok(totals) if totals.failed > 0 => (totals, Some(format!("{} failed", totals.failed))),
        Ok(totals) => (totals, None),
        Err(error) => (Totals::one(false), Some(format!("{error:#}"))),
    };
    Report { name: stage.name, totals, time: started.elapsed(), error }
}

/// Prints the table and, last and plain, the totals.
fn summary(reports: &[Report], time: Duration) -> ExitCode {
    let mut sum = Totals::default();
    println!(
        "\n{}",
        terminal::paint(Style::Bold, "stage            result   passed  failed skipped        time")
    );
    for report in reports {
        sum += report.totals;
        let (style, word) = match (&report.error, report.totals) {
            (Some(_), _) => (Style::Bad, "FAILED"),
            (None, Totals { passed: 0, .. }) => (Style::Warn, "skipped"),
            (None, _) => (Style::Good, "ok"),
        };
        let Totals { passed, failed, skipped } = report.totals;
        let (word, time) = (terminal::paint(style, &format!("{word:<8}")), terminal::time(report.time));
        println!("{:<16} {word} {passed:>6}  {failed:>6}  {skipped:>6}  {time:>11}", report.name);
    }
    println!("{}", terminal::paint(Style::Dim, &format!("all stages: {}", terminal::time(time))));
    process::print_line(&sum.to_string());
    if sum.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl Context {
    /// Runs a program that either works or not.
    fn check(&self, command: &mut Command, limit: Duration) -> Result<Totals> {
        self.stream(command, limit, &mut |_| {})?;
        Ok(Totals::one(true))
    }

    /// Runs a program that reports tests. A failure that no test explains (it did not build, it crashed) counts as one.
    fn tests(&self, command: &mut Command, limit: Duration) -> Result<Totals> {
        let mut totals = Totals::default();
        let result = self.stream(command, limit, &mut |line| totals.take(line));
        finish(totals, result)
    }

    /// Shows the command and its output as it comes.
    pub(crate) fn stream(
        &self,
        command: &mut Command,
        limit: Duration,
        line: &mut dyn FnMut(&str),
    ) -> Result<()> {
        let shown = process::show(command);
        process::print_line(&terminal::paint(Style::Dim, &format!("$ {shown}")));
        // It writes into a pipe, but what it writes is shown.
        command.env("CARGO_TERM_COLOR", terminal::color_choice());
        let end = process::stream(command, limit, |text| {
            process::print_line(text);
            line(text);
            Ok(())
        })?;
        match end {
            End::Status(0) => Ok(()),
            End::Status(status) => bail!("`{shown}` ended with status {status}"),
            End::Timeout => bail!("`{shown}` did not end within {}", terminal::time(limit)),
            End::Interrupted => {
                terminal::error("interrupted");
                std::process::exit(130)
            }
        }
    }
}

/// Totals of a program that reported tests and then ended well or not.
fn finish(mut totals: Totals, result: Result<()>) -> Result<Totals> {
    if let Err(error) = result {
        terminal::error(&format!("{error:#}"));
        totals.failed = totals.failed.max(1);
    }
    Ok(totals)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context() -> Context {
        Context { workspace: Workspace::find().unwrap() }
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    const LIMIT: Duration = Duration::from_secs(20);

    #[test]
    fn a_crash_without_failed_tests_is_a_failure() {
        let script = "echo 'test result: ok. 2 passed; 0 failed; 0 ignored'; exit 101";
        let totals = context().tests(&mut shell(script), LIMIT).unwrap();
        assert_eq!(totals, Totals { passed: 2, failed: 1, skipped: 0 });
    }

    #[test]
    fn failed_tests_are_counted_once() {
        let script = "echo 'test result: FAILED. 2 passed; 3 failed; 0 ignored'; exit 101";
        let totals = context().tests(&mut shell(script), LIMIT).unwrap();
        assert_eq!(totals, Totals { passed: 2, failed: 3, skipped: 0 });
    }

    #[test]
    fn a_stage_in_which_nothing_ran_has_failed() {
        let stage = Stage { name: "x", what: "x", quick: false, run: |_| Ok(Totals::default()) };
        let report = run_stage(&stage, &context());
        assert_eq!(report.totals, Totals::one(false));
        assert_eq!(report.error.as_deref(), Some("nothing ran"));
    }

    #[test]
    fn stages_have_names_of_their_own_and_can_be_chosen() {
        let mut names: Vec<_> = stages::ALL.iter().map(|s| s.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), stages::ALL.len());
        let only = |name: &str| Options { quick: false, only: vec![name.to_owned()], list: false };
        assert_eq!(chosen(&only("fmt")).unwrap().len(), 1);
        assert!(chosen(&only("nonsense")).is_err());
        let quick = Options { quick: true, only: Vec::new(), list: false };
        assert!((3..stages::ALL.len()).contains(&chosen(&quick).unwrap().len()));
    }
}
