//! What a request costs when it goes to one guest, and when it goes to one of ten thousand.
//!
//! One supervisor with ten cells; its guests become more and more, and after each step a crowd of clients asks them for a small document, by
//! Zipf's law. A request's cost is the processor time of all cells while the crowd asks, by the requests that were answered: the host's TCP
//! behind the TAP devices is in it, the clients' own time is not.
//!
//! Every guest is asked once before anything is counted, so that what each does only once (its first page faults, its first connection) is
//! not: what is left is whether an event costs more because there are many guests.

use std::time::Duration;

use anyhow::{Context, Result};

use super::Session;
use super::http::PORT;
use crate::crowd::{Crowd, Pace, Target};
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
/// Clients of the crowd.
const CLIENTS: usize = 256;
/// Most connections: more than there are guests, so that the cost of a request is not that of a connection.
const CONNECTIONS: usize = 16_000;
/// Clients while every guest is asked once.
const VISITORS: usize = 16;
const DOCUMENT: &str = "/bytes/100";
/// Before anything is counted.
const WARM_UP: Duration = Duration::from_millis(500);
/// Idle connections stay; with small pages a guest costs what it touches.
const GUEST: [&str; 7] =
    ["--small-pages", "--memory", "16M", "--env", "IDLE_SECONDS=3600", "--name", "httpd"];

/// What was measured at a step.
#[derive(Default)]
struct Step {
    /// Processor time of the cells, microseconds per request.
    cost: Samples,
    /// The same with the clients' own.
    whole: Samples,
    per_second: Samples,
    p99: Samples,
}

/// Measures everything of this ID.
///
/// # Errors
/// When a guest or a request fails.
pub fn run(session: &mut Session) -> Result<()> {
    let artifacts = session.artifacts()?;
    let image = artifacts.image("httpd")?.to_string_lossy().into_owned();
    let mut steps: [Step; GUESTS.len()] = Default::default();
    // Each is a storm of ten thousand guests.
    for _ in 0..session.runs.div_ceil(2) {
        // What guests may have is not what they use: ten thousand times sixteen MiB.
        let supervisor = Supervisor::start_with(&artifacts.vmm, CELLS, &["--memory", "200G"])?;
        let mut control = supervisor.control()?;
        let cells = control.cells()?;
        let mut there = 0;
        for (guests, step) in GUESTS.into_iter().zip(&mut steps) {
            let more = (guests - there).to_string();
            supervisor.ask(&[&["run", "--count", &more], &GUEST[..], &[&image]].concat())?;
            there = guests;
            let servers = control.addresses()?;
            netns::know_neighbours(&servers)?;
            let target = Target { servers: &servers, port: PORT, path: DOCUMENT, connections: CONNECTIONS };
            let mut crowd = Crowd::gather(target)?;
            crowd
                .visit_all(VISITORS)
                .with_context(|| format!("{guests} guests, the first request of each"))?;
            let pace = Pace::Closed(CLIENTS);
            crowd.run(pace, WARM_UP)?;
            let (before, own) =
                (processor::seconds_of_all(&cells)?, processor::seconds_of(std::process::id())?);
            let outcome = crowd.run(pace, session.duration()).with_context(|| format!("{guests} guests"))?;
            let used = processor::seconds_of_all(&cells)? - before;
            let own = processor::seconds_of(std::process::id())? - own;
            let each = |seconds: f64| seconds * 1e6 / outcome.requests as f64;
            step.cost.push(each(used));
            step.whole.push(each(used + own));
            step.per_second.push(outcome.per_second());
            step.p99.push(outcome.latency.quantile(0.99).context("no request")?);
        }
    }
    for (guests, step) in GUESTS.into_iter().zip(&steps) {
        let base = &steps[BASELINE];
        let report = |what: String, unit, value: &Samples, baseline: &Samples| {
            (session.report)(&Figure::against("scale", what, unit, value, "10 guests", baseline)?)
        };
        report(guests.to_string(), "us", &step.cost, &base.cost)?;
        report(format!("{guests}/with_clients"), "us", &step.whole, &base.whole)?;
        report(format!("{guests}/throughput"), "1/s", &step.per_second, &base.per_second)?;
        report(format!("{guests}/p99"), "ms", &step.p99, &base.p99)?;
    }
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
