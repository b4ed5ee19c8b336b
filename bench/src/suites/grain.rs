//! A2: cores of different grain (Akaros: coarse ones of 100 ms, low-latency ones of 1 ms or less).
//!
//! An interactive guest answers echoes, one at a time, at a steady rate, while on each worker a batch guest computes without end. The grains
//! are what the VMM makes of how the guests behave (`--grain auto`). Beside it, all guests have one quantum (`--grain coarse`), as on a system that
//! knows one kind of core. What the batch guests got done stands beside the same guests without the interactive one.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Session;
use crate::echo;
use crate::figure::Figure;
use crate::plot::{Form, Plot, Scale};
use crate::process;
use crate::stats::Samples;

/// Between echoes.
const PERIOD: Duration = Duration::from_millis(5);
/// Echoes of this time are not counted: meanwhile the batch guests show what they are.
const WARM_UP: Duration = Duration::from_millis(250);
/// A TCP port of the interactive guest, to see that it is there.
const ALIVE: u16 = crate::bulk::SINK_PORT;

/// What a run measured: round trips of echoes, milliseconds; what the batch guests got done, rounds per second.
struct Outcome {
    trips: Samples,
    batch: f64,
}

/// Measures everything of this ID.
///
/// # Errors
/// When a guest fails.
pub fn run(session: &mut Session) -> Result<()> {
    let (mut auto, mut coarse) =
        ((Samples::default(), Samples::default()), (Samples::default(), Samples::default()));
    let (mut batch, mut alone) = (Samples::default(), Samples::default());
    for _ in 0..session.runs {
        for (grain, (median, p99)) in [("auto", &mut auto), ("coarse", &mut coarse)] {
            let outcome = mixed(session, grain, true, workers())?;
            median.push(outcome.trips.median().context("no echo came back")?);
            p99.push(outcome.trips.quantile(0.99).context("no echo came back")?);
            if grain == "auto" {
                batch.push(outcome.batch);
            }
        }
        alone.push(mixed(session, "auto", false, workers())?.batch);
    }
    let report = session.report;
    report(&Figure::against("A2", "wake_p99", "ms", &auto.1, "one coarse quantum", &coarse.1)?)?;
    report(&Figure::against("A2", "wake_median", "ms", &auto.0, "one coarse quantum", &coarse.0)?)?;
    report(&Figure::against("A2", "batch", "1/s", &batch, "batch guests alone", &alone)?)?;
    session.plot("A2", || Plot {
        title: "Echoes of an interactive guest beside one batch guest on each worker",
        across: "round trip of an echo",
        upwards: "milliseconds",
        form: Form::Bars,
        scale: Scale::Logarithmic,
        places: ["median", "99th percentile"].map(str::to_owned).to_vec(),
        series: vec![
            ("two grains".to_owned(), vec![auto.0.spread(), auto.1.spread()]),
            ("one coarse quantum".to_owned(), vec![coarse.0.spread(), coarse.1.spread()]),
        ],
        mark: Some((2.0, "promised for the 99th percentile".to_owned())),
    })
}

/// Round trips of echoes to a guest beside batch guests on every worker, or alone, milliseconds.
///
/// # Errors
/// When a guest fails.
pub(super) fn echoes(session: &mut Session, beside_others: bool) -> Result<Vec<f64>> {
    let workers = if beside_others { workers() } else { 0 };
    Ok(mixed(session, "auto", true, workers)?.trips.values().to_vec())
}

/// The same to a guest with the least share beside such with the greatest, and with a provision of half a processor.
///
/// # Errors
/// When a guest fails.
pub(super) fn echoes_of_the_least(session: &mut Session) -> Result<Vec<f64>> {
    let own = ["--cpu-shares", "1", "--provision-cpus", "0.5"];
    Ok(with_options(session, &own, &["--cpu-shares", "10000"], true, workers())?.trips.values().to_vec())
}

fn workers() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Batch guests, with an interactive one that is asked, or that only is there.
fn mixed(session: &mut Session, grain: &str, echoes: bool, batch: usize) -> Result<Outcome> {
    with_options(session, &["--grain", grain], &["--grain", grain], echoes, batch)
}

fn with_options(
    session: &mut Session,
    interactive: &[&str],
    others: &[&str],
    echoes: bool,
    batch: usize,
) -> Result<Outcome> {
    let artifacts = session.artifacts()?;
    let image = artifacts.image("probe")?.to_string_lossy().into_owned();
    let workers = workers();
    let names: Vec<_> = (0..batch).map(|n| format!("batch{n}")).collect();
    let count = workers.to_string();
    let mut guests = vec!["--workers", &count, "--net", "--name", "interactive"];
    guests.extend(interactive);
    guests.extend([&image, "net"]);
    for name in &names {
        guests.extend(["+", "--no-net", "--name", name]);
        guests.extend(others);
        guests.extend([&image, "compute"]);
    }
    let running = artifacts.serve_as_given(&mut session.subnets, &guests, ALIVE)?;
    let duration = session.duration() * 2;
    let mut trips = Samples::default();
    if echoes {
        let client = echo::Client::connect(running.address)?;
        // In a thread of its own, as whatever is started later would inherit its class.
        let asked = thread::scope(|scope| scope.spawn(|| ask(client, duration)).join());
        trips = asked.map_err(|_| anyhow::anyhow!("the client panicked"))??;
    } else {
        thread::sleep(duration);
    }
    let (report, console) = running.stop()?;
    ensure!(report.ended_well(), "the interactive guest failed: {report:?}\n{console}");
    let done = console
        .lines()
        .filter_map(|line| line.split_once("rounds_per_second ")?.1.trim().parse::<f64>().ok());
    let done: Vec<f64> = done.collect();
    ensure!(done.len() == batch, "not every batch guest said what it did:\n{console}");
    Ok(Outcome { trips, batch: done.iter().sum() })
}

/// Asks for echoes at a steady rate for so long. Returns the round trips, milliseconds.
fn ask(mut client: echo::Client, duration: Duration) -> Result<Samples> {
    process::as_from_elsewhere()?;
    let mut trips = Samples::default();
    let start = Instant::now();
    let mut due = start;
    while due.duration_since(start) < duration {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        // One at a time: a late answer makes the next request late, not two of them.
        let trip = client.echo_by_arrival(due + PERIOD)?;
        if due.duration_since(start) >= WARM_UP {
            trips.push(trip.as_secs_f64() * 1e3);
        }
        due += PERIOD;
    }
    Ok(trips)
}
