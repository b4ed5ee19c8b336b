//! A cell's side of the channel: guests are started and stopped as the supervisor asks, and it hears how they end. `looks`: those who look into guests.

mod looks;

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use foraker_api::Counters;
use foraker_cell::cell::CellError;
use foraker_cell::{Cell, Config, End, Guest, LoadedImage, NetworkConfig};
use foraker_confine::Kind;
use foraker_policy::demand::Asked;
use foraker_publish::{Published, Publisher};

use crate::channel::{CellLoad, Ended, FromCell, Look, Order, Surveyed, ToCell, monotonic_ns, send};
use crate::handover::Receiver;
use crate::logs::{end_mark, mark};

/// Guests that are started before the supervisor hears of them.
const BATCH: usize = 32;
/// How often a cell looks at what its guests ask for.
const DEMAND: Duration = Duration::from_millis(500);
/// How long guests may take to end themselves when the supervisor has gone.
const GRACE: Duration = Duration::from_secs(1);

/// How a cell is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// Worker threads.
    pub workers: usize,
    /// IPv4 subnet: network address and prefix bits.
    pub subnet: (Ipv4Addr, u8),
    /// First and last address of all cells' guests.
    pub others: Option<(Ipv4Addr, Ipv4Addr)>,
    /// Address space for guests' memory, bytes.
    pub arena: u64,
    /// Most machines, if there are to be fewer than guests.
    pub machines: Option<usize>,
}

/// What the threads of the process share.
struct State {
    cell: Mutex<Cell>,
    guests: Mutex<HashMap<u64, Running>>,
    channel: Mutex<UnixStream>,
    /// Threads that tell of guests at this moment.
    reporting: AtomicUsize,
}

/// A guest that runs, and what is its as long as it does.
struct Running {
    guest: Arc<Guest>,
    core: Core,
    /// The supervisor knows when it ran its first instruction.
    timed: bool,
    _published: Vec<Published>,
}

/// What becomes of a guest's core should it fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Core {
    /// Nothing.
    Unwanted,
    /// The supervisor is to keep it.
    Wanted,
    /// The supervisor was asked to take it: the guest is not forgotten before.
    Offered,
}

impl Running {
    /// Whether its end can be told. A core that is wanted is offered first.
    fn is_over(&self) -> bool {
        self.guest.has_ended() && !self.is_to_be_offered() && self.core != Core::Offered
    }

    fn is_to_be_offered(&self) -> bool {
        self.core == Core::Wanted && matches!(self.guest.end(), Some(End::Faulted(_)))
    }

    /// When its first instruction ran, on the clock of every process; once.
    fn first_entry(&mut self) -> Option<u64> {
        let at = self.guest.entered().filter(|_| !self.timed)?;
        self.timed = true;
        let since = u64::try_from(at.elapsed().as_nanos()).unwrap_or(u64::MAX);
        Some(monotonic_ns().saturating_sub(since))
    }
}

impl State {
    /// A cell whose supervisor has gone ends by itself, so that what cannot be said need not be said.
    fn say(&self, message: &FromCell) {
        let mut channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(e) = send(&mut *channel, message) {
            log::debug!("the supervisor is gone: {e}");
        }
    }
}

/// Machines that a cell makes ahead of need: each costs about 580 KiB of the host's memory.
const SPARE_MACHINES: usize = 8;
/// Machines of ended guests that a cell keeps for others.
const KEPT_MACHINES: usize = 64;

