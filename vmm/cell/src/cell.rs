//! The cell: starting guests, ending them, and what its threads share.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use foraker_abi::hypercall::{FOREVER, READY_AGAIN};
use foraker_abi::layout;
use foraker_abi::registers::{Boot, MAGIC, Net, Registers};
use foraker_confine::Kind;
use foraker_image::ImageError;
use foraker_machine::{Core, Host, HostError, Machine, MachineError, Start};
use foraker_memory::plan::STACK_TOP;
use foraker_memory::{Arena, GuestMemory, MemoryError, Pages, Template};
use foraker_net::{Port, RingState};
use foraker_policy::demand::Asked;
use foraker_policy::token_bucket::TokenBucket;
use vmm_sys_util::eventfd::EventFd;

use crate::clock::Clock;
use crate::console::{Console, LineBuffer};
use crate::errand::{Errand, Run};
use crate::guest::{ConsoleState, CoreState, Guest, GuestParts, Seat, VirtualCore};
use crate::hold::Waiters;
use crate::machines::{Machines, Moving};
use crate::network::{Network, NetworkError};
use crate::queue::{Queued, Timer, WorkerShared, since};
use crate::report::End;
use crate::spec::{Config, GuestSpec};
use crate::templates::{Candidate, Captured, Key, MOST_CAPTURED};
use crate::worker::Worker;

/// Why a cell or a guest cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum CellError {
    /// The host.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The host refused something else.
    #[error("{0}: {1}")]
    Os(&'static str, std::io::Error),
    /// A setting is out of range.
    #[error("{0}")]
    Setting(String),
}

/// What the threads of a cell share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) workers: Vec<WorkerShared>,
    pub(crate) console: Console,
    pub(crate) network: Option<Network>,
    guests: Mutex<Vec<Arc<Guest>>>,
    ended: EventFd,
    stopping: AtomicBool,
    next_id: AtomicU64,
    pub(crate) machines: Machines,
    /// Where the cell's clock starts.
    epoch: Instant,
    /// How much memory guests have is decided elsewhere.
    pub(crate) gatekept: bool,
    pub(crate) waiters: Waiters,
}

