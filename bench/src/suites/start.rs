//! The start of one guest under `vmm serve`: from where another one like it was ready, beside the same from its image.
//!
//! `first_instruction` is what the supervisor says of the guest (`start_us`): from the request, inside the daemon, to the moment before the
//! guest's machine is entered for the first time. `first_reply` is what a client sees: from before it sends the request to the last byte of the guest's
//! first answer; it connects as soon as the supervisor tells it the address.
//!
//! `warm_reply` is the answer of a guest that has lost its machine to others while it rested, on a new connection; beside it, the same where all have
//! machines.
//!
//! Those from the image have a variable of their own in their environment, so that no template suits them; each is captured when it is
//! ready, as any first one of its kind is.

use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use foraker_api::{GuestSpec, NetworkOptions, State};

use super::Session;
use crate::control::Control;
use crate::fetch::fetch;
use crate::figure::Figure;
use crate::guest::Artifacts;
use crate::plot::{Form, Plot, Scale};
use crate::stats::Samples;
use crate::supervisor::Supervisor;

/// Starts of each kind in each run.
const STARTS: usize = 100;
/// Of each kind that are not counted: the first one is the template, and a cell's first machines are made for it.
const WARM_UP: usize = 20;
const MEMORY: u64 = 16 << 20;
/// Guests that are asked in turn, and machines for them when most are to be warm.
const GUESTS: usize = 64;
const MACHINES: usize = 16;
/// Before each is asked.
const REST: Duration = Duration::from_millis(5);
const DOCUMENT: &str = "/bytes/100";
const PATIENCE: Duration = Duration::from_secs(5);

/// What one way of starting took, milliseconds.
#[derive(Default)]
struct Times {
    instruction: Samples,
    reply: Samples,
}

/// Measures everything of this ID.
///
/// # Errors
/// When a guest fails.
pub fn run(session: &mut Session) -> Result<()> {
    let artifacts = session.artifacts()?;
    let (mut template, mut image) = (Times::default(), Times::default());
    let mut number = 0;
    let supervisor = Supervisor::start(&artifacts.vmm, 1)?;
    let mut control = supervisor.control()?;
    let guest = web_server(&mut control, &artifacts)?;
    for turn in 0..WARM_UP + STARTS * session.runs {
        number += 1;
        let mut other = guest.clone();
        other.environment.insert("NUMBER".to_owned(), number.to_string());
        for (guest, times) in [(&guest, &mut template), (&other, &mut image)] {
            let (instruction, reply) = start(&mut control, guest)?;
            if turn >= WARM_UP {
                times.instruction.push(instruction);
                times.reply.push(reply);
            }
        }
    }
    drop(supervisor);
    let mut bars = Vec::new();
    for (what, of, from) in [
        ("first_instruction", &template.instruction, &image.instruction),
        ("first_reply", &template.reply, &image.reply),
    ] {
        (session.report)(&Figure::against("start", what, "ms", of, "from the image", from)?)?;
        (session.report)(&Figure::tail("start", format!("{what}/p99"), "ms", of)?)?;
        bars.push((of, from));
    }
    let (warm, resident) = (replies(session, MACHINES)?, replies(session, GUESTS)?);
    (session.report)(&Figure::against("start", "warm_reply", "ms", &warm, "with its machine", &resident)?)?;
    (session.report)(&Figure::tail("start", "warm_reply/p99", "ms", &warm)?)?;
    let exact = |value: Option<f64>| value.map(|v| (v, v, v));
    let series = |pick: fn(&(&Samples, &Samples)) -> Samples| {
        let samples: Vec<Samples> = bars.iter().map(pick).collect();
        samples.iter().flat_map(|s| [exact(s.median()), exact(s.quantile(0.99))]).collect()
    };
    session.plot("start", || Plot {
        title: "Start of a guest under vmm serve",
        across: "from the request to ...",
        upwards: "milliseconds",
        form: Form::Bars,
        scale: Scale::Linear,
        places: ["first instruction, median", "p99", "first reply, median", "p99"]
            .map(str::to_owned)
            .to_vec(),
        series: vec![
            ("from a template".to_owned(), series(|(template, _)| (*template).clone())),
            ("from the image".to_owned(), series(|(_, image)| (*image).clone())),
        ],
        mark: None,
    })
}

/// The guest that is started.
fn web_server(control: &mut Control, artifacts: &Artifacts) -> Result<GuestSpec> {
    Ok(GuestSpec {
        memory: Some(MEMORY),
        large_pages: Some(false),
        network: NetworkOptions { enabled: Some(true), ..NetworkOptions::default() },
        ..GuestSpec::of(&control.image(&artifacts.image("httpd")?)?)
    })
}

/// Has guests answer in turn, each on a connection of its own after a rest, where so many have machines: with fewer machines than guests, whoever
/// is asked has none. Returns the times from the first packet to the last byte of the answer, milliseconds.
fn replies(session: &Session, machines: usize) -> Result<Samples> {
    let artifacts = session.artifacts()?;
    let limit = machines.to_string();
    let supervisor = Supervisor::start_with(&artifacts.vmm, 1, &["--machines", &limit])?;
    let mut control = supervisor.control()?;
    let guest = web_server(&mut control, &artifacts)?;
    let addresses: Vec<_> = (0..GUESTS).map(|_| Ok(control.run(&guest)?.1)).collect::<Result<_>>()?;
    let mut times = Samples::default();
    // The first two rounds are first touches.
    for round in 0..2 + session.runs {
        for address in &addresses {
            std::thread::sleep(REST);
            let asked = Instant::now();
            fetch(SocketAddrV4::new(*address, super::http::PORT), DOCUMENT)?;
            if round >= 2 {
                times.push(asked.elapsed().as_secs_f64() * 1e3);
            }
        }
    }
    Ok(times)
}

/// Starts a guest, has it answer, and ends it. Returns the times to its first instruction and to its first answer.
fn start(control: &mut Control, guest: &GuestSpec) -> Result<(f64, f64)> {
    let asked = Instant::now();
    let (id, address) = control.run(guest)?;
    fetch(SocketAddrV4::new(address, super::http::PORT), DOCUMENT)?;
    let reply = asked.elapsed();
    control.kill(id)?;
    let us = loop {
        let guest = control.guest(id)?;
        if guest.state == State::Killed {
            break guest.start_us.context("nobody knows when the guest ran first")?;
        }
        ensure!(asked.elapsed() < PATIENCE, "the guest does not end: {}", guest.state);
        std::thread::sleep(Duration::from_millis(1));
    };
    control.prune()?;
    Ok((us as f64 / 1e3, reply.as_secs_f64() * 1e3))
}