/// Runs a cell until the supervisor closes the channel.
///
/// # Errors
/// The cell cannot be made, or the channel breaks.
pub fn run(channel: UnixStream, options: &Options) -> Result<(), CellError> {
    let network =
        NetworkConfig { subnet: Some(options.subnet), others: options.others, ..NetworkConfig::default() };
    let config = Config {
        workers: options.workers,
        arena: options.arena,
        console: libc::STDOUT_FILENO,
        network: Some(network),
        spare_machines: SPARE_MACHINES,
        kept_machines: KEPT_MACHINES,
        machines: options.machines,
        gatekept: true,
    };
    let cell = Cell::new(&config)?;
    let tap = cell.network().map(|(name, ..)| name);
    let ended = cell.ended().try_clone().map_err(|e| CellError::Os("cannot watch guests", e))?;
    let writer = channel.try_clone().map_err(|e| CellError::Os("cannot copy a descriptor", e))?;
    let state = Arc::new(State {
        cell: Mutex::new(cell),
        guests: Mutex::default(),
        channel: Mutex::new(writer),
        reporting: AtomicUsize::new(0),
    });
    state.say(&FromCell::Ready { tap });
    let watcher = Arc::clone(&state);
    std::thread::Builder::new()
        .name("ends".to_owned())
        .spawn(move || {
            foraker_confine::enter(Kind::Ends);
            // The event is read with a wait: it was made non-blocking for those who poll.
            while wait_readable(&ended) {
                let _ = ended.read();
                report(&watcher);
            }
        })
        .map_err(|e| CellError::Os("cannot start a thread", e))?;
    let asker = Arc::downgrade(&state);
    std::thread::Builder::new()
        .name("demand".to_owned())
        .spawn(move || {
            foraker_confine::enter(Kind::Demand);
            report_demand(&asker);
        })
        .map_err(|e| CellError::Os("cannot start a thread", e))?;
    foraker_confine::finish(Kind::Channel).map_err(|e| CellError::Setting(e.to_string()))?;
    let (mut images, mut publisher, mut in_order) = (HashMap::new(), None, false);
    let mut channel = Receiver::new(channel);
    let end = loop {
        match channel.receive() {
            Ok(Some(ToCell::Start(orders))) => {
                let alone = orders.len() == 1;
                let mut started = Vec::new();
                for (id, order) in orders {
                    match start(&state, &mut images, &mut publisher, (id, &order), alone) {
                        Ok(guest) => started.push((id, guest)),
                        Err(e) => {
                            state.say(&FromCell::Ended {
                                id,
                                end: Ended::Refused(e.to_string()),
                                fault: None,
                            });
                        }
                    }
                    if started.len() >= BATCH {
                        announce(&state, &mut started);
                    }
                }
                announce(&state, &mut started);
            }
            Ok(Some(ToCell::Stop { ids, kill })) => {
                for guest in some_of(&state, &ids) {
                    if kill {
                        guest.finish(End::Killed("it was killed".to_owned()));
                    } else {
                        guest.ask_to_stop();
                    }
                }
                if kill {
                    // Now, not when another thread has woken up: somebody may wait for what they had.
                    report(&state);
                }
            }
            Ok(Some(ToCell::Memory { id, bytes, granted })) => {
                let guests = state.guests.lock().unwrap_or_else(PoisonError::into_inner);
                let guest = guests.get(&id).map(|g| Arc::clone(&g.guest));
                drop(guests);
                if let Some(guest) = guest {
                    guest.answer_wish(bytes, granted);
                }
            }
            Ok(Some(ToCell::Hold { ids, hold })) => {
                for guest in some_of(&state, &ids) {
                    if hold { guest.pause() } else { guest.resume() }
                }
            }
            Ok(Some(ToCell::Survey { number, of })) => {
                let guests = survey(&state, &of);
                let cell = state.cell.lock().unwrap_or_else(PoisonError::into_inner);
                let (runnable, timers) = cell.waiting();
                let dropped = cell.uplink_counters().iter().map(|(_, n)| n).sum();
                let (senders, frames) = cell.network_waiting();
                let (missing, filled) = cell.paging();
                drop(cell);
                let load = CellLoad { runnable, timers, dropped, senders, frames, missing, filled };
                state.say(&FromCell::Survey { number, guests, load });
            }
            Ok(Some(ToCell::Look { id, how, stream })) => {
                // Without a stream nobody hears; who asked sees that the other end is closed.
                match stream {
                    Some(stream) => looks::begin(&state, id, how, stream),
                    None if matches!(how, Look::Core { .. }) => core_is_taken(&state, id),
                    None => {}
                }
            }
            Ok(Some(ToCell::End)) => in_order = true,
            Ok(None) => break Ok(()),
            Err(e) => break Err(CellError::Os("the supervisor's channel", e)),
        }
    };
    if !in_order {
        // Its supervisor was killed: the next one waits for what this process has. Ended as it is, the kernel would take it apart one machine after the other, and
        // wait 10 ms for each.
        state.cell.lock().unwrap_or_else(PoisonError::into_inner).stop();
        std::process::exit(0);
    }
    let guests: Vec<_> = {
        let mut guests = state.guests.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody answers any more.
        guests.values_mut().for_each(|g| g.core = Core::Unwanted);
        guests.values().map(|g| Arc::clone(&g.guest)).collect()
    };
    guests.iter().for_each(|g| g.ask_to_stop());
    let since = Instant::now();
    while since.elapsed() < GRACE && !guests.iter().all(|g| g.has_ended()) {
        std::thread::sleep(Duration::from_millis(5));
    }
    // How each ended is said before this process ends, whichever thread says it: the supervisor writes down who is to come back.
    report(&state);
    state.cell.lock().unwrap_or_else(PoisonError::into_inner).stop();
    report(&state);
    while state.reporting.load(Ordering::SeqCst) > 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    end
}

