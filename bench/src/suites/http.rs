//! HTTP: requests per second of a guest beside the native server, by number of connections; the exits it took; and
//! 64 active connections beside 4,000 idle ones.
//!
//! Each run launches a guest of its own, so that the counters of its final report belong to this load alone; its
//! start and end add a few exits to them.

use std::net::SocketAddrV4;

use anyhow::{Context, Result};

use super::Session;
use crate::fetch::fetch;
use crate::figure::Figure;
use crate::guest::Running;
use crate::idle_clients::IdleClients;
use crate::native_http::{Documents, Server};
use crate::netns::Namespace;
use crate::stats::Samples;
use crate::wrk;

/// Connections of the load.
pub const CONNECTIONS: [u32; 6] = [1, 16, 64, 256, 1000, 4000];
/// What is fetched.
pub const DOCUMENT: &str = "/bytes/100";
/// From how many connections on exits per request are reported.
const BUSY: u32 = 64;
/// Idle connections beside the active ones.
const IDLE: usize = 4000;
const IMAGE: &str = "httpd";
const PORT: u16 = 80;

/// Measures everything of this ID.
///
/// # Errors
/// When a server, the network or the load fails, or a single request does.
pub fn run(session: &mut Session) -> Result<()> {
    wrk::ensure_installed()?;
    let namespace = Namespace::new()?;
    let server = native_twin(session, &namespace, &[DOCUMENT.to_owned()])?;
    let mut worst: Option<Samples> = None;
    for connections in CONNECTIONS {
        let (mut value, mut baseline, mut exits) =
            (Samples::default(), Samples::default(), Samples::default());
        for turn in 0..session.runs {
            let guest = launch(session)?;
            let load = wrk::load(&url(&guest, DOCUMENT), connections, session.seconds)?;
            let (report, _) = guest.stop()?;
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

/// Address of a path of the guest's.
pub(super) fn url(guest: &Running, path: &str) -> String {
    format!("http://{}{path}", guest.address)
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
        let clients = IdleClients::connect(SocketAddrV4::new(guest.address, PORT), DOCUMENT, IDLE)?;
        value.push(wrk::load(&url(&guest, DOCUMENT), BUSY, session.seconds)?.per_second);
        clients.check()?;
        drop(clients);
        guest.stop()?;
        let guest = launch(session)?;
        baseline.push(wrk::load(&url(&guest, DOCUMENT), BUSY, session.seconds)?.per_second);
        guest.stop()?;
    }
    (session.report)(&Figure::against("http", "idle_4000", "1/s", &value, "64 alone", &baseline)?)
}
