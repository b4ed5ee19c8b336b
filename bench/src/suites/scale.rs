//! What a request costs when it goes to one guest, and when it goes to one of ten thousand.
//!
//! One supervisor with ten cells; its guests become more and more, and after each step a crowd of clients asks them for a small document, by
//! Zipf's law. A request's cost is the processor time of all cells while the crowd asks, by the requests that were answered: the host's TCP
//! behind the TAP devices is in it, the clients' own time is not.
//!
//! Requests come at a low rate, so that each finds its guest at rest, whoever it goes to: this is what the figure compares. The same under load, from
//! 256 clients without a pause, stands beside it (`loaded`): there ten guests find many requests at each wake-up and ten thousand find one, so that
//! the difference is that of batches, not that of numbers.
//!
//! Every guest is asked once before anything is counted, so that what each does only once (its first page faults, its first connection) is
//! not: what is left is whether an event costs more because there are many guests.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Session;
use super::http::PORT;
use crate::crowd::{Crowd, Outcome, Pace, Target};
use crate::figure::Figure;
use crate::netns;
use crate::plot::{Form, Plot, Scale};
use crate::processor;
use crate::stats::Samples;
use crate::supervisor::Supervisor;

/// Guests at each step.
const GUESTS: [usize; 5] = [1, 10, 100, 1000, 10_000];
/// The step that is the baseline of all.
const BASELINE: usize = 1;
const CELLS: usize = 10;
/// Requests per second while each is to find its guest at rest.
const RATE: u32 = 500;
/// Clients of the crowd under load.
const CLIENTS: usize = 256;
/// Most connections: more than there are guests, so that the cost of a request is not that of a connection.
const CONNECTIONS: usize = 16_000;
/// Clients while every guest is asked once.
const VISITORS: usize = 16;
const DOCUMENT: &str = "/bytes/100";
/// How long all guests rest.
const IDLE: Duration = Duration::from_secs(5);
/// How long the cells have for what is left to do, before anything is counted.
const SETTLE: Duration = Duration::from_secs(2);
/// Windows at each step in which requests come one by one; each is a sample.
const WINDOWS: usize = 5;
/// Before anything is counted.
const WARM_UP: Duration = Duration::from_millis(500);
/// Idle connections stay; with small pages a guest costs what it touches.
const GUEST: [&str; 7] =
    ["--small-pages", "--memory", "16M", "--env", "IDLE_SECONDS=3600", "--name", "httpd"];

/// What was measured at a step.
#[derive(Default)]
struct Step {
    /// Processor time of the cells when requests come one by one, microseconds per request.
    cost: Samples,
    /// The same with the clients' own.
    whole: Samples,
    p99: Samples,
    /// Processor time of the cells under load, microseconds per request.
    loaded: Samples,
    per_second: Samples,
}

/// Measures everything of this ID.
///
/// # Errors
/// When a guest or a request fails.
pub fn run(session: &mut Session) -> Result<()> {
    let (steps, idle) = measure(session)?;
    (session.report)(&Figure::absolute("scale", "idle", "%", &idle)?)?;
    report(session, "scale", &steps, &[("", "us", |s| &s.cost), ("/with_clients", "us", |s| &s.whole)])?;
    report(session, "scale", &steps, &[("/p99", "ms", |s| &s.p99), ("/loaded", "us", |s| &s.loaded)])?;
    let line = |pick: fn(&Step) -> &Samples| steps.iter().map(|step| pick(step).spread()).collect();
    session.plot("scale", || Plot {
        title: "What a request costs, by the number of guests that it may go to",
        across: "resident guests, asked by Zipf's law",
        upwards: "microseconds of processor time per request",
        form: Form::Lines,
        scale: Scale::Linear,
        places: GUESTS.map(|guests| guests.to_string()).to_vec(),
        series: vec![
            ("cells".to_owned(), line(|step| &step.cost)),
            ("cells and clients".to_owned(), line(|step| &step.whole)),
        ],
        mark: steps[BASELINE].cost.median().map(|base| (base * 1.15, "10 guests + 15 %".to_owned())),
    })
}