/// Those of these guests that are there.
fn some_of(state: &State, ids: &[u64]) -> Vec<Arc<Guest>> {
    let guests = state.guests.lock().unwrap_or_else(PoisonError::into_inner);
    ids.iter().filter_map(|id| guests.get(id)).map(|g| Arc::clone(&g.guest)).collect()
}

/// What guests have used.
fn survey(state: &State, of: &Surveyed) -> Vec<Counters> {
    let guests = state.guests.lock().unwrap_or_else(PoisonError::into_inner);
    let chosen: Vec<(u64, Arc<Guest>)> = match of {
        Surveyed::These(ids) => {
            ids.iter().filter_map(|id| Some((*id, Arc::clone(&guests.get(id)?.guest)))).collect()
        }
        Surveyed::Each | Surveyed::Sum => {
            guests.iter().map(|(id, running)| (*id, Arc::clone(&running.guest))).collect()
        }
    };
    drop(guests);
    let each = chosen.iter().map(|(id, guest)| counters(*id, guest));
    match of {
        Surveyed::Sum => vec![each.fold(Counters::default(), |sum, one| sum.plus(&one))],
        Surveyed::These(_) | Surveyed::Each => each
            .zip(&chosen)
            .map(|(one, (_, guest))| Counters { resident: guest.memory.resident(), ..one })
            .collect(),
    }
}

/// The counters of a guest, apart from its memory.
fn counters(id: u64, guest: &Guest) -> Counters {
    let c = guest.counter_values();
    Counters {
        id,
        cpu_ns: u64::try_from(guest.cpu_time().as_nanos()).unwrap_or(u64::MAX),
        resident: 0,
        exits: c.exits,
        rx_frames: c.rx_frames,
        rx_bytes: c.rx_bytes,
        tx_frames: c.tx_frames,
        tx_bytes: c.tx_bytes,
        rx_dropped: c.rx_dropped,
        tx_dropped: c.tx_dropped,
        console_dropped: c.console_dropped,
    }
}

fn start(
    state: &State,
    images: &mut HashMap<PathBuf, (Option<SystemTime>, Arc<LoadedImage>)>,
    publisher: &mut Option<Publisher>,
    (id, order): (u64, &Order),
    alone: bool,
) -> Result<Running, CellError> {
    // Guests of one image share it, until its file changes.
    let changed = std::fs::metadata(&order.image).and_then(|m| m.modified()).ok();
    let image = match images.get(&order.image) {
        Some((of, image)) if *of == changed && changed.is_some() => Arc::clone(image),
        _ => {
            let image = LoadedImage::open(&order.image)?;
            images.insert(order.image.clone(), (changed, Arc::clone(&image)));
            image
        }
    };
    // A port that another program has is a reason not to start.
    let mut listeners = Vec::new();
    for (host, port) in &order.publish {
        let publisher = match publisher {
            Some(publisher) => publisher,
            None => publisher
                .insert(Publisher::start().map_err(|e| CellError::Os("cannot serve published ports", e))?),
        };
        let listener = publisher.listen(*host).map_err(|e| CellError::Setting(e.to_string()))?;
        listeners.push((listener, *port));
    }
    let spec = order.spec(image, Some(mark(id)));
    let cell = state.cell.lock().unwrap_or_else(PoisonError::into_inner);
    let guest = if alone { cell.start(&spec) } else { cell.start_of_many(&spec) }?;
    drop(cell);
    let target = |port| Some(SocketAddr::new(guest.port.as_ref()?.ipv4().into(), port));
    let published = listeners.into_iter().filter_map(|(l, port)| Some(l.pass_to(target(port)?))).collect();
    let core = if order.keep_core { Core::Wanted } else { Core::Unwanted };
    Ok(Running { guest, core, timed: false, _published: published })
}

