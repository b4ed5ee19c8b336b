//! A1: what is provisioned for somebody, and lent to others meanwhile, comes back when it is asked for (Rhoden, Klues, Zhu, Brewer: *Improving per-node
//! efficiency in the datacenter with new OS abstractions*, SoCC 2011).
//!
//! `memory`: an owner's memory is lent, all of it, to guests of another. It asks for a guest: one of the others is ended, its memory is dropped, and the
//! new one runs its first instruction. The time from the request, inside the daemon, to that moment is more than the grant alone. Beside it, the same
//! start while the memory is free.
//!
//! `guest_memory`: a guest has given back what it was provisioned, and guests of others run in it. It asks for all: they are ended, their memory is dropped, and
//! the guest hears of it and goes on. The time from its hypercall to that moment, on its own clock. Beside it, the same while nobody else is there.
//!
//! `guest_core`: as `core`, but the guest has the least share there is and the others the greatest, and a provision of its own. Beside it, equal shares.
//!
//! `core`: a guest rests, and its part of the processors is lent to guests that compute without end, one on each worker. A request reaches it: the time
//! to its answer, on the client's side, is more than the grant alone. Beside it, the same with nobody else there.

use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use foraker_api::{GuestSpec, NetworkOptions, State};

use super::{Session, grain};
use crate::control::Control;
use crate::fetch::fetch;
use crate::figure::Figure;
use crate::stats::Samples;
use crate::supervisor::Supervisor;

/// Grants in each run.
const GRANTS: usize = 20;
/// Of them, the first are not counted: they start from the image, not from a template.
const WARM_UP: usize = 3;
/// Guests that fill the host.
const LENT: usize = 4;
/// What the supervisor counts for each, and what of that is not its own memory, MiB and KiB.
const EACH: u64 = 16;
const OVERHEAD: u64 = 640;
const PATIENCE: Duration = Duration::from_secs(10);

/// Measures everything of this ID.
///
/// # Errors
/// When a guest fails, or nothing is granted.
pub fn run(session: &mut Session) -> Result<()> {
    memory(session)?;
    core(session)?;
    guest_memory(session)?;
    guest_core(session)
}

fn memory(session: &mut Session) -> Result<()> {
    let artifacts = session.artifacts()?;
    let budget = format!("{}M", EACH * LENT as u64);
    let supervisor = Supervisor::start_with(&artifacts.vmm, 1, &["--memory", &budget])?;
    supervisor.ask(&["owner", "set", "lender", "--provision-memory", &budget])?;
    let mut control = supervisor.control()?;
    let image = control.image(&artifacts.image("httpd")?)?;
    let guest = |owner: &str| GuestSpec {
        owner: owner.to_owned(),
        memory: Some((EACH << 20) - (OVERHEAD << 10)),
        large_pages: Some(false),
        network: NetworkOptions { enabled: Some(true), ..NetworkOptions::default() },
        ..GuestSpec::of(&image)
    };
    let (lender, borrower) = (guest("lender"), guest("borrower"));
    let (mut lent, mut free) = (Samples::default(), Samples::default());
    for turn in 0..WARM_UP + GRANTS * session.runs {
        let counts = turn >= WARM_UP;
        // First with free memory, then with all of it lent.
        let alone = grant(&mut control, &lender)?;
        let borrowed: Vec<u64> = (0..LENT).map(|_| Ok(control.run(&borrower)?.0)).collect::<Result<_>>()?;
        let contested = grant(&mut control, &lender)?;
        let ended = borrowed.iter().map(|id| control.guest(*id)).collect::<Result<Vec<_>>>()?;
        let given_back = ended
            .iter()
            .filter(|g| g.reason.as_ref().is_some_and(|why| why.contains("asked for it back")))
            .count();
        ensure!(given_back == 1, "{given_back} guests were asked to give back what they had");
        for id in borrowed {
            end(&mut control, id)?;
        }
        if counts {
            free.push(alone);
            lent.push(contested);
        }
    }
    (session.report)(&Figure::against("A1", "memory", "ms", &lent, "free memory", &free)?)?;
    (session.report)(&Figure::tail("A1", "memory/p99", "ms", &lent)?)
}