/// D7: throughput by the number of guests, as long as all are in memory (Denali, section 5.3: the first of two regimes).
///
/// # Errors
/// When a guest or a request fails.
pub fn throughput(session: &mut Session) -> Result<()> {
    let (steps, _) = measure(session)?;
    report(session, "D7", &steps, &[("", "1/s", |s| &s.per_second)])?;
    session.plot("D7", || Plot {
        title: "Requests per second, by the number of guests that they may go to",
        across: "resident guests, asked by Zipf's law",
        upwards: "requests per second",
        form: Form::Lines,
        scale: Scale::Linear,
        places: GUESTS.map(|guests| guests.to_string()).to_vec(),
        series: vec![("all in memory".to_owned(), steps.iter().map(|s| s.per_second.spread()).collect())],
        mark: None,
    })
}

/// What of a step a figure shows: what follows the number of guests in its name, its unit, and which samples.
type Shown = (&'static str, &'static str, fn(&Step) -> &Samples);

fn report(session: &Session, id: &str, steps: &[Step], shown: &[Shown]) -> Result<()> {
    for (guests, step) in GUESTS.into_iter().zip(steps) {
        for (suffix, unit, pick) in shown {
            let base = pick(&steps[BASELINE]);
            let what = format!("{guests}{suffix}");
            (session.report)(&Figure::against(id, what, unit, pick(step), "10 guests", base)?)?;
        }
    }
    Ok(())
}

/// Every step, and what all cells use of a processor while all guests of the last one rest, percent.
fn measure(session: &mut Session) -> Result<([Step; GUESTS.len()], Samples)> {
    let artifacts = session.artifacts()?;
    let image = artifacts.image("httpd")?.to_string_lossy().into_owned();
    let mut steps: [Step; GUESTS.len()] = Default::default();
    let mut idle = Samples::default();
    // Each is a storm of ten thousand guests.
    for _ in 0..session.runs.div_ceil(2) {
        // What guests may have is not what they use: ten thousand times sixteen MiB.
        let supervisor = Supervisor::start_with(&artifacts.vmm, CELLS, &["--memory", "200G"])?;
        let mut control = supervisor.control()?;
        let cells = control.cells()?;
        let mut there = 0;
        for (guests, step) in GUESTS.into_iter().zip(&mut steps) {
            let more = (guests - there).to_string();
            supervisor.ask(&[&["run", "-d", "--count", &more], &GUEST[..], &[&image]].concat())?;
            there = guests;
            let servers = control.addresses()?;
            netns::know_neighbours(&servers)?;
            let target = Target { servers: &servers, port: PORT, path: DOCUMENT, connections: CONNECTIONS };
            let mut crowd = Crowd::gather(target)?;
            crowd
                .visit_all(VISITORS)
                .with_context(|| format!("{guests} guests, the first request of each"))?;
            // What starts leave to be done, machines ahead of need among it, is done first.
            std::thread::sleep(SETTLE);
            let mut used = |pace: Pace| -> Result<(f64, f64, Outcome)> {
                crowd.run(pace, WARM_UP)?;
                // The clients' own time within that of the cells: looking at ten thousand threads takes time, too.
                let cells_before = processor::seconds_of_all(&cells)?;
                let own_before = processor::seconds_of(std::process::id())?;
                let outcome =
                    crowd.run(pace, session.duration()).with_context(|| format!("{guests} guests"))?;
                let own = processor::seconds_of(std::process::id())? - own_before;
                let all = processor::seconds_of_all(&cells)? - cells_before;
                let each = |seconds: f64| seconds * 1e6 / outcome.requests as f64;
                Ok((each(all), each(own), outcome))
            };
            for _ in 0..WINDOWS {
                let (cells_us, own_us, outcome) = used(Pace::Open(RATE))?;
                step.cost.push(cells_us);
                step.whole.push(cells_us + own_us);
                step.p99.push(outcome.latency.quantile(0.99).context("no request")?);
            }
            let (cells_us, _, outcome) = used(Pace::Closed(CLIENTS))?;
            step.loaded.push(cells_us);
            step.per_second.push(outcome.per_second());
        }
        std::thread::sleep(SETTLE);
        let (before, since) = (processor::seconds_of_all(&cells)?, Instant::now());
        std::thread::sleep(IDLE);
        let used = processor::seconds_of_all(&cells)? - before;
        idle.push(used / since.elapsed().as_secs_f64() * 100.0);
    }
    Ok((steps, idle))
}