/// Tells of guests that were started. Only then do they stand in the table, so that nobody hears of an end before its start.
fn announce(state: &State, started: &mut Vec<(u64, Running)>) {
    let addresses = started.iter().map(|(id, g)| (*id, g.guest.port.as_ref().map(|p| p.ipv4()))).collect();
    state.say(&FromCell::Started(addresses));
    state.guests.lock().unwrap_or_else(PoisonError::into_inner).extend(started.drain(..));
    // One may have ended already; most have run their first instruction.
    report(state);
}

/// Tells of what guests want, of every guest that has ended, which it forgets, and when guests ran their first instruction. A message for each of those
/// would cost a wake-up, and nobody waits for it: it is told with the next thing that happens.
fn report(state: &State) {
    state.reporting.fetch_add(1, Ordering::SeqCst);
    tell(state);
    state.reporting.fetch_sub(1, Ordering::SeqCst);
}

fn tell(state: &State) {
    let mut guests = state.guests.lock().unwrap_or_else(PoisonError::into_inner);
    let entered: Vec<_> =
        guests.iter_mut().filter_map(|(id, running)| Some((*id, running.first_entry()?))).collect();
    let wishes: Vec<_> =
        guests.iter().filter_map(|(id, running)| Some((*id, running.guest.take_wish()?))).collect();
    let mut offered = Vec::new();
    for (id, running) in guests.iter_mut().filter(|(_, running)| running.is_to_be_offered()) {
        running.core = Core::Offered;
        offered.push(*id);
    }
    let gone: Vec<_> = guests.extract_if(|_, running| running.is_over()).collect();
    drop(guests);
    for id in offered {
        state.say(&FromCell::Core { id });
    }
    if !entered.is_empty() {
        state.say(&FromCell::Entered(entered));
    }
    for (id, bytes) in wishes {
        state.say(&FromCell::Memory { id, bytes });
    }
    for (id, Running { guest, _published: published, .. }) in gone {
        let end = guest.end().map_or(Ended::CellDied, Ended::from);
        let fault = match guest.end() {
            Some(End::Faulted(fault)) => Some(Box::new(crate::fault::report(fault, None))),
            _ => None,
        };
        // Its ports, its memory and its machine are given back before the supervisor hears of it, and counts on them.
        let cell = state.cell.lock().unwrap_or_else(PoisonError::into_inner);
        cell.forget(&guest);
        cell.write_line(&end_mark(id));
        drop(cell);
        drop((published, guest));
        state.say(&FromCell::Ended { id, end, fault });
    }
}

/// Somebody has a guest's core, or will not have it: its end can be told.
fn core_is_taken(state: &State, id: u64) {
    if let Some(running) = state.guests.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&id) {
        running.core = Core::Unwanted;
    }
    report(state);
}

/// Tells how much of the processors the guests ask for, when that has changed.
fn report_demand(state: &Weak<State>) {
    let mut told = Asked::default();
    loop {
        std::thread::sleep(DEMAND);
        let Some(state) = state.upgrade() else { return };
        let now = state.cell.lock().unwrap_or_else(PoisonError::into_inner).demand();
        let differs = |now: u64, told: u64| now.abs_diff(told) > told / 8;
        if differs(now.shares, told.shares) || differs(now.promised, told.promised) {
            state.say(&FromCell::Demand(now));
            told = now;
        }
    }
}

fn wait_readable(event: &impl std::os::fd::AsRawFd) -> bool {
    let mut poll = libc::pollfd { fd: event.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    loop {
        // SAFETY: one valid structure for the call.
        let ready = unsafe { libc::poll(&raw mut poll, 1, -1) };
        if ready >= 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return ready > 0;
        }
    }
}
