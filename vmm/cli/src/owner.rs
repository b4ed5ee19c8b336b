//! `vmm owner`: what owners may have.

use anyhow::{Context, bail};
use foraker_supervisor::{Amounts, ListedOwner, OwnerSettings, Reply, Request};

use crate::args::{Owner, OwnerLs, OwnerSet};
use crate::serve::ask;

/// Runs `vmm owner`; returns the status of the process.
pub(crate) fn run(owner: &Owner) -> anyhow::Result<u8> {
    match owner {
        Owner::Set(set) => settle(set),
        Owner::Ls(ls) => list(ls),
    }
}

fn settle(set: &OwnerSet) -> anyhow::Result<u8> {
    let settings = OwnerSettings {
        weight: set.weight,
        most: Amounts {
            memory: set.max_memory,
            cpus: set.max_cpus.map(u64::from),
            bandwidth: set.max_bandwidth,
            guests: set.max_guests,
            machines: None,
        },
        provision: Amounts {
            memory: set.provision_memory,
            cpus: set.provision_cpus.map(u64::from),
            ..Amounts::default()
        },
    };
    let request = Request::SetOwner { name: set.name.clone(), settings };
    let Reply::Done(_) = ask(&set.socket.path(), &request)? else {
        bail!("the supervisor answered something else");
    };
    Ok(0)
}

fn list(ls: &OwnerLs) -> anyhow::Result<u8> {
    let Reply::Owners(owners) = ask(&ls.socket.path(), &Request::Owners)? else {
        bail!("the supervisor answered something else");
    };
    if ls.json {
        for owner in owners {
            println!("{}", serde_json::to_string(&owner).context("cannot write the list")?);
        }
        return Ok(0);
    }
    println!(
        "{:<24} {:>6} {:>6}  {:>13} {:>7}  {:>15}  {:>13}  {:>15}",
        "OWNER", "WEIGHT", "SHARE", "GUESTS", "WAITING", "MEMORY", "PROCESSORS", "BANDWIDTH"
    );
    for owner in owners {
        let ListedOwner { name, settings, has, dominant_share, waiting } = owner;
        let most = settings.most;
        println!(
            "{name:<24} {:>6} {:>5.1}%  {:>13} {waiting:>7}  {:>15}  {:>13}  {:>15}",
            settings.weight,
            dominant_share * 100.0,
            of(has.guests, most.guests, |n| n.to_string()),
            of(has.memory, most.memory, mebibytes),
            of(has.cpus, most.cpus, |n| format!("{:.2}", n as f64 / 1000.0)),
            of(has.bandwidth, most.bandwidth, mebibytes),
        );
    }
    Ok(0)
}

/// What is had, and the most of it if there is a bound: `3/10`.
fn of(has: Option<u64>, most: Option<u64>, text: impl Fn(u64) -> String) -> String {
    let has = text(has.unwrap_or(0));
    most.map_or(has.clone(), |most| format!("{has}/{}", text(most)))
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1}M", bytes as f64 / f64::from(1 << 20))
}