/// A cell.
#[derive(Debug)]
pub struct Cell {
    arena: Arc<Arena>,
    /// For guests with large pages.
    large_arena: Arc<Arena>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Shared {
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Queues a runnable core: on the worker that ran it last, unless that one is busy and another sleeps. A worker that is about to sleep itself takes
    /// it rather than wake that one: waking takes longer than what the core finds in the other processor's caches is worth.
    pub(crate) fn enqueue(&self, vcore: Box<VirtualCore>, queued: Queued) {
        let home = vcore.guest.cores.get(vcore.index as usize).map_or(0, |s| s.worker.load(Ordering::Relaxed))
            as usize;
        let busy = |w: &WorkerShared| !w.is_sleeping() && (w.attention.in_guest() || w.waiting() > 0);
        // What was promised to one does not wait for what was promised to another as long as there is a worker without.
        let elsewhere = |w: &WorkerShared| {
            let crowded = vcore.guest.due().is_some() && w.keeps_a_promise();
            crowded.then(|| self.workers.iter().find(|w| !w.keeps_a_promise())).flatten()
        };
        let chosen = match self.workers.get(home) {
            Some(w) if busy(w) => {
                self.workers.iter().find(|w| w.is_sleeping()).or_else(|| elsewhere(w)).unwrap_or(w)
            }
            Some(w) if w.is_sleeping() => self.workers.iter().find(|w| w.is_mine_and_free()).unwrap_or(w),
            Some(w) => w,
            None => return,
        };
        chosen.push(vcore, queued);
    }

    /// A moment on the cell's clock, nanoseconds.
    pub(crate) fn clock(&self, at: Instant) -> u64 {
        since(self.epoch, at)
    }

    /// The moment of a time on the cell's clock.
    pub(crate) fn moment(&self, at: u64) -> Option<Instant> {
        self.epoch.checked_add(Duration::from_nanos(at))
    }

    /// A guest is ready: if others are to start from where it is, its state is taken.
    pub(crate) fn capture(&self, guest: &Guest, core: &mut Core) {
        let candidate = guest.candidate.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(candidate) = candidate else { return };
        if candidate.image.wanting(&candidate.key).is_none() || guest.memory.resident() > MOST_CAPTURED {
            return;
        }
        // What it has sent is not others' to send.
        self.serve_guest(guest);
        match core.save() {
            Ok(mut core) => {
                core.set_result(READY_AGAIN);
                // Others write to it too: a frame that came in between would be in one of memory and rings, and not in the other.
                let look = |rings| (Arc::new(Template::capture(&guest.memory)), rings);
                let held = match &guest.port {
                    Some(port) => port.hold(look),
                    None => Some(look(RingState::default())),
                };
                // None: it is being ended.
                let Some((memory, rings)) = held else { return };
                let captured = Captured { memory, core, rings, time: guest.clock.now() };
                log::debug!(
                    "{} is a template of {} bytes and {}",
                    guest.name,
                    captured.memory.size(),
                    captured.core.size()
                );
                candidate.image.keep(candidate.key, captured);
            }
            Err(e) => log::warn!("{} is no template: {e}", guest.name),
        }
    }

    /// Takes back the machine of a guest that has ended, if it can be used again.
    pub(crate) fn take_back(&self, mut vcore: Box<VirtualCore>) {
        self.cancel_deadline(&mut vcore);
        if vcore.guest.cores.len() == 1
            && let Seat::Here(core) = vcore.seat
        {
            self.machines.put_back(core);
        }
    }

    /// Gives a warm guest a machine.
    pub(crate) fn give_machine(&self, vcore: &mut VirtualCore) -> Result<(), CellError> {
        let Seat::Away(saved) = &vcore.seat else { return Ok(()) };
        let guest = &vcore.guest;
        let (mut core, moving) = self.machine_with(&guest.memory, None)?;
        if let (Some(network), Some(_)) = (&self.network, &guest.port) {
            core.machine().register_doorbell(network.doorbell())?;
        }
        core.resume(guest.memory.page_tables(), saved)?;
        guest.clock.publish(&guest.registers().time, self.machines.host().time_stamps(&core)?);
        self.machines.hold(guest, Some(moving));
        vcore.seat = Seat::Here(core);
        Ok(())
    }

    /// A machine with this memory: one that is there, or a new one. If a worker is awake for a new one, it maps the memory meanwhile.
    fn machine_with(
        &self,
        memory: &Arc<GuestMemory>,
        worker: Option<&WorkerShared>,
    ) -> Result<(Core, Moving<'_>), CellError> {
        let (core, moving) = self.machines.obtain(memory.shared());
        if let Some(core) = core {
            core.machine().attach(memory)?;
            return Ok((core, moving));
        }
        let machine = Machine::new(self.machines.host())?;
        let mapping = {
            let (machine, memory) = (Arc::clone(&machine), Arc::clone(memory));
            Errand::new(move || machine.attach(&memory))
        };
        if let Some(worker) = worker {
            worker.ask(Arc::clone(&mapping) as Arc<dyn Run>);
        }
        let core = machine.create_core(0);
        // Done by the worker, or here and now; in any case before an error ends the start.
        mapping.result().transpose()?;
        Ok((core?, moving))
    }

    /// Has a worker wake a core that rests at `until`, guest time, unless its sleep's number is another then. False if that is now.
    pub(crate) fn set_deadline(
        &self,
        vcore: &mut VirtualCore,
        worker: usize,
        sleep: u64,
        until: u64,
    ) -> bool {
        if until == FOREVER {
            return true;
        }
        let left = vcore.guest.clock.until(until);
        if left.is_zero() {
            return false;
        }
        // A deadline further away than the host's clock reaches never comes.
        if let Some(at) = Instant::now().checked_add(left)
            && let Some(keeper) = self.workers.get(worker)
        {
            let guest = Arc::downgrade(&vcore.guest);
            let key = keeper.set_timer(self.clock(at), Timer::Deadline { guest, core: vcore.index, sleep });
            vcore.deadline = Some((worker, key));
        }
        true
    }

    /// Forgets the deadline of a core that is awake.
    pub(crate) fn cancel_deadline(&self, vcore: &mut VirtualCore) {
        if let Some((worker, key)) = vcore.deadline.take()
            && let Some(worker) = self.workers.get(worker)
        {
            worker.cancel_timer(key);
        }
    }

    /// Calls out every worker that runs a core of `guest`.
    pub(crate) fn call_workers_of(&self, guest: &Guest) {
        for w in self.workers.iter().filter(|w| w.runs(guest)) {
            w.attention.call();
        }
    }

    pub(crate) fn on_guest_end(&self, guest: &Guest) {
        if let (Some(network), Some(port)) = (&self.network, &guest.port) {
            network.remove(port);
        }
        self.tell();
    }

    /// Whoever runs the cell is to look at its guests.
    pub(crate) fn tell(&self) {
        // An event counter that is full is readable, which is all that is wanted.
        let _ = self.ended.write(1);
    }
}

impl Cell {
    /// Makes a cell and starts its threads.
    ///
    /// # Errors
    /// `/dev/kvm` cannot be used, the network cannot be set up, or the host has no threads to give.
    pub fn new(config: &Config) -> Result<Cell, CellError> {
        let host = Arc::new(Host::open()?);
        let os = |what| move |e| CellError::Os(what, e);
        let network = config.network.as_ref().map(Network::new).transpose()?;
        let (arena, large_arena) = (Arena::new(config.arena)?, Arena::of_large_pages(config.arena)?);
        let floor = Arc::default();
        let epoch = Instant::now();
        let workers = (0..config.workers.max(1)).map(|_| WorkerShared::new(&floor, epoch));
        let shared = Arc::new(Shared {
            workers: workers.collect::<Result<_, _>>().map_err(os("cannot make a worker"))?,
            console: Console::new(config.console),
            network,
            guests: Mutex::default(),
            ended: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
                .map_err(os("cannot make an event"))?,
            stopping: AtomicBool::new(false),
            next_id: AtomicU64::new(1),
            machines: Machines::new(
                host,
                Arc::clone(&arena),
                config.spare_machines,
                config.kept_machines,
                config.machines,
            ),
            gatekept: config.gatekept,
            waiters: Waiters::default(),
            epoch,
        });
        let mut cell = Cell { arena, large_arena, shared, threads: Vec::new() };
        for index in 0..cell.shared.workers.len() {
            let shared = Arc::clone(&cell.shared);
            let thread = std::thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(move || match Worker::new(shared, index) {
                    Ok(mut worker) => {
                        foraker_confine::enter(Kind::Worker);
                        worker.work();
                    }
                    Err(e) => log::error!("worker {index} cannot start: {e}"),
                })
                .map_err(os("cannot start a worker"))?;
            cell.threads.push(thread);
        }
        if cell.shared.machines.needs_filling() {
            let shared = Arc::clone(&cell.shared);
            let thread = std::thread::Builder::new()
                .name("machines".to_owned())
                .spawn(move || shared.machines.keep_filling())
                .map_err(os("cannot start a thread"))?;
            cell.threads.push(thread);
        }
        if cell.shared.network.is_some() {
            let shared = Arc::clone(&cell.shared);
            let thread = std::thread::Builder::new()
                .name("uplink".to_owned())
                .spawn(move || Network::serve_uplink(&shared))
                .map_err(os("cannot start the uplink"))?;
            cell.threads.push(thread);
        }
        if cell.shared.network.as_ref().is_some_and(Network::tells_host) {
            let shared = Arc::clone(&cell.shared);
            let thread = std::thread::Builder::new()
                .name("neighbours".to_owned())
                .stack_size(128 << 10)
                .spawn(move || Network::serve_neighbours(&shared))
                .map_err(os("cannot start a thread"))?;
            cell.threads.push(thread);
        }
        Ok(cell)
    }

