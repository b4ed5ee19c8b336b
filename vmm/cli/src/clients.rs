//! What asks a supervisor to do something: `vmm run`, `start`, `stop`, `rm` and the like.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context, bail};
use foraker_api::guest::Bulk;
use foraker_api::network::NetworkSettings;
use foraker_api::{
    Action, Amounts, Client, Create, Endpoint, Filter, GatekeeperSettings, Guest, GuestSpec, OwnerSettings,
    State,
};
use indicatif::{ProgressBar, ProgressStyle};
use vmm_sys_util::eventfd::EventFd;

use crate::args::clients::{Act, Gatekeeper, Image, Network, Owner, OwnerSet, Rm, Run, map};
use crate::args::{AdmissionOrder, Socket};
use crate::signals::Signals;

/// How long `vmm run --detach` waits until its guests run, seconds.
const PATIENCE: u16 = 300;
/// How long each look at a bulk of guests takes, milliseconds.
const LOOK: u32 = 100;
/// Statuses of `vmm run`, as those of `vmm launch`.
const STATUS_FAULT: u8 = 120;
const STATUS_ENDED: u8 = 121;
const STATUS_FORCED: i32 = 130;

/// Connects to the supervisor.
pub(crate) fn connect(socket: &Socket) -> anyhow::Result<Client> {
    Ok(Client::connect_to(&socket.endpoint()?)?)
}

/// The image that a command line means: a file is handed over to the supervisor, anything else is the name or the digest of one that it has.
pub(crate) fn image(client: &mut Client, text: &str) -> anyhow::Result<String> {
    let path = Path::new(text);
    if text.contains('/') || path.is_file() {
        let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let name = foraker_api::owner::is_name(&name).then_some(name);
        let digest = client.hand_over(path, name.as_deref()).with_context(|| text.to_owned())?;
        return Ok(name.unwrap_or(digest));
    }
    Ok(text.to_owned())
}

/// Has guests run.
pub(crate) fn run(run: &Run) -> anyhow::Result<u8> {
    let mut client = connect(&run.socket)?;
    let image = image(&mut client, &run.guest.image().to_string_lossy())?;
    let guest = GuestSpec {
        owner: run.owner.clone(),
        priority: run.priority,
        restart: run.restart,
        remove: run.rm,
        labels: map(&run.label),
        keep_core: run.keep_core,
        ..run.guest.spec(&image)
    };
    let detached = run.detach || run.count > 1;
    // With a bar, each look is short.
    let bar = detached && !run.no_wait && run.count > 1 && std::io::stderr().is_terminal();
    let wait_seconds = if detached && !run.no_wait && !bar { PATIENCE } else { 0 };
    let created = client.create(&Create { count: run.count, wait_seconds, guest })?;
    let (first, last) = (created.first, created.last);
    if !detached {
        return in_the_foreground(client, &run.socket, first);
    }
    let open = if bar { show_progress(&mut client, first, last)? } else { created.open };
    println!("{}", if first == last { first.to_string() } else { format!("{first}..{last}") });
    if !run.no_wait {
        if open > 0 {
            eprintln!("vmm: {open} of them do not run yet: see `vmm ps`");
        }
        if let Some(why) = refused(&mut client, first, last)? {
            bail!(why);
        }
    }
    Ok(0)
}

/// Why guests of a range were refused, if any was.
fn refused(client: &mut Client, first: u64, last: u64) -> anyhow::Result<Option<String>> {
    let filter = Filter { states: vec![State::Refused], ..Filter::default() };
    let refused: Vec<Guest> =
        client.guests(&filter)?.into_iter().filter(|g| (first..=last).contains(&g.id)).collect();
    Ok(refused.first().map(|g| {
        let why = g.reason.as_deref().unwrap_or("for no reason");
        if first == last { why.to_owned() } else { format!("{} of them are refused: {why}", refused.len()) }
    }))
}

