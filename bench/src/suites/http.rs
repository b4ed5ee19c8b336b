//! HTTP: requests per second of a guest beside the native server, by number of connections; the exits it took; and
//! 64 active connections beside 4,000 idle ones.
//!
//! Each run launches a guest of its own, so that the counters of its final report belong to this load alone; its
//! start and end add a few exits to them.

use std::net::SocketAddrV4;

use anyhow::{Context, Result, ensure};

use super::Session;
use crate::fetch::fetch;
use crate::figure::Figure;
use crate::guest::{GuestReport, Running};
use crate::idle_clients::IdleClients;
use crate::native_http::{Documents, Server};
use crate::netns::Namespace;
use crate::stats::Samples;
use crate::wrk::{self, Load};

/// Connections of the load.
pub const CONNECTIONS: [u32; 6] = [1, 16, 64, 256, 1000, 4000];
/// What is fetched.
pub const DOCUMENT: &str = "/bytes/100";
/// From how many connections on exits per request are reported.
const BUSY: u32 = 64;
/// Idle connections beside the active ones.
const IDLE: usize = 4000;
const IMAGE: &str = "httpd";
pub(super) const PORT: u16 = 80;

/// Measures everything of this ID.
///
/// # Errors
/// When a server, the network or the load fails, or a single request does.
pub fn run(session: &mut Session) -> Result<()> {
    let namespace = Namespace::new()?;
    let server = native_twin(session, &namespace, &[DOCUMENT.to_owned()])?;
    let mut worst: Option<Samples> = None;
    for connections in CONNECTIONS {
        let (mut value, mut baseline, mut exits) =
            (Samples::default(), Samples::default(), Samples::default());
        for turn in 0..session.runs {
            let guest = launch(session)?;
            let (load, report) = load(guest, DOCUMENT, connections, session.seconds)?;
            value.push(load.per_second);
            exits.push(report.counter("exits")? as f64 / load.requests as f64);
            let native = wrk::load(&server.url(turn, DOCUMENT), connections, session.seconds)?;
            baseline.push(native.per_second);
        }
        let what = connections.to_string();
        (session.report)(&Figure::against("http", what, "1/s", &value, "native epoll", &baseline)?)?;
        if connections >= BUSY {
            let what = format!("exits_per_request/{connections}");
            (session.report)(&Figure::absolute("http", what, "exits", &exits)?)?;
            if worst.as_ref().is_none_or(|w| w.median() < exits.median()) {
                worst = Some(exits);
            }
        }
    }
    let worst = worst.context("no load was busy")?;
    (session.report)(&Figure::absolute("http", "exits_per_request", "exits", &worst)?)?;
    drop(server);
    idle(session)
}

/// Launches the web server.
pub(super) fn launch(session: &mut Session) -> Result<Running> {
    session.artifacts()?.serve(&mut session.subnets, &[], IMAGE, &[], PORT)
}

/// Loads a guest and stops it.
///
/// # Errors
/// When a request fails, or the guest does not end well: then with what it said.
pub(super) fn load(
    guest: Running,
    path: &str,
    connections: u32,
    seconds: u32,
) -> Result<(Load, GuestReport)> {
    let load = wrk::load(&format!("http://{}{path}", guest.address), connections, seconds);
    let (report, console) = guest.stop()?;
    let load = load.with_context(|| format!("the guest: {report:?}\n{console}"))?;
    ensure!(report.ended_well(), "the guest failed: {report:?}\n{console}");
    Ok((load, report))
}

/// A native server with the same documents as the guest's, byte for byte, header included.
pub(super) fn native_twin(session: &mut Session, namespace: &Namespace, paths: &[String]) -> Result<Server> {
    let guest = launch(session)?;
    let mut documents = Documents::default();
    for path in paths {
        documents.add(path, fetch(SocketAddrV4::new(guest.address, PORT), path)?);
    }
    guest.stop()?;
    Server::start(namespace, documents)
}

/// The same guest alone is the baseline.
fn idle(session: &mut Session) -> Result<()> {
    let (mut value, mut baseline) = (Samples::default(), Samples::default());
    for _ in 0..session.runs {
        let guest = launch(session)?;
        let clients = IdleClients::connect(SocketAddrV4::new(guest.address, PORT), DOCUMENT, IDLE);
        let Ok(clients) = clients else {
            let (report, console) = guest.stop()?;
            return clients.map(drop).with_context(|| format!("the guest: {report:?}\n{console}"));
        };
        let address = guest.address;
        let held = wrk::load(&format!("http://{address}{DOCUMENT}"), BUSY, session.seconds)?;
        clients.check()?;
        drop(clients);
        let (report, console) = guest.stop()?;
        ensure!(report.ended_well(), "the guest failed: {report:?}\n{console}");
        value.push(held.per_second);
        baseline.push(load(launch(session)?, DOCUMENT, BUSY, session.seconds)?.0.per_second);
    }
    (session.report)(&Figure::against("http", "idle_4000", "1/s", &value, "64 alone", &baseline)?)
}
