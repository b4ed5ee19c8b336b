//! Lists, and everything about one thing.

use std::ops::ControlFlow;

use anyhow::Context;
use foraker_api::config::Applied;
use foraker_api::{
    Cell, Configuration, Event, Gatekeeper, Guest, Health, Image, Network, Owner, State, Version,
};

use crate::args::Socket;
use crate::args::clients::{Events, Guests, List, Logs, Ps, System};
use crate::clients::{connect, follow};
use crate::format::{age, bytes, left, print, right};

/// Bytes of a log that may be asked for.
const WHOLE_LOG: u64 = 64 << 20;

/// `vmm ps`.
pub(crate) fn guests(ps: &Ps) -> anyhow::Result<u8> {
    let mut filter = ps.chosen.filter()?;
    if !ps.all && filter.states.is_empty() {
        filter.states = State::ALL.iter().map(|(_, state)| *state).filter(|state| !state.is_over()).collect();
    }
    let guests = connect(&ps.socket)?.guests(&filter)?;
    let columns = [
        right("ID", |g: &Guest| g.id.to_string()),
        left("NAME", |g| g.name.clone()),
        left("IMAGE", |g| g.image.chars().take(20).collect()),
        left("OWNER", |g| g.owner.clone()),
        left("ADDRESS", |g| g.ipv4.map_or_else(|| "-".to_owned(), |a| a.to_string())),
        right("RESTARTS", |g| g.restarts.to_string()),
        left("AGE", |g| age(g.created_ms)),
        left("STATE", state),
    ];
    print(&ps.printed, &guests, |g| g.id.to_string(), &columns)?;
    Ok(0)
}

/// A guest's state, with what there is to say of it.
fn state(g: &Guest) -> String {
    match (g.status, &g.reason) {
        (Some(status), _) => format!("{} ({status})", g.state),
        (None, Some(reason)) => format!("{}: {reason}", g.state),
        (None, None) => g.state.to_string(),
    }
}

/// `vmm inspect`.
pub(crate) fn inspect(guests: &Guests) -> anyhow::Result<u8> {
    let mut client = connect(&guests.socket)?;
    let details: Vec<_> = guests.guests.iter().map(|guest| client.guest(guest)).collect::<Result<_, _>>()?;
    println!("{}", serde_json::to_string_pretty(&details)?);
    Ok(0)
}

/// `vmm logs`.
pub(crate) fn logs(logs: &Logs) -> anyhow::Result<u8> {
    let mut client = connect(&logs.socket)?;
    let path = format!("/guests/{}", foraker_api::client::encode(&logs.guest));
    let Some(lines) = logs.tail else {
        let which = if logs.follow { "console" } else { "log" };
        follow(&mut client, &format!("{path}/{which}?bytes={WHOLE_LOG}"))?;
        return Ok(0);
    };
    let text = client.text(&format!("{path}/log?bytes={WHOLE_LOG}"))?;
    let starts = text.iter().rev().skip(1).enumerate().filter(|(_, b)| **b == b'\n').map(|(n, _)| n + 1);
    let length = lines.checked_sub(1).map_or(0, |n| starts.clone().nth(n).unwrap_or(text.len()));
    let last = text.get(text.len() - length..).unwrap_or_default();
    std::io::Write::write_all(&mut std::io::stdout(), last).context("cannot write to the output")?;
    if logs.follow {
        follow(&mut client, &format!("{path}/console?bytes=0"))?;
    }
    Ok(0)
}

/// `vmm attach`.
pub(crate) fn attach(one: &crate::args::clients::One) -> anyhow::Result<u8> {
    let path = format!("/guests/{}/console?bytes=0", foraker_api::client::encode(&one.guest));
    follow(&mut connect(&one.socket)?, &path)?;
    Ok(0)
}

