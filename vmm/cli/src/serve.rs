//! `vmm serve`.

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::ValueEnum;
use foraker_api::{Amounts, GatekeeperSettings};
use foraker_confine::Kind;
use foraker_supervisor::rest::{self, Listener};
use foraker_supervisor::{Config, Directory, Launcher, LogSizes, StoreError, Supervisor};
use sd_notify::NotifyState;

use crate::args::Serve;
use crate::logger;
use crate::page::Page;
use crate::signals::Signals;

/// How long it may take until a process that was killed has let go what it had.
const DYING: Duration = Duration::from_secs(1);

/// Runs the supervisor; returns the status of the process.
pub(crate) fn run(serve: &Serve) -> anyhow::Result<u8> {
    logger::start(serve.log_level.filter());
    let signals = Signals::take().context("cannot take over signals")?;
    let path = serve.socket.to_serve();
    let [_, second, third, fourth] = serve.first_subnet.octets();
    if (third, fourth) != (0, 0) || usize::from(second) + usize::from(serve.cells) > 256 {
        bail!("{} is no subnet of 16 bits with {} more behind it", serve.first_subnet, serve.cells);
    }
    let state = std::path::absolute(serve.state()).context("cannot find the state directory")?;
    let directory = when_free(|| Ok(Directory::open(&state)?))?;
    let inherited = Listener::inherited();
    let own_socket = inherited.is_none().then(|| std::path::absolute(&path)).transpose()?;
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    // Before others have a say in anything.
    let program = std::env::current_exe().context("cannot find the own program")?;
    let launcher = Launcher::start(&program, &command_line(serve, processors, &state, own_socket.as_deref()))
        .context("cannot start the launcher")?;
    let launchers_end = launcher.process().try_clone()?;
    let listener = match inherited {
        Some(listener) => listener,
        None => when_free(|| {
            let made = serve.socket.make_folder().and_then(|()| Listener::bind(&path, serve.socket_mode));
            made.with_context(|| format!("cannot listen on {}", path.display()))
        })?,
    };
    let mut listeners = vec![listener];
    if let (Some(address), Some(folder)) = (serve.listen, &serve.tls) {
        let (remote, at) = when_free(|| Ok(Listener::remote(address, folder)?))?;
        println!("clients from elsewhere are served at {at}");
        listeners.push(remote);
    }
    let page = serve.ui.map(|address| when_free(|| Page::bind(address, serve.ui_writable))).transpose()?;
    let gatekeeper = gatekeeper(serve, processors)?;
    foraker_confine::begin_supervisor(directory.path())?;
    let config = Config {
        cells: serve.cells.into(),
        first_subnet: serve.first_subnet,
        gatekeeper,
        log_sizes: LogSizes { each: serve.log_size, all: serve.log_total },
    };
    let (supervisor, found) = Supervisor::start(config, directory, launcher)?;
    if found.is_anything() {
        eprintln!("vmm: {found}");
    }
    log::info!("serving on {} with {} cells", path.display(), serve.cells);
    if let Some(page) = page {
        page.serve(supervisor.clone())?;
    }
    let (ended, until) = tokio::sync::oneshot::channel::<()>();
    let served = supervisor.clone();
    let clients = std::thread::Builder::new()
        .name("clients".to_owned())
        .spawn(move || rest::serve(listeners, served, async move { drop(until.await) }))
        .context("cannot start a thread")?;
    tell(NotifyState::Ready);
    foraker_confine::finish(Kind::Main)?;
    let mut abandoned = false;
    while !abandoned && !signals.wait(&launchers_end, None) {
        abandoned = launchers_end.wait(Duration::ZERO)?;
    }
    // Nobody is told of a guest that ends with its supervisor as if it had ended by itself.
    drop(ended);
    match clients.join() {
        Ok(served) => served.context("cannot serve clients")?,
        Err(_) => bail!("clients cannot be served"),
    }
    supervisor.stop();
    if abandoned {
        bail!(
            "the launcher, process {}, by which cells are started, has been ended by somebody else: start \
             `vmm serve` again, and guests that are to come back do",
            launchers_end.process()
        );
    }
    Ok(0)
}

/// Tries again for a moment if it is in use: a supervisor that has just been killed still has it until the kernel has taken its process apart.
fn when_free<T>(attempt: impl Fn() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let since = Instant::now();
    loop {
        match attempt() {
            Err(e) if is_in_use(&e) && since.elapsed() < DYING => std::thread::sleep(DYING / 100),
            done => return done,
        }
    }
}

fn is_in_use(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let address = cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::AddrInUse);
        address || matches!(cause.downcast_ref(), Some(StoreError::InUse(_)))
    })
}

/// Tells the service manager, if one has asked to be told (`sd_notify(3)`).
fn tell(state: NotifyState) {
    if let Err(e) = sd_notify::notify(&[state]) {
        log::warn!("the service manager cannot be told of it: {e}");
    }
}

/// The launcher's command line, and in it that of each cell.
fn command_line(serve: &Serve, processors: usize, state: &Path, socket: Option<&Path>) -> Vec<OsString> {
    let level = serve.log_level.to_possible_value().map_or("warn".to_owned(), |l| l.get_name().to_owned());
    let (cells, subnet) = (serve.cells.to_string(), serve.first_subnet.to_string());
    let mut line: Vec<OsString> =
        ["launcher", "--cells", &cells, "--first-subnet", &subnet, "--log-level", &level]
            .map(OsString::from)
            .into();
    line.extend(["--state".into(), state.into()]);
    if let Some(socket) = socket {
        line.extend(["--socket".into(), socket.into()]);
    }
    let workers = serve.workers.unwrap_or(processors).max(1).to_string();
    line.extend(["--", "cell", "--workers", &workers, "--log-level", &level].map(OsString::from));
    if let Some(machines) = serve.machines {
        line.extend(["--machines".into(), machines.to_string().into()]);
    }
    line.extend(["--images".into(), state.join(foraker_supervisor::IMAGES).into()]);
    line
}

/// What guests may have: as the command line says, or what there is.
fn gatekeeper(serve: &Serve, processors: usize) -> anyhow::Result<GatekeeperSettings> {
    let memory = match serve.budget.memory {
        Some(memory) => memory,
        None => memory_for_guests().context("cannot find out how much memory there is: give --memory")?,
    };
    let budget = serve.budget.or(Amounts {
        memory: Some(memory),
        // No more than the cells hold, whatever is said.
        machines: None,
        cpus: Some(processors as u64 * 1000),
        bandwidth: None,
        guests: Some(u64::from(serve.cells) * foraker_supervisor::MOST_GUESTS as u64),
    });
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
