//! The control API of a supervisor that holds ten thousand guests.
//!
//! - `requests`: answers per second to two clients, each with a connection of its own, that ask for one guest at a time without a pause.
//! - `list`: `GET /guests` of all, from the request to the last byte, taken apart by nobody.
//! - `guests_p99`: the 99th percentile of guests' answers while a client asks the API 500 times a second and lists all guests once a second, beside the same
//!   without; windows with and without alternate.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Session;
use super::http::PORT;
use crate::control::Control;
use crate::crowd::{Crowd, Pace, Target};
use crate::figure::Figure;
use crate::netns;
use crate::stats::Samples;
use crate::supervisor::Supervisor;

const GUESTS: usize = 10_000;
const CELLS: usize = 10;
const CLIENTS: usize = 2;
/// Lists, and what passes between two.
const LISTS: usize = 20;
const PAUSE: Duration = Duration::from_millis(20);
/// Requests per second to guests.
const RATE: u32 = 500;
/// Between two requests to the API beside them, and of which each is a list.
const BESIDE: Duration = Duration::from_millis(2);
const LIST_EACH: u32 = 500;
/// Windows of each kind in each run.
const WINDOWS: usize = 5;
const CONNECTIONS: usize = 16_000;
const VISITORS: usize = 16;
const DOCUMENT: &str = "/bytes/100";
const GUEST: [&str; 7] =
    ["--small-pages", "--memory", "16M", "--env", "IDLE_SECONDS=3600", "--name", "httpd"];

/// Measures everything of this ID.
///
/// # Errors
/// When a guest or a request fails.
pub fn run(session: &mut Session) -> Result<()> {
    let artifacts = session.artifacts()?;
    let image = artifacts.image("httpd")?.to_string_lossy().into_owned();
    let supervisor = Supervisor::start_with(&artifacts.vmm, CELLS, &["--memory", "200G"])?;
    supervisor.ask(&[&["run", "-d", "--count", &GUESTS.to_string()], &GUEST[..], &[&image]].concat())?;
    let mut control = supervisor.control()?;
    let mut requests = Samples::default();
    for _ in 0..session.runs {
        requests.push(ask_without_a_pause(&supervisor, session.duration())?);
    }
    (session.report)(&Figure::absolute("api", "requests", "1/s", &requests)?)?;
    let mut lists = Samples::default();
    for _ in 0..LISTS {
        let since = Instant::now();
        control.list()?;
        lists.push(since.elapsed().as_secs_f64() * 1e3);
        std::thread::sleep(PAUSE);
    }
    (session.report)(&Figure::absolute("api", "list", "ms", &lists)?)?;
    let servers = control.addresses()?;
    netns::know_neighbours(&servers)?;
    let target = Target { servers: &servers, port: PORT, path: DOCUMENT, connections: CONNECTIONS };
    let mut crowd = Crowd::gather(target)?;
    crowd.visit_all(VISITORS)?;
    let (mut with, mut without) = (Samples::default(), Samples::default());
    for _ in 0..WINDOWS * session.runs {
        for (asked, samples) in [(false, &mut without), (true, &mut with)] {
            let over = AtomicBool::new(!asked);
            let window = std::thread::scope(|scope| {
                let beside = scope.spawn(|| ask_beside(&supervisor, &over));
                let outcome = crowd.run(Pace::Open(RATE), session.duration());
                over.store(true, Ordering::Relaxed);
                beside.join().map_err(|_| anyhow::anyhow!("the client beside failed"))??;
                outcome
            })?;
            samples.push(window.latency.quantile(0.99).context("no request")?);
        }
    }
    (session.report)(&Figure::against("api", "guests_p99", "ms", &with, "nobody asks", &without)?)
}

/// Answers per second to clients that ask for one guest after another.
fn ask_without_a_pause(supervisor: &Supervisor, duration: Duration) -> Result<f64> {
    let since = Instant::now();
    let ask = |first: usize| -> Result<u64> {
        let mut control = supervisor.control()?;
        let mut answers = 0;
        while since.elapsed() < duration {
            control.line(1 + (first as u64 + answers * 7) % GUESTS as u64)?;
            answers += 1;
        }
        Ok(answers)
    };
    let answers: Result<Vec<u64>> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|n| scope.spawn(move || ask(n))).collect();
        let joined = clients.into_iter().map(|c| c.join().map_err(|_| anyhow::anyhow!("a client failed"))?);
        joined.collect()
    });
    Ok(answers?.iter().sum::<u64>() as f64 / since.elapsed().as_secs_f64())
}

/// Asks at a moderate pace until it is over.
fn ask_beside(supervisor: &Supervisor, over: &AtomicBool) -> Result<()> {
    let mut control = supervisor.control()?;
    let mut number = 0;
    while !over.load(Ordering::Relaxed) {
        number += 1;
        if number % LIST_EACH == 0 {
            control.list()?;
        } else {
            control.line(1 + u64::from(number) % GUESTS as u64)?;
        }
        std::thread::sleep(BESIDE);
    }
    Ok(())
}

/// What is asked here beside what all benchmarks ask.
impl Control {
    /// The line of a list for one guest.
    fn line(&mut self, id: u64) -> Result<()> {
        self.bytes(&format!("/guests?after={}&limit=1", id - 1)).map(drop)
    }

    /// All guests, as bytes.
    fn list(&mut self) -> Result<()> {
        self.bytes("/guests").map(drop)
    }
}