/// `vmm wait`.
pub(crate) fn wait(guests: &Guests) -> anyhow::Result<u8> {
    let mut client = connect(&guests.socket)?;
    for guest in &guests.guests {
        let path = format!("/guests/{}/wait", foraker_api::client::encode(guest));
        let ended: Guest = loop {
            if let Some(ended) = client.get::<Option<Guest>>(&path)? {
                break ended;
            }
        };
        println!("{}", ended.status.map_or_else(|| ended.state.to_string(), |status| status.to_string()));
    }
    Ok(0)
}

/// `vmm images`.
pub(crate) fn images(list: &List) -> anyhow::Result<u8> {
    let images: Vec<Image> = connect(&list.socket)?.all("/images")?;
    let columns = [
        left("NAMES", |i: &Image| if i.names.is_empty() { "-".to_owned() } else { i.names.join(", ") }),
        left("DIGEST", |i| i.digest.chars().take(12).collect()),
        right("SIZE", |i| bytes(i.size)),
        right("MEMORY", |i| bytes(i.memory)),
        left("NETWORK", |i| if i.network { "yes" } else { "no" }.to_owned()),
        right("GUESTS", |i| i.guests.to_string()),
        left("AGE", |i| age(i.created_ms)),
    ];
    print(&list.printed, &images, |i| i.digest.clone(), &columns)?;
    Ok(0)
}

/// `vmm owner ls`.
pub(crate) fn owners(list: &List) -> anyhow::Result<u8> {
    let owners: Vec<Owner> = connect(&list.socket)?.all("/owners")?;
    let columns = [
        left("OWNER", |o: &Owner| o.name.clone()),
        right("WEIGHT", |o| o.settings.weight.to_string()),
        right("SHARE", |o| format!("{:.1}%", o.dominant_share * 100.0)),
        right("GUESTS", |o| of(o.has.guests, o.settings.most.guests, |n| n.to_string())),
        right("WAITING", |o| o.waiting.to_string()),
        right("MEMORY", |o| of(o.has.memory, o.settings.most.memory, bytes)),
        right("PROCESSORS", |o| {
            of(o.has.cpus, o.settings.most.cpus, |n| format!("{:.2}", n as f64 / 1000.0))
        }),
        right("BANDWIDTH", |o| of(o.has.bandwidth, o.settings.most.bandwidth, bytes)),
        right(
            "CELLS",
            |o| if o.settings.cells > 0 { o.settings.cells.to_string() } else { "shared".to_owned() },
        ),
    ];
    print(&list.printed, &owners, |o| o.name.clone(), &columns)?;
    Ok(0)
}

/// What is had, and the most of it if there is a bound: `3/10`.
fn of(has: Option<u64>, most: Option<u64>, text: impl Fn(u64) -> String) -> String {
    let has = text(has.unwrap_or(0));
    most.map_or(has.clone(), |most| format!("{has}/{}", text(most)))
}

/// `vmm network ls`.
pub(crate) fn networks(list: &List) -> anyhow::Result<u8> {
    let networks: Vec<Network> = connect(&list.socket)?.all("/networks")?;
    let columns = [
        left("NETWORK", |n: &Network| n.name.clone()),
        left("OWNER", |n| n.owner.clone()),
        right("GUESTS", |n| n.guests.to_string()),
    ];
    print(&list.printed, &networks, |n| n.name.clone(), &columns)?;
    Ok(0)
}

