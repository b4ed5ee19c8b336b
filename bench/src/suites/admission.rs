//! Whether owners whose guests need different things get the same dominant share (Ghodsi et al., "Dominant Resource Fairness", NSDI '11).
//!
//! The host's budget is ten times that of the paper's example: 90 processors and 180 MiB. It is full with one guest of nobody concerned
//! while the owners ask, in rounds, for more than each could have alone: some for many guests in each round, some for few. Then the one guest
//! ends, and what is admitted is counted. Its baseline is the same with `--admission first-come`: whoever asked first is admitted first.

use anyhow::{Context, Result, ensure};
use foraker_api::{Guest, State};

use super::Session;
use crate::figure::Figure;
use crate::stats::Samples;
use crate::supervisor::Supervisor;

/// What the host gives, KiB and processors.
const HOST: (u32, u32) = (180 << 10, 90);
/// What the supervisor counts for a guest beside its memory, KiB.
const OVERHEAD: u32 = 640;
/// Rounds of requests.
const ROUNDS: u32 = 16;

/// An owner: what each of its guests needs, and how many it asks for in each round.
struct Owner {
    name: &'static str,
    /// KiB, with what is counted beside its memory.
    memory: u32,
    processors: u32,
    each_round: u32,
}

/// The two of the paper, and one in between.
const OWNERS: [Owner; 3] = [
    Owner { name: "memory", memory: 4 << 10, processors: 1, each_round: 8 },
    Owner { name: "processors", memory: 1 << 10, processors: 3, each_round: 2 },
    Owner { name: "both", memory: 2 << 10, processors: 2, each_round: 3 },
];

/// The least dominant share beside the greatest, with two owners and with three.
///
/// # Errors
/// When a guest fails or is refused.
pub fn run(session: &mut Session) -> Result<()> {
    let artifacts = session.artifacts()?;
    let image = artifacts.image("probe")?.to_string_lossy().into_owned();
    for count in [2, 3] {
        let owners = OWNERS.get(..count).context("no such owners")?;
        let (mut value, mut baseline) = (Samples::default(), Samples::default());
        for _ in 0..session.runs {
            for (discipline, samples) in [("fair", &mut value), ("first-come", &mut baseline)] {
                let (memory, processors) = (format!("{}K", HOST.0), HOST.1.to_string());
                let options = ["--memory", &memory, "--cpus", &processors, "--admission", discipline];
                let supervisor = Supervisor::start_with(&artifacts.vmm, 1, &options)?;
                samples.push(share_ratio(&supervisor, owners, &image)?);
            }
        }
        let what = format!("share_ratio/{count}");
        (session.report)(&Figure::against("A8", what, "", &value, "first come", &baseline)?)?;
    }
    Ok(())
}

fn share_ratio(supervisor: &Supervisor, owners: &[Owner], image: &str) -> Result<f64> {
    let ask = |owner: &str, count: u32, memory: u32, processors: u32| {
        let (count, memory) = (count.to_string(), format!("{}K", memory - OVERHEAD));
        let processors = processors.to_string();
        let options = ["run", "-d", "--owner", owner, "--count", &count, "--cpus", &processors];
        supervisor.ask(&[&options[..], &["--no-net", "-m", &memory, image, "idle"]].concat())
    };
    let list = || -> Result<Vec<Guest>> { supervisor.control()?.guests() };
    let first = ask("nobody", 1, HOST.0, 1)?;
    let runs = |list: &[Guest]| list.first().is_some_and(|g| g.state == State::Running);
    supervisor.wait("the first guest does not run", || list().is_ok_and(|l| runs(&l)))?;
    for _ in 0..ROUNDS {
        for owner in owners {
            let _ = ask(owner.name, owner.each_round, owner.memory, owner.processors)?;
        }
    }
    ensure!(list()?.iter().skip(1).all(|g| g.state == State::Waiting), "somebody does not wait");
    let _ = supervisor.ask(&["stop", first.trim()])?;
    let settled = |list: &[Guest]| {
        list.first().is_some_and(|g| g.state == State::Exited)
            && list.iter().all(|g| g.state != State::Starting)
    };
    supervisor.wait("the guests do not settle", || list().is_ok_and(|l| settled(&l)))?;
    let list = list()?;
    let mut shares = Vec::new();
    for owner in owners {
        let guests = list.iter().filter(|g| g.owner == owner.name);
        ensure!(
            guests.clone().all(|g| [State::Running, State::Waiting].contains(&g.state)),
            "a guest failed"
        );
        ensure!(
            guests.clone().any(|g| g.state == State::Waiting),
            "{} has all that it asked for",
            owner.name
        );
        let running = guests.filter(|g| g.state == State::Running).count() as f64;
        let part = |needs: u32, of: u32| running * f64::from(needs) / f64::from(of);
        shares.push(part(owner.memory, HOST.0).max(part(owner.processors, HOST.1)));
    }
    let (least, most) = shares.iter().fold((f64::MAX, 0.0_f64), |(l, m), s| (l.min(*s), m.max(*s)));
    Ok(least / most)
}