/// Shows how many guests of a range run, until all do.
fn show_progress(client: &mut Client, first: u64, last: u64) -> anyhow::Result<usize> {
    let count = last - first + 1;
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} guests, {per_sec}, {elapsed}")?;
    let bar = ProgressBar::new(count).with_style(style);
    let mut open = count as usize;
    for _ in 0..u32::from(PATIENCE) * 1000 / LOOK {
        open = client.open_of(first, last, LOOK)?;
        bar.set_position(count - open as u64);
        if open == 0 {
            break;
        }
    }
    bar.finish();
    Ok(open)
}

/// Follows a guest until it ends. Returns the status that its end asks for.
fn in_the_foreground(mut client: Client, socket: &Socket, id: u64) -> anyhow::Result<u8> {
    let signals = Signals::take().context("cannot take over signals")?;
    let at = socket.endpoint()?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || pass_on(&signals, &at, id))
        .context("cannot start a thread")?;
    let id = id.to_string();
    follow(&mut client, &format!("/guests/{id}/console?bytes={}", 1 << 20))?;
    let guest = loop {
        if let Some(guest) = client.get::<Option<Guest>>(&format!("/guests/{id}/wait"))? {
            break guest;
        }
    };
    let name = crate::format::inert(&guest.name);
    Ok(match guest.state {
        State::Exited => u8::try_from(guest.status.unwrap_or(0).min(119)).unwrap_or(119),
        State::Faulted => {
            let fault = client.guest(&id).ok().and_then(|detail| detail.fault);
            let text = fault.map_or(guest.reason.unwrap_or_default(), |fault| fault.text());
            // Functions are called as the image says.
            eprintln!("vmm: guest {name} faulted: {}", crate::format::inert_lines(&text));
            STATUS_FAULT
        }
        State::Refused => bail!("{}", crate::format::inert_lines(&guest.reason.unwrap_or_default())),
        _ => {
            let why = crate::format::inert(&guest.reason.unwrap_or_default());
            eprintln!("vmm: guest {name} was ended: {why}");
            STATUS_ENDED
        }
    })
}

/// Asks a guest to end at the first signal, and ends it at the second.
fn pass_on(signals: &Signals, at: &Endpoint, id: u64) {
    let Ok(never) = EventFd::new(0) else { return };
    for action in [Action::Stop, Action::Kill] {
        while !signals.wait(&never, None) {}
        let asked = Client::connect_to(at).and_then(|mut client| client.act(&id.to_string(), action));
        if let Err(e) = asked {
            eprintln!("vmm: {e}");
        }
    }
    while !signals.wait(&never, None) {}
    std::process::exit(STATUS_FORCED);
}

/// Prints what comes, as it comes.
pub(crate) fn follow(client: &mut Client, path: &str) -> anyhow::Result<()> {
    let mut output = std::io::stdout().lock();
    let mut failed = None;
    client.stream(path, |bytes| match output.write_all(bytes).and_then(|()| output.flush()) {
        Ok(()) => ControlFlow::Continue(()),
        Err(e) => {
            failed = Some(e);
            ControlFlow::Break(())
        }
    })?;
    failed.map_or(Ok(()), |e| Err(e).context("cannot write to the output"))
}

/// Does something to guests.
pub(crate) fn act(act: &Act, action: Action) -> anyhow::Result<u8> {
    let mut client = connect(&act.socket)?;
    if act.guests.is_empty() {
        let count = client.act_on_all(&Bulk { action, filter: act.chosen.filter()? })?;
        println!("{count}");
        return Ok(0);
    }
    each(&act.guests, |guest| client.act(guest, action).map(drop).map_err(Into::into))
}

/// Forgets guests.
pub(crate) fn remove(rm: &Rm) -> anyhow::Result<u8> {
    let mut client = connect(&rm.socket)?;
    let force = if rm.force { "?force=true" } else { "" };
    each(&rm.guests, |guest| {
        let path = format!("/guests/{}{force}", foraker_api::client::encode(guest));
        client.delete(&path).map_err(Into::into)
    })
}

/// Does something to each of several things and prints those to which it was done; what fails is said at the end, in one line.
pub(crate) fn each(all: &[String], mut one: impl FnMut(&str) -> anyhow::Result<()>) -> anyhow::Result<u8> {
    let mut failures = Vec::new();
    for name in all {
        match one(name) {
            Ok(()) => println!("{name}"),
            Err(e) => failures.push(e),
        }
    }
    match failures.len() {
        0 => Ok(0),
        1 => Err(failures.remove(0)),
        n => Err(failures.remove(0).context(format!("{n} of them failed, the first one"))),
    }
}

