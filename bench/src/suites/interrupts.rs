//! Many web servers on few processors, with and without what Denali changed for them.
//!
//! D4: batched, asynchronous interrupts beside immediate ones (Denali: up to +30 % at documents of 100 KB). The same servers under the same
//! load, once as they are, once launched with `--immediate`: each event then forces its guest out.
//!
//! D5: idling with a timeout beside spinning while a timer is set (Denali: 430 against 219 requests per second with 64 servers). Clients think between
//! requests, as people and SPECweb99's do. With clients that do not, a server that spins is always fed and needs no exits, while the
//! others wait for their turn: `64/at_once` shows it.

use anyhow::{Result, ensure};

use super::Session;
use crate::figure::Figure;
use crate::stats::Samples;
use crate::wrk;

/// What is fetched for D5.
const SMALL_DOCUMENT: &str = "/bytes/1000";
/// Numbers of guests.
const GUESTS: [usize; 3] = [1, 8, 64];
/// What is fetched.
const DOCUMENT: &str = "/bytes/100000";
/// Connections to each guest.
const CONNECTIONS: usize = 4;
/// Milliseconds between an answer and the client's next request in D5: SPECweb99's mean, as in SEDA's measurements.
const THINK: u32 = 20;
const PORT: u16 = 80;
/// Small guests: there are many of them.
const OPTIONS: [&str; 3] = ["--small-pages", "--memory", "4M"];

/// D4: requests per second over all guests.
///
/// # Errors
/// When a guest or a request fails.
pub fn batching(session: &mut Session) -> Result<()> {
    let what = Comparison {
        id: "D4",
        document: DOCUMENT,
        think: 0,
        other: "immediate interrupts",
        options: &["--immediate"],
    };
    GUESTS.iter().try_for_each(|guests| what.measure(session, *guests, &guests.to_string()))
}

/// D5: requests per second over all guests.
///
/// # Errors
/// When a guest or a request fails.
pub fn idling(session: &mut Session) -> Result<()> {
    let what = Comparison {
        id: "D5",
        document: SMALL_DOCUMENT,
        think: THINK,
        other: "spinning",
        options: &["--env", "SPIN=1"],
    };
    GUESTS.iter().try_for_each(|guests| what.measure(session, *guests, &guests.to_string()))?;
    Comparison { think: 0, ..what }.measure(session, 64, "64/at_once")
}

/// The same servers under the same load in two ways.
struct Comparison {
    id: &'static str,
    document: &'static str,
    think: u32,
    other: &'static str,
    /// What makes the other way.
    options: &'static [&'static str],
}

impl Comparison {
    fn measure(&self, session: &mut Session, guests: usize, key: &str) -> Result<()> {
        let (mut value, mut baseline) = (Samples::default(), Samples::default());
        for _ in 0..session.runs {
            value.push(self.throughput(session, guests, &[])?);
            baseline.push(self.throughput(session, guests, self.options)?);
        }
        (session.report)(&Figure::against(self.id, key.to_owned(), "1/s", &value, self.other, &baseline)?)
    }

    fn throughput(&self, session: &mut Session, guests: usize, more: &[&str]) -> Result<f64> {
        let artifacts = session.artifacts()?;
        let options = [&OPTIONS[..], more].concat();
        let (running, addresses) =
            artifacts.serve_many(&mut session.subnets, &options, "httpd", guests, PORT)?;
        let load = wrk::load_many(&addresses, PORT, self.document, CONNECTIONS, self.think, session.seconds)?;
        let (report, console) = running.stop()?;
        ensure!(report.ended_well(), "the first guest failed: {report:?}\n{console}");
        Ok(load.per_second)
    }
}
