//! `vmm launch`: one cell in the foreground.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufWriter;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use foraker_cell::{Cell, Config, End, Guest, GuestSpec, LoadedImage, NetworkConfig};
use foraker_publish::Publisher;
use foraker_supervisor::resolve::{Defaults, resolve};

use crate::args::{GuestOptions, Launch, Service};
use crate::format::inert_lines;
use crate::networks::Networks;
use crate::report::{NetworkReport, Report};
use crate::signals::Signals;
use crate::{logger, report};

/// How long guests may take to end themselves after the first Ctrl-C.
const GRACE: Duration = Duration::from_secs(5);
/// Most points of a trace: 16 MiB of records.
const TRACE_POINTS: usize = 1 << 20;
/// Status after a second Ctrl-C.
const STATUS_FORCED: u8 = 130;
/// Address space of the arena beyond what a guest needs: large pages are aligned.
const ALIGNMENT: u64 = 2 << 20;

/// Runs `vmm launch`; returns the status of the process.
pub(crate) fn run(launch: &Launch) -> anyhow::Result<u8> {
    let started = Instant::now();
    logger::start(launch.cell.log_level.filter());
    let signals = Signals::take().context("cannot take over signals")?;
    confine(launch)?;
    let all: Vec<_> = std::iter::once(&launch.first).chain(&launch.more).collect();
    let (mut images, mut networks) = (HashMap::new(), Networks::default());
    let mut specs = Vec::new();
    for options in &all {
        let number = options.network.as_ref().map_or(0, |name| networks.number(name));
        specs.push(spec(options, all.len() > 1, number, &mut images)?);
    }
    for (i, s) in specs.iter().enumerate() {
        if specs.iter().take(i).any(|other| other.name == s.name) {
            bail!("two guests are called {}: give one of them another --name", s.name);
        }
        let ip_of = |spec: &GuestSpec| spec.network.as_ref().and_then(|n| n.ipv4);
        if let Some(ip) = ip_of(s)
            && specs.iter().take(i).any(|other| ip_of(other) == Some(ip))
        {
            bail!("two guests have the address {ip}: give one of them another --ip");
        }
    }
    let mut publisher = None;
    let mut listeners = Vec::new();
    for (options, spec) in all.iter().zip(&specs) {
        for p in &options.publish {
            let publisher = match &publisher {
                Some(publisher) => publisher,
                None => publisher.insert(Publisher::start().context("cannot serve published ports")?),
            };
            listeners.push((spec.name.clone(), publisher.listen(p.host)?, p.guest));
        }
    }

    let cores: usize = specs.iter().map(|s| s.cores as usize).sum();
    // Asked only when it matters: the answer takes a walk through the control groups' files.
    let processors = if cores > 1 { std::thread::available_parallelism().map_or(1, usize::from) } else { 1 };
    let network = specs.iter().any(|s| s.network.is_some()).then(|| NetworkConfig {
        tap: launch.cell.tap.clone(),
        subnet: launch.cell.subnet,
        others: None,
        pcap: launch.cell.pcap.clone(),
        service: match launch.cell.service {
            Service::Auto => foraker_cell::Service::Auto,
            Service::Worker => foraker_cell::Service::Worker,
            Service::Uplink => foraker_cell::Service::Uplink,
        },
    });
    if network.is_none() && (launch.cell.tap.is_some() || launch.cell.pcap.is_some()) {
        bail!("no guest has a network, so --tap and --pcap have nothing to do: add --net");
    }
    let trace = match &launch.cell.trace {
        Some(path) => {
            let file =
                File::create(path).with_context(|| format!("cannot write the trace {}", path.display()))?;
            foraker_cell::trace::start(TRACE_POINTS);
            Some(file)
        }
        None => None,
    };
    let workers = launch.cell.workers.unwrap_or(processors.min(cores));
    let arena = specs.iter().map(|s| s.memory.saturating_add(ALIGNMENT)).fold(ALIGNMENT, u64::saturating_add);
    let console = if launch.cell.json { libc::STDERR_FILENO } else { libc::STDOUT_FILENO };
    let mut cell = Cell::new(&Config { network, ..Config::new(workers, arena, console) })?;
    foraker_confine::finish(foraker_confine::Kind::Launch)?;
    let mut guests = Vec::new();
    for spec in &specs {
        let guest = cell.start(spec).with_context(|| format!("cannot start {}", spec.name))?;
        guests.push(guest);
    }
    let mut published = Vec::new();
    for (name, listener, port) in listeners {
        if let Some(g) = guests.iter().find(|g| g.name == name)
            && let Some(p) = &g.port
        {
            published.push(listener.pass_to(SocketAddr::new(p.ipv4().into(), port)));
        }
    }
    if let Some((tap, address, bits)) = cell.network() {
        log::info!("network {tap}: {address}/{bits}");
        for g in &guests {
            if let Some(port) = &g.port {
                log::info!("guest {} has address {}", g.name, port.ipv4());
            }
        }
    }

    let deadline = launch.cell.timeout.map(|t| started + t);
    let forced = wait(&cell, &guests, &signals, deadline);
    cell.stop();
    if let Some(file) = trace {
        let dropped = foraker_cell::trace::write(BufWriter::new(file)).context("cannot write the trace")?;
        if dropped > 0 {
            log::warn!("the trace holds {TRACE_POINTS} points; {dropped} more were left out");
        }
    }
    let image_of = |g: &Guest| specs.iter().find(|s| s.name == g.name).and_then(|s| s.image.path());
    let reports: Vec<_> = guests.iter().map(|g| report::of_guest(g, image_of(g))).collect();
    let failed = reports.iter().map(report::GuestReport::process_status).find(|s| *s != 0).unwrap_or(0);
    for r in &reports {
        if let Some(text) = r.text() {
            // Functions are called as the image says.
            eprintln!("vmm: {}", inert_lines(&text));
        }
    }
    if launch.cell.json {
        let network = cell.network().map(|(tap, address, bits)| NetworkReport {
            tap,
            gateway: format!("{address}/{bits}"),
            drops: cell.uplink_counters().into_iter().collect(),
        });
        let whole = Report { guests: reports, network, seconds: started.elapsed().as_secs_f64() };
        println!("{}", serde_json::to_string(&whole).context("cannot write the report")?);
    }
    Ok(if forced { STATUS_FORCED } else { failed })
}

