//! `cargo xtask fuzz`: fuzz targets, on the stock toolchain.
//!
//! The targets are ordinary programs with libFuzzer's `main`; what `cargo fuzz` adds on a stable compiler are the flags
//! below, so it is not needed. What is found stays in `tests/fuzz/artifacts`, and the program that found it runs on it
//! again when it is given the file's name.

use std::{
    fs,
    path::Path,
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    packages, process, terminal,
    test::{BUILD, Context, totals::Totals},
    workspace::{self, Executable, TARGET, Workspace},
};

/// Coverage for libFuzzer: a counter for each edge, the table of their places, and the operands of comparisons.
const FLAGS: [&str; 8] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
    "--cfg=fuzzing",
    "-Cdebug-assertions=on",
];

#[derive(Args)]
pub(crate) struct Options {
    /// Only this target
    target: Option<String>,
    /// How long each target runs
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    seconds: u64,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let context = Context { workspace: workspace.clone() };
    let totals = all(&context, options.target.as_deref(), options.seconds)?;
    println!("{totals}");
    Ok(if totals.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Builds the targets and runs them (or the one that is named) for so many seconds each.
pub(crate) fn all(context: &Context, only: Option<&str>, seconds: u64) -> Result<Totals> {
    packages::require(&[&packages::CXX])?;
    let workspace = &context.workspace;
    let folder = workspace.root.join("tests/fuzz");
    if !folder.join("Cargo.toml").is_file() {
        bail!("there is no tests/fuzz/Cargo.toml");
    }
    let mut command =
        workspace.cargo(&["build", "--release", "--bins", "--target", TARGET, "--manifest-path"]);
    command.arg(folder.join("Cargo.toml")).arg("--target-dir").arg(workspace.generated("fuzz"));
    // libFuzzer is C++ and linked dynamically: not the flags of the rest of the tree.
    command.env_remove("RUSTFLAGS").env("CARGO_ENCODED_RUSTFLAGS", workspace::encode_flags(&FLAGS));
    let targets = workspace.build(command)?;
    let names: Vec<&str> = targets.iter().map(|target| target.name.as_str()).collect();
    if let Some(missing) = only.filter(|only| !names.contains(only)) {
        bail!("there is no fuzz target `{missing}`; there are: {}", names.join(", "));
    }
    let mut totals = Totals::default();
    for target in targets.iter().filter(|target| only.is_none_or(|only| target.name == only)) {
        totals += one(context, &folder, target, seconds)?;
    }
    Ok(totals)
}

/// Runs a target on its seeds and on from there; the seeds themselves are left as they are.
fn one(context: &Context, folder: &Path, target: &Executable, seconds: u64) -> Result<Totals> {
    let name = &target.name;
    let seeds = folder.join("corpus").join(name);
    if !fs::read_dir(&seeds).is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("the fuzz target {name} has no seeds in tests/fuzz/corpus/{name}");
    }
    let (grown, artifacts) = (folder.join("corpus-run").join(name), folder.join("artifacts").join(name));
    for folder in [&grown, &artifacts] {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let mut command = Command::new(&target.path);
    command.arg(format!("-max_total_time={seconds}")).args([
        "-rss_limit_mb=2048",
        "-timeout=10",
        "-verbosity=0",
    ]);
    command.args(["-print_final_stats=1"]).arg(format!("-artifact_prefix={}/", artifacts.display()));
    command.arg(&grown).arg(&seeds);
    let mut runs = 0;
    // Reading the corpus comes first, and is not part of the time.
    let limit = BUILD + Duration::from_secs(seconds);
    let outcome = context.stream(&mut command, limit, &mut |line| {
        if let Some(number) = line.strip_prefix("stat::number_of_executed_units:") {
            runs = number.trim().parse().unwrap_or(0);
        }
    });
    match outcome {
        Ok(()) if runs > 0 => {
            process::print_line(&format!("{name}: {runs} runs"));
            Ok(Totals::one(true))
        }
        Ok(()) => {
            terminal::error(&format!("{name} reported no runs"));
            Ok(Totals::one(false))
        }
        Err(error) => {
            terminal::error(&format!("{name}: {error:#}; what it found is in {}", artifacts.display()));
            Ok(Totals::one(false))
        }
    }
}