    /// Starts a guest.
    ///
    /// # Errors
    /// The memory is too little for the image, the host has no more machines to give, or a setting is out of range.
    pub fn start(&self, spec: &GuestSpec) -> Result<Arc<Guest>, CellError> {
        self.start_on(spec, true)
    }

    /// Starts a guest of many: no worker is kept awake for it, which would take the processor from the start of the next.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_of_many(&self, spec: &GuestSpec) -> Result<Arc<Guest>, CellError> {
        self.start_on(spec, false)
    }

    fn start_on(&self, spec: &GuestSpec, alone: bool) -> Result<Arc<Guest>, CellError> {
        let host = self.shared.machines.host();
        let most = host.max_cores().min(layout::MAX_CORES as usize);
        if spec.cores == 0 || spec.cores as usize > most {
            return Err(CellError::Setting(format!("{} cores: choose 1 to {most}", spec.cores)));
        }
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let home = usize::try_from(id).unwrap_or(0) % self.shared.workers.len();
        let worker = self.shared.workers.get(home).filter(|_| alone);
        let _expected = worker.map(WorkerShared::expect);
        let key = Key::of(spec);
        let captured = key.as_ref().and_then(|key| spec.image.captured(key));
        let ahead = if alone {
            self.shared.machines.start(captured.as_ref())
        } else {
            self.shared.machines.start_of_many();
            None
        };
        let (core, memory, moving) = match ahead {
            Some((core, memory)) => (core, memory, None),
            None => {
                let (core, memory, moving) = self.seat(spec, captured.as_deref(), worker)?;
                (core, memory, Some(moving))
            }
        };
        let machine = Arc::clone(core.machine());
        let stamps = host.time_stamps(&core)?;
        let clock = Clock::new(host.tsc_khz(&core)?, stamps.1);
        let clock = captured.as_ref().map_or(clock, |captured| clock.set_to(captured.time));
        let port = match (&self.shared.network, &spec.network) {
            (Some(network), Some(wanted)) => {
                let rings = captured.as_ref().map_or_else(RingState::default, |captured| captured.rings);
                Some(network.add(id, wanted, &memory, rings)?)
            }
            _ => None,
        };
        let prepared = self.prepare(spec, id, &machine, &memory, port.as_deref());
        if let Err(e) = prepared {
            // The port reaches the memory, which is given back now.
            if let (Some(network), Some(port)) = (&self.shared.network, &port) {
                network.remove(port);
            }
            return Err(e);
        }
        let guest = Arc::new(Guest::new(GuestParts {
            id,
            name: spec.name.clone(),
            clock,
            port,
            immediate: spec.immediate,
            processor: spec.processor,
            machine: (spec.cores > 1).then_some(machine),
            cores: spec.cores,
            console: ConsoleState {
                lines: LineBuffer::new(spec.console_mark.clone()),
                limit: TokenBucket::new(spec.console_limit, spec.console_limit, 0),
            },
            candidate: key.filter(|_| captured.is_none()).map(|key| {
                let image = Arc::clone(&spec.image);
                Box::new(Candidate { image, key })
            }),
            keep_core: spec.keep_core,
            cell: Arc::downgrade(&self.shared),
            memory,
        }));
        guest.clock.publish(&guest.registers().time, stamps);
        if let (Some(network), Some(port)) = (&self.shared.network, &guest.port) {
            network.attach(port, &guest);
        }
        self.shared.guests.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&guest));
        if let Some(slot) = guest.cores.first() {
            *slot.lock() = CoreState::Active;
            slot.worker.store(u32::try_from(home).unwrap_or(0), Ordering::Relaxed);
        }
        if spec.paused {
            guest.pause();
        }
        let account = spec.processor.account();
        self.shared.machines.hold(&guest, moving);
        let seat = Seat::Here(core);
        let vcore = VirtualCore { guest: Arc::clone(&guest), index: 0, seat, account, deadline: None };
        self.shared.enqueue(Box::new(vcore), Queued::Woken);
        Ok(guest)
    }

    /// A machine with a new guest's memory, which stands at its first instruction.
    fn seat(
        &self,
        spec: &GuestSpec,
        captured: Option<&Captured>,
        worker: Option<&WorkerShared>,
    ) -> Result<(Core, Arc<GuestMemory>, Moving<'_>), CellError> {
        let template = match captured {
            Some(captured) => Arc::clone(&captured.memory),
            None => spec.image.template(spec.memory, spec.pages)?,
        };
        let arena = match spec.pages {
            Pages::Small => &self.arena,
            Pages::Large => &self.large_arena,
        };
        let memory = Arc::new(GuestMemory::new(arena, &template)?);
        let (mut core, moving) = self.shared.machine_with(&memory, worker)?;
        let start = Start { entry: spec.image.image.entry, stack: STACK_TOP, argument: 0 };
        match captured {
            Some(captured) => core.resume(memory.page_tables(), &captured.core)?,
            None => core.begin(memory.page_tables(), start)?,
        }
        Ok((core, memory, moving))
    }

    /// How many guests started on what had been made ready for one like them.
    #[must_use]
    pub fn started_ahead(&self) -> u64 {
        self.shared.machines.started_ahead()
    }

    /// What the guests that could run asked for, as means since this was asked last: what this cell weighs beside others.
    #[must_use]
    pub fn demand(&self) -> Asked {
        let each = self.shared.workers.iter().map(WorkerShared::demand);
        each.fold(Asked::default(), |all, one| Asked {
            shares: all.shares.saturating_add(one.shares),
            promised: all.promised.saturating_add(one.promised),
        })
    }

    /// Writes a line of the cell's own to the output of consoles, behind all that guests have written.
    pub fn write_line(&self, line: &str) {
        // Like guests' own lines, it is dropped where the output takes nothing.
        let _ = self.shared.console.put(line.as_bytes());
    }

    /// Cores that wait for a processor, and deadlines.
    #[must_use]
    pub fn waiting(&self) -> (usize, usize) {
        let each = self.shared.workers.iter().map(|w| (w.waiting(), w.timers()));
        each.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }

    /// Guests that wait for their turn to send, and frames that wait for guests' buffers.
    #[must_use]
    pub fn network_waiting(&self) -> (usize, usize) {
        self.shared.network.as_ref().map_or((0, 0), Network::waiting)
    }

    /// Missing pages that somebody waits for, and how many were filled so far.
    #[must_use]
    pub fn paging(&self) -> (usize, u64) {
        let (small, large) = (self.arena.paging(), self.large_arena.paging());
        (small.0 + large.0, small.1 + large.1)
    }

    /// How many guests have lost their machine to others.
    #[must_use]
    pub fn machines_taken_away(&self) -> u64 {
        self.shared.machines.taken_away()
    }

    /// How many machines of ended guests were kept for others.
    #[must_use]
    pub fn machines_reused(&self) -> u64 {
        self.shared.machines.reused()
    }

    /// What is left to do between a guest's port and its first instruction.
    fn prepare(
        &self,
        spec: &GuestSpec,
        id: u64,
        machine: &Machine,
        memory: &GuestMemory,
        port: Option<&Port>,
    ) -> Result<(), CellError> {
        let net = match (&self.shared.network, port, &spec.network) {
            (Some(network), Some(port), Some(wanted)) => {
                machine.register_doorbell(network.doorbell())?;
                network.registers_of(port, wanted)
            }
            _ => Net::default(),
        };
        self.write_registers(spec, id, memory, net)
    }

    fn write_registers(
        &self,
        spec: &GuestSpec,
        id: u64,
        memory: &GuestMemory,
        net: Net,
    ) -> Result<(), CellError> {
        let nul = |s: &&String| s.contains('\0');
        if spec.arguments.iter().chain(&spec.environment).find(nul).is_some() || spec.name.contains('\0') {
            return Err(CellError::Setting("an argument holds a NUL character".to_owned()));
        }
        let strings = std::iter::once(&spec.name).chain(&spec.arguments).chain(&spec.environment);
        let (size, offset) = memory.write_boot(strings.map(String::as_str))?;
        let mut random = [0u8; 40];
        // SAFETY: the buffer is valid for the call. So few bytes come whole once the host has any randomness.
        let got = unsafe { libc::getrandom(random.as_mut_ptr().cast(), random.len(), 0) };
        if usize::try_from(got) != Ok(random.len()) {
            return Err(CellError::Os("no random numbers", std::io::Error::last_os_error()));
        }
        let (entropy, incarnation) = random.split_at(32);
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let plan = memory.plan();
        let r: *mut Registers = memory.registers();
        // SAFETY: the page belongs to a guest that does not run yet, is aligned and holds zeros, which are valid for every
        // field; the reference ends before the guest starts.
        let r = unsafe { &mut *r };
        // What was pending for a template's guest is not this one's.
        memory.control(0).pending.store(0, Ordering::Relaxed);
        r.magic = MAGIC;
        r.abi_version = foraker_abi::VERSION;
        r.cores = spec.cores;
        r.guest_id = id;
        r.entropy.copy_from_slice(entropy);
        // Never 0, which would say that nobody wrote it.
        let incarnation = incarnation.iter().fold(0u64, |n, b| n << 8 | u64::from(*b)) | 1;
        r.incarnation.store(incarnation, Ordering::Relaxed);
        r.memory_size = plan.memory_size;
        r.heap_start = plan.heap_start;
        r.memory_end = plan.memory_end;
        r.memory_start = plan.memory_start;
        r.stack_top = STACK_TOP;
        r.cpu_features = self.shared.machines.host().cpu_features();
        r.net = net;
        r.boot = Boot {
            argument_count: 1 + count(spec.arguments.len()),
            environment_count: count(spec.environment.len()),
            size,
            offset,
        };
        r.schedule.immediate.store(u32::from(spec.immediate), Ordering::Relaxed);
        let kept = if self.shared.gatekept { spec.memory_provision.unwrap_or(0) } else { plan.memory_size };
        r.resources.memory_provisioned.store(kept.min(plan.memory_size), Ordering::Relaxed);
        r.resources.memory_allocated.store(plan.memory_size, Ordering::Relaxed);
        r.resources.cpu_provisioned.store(spec.processor.provision.unwrap_or(0), Ordering::Relaxed);
        r.resources.cores_allocated.store(spec.cores, Ordering::Relaxed);
        Ok(())
    }

    /// Every guest that was started, in order.
    #[must_use]
    pub fn guests(&self) -> Vec<Arc<Guest>> {
        self.shared.guests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Becomes readable when a guest ends, or has a wish; read it to wait for the next.
    #[must_use]
    pub fn ended(&self) -> &EventFd {
        &self.shared.ended
    }

    /// Forgets a guest that has ended, and frees what it held.
    pub fn forget(&self, guest: &Arc<Guest>) {
        // A last line without an end is a line.
        guest.console.lock().unwrap_or_else(PoisonError::into_inner).lines.finish(&self.shared.console);
        self.shared.guests.lock().unwrap_or_else(PoisonError::into_inner).retain(|g| !Arc::ptr_eq(g, guest));
    }

    /// Name, IPv4 address and prefix of the TAP device on the host's side.
    #[must_use]
    pub fn network(&self) -> Option<(String, Ipv4Addr, u8)> {
        self.shared.network.as_ref().map(Network::description)
    }

    /// Why frames were dropped that belong to no guest, as (reason, count).
    #[must_use]
    pub fn uplink_counters(&self) -> Vec<(&'static str, u64)> {
        self.shared.network.as_ref().map_or_else(Vec::new, Network::counters)
    }

    /// Ends every guest and every thread, and writes out what consoles still hold.
    pub fn stop(&mut self) {
        for guest in self.guests() {
            guest.finish(End::Killed("the cell stops".to_owned()));
            guest.console.lock().unwrap_or_else(PoisonError::into_inner).lines.finish(&self.shared.console);
        }
        self.shared.stopping.store(true, Ordering::SeqCst);
        for w in &self.shared.workers {
            w.attention.call();
            w.wake();
        }
        if let Some(network) = &self.shared.network {
            network.wake_uplink();
            network.stop_neighbours();
        }
        self.shared.machines.stop();
        for thread in self.threads.drain(..) {
            // A thread that panicked has aborted the process.
            let _ = thread.join();
        }
        self.shared.console.flush(1000);
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        self.stop();
    }
}