/// `vmm events`.
pub(crate) fn events(events: &Events) -> anyhow::Result<u8> {
    let path = foraker_api::client::query(
        "/events",
        &[
            ("after", events.since.or(events.past.then_some(0)).map(|id| id.to_string())),
            ("kind", events.kind.clone()),
            ("past", events.past.then(|| "true".to_owned())),
        ],
    );
    let columns = [
        right("ID", |e: &Event| e.id.to_string()),
        left("KIND", |e| e.kind.clone()),
        left("SUBJECT", |e| e.subject.clone()),
        left("NAME", |e| e.name.clone()),
        left("DETAIL", |e| e.detail.clone()),
    ];
    let (mut rest, mut failed) = (Vec::new(), None);
    connect(&events.socket)?.stream(&path, |bytes| {
        rest.extend_from_slice(bytes);
        let whole = rest.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let lines: Vec<u8> = rest.drain(..whole).collect();
        let data = |line: &[u8]| serde_json::from_slice::<Event>(line.strip_prefix(b"data: ")?).ok();
        let heard: Vec<Event> = lines.split(|b| *b == b'\n').filter_map(data).collect();
        // A line for each at once: the columns of a table would have to wait for the last.
        let printed = match &events.printed.format {
            crate::format::Format::Table if !events.printed.quiet => {
                for e in &heard {
                    let texts: Vec<String> =
                        columns.iter().map(|c| crate::format::inert(&(c.text)(e))).collect();
                    println!("{}", texts.join("  ").trim_end());
                }
                Ok(())
            }
            _ => print(&events.printed, &heard, |e| e.id.to_string(), &columns),
        };
        match printed {
            Ok(()) => ControlFlow::Continue(()),
            Err(e) => {
                failed = Some(e);
                ControlFlow::Break(())
            }
        }
    })?;
    failed.map_or(Ok(0), Err)
}

/// `vmm system`.
pub(crate) fn system(system: &System) -> anyhow::Result<u8> {
    match system {
        System::Prune { socket } => {
            let mut client = connect(socket)?;
            let done: foraker_api::guest::Done =
                client.post("/guests/prune", Some(&foraker_api::Filter::default()))?;
            println!("{}", done.count);
        }
        System::Cells(list) => {
            let cells = connect(&list.socket)?.cells()?;
            let columns = [
                right("CELL", |c: &Cell| c.number.to_string()),
                right("PROCESS", |c| c.process.map_or_else(|| "-".to_owned(), |p| p.to_string())),
                left("TAP", |c| c.tap.clone().unwrap_or_else(|| "-".to_owned())),
                right("GUESTS", |c| c.guests.to_string()),
                right("RESTARTS", |c| c.restarts.to_string()),
                left("OWNER", |c| c.owner.clone().unwrap_or_else(|| "-".to_owned())),
            ];
            print(&list.printed, &cells, |c| c.number.to_string(), &columns)?;
        }
        System::Config { socket } => {
            let configuration: Configuration = connect(socket)?.get("/config")?;
            println!("{}", serde_json::to_string_pretty(&configuration)?);
        }
        System::Info { socket } => info(socket)?,
    }
    Ok(0)
}

fn info(socket: &Socket) -> anyhow::Result<()> {
    let mut client = connect(socket)?;
    let version: Version = client.get("/version")?;
    // Also when a cell is missing.
    let gatekeeper: Gatekeeper = client.get("/gatekeeper")?;
    let missing = match client.get::<Health>("/health") {
        Ok(health) => health.missing_cells,
        Err(_) => client.cells()?.iter().filter(|c| c.process.is_none()).count(),
    };
    println!("version     {} (API {}, architecture {})", version.version, version.api, version.abi);
    println!("cells       {} missing", missing);
    let states: Vec<_> =
        gatekeeper.states.iter().filter(|(_, n)| **n > 0).map(|(state, n)| format!("{n} {state}")).collect();
    println!("guests      {}", if states.is_empty() { "none".to_owned() } else { states.join(", ") });
    println!("memory      {}", of(gatekeeper.has.memory, gatekeeper.settings.budget.memory, bytes));
    println!(
        "machines    {}",
        of(gatekeeper.has.machines, gatekeeper.settings.budget.machines, |n| n.to_string())
    );
    println!("refused     {} requests", gatekeeper.refused);
    Ok(())
}

/// Says what was done to make a configuration true.
pub(crate) fn applied(applied: &Applied) {
    let Applied { gatekeeper, owners, networks, created, replaced, unchanged, removed } = applied;
    if *gatekeeper {
        println!("the gatekeeper's budget is settled");
    }
    println!(
        "{created} guests made, {replaced} replaced, {unchanged} unchanged, {removed} removed; {owners} owners and {networks} networks settled"
    );
}
