//! Many web servers on few processors, with and without what Denali changed for them.
//!
//! D4: batched, asynchronous interrupts beside immediate ones (Denali: up to +30 % at documents of 100 KB). The same servers under the same
//! load, once as they are, once launched with `--immediate`: each event then forces its guest out.
//!
//! D5: idling with a timeout beside spinning while a timer is set (Denali: 430 against 219 requests per second with 64 servers).

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
const CONNECTIONS: usize = 2;
const PORT: u16 = 80;
/// Small guests: there are many of them.
const OPTIONS: [&str; 3] = ["--small-pages", "--memory", "4M"];

/// D4: requests per second over all guests.
///
/// # Errors
/// When a guest or a request fails.
pub fn batching(session: &mut Session) -> Result<()> {
    compare(session, "D4", DOCUMENT, "immediate interrupts", &["--immediate"])
}

/// D5: requests per second over all guests.
///
/// # Errors
/// When a guest or a request fails.
pub fn idling(session: &mut Session) -> Result<()> {
    compare(session, "D5", SMALL_DOCUMENT, "spinning", &["--env", "SPIN=1"])
}

fn compare(
    session: &mut Session,
    id: &'static str,
    document: &str,
    other: &'static str,
    options: &[&str],
) -> Result<()> {
    for guests in GUESTS {
        let (mut value, mut baseline) = (Samples::default(), Samples::default());
        for _ in 0..session.runs {
            value.push(throughput(session, document, guests, &[])?);
            baseline.push(throughput(session, document, guests, options)?);
        }
        (session.report)(&Figure::against(id, guests.to_string(), "1/s", &value, other, &baseline)?)?;
    }
    Ok(())
}

fn throughput(session: &mut Session, document: &str, guests: usize, more: &[&str]) -> Result<f64> {
    let artifacts = session.artifacts()?;
    let options = [&OPTIONS[..], more].concat();
    let (running, addresses) = artifacts.serve_many(&mut session.subnets, &options, "httpd", guests, PORT)?;
    let load = wrk::load_many(&addresses, PORT, document, CONNECTIONS, session.seconds)?;
    let (report, console) = running.stop()?;
    ensure!(report.ended_well(), "the first guest failed: {report:?}\n{console}");
    Ok(load.per_second)
}
