//! `vmm launch`: one cell in the foreground.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufWriter;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use foraker_cell::{
    Cell, Config, End, Guest, GuestSpec, LoadedImage, NetworkConfig, NetworkSpec, Pages, ProcessorSpec,
};
use foraker_publish::Publisher;

use crate::args::{GuestOptions, Launch, Service};
use crate::networks::Networks;
use crate::report::{NetworkReport, Report};
use crate::signals::Signals;
use crate::{logger, manifest, report};

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
        let mut spec = spec(options, all.len() > 1, &mut images)?;
        match (&mut spec.network, &options.network) {
            (Some(network), Some(name)) => network.network = networks.number(name),
            (None, Some(name)) => {
                bail!("guest {} has no network, so it cannot be in {name}: add --net", spec.name)
            }
            (_, None) => {}
        }
        specs.push(spec);
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
        if s.memory > foraker_abi::layout::MAX_MEMORY {
            bail!("{} bytes of memory for {} are too much: a guest can have 64G at most", s.memory, s.name);
        }
    }
    let mut publisher = None;
    let mut listeners = Vec::new();
    for (options, spec) in all.iter().zip(&specs) {
        for p in &options.publish {
            if spec.network.is_none() {
                bail!(
                    "guest {} has no network, so port {} cannot be published: add --net",
                    spec.name,
                    p.guest
                );
            }
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
            eprintln!("vmm: {text}");
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

/// What a guest gets: the command line first, then the image's manifest, then its note.
pub(crate) fn spec(
    o: &GuestOptions,
    several: bool,
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
    let m = manifest::parse(image.manifest()).with_context(|| o.image().display().to_string())?;
    let network = if o.no_net { false } else { o.net || m.network.unwrap_or(image.wants_network()) };
    let mut environment: Vec<_> = m.environment.iter().map(|(k, v)| format!("{k}={v}")).collect();
    for set in &o.env {
        let name = set.split('=').next().unwrap_or_default();
        environment.retain(|e| e.split('=').next() != Some(name));
        environment.push(set.clone());
    }
    let stem = |p: &Path| p.file_stem().map(|s| s.to_string_lossy().into_owned());
    let name = o.name.clone().or_else(|| stem(o.image())).unwrap_or_else(|| "guest".to_owned());
    let plain = GuestSpec::new(image, &name);
    let memory = o.memory.or(m.memory).unwrap_or(plain.memory);
    ensure!(
        o.provision_memory.is_none_or(|kept| kept <= memory),
        "--provision-memory is more than the guest's memory of {} KiB (-m)",
        memory >> 10
    );
    ensure!(
        o.cpus.zip(o.provision_cpus).is_none_or(|(most, kept)| kept <= most),
        "--provision-cpus is more than --cpus allows"
    );
    Ok(GuestSpec {
        memory,
        memory_provision: o.provision_memory,
        pages: if !o.small_pages && (o.large_pages || m.large_pages) { Pages::Large } else { Pages::Small },
        cores: o.cores.or(m.cores).unwrap_or(1),
        arguments: if o.arguments().is_empty() { m.arguments } else { o.arguments().to_vec() },
        environment,
        network: network.then(|| NetworkSpec {
            ipv4: o.ip,
            network: 0,
            dns: o.dns,
            rx_bytes: o.rx_bandwidth.or(m.limits.rx_bandwidth),
            tx_bytes: o.tx_bandwidth.or(m.limits.tx_bandwidth),
            tx_packets: o.tx_packets.or(m.limits.tx_packets),
        }),
        console_limit: o.console_bandwidth.or(m.limits.console).unwrap_or(plain.console_limit),
        console_prefix: several,
        processor: ProcessorSpec {
            share: o.cpu_shares.unwrap_or(plain.processor.share),
            limit: o.cpus,
            provision: o.provision_cpus,
            grain: o.grain.into(),
        },
        immediate: o.immediate,
        ..plain
    })
}

/// Waits until a descriptor is readable, at most so many milliseconds.
pub(crate) fn wait_readable(fd: i32, milliseconds: i32) {
    let mut entry = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid structure for the call.
    unsafe { libc::poll(&raw mut entry, 1, milliseconds) };
}
