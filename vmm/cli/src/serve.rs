//! `vmm serve` and its clients, and the cells that it starts.

use std::collections::HashMap;
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::ValueEnum;
use foraker_supervisor::{Amounts, Config, Host, Order, Reply, Request, Supervisor, cell, control};
use vmm_sys_util::eventfd::EventFd;

use crate::args::{AdmissionOrder, CellProcess, Ps, Run, Serve, Stop};
use crate::signals::Signals;
use crate::{launch, logger};

/// Address space for the guests of a cell: sparse, so that it costs nothing until it is used.
const ARENA: u64 = 256 << 30;

/// Runs the supervisor; returns the status of the process.
pub(crate) fn run(serve: &Serve) -> anyhow::Result<u8> {
    logger::start(serve.log_level.filter());
    let signals = Signals::take().context("cannot take over signals")?;
    let path = serve.socket.path();
    let [_, second, third, fourth] = serve.first_subnet.octets();
    if (third, fourth) != (0, 0) || usize::from(second) + usize::from(serve.cells) > 256 {
        bail!("{} is no subnet of 16 bits with {} more behind it", serve.first_subnet, serve.cells);
    }
    let listener = control::listen(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let level = serve.log_level.to_possible_value();
    let program = std::env::current_exe().context("cannot find the own program")?;
    let mut command = vec![program.into_os_string(), "cell".into(), "--workers".into()];
    command.push(serve.workers.unwrap_or(processors).max(1).to_string().into());
    command.extend(["--log-level".into(), level.map_or("warn".into(), |l| l.get_name().into())]);
    if let Some(machines) = serve.machines {
        command.extend(["--machines".into(), machines.to_string().into()]);
    }
    let host = host(serve, processors)?;
    let config = Config { cells: serve.cells.into(), command, first_subnet: serve.first_subnet, host };
    let supervisor = Supervisor::start(config)?;
    log::info!("serving on {} with {} cells", path.display(), serve.cells);
    let clients = supervisor.clone();
    std::thread::Builder::new()
        .name("control".to_owned())
        .spawn(move || control::serve(&listener, &clients))
        .context("cannot start a thread")?;
    let never = EventFd::new(0).context("cannot make an event")?;
    while !signals.wait(&never, None) {}
    supervisor.stop();
    std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    Ok(0)
}

/// What guests may have: as the command line says, or what there is.
fn host(serve: &Serve, processors: usize) -> anyhow::Result<Host> {
    let memory = match serve.memory {
        Some(memory) => memory,
        None => memory_for_guests().context("cannot find out how much memory there is: give --memory")?,
    };
    // A cell holds no more machines, whatever is asked for.
    let machines = Some(u64::from(serve.cells) * foraker_supervisor::MOST_GUESTS as u64);
    let budget = Amounts {
        memory: Some(memory),
        machines,
        cpus: Some(serve.cpus.map_or(processors as u64 * 1000, u64::from)),
        bandwidth: serve.bandwidth,
        guests: serve.max_guests.or(machines),
    };
    let first_come = serve.admission == AdmissionOrder::FirstCome;
    Ok(Host { budget, waiting: serve.max_waiting as usize, first_come })
}

/// The host's memory without an eighth of it, which is for the host itself, its page cache and the cells' own.
fn memory_for_guests() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:")).context("no MemTotal")?;
    let kib: u64 = total.trim().trim_end_matches("kB").trim_end().parse().context("MemTotal")?;
    Ok(kib * 1024 / 8 * 7)
}

/// Runs a cell on the channel that is its standard input.
pub(crate) fn run_cell(process: &CellProcess) -> anyhow::Result<u8> {
    logger::start(process.log_level.filter());
    // Ctrl-C in a terminal reaches every process: what ends a cell is the supervisor.
    let _signals = Signals::take().context("cannot take over signals")?;
    raise_descriptor_limit();
    // SAFETY: the standard input is this process' own, and nobody else here uses it.
    let channel = unsafe { UnixStream::from_raw_fd(libc::STDIN_FILENO) };
    confine(process.images.clone())?;
    let (subnet, others) = (process.subnet, process.subnets);
    let options =
        cell::Options { workers: process.workers, subnet, others, arena: ARENA, machines: process.machines };
    cell::run(channel, &options).with_context(|| format!("cell {}", process.number))?;
    Ok(0)
}

