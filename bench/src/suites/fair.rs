//! A quiet web server beside one greedy guest in the same cell, on one worker, with equal shares.
//!
//! The quiet one is asked at a steady rate for which much less than half of the worker is enough. What it should lose to its neighbour is
//! nothing, whatever the neighbour does without end: compute, make hypercalls, send frames to the gateway (the limit of frames that its image asks for
//! is lifted), write to its console (whose limit stays; nobody reads it, as a reader would take processor time from the clients). Its baseline is the same quiet guest alone.

use anyhow::{Context, Result};

use super::Session;
use super::http::PORT;
use crate::crowd::{Crowd, Outcome, Pace, Target};
use crate::figure::Figure;
use crate::plot::{Form, Plot, Scale};
use crate::stats::Samples;

/// What the neighbour does: the name of the figure, and of the case of the guest `hostile`.
const GREEDY: [(&str, &str); 4] = [
    ("cpu", "endless-loop"),
    ("exits", "endless-nop"),
    ("packets", "flood-gateway"),
    ("console", "console-flood"),
];
/// Requests per second.
const RATE: u32 = 1000;
const CONNECTIONS: usize = 64;
const DOCUMENT: &str = "/bytes/100";
const QUIET: [&str; 6] = ["--net", "--name", "quiet", "--small-pages", "--memory", "16M"];

#[derive(Default)]
struct Side {
    per_second: Samples,
    p99: Samples,
}

impl Side {
    fn push(&mut self, outcome: &Outcome) -> Result<()> {
        self.per_second.push(outcome.per_second());
        self.p99.push(outcome.latency.quantile(0.99).context("no request")?);
        Ok(())
    }
}

/// Measures everything of this ID.
///
/// # Errors
/// When the quiet guest or a request of it fails.
pub fn run(session: &mut Session) -> Result<()> {
    let mut all = Vec::new();
    for (what, case) in GREEDY {
        let (mut value, mut baseline) = (Side::default(), Side::default());
        for _ in 0..session.runs {
            value.push(&quiet(session, Some(case)).with_context(|| case)?)?;
            baseline.push(&quiet(session, None)?)?;
        }
        let report = session.report;
        report(&Figure::against("fair", what, "1/s", &value.per_second, "alone", &baseline.per_second)?)?;
        report(&Figure::against("fair", format!("{what}/p99"), "ms", &value.p99, "alone", &baseline.p99)?)?;
        all.push((value, baseline));
    }
    session.plot("fair", || Plot {
        title: "A quiet web server beside a greedy guest on the same worker",
        across: "what the greedy guest does without end",
        upwards: "99th percentile of the quiet one's latency, ms",
        form: Form::Bars,
        scale: Scale::Logarithmic,
        places: GREEDY.map(|(what, _)| what.to_owned()).to_vec(),
        series: vec![
            ("beside it".to_owned(), all.iter().map(|(value, _)| value.p99.spread()).collect()),
            ("alone".to_owned(), all.iter().map(|(_, alone)| alone.p99.spread()).collect()),
        ],
        mark: None,
    })
}

/// Asks a quiet guest, alone or beside one that does `greedy`.
fn quiet(session: &mut Session, greedy: Option<&str>) -> Result<Outcome> {
    let artifacts = session.artifacts()?;
    let (quiet, hostile) = (artifacts.image("httpd")?, artifacts.image("hostile")?);
    let (quiet, hostile) = (quiet.to_string_lossy(), hostile.to_string_lossy());
    let mut guests = [&["--workers", "1"], &QUIET[..], &[&quiet]].concat();
    if let Some(case) = greedy {
        guests.extend(["+", "--name", "greedy", "--tx-packets", "1000000000", &hostile, case]);
    }
    let running = artifacts.serve_unheard(&mut session.subnets, &guests, PORT)?;
    let servers = [running.address];
    let target = Target { servers: &servers, port: PORT, path: DOCUMENT, connections: CONNECTIONS };
    let mut crowd = Crowd::gather(target)?;
    crowd.run(Pace::Open(RATE), session.duration() / 4)?;
    let outcome = crowd.run(Pace::Open(RATE), session.duration())?;
    drop(crowd);
    running.end()?;
    Ok(outcome)
}
