//! `bench`: runs benchmarks and prints their figures. See the library's documentation for the method.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use foraker_bench::figure::{self, Figure};
use foraker_bench::guest::Artifacts;
use foraker_bench::memory::{self, Kind};
use foraker_bench::netns::{self, GuestSubnets};
use foraker_bench::suites::{SUITES, Session, Suite};
use foraker_bench::wrk;

/// Measures Foraker beside its baselines, in one run of this program.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// What to measure: IDs of `--list`, or `all`.
    #[arg(value_name = "ID", required_unless_present = "list")]
    ids: Vec<String>,
    /// Print one JSON object for each figure instead of a table.
    #[arg(long)]
    json: bool,
    /// Fewer and shorter runs: to see that it works, not to quote.
    #[arg(long)]
    quick: bool,
    /// Runs of each side.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    runs: Option<u16>,
    /// Use the command and the images as they are, without building them first.
    #[arg(long)]
    no_build: bool,
    /// Folder of the images, if not the one that `cargo xtask images` writes to.
    #[arg(long, value_name = "FOLDER", requires = "no_build")]
    images: Option<PathBuf>,
    /// Folder for plots (SVG) of the benchmarks that have one.
    #[arg(long, value_name = "FOLDER")]
    plots: Option<PathBuf>,
    /// Print what there is.
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.as_slice() {
        [first] if first == memory::CHILD => memory::child(Kind::Floor),
        [first, image] if first == memory::CHILD => memory::child(Kind::Cell(Path::new(image))),
        _ => run(&Options::parse()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    if options.list {
        for suite in SUITES {
            println!("{:<12} {}", suite.id, suite.about);
        }
        return Ok(());
    }
    let suites = chosen(&options.ids)?;
    let artifacts = suites
        .iter()
        .any(|s| s.guests)
        .then(|| Artifacts::find(!options.no_build, options.images.clone()))
        .transpose()?;
    if suites.iter().any(|s| s.network) {
        wrk::ensure_installed()?;
        netns::isolate()?;
    }
    let runs = options.runs.map_or(if options.quick { 3 } else { 5 }, usize::from);
    let mut session = Session {
        runs,
        seconds: if options.quick { 1 } else { 2 },
        artifacts,
        subnets: GuestSubnets::default(),
        report: if options.json { print_json } else { print_line },
        plots: options.plots.clone(),
    };
    if !options.json {
        println!("{}", figure::header());
    }
    for suite in suites {
        (suite.run)(&mut session).with_context(|| suite.id)?;
    }
    Ok(())
}

fn chosen(ids: &[String]) -> Result<Vec<&'static Suite>> {
    let mut suites: Vec<&Suite> = Vec::new();
    for id in ids {
        let before = suites.len();
        suites.extend(
            SUITES.iter().filter(|s| if id == "all" { s.guests } else { s.id.eq_ignore_ascii_case(id) }),
        );
        ensure!(suites.len() > before, "there is no benchmark `{id}`; see --list");
    }
    Ok(suites)
}

fn print_json(figure: &Figure) -> Result<()> {
    print(&figure.json()?)
}

fn print_line(figure: &Figure) -> Result<()> {
    print(&figure.line())
}

/// At once, also into a pipe: a later failure takes no figure away.
fn print(line: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush().context("cannot print")
}