/// From here on the process opens what a cell needs, and of other files images in these folders only; without folders, it reads any.
fn confine(mut images: Vec<PathBuf>) -> anyhow::Result<()> {
    if images.is_empty() {
        log::info!("this cell may read every file: its images' folders were not named");
        images.push("/".into());
    }
    let files = foraker_confine::Files { images, written: Vec::new() };
    foraker_confine::begin(files)?;
    Ok(())
}

/// A machine needs two descriptors: all that the host allows.
fn raise_descriptor_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a valid structure for the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0 {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: as above. If it is refused, the cell holds fewer guests, and says so when they are too many.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    }
}

pub(crate) fn ask(path: &Path, request: &Request) -> anyhow::Result<Reply> {
    let reply = control::ask(path, request).with_context(|| {
        format!(
            "no supervisor answers on {}: start one with `vmm serve`, or name its --socket",
            path.display()
        )
    })?;
    match reply {
        Reply::Refused(why) => bail!(why),
        reply => Ok(reply),
    }
}

/// Has guests run.
pub(crate) fn run_guests(run: &Run) -> anyhow::Result<u8> {
    if run.guest.network.is_some() {
        bail!(
            "the network of a supervisor's guest is its owner's: say --owner instead, or use `vmm launch --network`"
        );
    }
    let mut spec = launch::spec(&run.guest, false, &mut HashMap::new())?;
    let image = std::path::absolute(run.guest.image()).context("cannot find the image")?;
    spec.name = spec.name.trim().to_owned();
    let mut order = Order::of(&spec).context("the image is no file")?;
    order.image = image;
    order.publish = run.guest.publish.iter().map(|p| (p.host, p.guest)).collect();
    (order.owner, order.priority) = (run.owner.clone(), run.priority);
    let (count, wait) = (run.count, !run.detach);
    let request = Request::Run { order: Box::new(order), count, restart: run.restart.clone(), wait };
    let Reply::Taken { first, last, open, .. } = ask(&run.socket.path(), &request)? else {
        bail!("the supervisor answered something else");
    };
    println!("{}", if first == last { first.to_string() } else { format!("{first}..{last}") });
    if wait && open > 0 {
        bail!("{open} of them do not run yet: see `vmm ps`");
    }
    Ok(0)
}

/// Lists guests or cells.
pub(crate) fn list(ps: &Ps) -> anyhow::Result<u8> {
    let request = if ps.cells { Request::Cells } else { Request::List };
    match ask(&ps.socket.path(), &request)? {
        Reply::Guests(guests) if ps.json => {
            for guest in guests {
                println!("{}", serde_json::to_string(&guest).context("cannot write the list")?);
            }
        }
        Reply::Guests(guests) => {
            println!(
                "{:>8}  {:<24} {:<12} {:>4}  {:<15} {:>8}  STATE",
                "ID", "NAME", "OWNER", "CELL", "ADDRESS", "RESTARTS"
            );
            for g in guests {
                let address = g.ipv4.map_or_else(|| "-".to_owned(), |a| a.to_string());
                let (id, name, owner, cell, restarts, phase) =
                    (g.id, g.name, g.owner, g.cell, g.restarts, g.phase);
                println!("{id:>8}  {name:<24} {owner:<12} {cell:>4}  {address:<15} {restarts:>8}  {phase}");
            }
        }
        Reply::Cells(cells) => {
            println!("{:>4}  {:>8}  {:<10} {:>8} {:>8}", "CELL", "PROCESS", "TAP", "GUESTS", "RESTARTS");
            for (number, (process, tap, guests, restarts)) in cells.into_iter().enumerate() {
                let process = process.map_or_else(|| "-".to_owned(), |p| p.to_string());
                let tap = tap.unwrap_or_else(|| "-".to_owned());
                println!("{number:>4}  {process:>8}  {tap:<10} {guests:>8} {restarts:>8}");
            }
        }
        _ => bail!("the supervisor answered something else"),
    }
    Ok(0)
}

/// Ends guests.
pub(crate) fn stop(stop: &Stop) -> anyhow::Result<u8> {
    let ids = (!stop.all).then(|| stop.ids.clone());
    let Reply::Done(count) = ask(&stop.socket.path(), &Request::Stop { ids, kill: stop.kill })? else {
        bail!("the supervisor answered something else");
    };
    if count < stop.ids.len() {
        bail!("{} of them are not there, or have ended already", stop.ids.len() - count);
    }
    println!("{count}");
    Ok(0)
}
