//! `vmm serve`, and the cells that it starts.

use std::os::fd::FromRawFd;
use std::os::unix::net::UnixStream;

use anyhow::{Context, bail};
use clap::ValueEnum;
use foraker_api::{Amounts, GatekeeperSettings};
use foraker_supervisor::rest::{self, Listener};
use foraker_supervisor::{Config, Supervisor, cell};
use sd_notify::NotifyState;
use vmm_sys_util::eventfd::EventFd;

use crate::args::{CellProcess, Serve};
use crate::logger;
use crate::signals::Signals;

/// Address space for the guests of a cell: sparse, so that it costs nothing until it is used.
const ARENA: u64 = 256 << 30;

/// Runs the supervisor; returns the status of the process.
pub(crate) fn run(serve: &Serve) -> anyhow::Result<u8> {
    logger::start(serve.log_level.filter());
    let signals = Signals::take().context("cannot take over signals")?;
    let path = serve.socket.to_serve();
    let [_, second, third, fourth] = serve.first_subnet.octets();
    if (third, fourth) != (0, 0) || usize::from(second) + usize::from(serve.cells) > 256 {
        bail!("{} is no subnet of 16 bits with {} more behind it", serve.first_subnet, serve.cells);
    }
    let inherited = Listener::inherited();
    let is_ours = inherited.is_none();
    let listener = match inherited {
        Some(listener) => listener,
        None => serve
            .socket
            .make_folder()
            .and_then(|()| Listener::bind(&path, serve.socket_mode))
            .with_context(|| format!("cannot listen on {}", path.display()))?,
    };
    let mut listeners = vec![listener];
    if let (Some(address), Some(folder)) = (serve.listen, &serve.tls) {
        let (remote, at) = Listener::remote(address, folder)?;
        println!("clients from elsewhere are served at {at}");
        listeners.push(remote);
    }
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let level = serve.log_level.to_possible_value();
    let program = std::env::current_exe().context("cannot find the own program")?;
    let mut command = vec![program.into_os_string(), "cell".into(), "--workers".into()];
    command.push(serve.workers.unwrap_or(processors).max(1).to_string().into());
    command.extend(["--log-level".into(), level.map_or("warn".into(), |l| l.get_name().into())]);
    if let Some(machines) = serve.machines {
        command.extend(["--machines".into(), machines.to_string().into()]);
    }
    let state = std::path::absolute(serve.state()).context("cannot find the state directory")?;
    command.extend(["--images".into(), state.join(foraker_supervisor::IMAGES).into()]);
    let gatekeeper = gatekeeper(serve, processors)?;
    let config = Config {
        cells: serve.cells.into(),
        command,
        first_subnet: serve.first_subnet,
        gatekeeper,
        state,
        log_size: serve.log_size,
    };
    let (supervisor, found) = Supervisor::start(config)?;
    if found.is_anything() {
        eprintln!("vmm: {found}");
    }
    log::info!("serving on {} with {} cells", path.display(), serve.cells);
    if let Some(address) = serve.ui {
        crate::page::serve(address, serve.ui_writable, supervisor.clone())?;
    }
    let (ended, until) = tokio::sync::oneshot::channel::<()>();
    let served = supervisor.clone();
    let clients = std::thread::Builder::new()
        .name("clients".to_owned())
        .spawn(move || rest::serve(listeners, served, async move { drop(until.await) }))
        .context("cannot start a thread")?;
    tell(NotifyState::Ready);
    let never = EventFd::new(0).context("cannot make an event")?;
    while !signals.wait(&never, None) {}
    tell(NotifyState::Stopping);
    // Nobody is told of a guest that ends with its supervisor as if it had ended by itself.
    drop(ended);
    match clients.join() {
        Ok(served) => served.context("cannot serve clients")?,
        Err(_) => bail!("clients cannot be served"),
    }
    supervisor.stop();
    if is_ours {
        std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(0)
}

/// Tells the service manager, if one has asked to be told (`sd_notify(3)`).
fn tell(state: NotifyState) {
    if let Err(e) = sd_notify::notify(&[state]) {
        log::warn!("the service manager cannot be told of it: {e}");
    }
}

/// What guests may have: as the command line says, or what there is.
fn gatekeeper(serve: &Serve, processors: usize) -> anyhow::Result<GatekeeperSettings> {
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
    Ok(GatekeeperSettings {
        budget,
        most_waiting: serve.max_waiting,
        discipline: serve.admission.discipline(),
    })
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
    // From here on the process opens what a cell needs, and of other files images only.
    foraker_confine::begin(foraker_confine::Files {
        images: vec![process.images.clone()],
        written: Vec::new(),
    })?;
    let (subnet, others) = (process.subnet, process.subnets);
    let options =
        cell::Options { workers: process.workers, subnet, others, arena: ARENA, machines: process.machines };
    cell::run(channel, &options).with_context(|| format!("cell {}", process.number))?;
    Ok(0)
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