/// `vmm image`, apart from its list.
pub(crate) fn images(command: &Image) -> anyhow::Result<u8> {
    match command {
        Image::Ls(list) => crate::lists::images(list),
        Image::Load { file, name, socket } => {
            let mut client = connect(socket)?;
            let usual = file.file_stem().map(|stem| stem.to_string_lossy().into_owned());
            let name = name.clone().or_else(|| usual.filter(|name| foraker_api::owner::is_name(name)));
            let digest = client.hand_over(file, name.as_deref());
            println!("{}", digest.with_context(|| file.display().to_string())?);
            Ok(0)
        }
        Image::Tag { image, name, socket } => {
            connect(socket)?.name_image(name, image)?;
            Ok(0)
        }
        Image::Rm { images, socket } => {
            let mut client = connect(socket)?;
            each(images, |image| {
                client.delete(&format!("/images/{}", foraker_api::client::encode(image))).map_err(Into::into)
            })
        }
    }
}

/// `vmm owner`.
pub(crate) fn owners(command: &Owner) -> anyhow::Result<u8> {
    match command {
        Owner::Ls(list) => crate::lists::owners(list),
        Owner::Set(set) => {
            let path = format!("/owners/{}", foraker_api::client::encode(&set.name));
            connect(&set.socket)?.put::<foraker_api::Owner>(&path, &settings(set))?;
            Ok(0)
        }
        Owner::Rm { names, socket } => {
            let mut client = connect(socket)?;
            each(names, |name| {
                client.delete(&format!("/owners/{}", foraker_api::client::encode(name))).map_err(Into::into)
            })
        }
    }
}

fn settings(set: &OwnerSet) -> OwnerSettings {
    OwnerSettings {
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
        cells: set.cells,
    }
}

/// `vmm gatekeeper`.
pub(crate) fn gatekeeper(command: &Gatekeeper) -> anyhow::Result<u8> {
    const PATH: &str = "/gatekeeper";
    match command {
        Gatekeeper::Show { socket } => {
            let shown: foraker_api::Gatekeeper = connect(socket)?.get(PATH)?;
            println!("{}", serde_json::to_string_pretty(&shown)?);
        }
        Gatekeeper::Set(set) => {
            let mut client = connect(&set.socket)?;
            let shown: foraker_api::Gatekeeper = client.get(PATH)?;
            let unbound = Amounts { machines: None, ..shown.settings.budget };
            let now = shown.settled.unwrap_or(GatekeeperSettings { budget: unbound, ..shown.settings });
            let settings = GatekeeperSettings {
                budget: set.budget.or(now.budget),
                most_waiting: set.max_waiting.unwrap_or(now.most_waiting),
                discipline: set.admission.map_or(now.discipline, AdmissionOrder::discipline),
            };
            client.put::<foraker_api::Gatekeeper>(PATH, &settings)?;
        }
        Gatekeeper::Reset { socket } => connect(socket)?.delete(PATH)?,
    }
    Ok(0)
}

/// `vmm network`.
pub(crate) fn networks(command: &Network) -> anyhow::Result<u8> {
    let path = |name: &str| format!("/networks/{}", foraker_api::client::encode(name));
    match command {
        Network::Ls(list) => crate::lists::networks(list),
        Network::Create { name, owner, socket } => {
            let settings = NetworkSettings { owner: owner.clone() };
            connect(socket)?.put::<foraker_api::Network>(&path(name), &settings)?;
            Ok(0)
        }
        Network::Rm { names, socket } => {
            let mut client = connect(socket)?;
            each(names, |name| client.delete(&path(name)).map_err(Into::into))
        }
    }
}

/// Names of guests by their ids.
pub(crate) fn names(client: &mut Client, filter: &Filter) -> anyhow::Result<BTreeMap<u64, Guest>> {
    Ok(client.guests(filter)?.into_iter().map(|g| (g.id, g)).collect())
}