/// From here on the process opens what a cell needs, the images, to name functions in reports, and the files that it was told to write.
fn confine(launch: &Launch) -> anyhow::Result<()> {
    let images =
        std::iter::once(&launch.first).chain(&launch.more).map(|o| o.image().to_path_buf()).collect();
    let written = [&launch.cell.trace, &launch.cell.pcap].into_iter().flatten().cloned().collect();
    foraker_confine::begin(foraker_confine::Files { images, written })?;
    Ok(())
}

/// Waits until every guest has ended. Returns whether they were forced to.
fn wait(cell: &Cell, guests: &[Arc<Guest>], signals: &Signals, deadline: Option<Instant>) -> bool {
    let kill = |why: &str| guests.iter().for_each(|g| g.finish(End::Killed(why.to_owned())));
    let mut asked: Option<Instant> = None;
    let mut forced = false;
    while !guests.iter().all(|g| g.has_ended()) {
        let now = Instant::now();
        let next = [deadline, asked.map(|t| t + GRACE)].into_iter().flatten().min();
        let signal = signals.wait(cell.ended(), next.map(|t| t.saturating_duration_since(now)));
        // Only says that a guest ended; which one is seen above.
        let _ = cell.ended().read();
        let now = Instant::now();
        match asked {
            None if signal => {
                asked = Some(now);
                guests.iter().for_each(|g| g.ask_to_stop());
            }
            Some(_) if signal => {
                forced = true;
                kill("interrupted twice");
            }
            Some(t) if now >= t + GRACE => kill("it did not end itself when it was asked to"),
            _ => {}
        }
        if deadline.is_some_and(|d| now >= d) {
            kill("its time is over (--timeout)");
        }
    }
    forced
}

/// What a guest of the command line gets.
fn spec(
    o: &GuestOptions,
    several: bool,
    network: u32,
    images: &mut HashMap<PathBuf, Arc<LoadedImage>>,
) -> anyhow::Result<GuestSpec> {
    let image = match images.get(o.image()) {
        Some(image) => Arc::clone(image),
        None => {
            let image = LoadedImage::open(o.image()).with_context(|| o.image().display().to_string())?;
            images.insert(o.image().to_path_buf(), Arc::clone(&image));
            image
        }
    };
    let defaults = Defaults::of(&image).map_err(anyhow::Error::msg);
    let defaults = defaults.with_context(|| o.image().display().to_string())?;
    let asked = o.spec("");
    let stem = o.image().file_stem().map(|s| s.to_string_lossy().into_owned());
    let name = asked.name.clone().or(stem).unwrap_or_else(|| "guest".to_owned());
    let order = resolve(&asked, &name, PathBuf::new(), &defaults, network).map_err(anyhow::Error::msg)?;
    Ok(GuestSpec {
        // All of its memory is its own: nobody asks for it back.
        memory_provision: o.provision_memory,
        from_template: None,
        ..order.spec(image, several.then(|| format!("{name}| ")))
    })
}

/// Waits until a descriptor is readable, at most so many milliseconds.
pub(crate) fn wait_readable(fd: i32, milliseconds: i32) {
    let mut entry = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid structure for the call.
    unsafe { libc::poll(&raw mut entry, 1, milliseconds) };
}