/// Starts a guest and ends it. Returns the time from the request to its first instruction, milliseconds.
fn grant(control: &mut Control, guest: &GuestSpec) -> Result<f64> {
    let (id, address) = control.run(guest)?;
    // What was granted is real, and its first instruction has run.
    fetch(SocketAddrV4::new(address, super::http::PORT), "/bytes/100")?;
    let us = end(control, id)?.context("nobody knows when the guest ran first")?;
    Ok(us as f64 / 1e3)
}

/// Ends a guest and waits until it has. Returns how long its start took, microseconds.
fn end(control: &mut Control, id: u64) -> Result<Option<u64>> {
    control.kill(id)?;
    let since = Instant::now();
    loop {
        let guest = control.guest(id)?;
        if ![State::Starting, State::Running].contains(&guest.state) {
            return Ok(guest.start_us);
        }
        ensure!(since.elapsed() < PATIENCE, "a guest does not end");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn core(session: &mut Session) -> Result<()> {
    let (mut lent, mut free) = (Samples::default(), Samples::default());
    for _ in 0..session.runs {
        lent.extend(grain::echoes(session, true)?);
        free.extend(grain::echoes(session, false)?);
    }
    (session.report)(&Figure::against("A1", "core", "ms", &lent, "no other guest", &free)?)?;
    (session.report)(&Figure::tail("A1", "core/p99", "ms", &lent)?)
}

fn guest_memory(session: &mut Session) -> Result<()> {
    let (mut lent, mut free) = (Samples::default(), Samples::default());
    for _ in 0..session.runs {
        lent.extend(answers(session, true)?);
        free.extend(answers(session, false)?);
    }
    (session.report)(&Figure::against("A1", "guest_memory", "ms", &lent, "free memory", &free)?)?;
    (session.report)(&Figure::tail("A1", "guest_memory/p99", "ms", &lent)?)
}

/// How long a guest waited for its memory each time, milliseconds; others have it when it asks, or nobody.
fn answers(session: &mut Session, lent: bool) -> Result<Vec<f64>> {
    const WORDS: &str = "granted after ";
    let artifacts = session.artifacts()?;
    let image = artifacts.image("probe")?.to_string_lossy().into_owned();
    let budget = format!("{}M", EACH + 2);
    let supervisor = Supervisor::start_with(&artifacts.vmm, 1, &["--memory", &budget])?;
    let guest = ["run", "-d", "--no-net", "--small-pages", "--memory"];
    let lender = ["16M", "--provision-memory", "16M", "--name", "lender", &image, "lend", "50"];
    supervisor.ask(&[&guest[..], &lender].concat())?;
    if lent {
        // Two have room in what it gives back.
        let borrower = ["6M", "--no-wait", "--count", "2", "--restart", "always", &image, "idle"];
        supervisor.ask(&[&guest[..], &borrower].concat())?;
    }
    supervisor.wait("the guest does not get its memory", || {
        supervisor.heard("lender", WORDS).is_ok_and(|lines| lines.len() >= WARM_UP + GRANTS)
    })?;
    let guests = supervisor.control()?.guests()?;
    let back = guests.iter().filter(|g| g.name != "lender").map(|g| g.restarts).min();
    ensure!(!lent || back.is_some_and(|n| n as usize + 2 >= GRANTS), "memory was seldom lent: {back:?}");
    let after = |line: &String| line.split_once(WORDS)?.1.split(' ').next()?.parse::<f64>().ok();
    let times: Vec<f64> = supervisor
        .heard("lender", WORDS)?
        .iter()
        .skip(WARM_UP)
        .filter_map(after)
        .map(|us| us / 1e3)
        .collect();
    ensure!(times.len() >= GRANTS, "the guest does not say how long it waited");
    Ok(times)
}

fn guest_core(session: &mut Session) -> Result<()> {
    let (mut promised, mut equal) = (Samples::default(), Samples::default());
    for _ in 0..session.runs {
        promised.extend(grain::echoes_of_the_least(session)?);
        equal.extend(grain::echoes(session, true)?);
    }
    (session.report)(&Figure::against("A1", "guest_core", "ms", &promised, "equal shares", &equal)?)?;
    (session.report)(&Figure::tail("A1", "guest_core/p99", "ms", &promised)?)
}
