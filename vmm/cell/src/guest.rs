//! A guest: its identity, its memory, its cores, and how it ended.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use foraker_abi::interrupt;
use foraker_abi::registers::{Counters, Registers, Schedule};
use foraker_machine::{Core, Machine, Saved};
use foraker_memory::GuestMemory;
use foraker_net::Port;
use foraker_net::trace::Tracer;
use foraker_policy::cpu::{Account, DEFAULT_SHARE, Grain};
use foraker_policy::rate::Rate;
use foraker_policy::token_bucket::TokenBucket;
use serde::{Deserialize, Serialize};

use crate::allocation::{self, Allocation};
use crate::cell::Shared;
use crate::clock::Clock;
use crate::console::LineBuffer;
use crate::debugger::Debugging;
use crate::hold::Flags;
use crate::inspect::KeptCores;
use crate::queue::{DeadlineKey, Queued};
use crate::report::{Cause, CounterValues, End, Fault};
use crate::templates::Candidate;

/// One guest of a cell.
#[derive(Debug)]
pub struct Guest {
    /// Identity, unique in the cell's life.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Its memory.
    pub memory: Arc<GuestMemory>,
    /// Its time.
    pub clock: Clock,
    /// Its port on the switch.
    pub port: Option<Arc<Port>>,
    /// Each interrupt forces it out.
    pub immediate: bool,
    /// Its machine, which makes further cores; none for a guest of one core, which may change machines.
    pub(crate) machine: Option<Arc<Machine>>,
    /// It has run since it was last asked whether it needs its machine.
    pub(crate) used: AtomicBool,
    pub(crate) cores: Vec<CoreSlot>,
    pub(crate) console: Mutex<ConsoleState>,
    /// To be captured when it is ready.
    pub(crate) candidate: Mutex<Option<Box<Candidate>>>,
    pub(crate) cell: Weak<Shared>,
    /// Its transmit ring asks for doorbells.
    pub(crate) must_ring: AtomicBool,
    /// Its share of the processors, and how finely its turns are cut.
    pub(crate) processor: ProcessorSpec,
    /// When a worker first entered it.
    pub(crate) entered: OnceLock<Instant>,
    cpu_ns: AtomicU64,
    /// The clocks of its limit of processor time, and of what it is promised.
    limit_clock: AtomicU64,
    promise_clock: AtomicU64,
    end: OnceLock<End>,
    /// What happens to it is recorded here.
    pub(crate) tracer: Tracer,
    /// Whether it has ended, and whether it may run.
    pub(crate) flags: Flags,
    /// How much of its memory it has.
    pub(crate) allocation: Allocation,
    /// Where the state of its cores is kept should it fault, if it is wanted.
    pub(crate) kept: Option<Box<KeptCores>>,
    /// What it shares with its debugger, if it has one. A leaf among the locks.
    pub(crate) debugging: Mutex<Option<Box<Debugging>>>,
}

/// A guest's part of the processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessorSpec {
    /// Its share beside other guests, in proportion to theirs: 1 to 10,000.
    pub share: u32,
    /// Most that it may use, thousandths of a processor.
    pub limit: Option<u32>,
    /// What is kept for it, thousandths of a processor: it has that before all others, and others have it while it rests.
    pub provision: Option<u32>,
    /// How finely its turns are cut.
    pub grain: Grain,
}

impl Default for ProcessorSpec {
    fn default() -> Self {
        ProcessorSpec { share: DEFAULT_SHARE, limit: None, provision: None, grain: Grain::Auto }
    }
}

impl ProcessorSpec {
    fn most(&self) -> Option<Rate> {
        self.limit.map(Rate::new)
    }

    fn promise(&self) -> Option<Rate> {
        self.provision.map(Rate::new)
    }

    /// The account of a core that has not run yet.
    pub(crate) fn account(&self) -> Account {
        Account::new(self.share, self.grain)
    }
}

/// A guest's console: its line buffer and its limit.
#[derive(Debug)]
pub(crate) struct ConsoleState {
    pub(crate) lines: LineBuffer,
    pub(crate) limit: TokenBucket,
}

/// Where a core of a guest is.
#[derive(Debug)]
pub(crate) struct CoreSlot {
    pub(crate) state: Mutex<CoreState>,
    /// The worker that runs it, or ran it last.
    pub(crate) worker: AtomicU32,
    /// Its state is `Running`: what an interrupt asks first, without the lock.
    pub(crate) idle: AtomicBool,
    /// Its deadline's number, so that a timer that was overtaken does nothing.
    pub(crate) sleep: AtomicU64,
    /// The last awaited acknowledgement that has come.
    pub(crate) heard: AtomicU64,
}

impl CoreSlot {
    pub(crate) fn lock(&self) -> MutexGuard<'_, CoreState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// States of a core.
#[derive(Debug)]
pub(crate) enum CoreState {
    /// Never started, or stopped.
    Stopped(Option<(Core, Account)>),
    /// On a run queue, or on a worker.
    Active,
    /// Gave up the processor.
    Idle(Box<VirtualCore>),
    /// Wants to run and may not: its guest is paused or held, or has used up its limit of processor time.
    Held(Box<VirtualCore>),
    /// The guest has ended.
    Gone,
}

/// Whether a core has a machine under it.
#[derive(Debug)]
pub(crate) enum Seat {
    /// It has.
    Here(Core),
    /// It was taken away; this is its state. The guest is *warm*.
    Away(Box<Saved>),
}

/// A core that can run: owned by a run queue, a worker or its slot, never by two of them.
#[derive(Debug)]
pub(crate) struct VirtualCore {
    pub(crate) guest: Arc<Guest>,
    pub(crate) index: u32,
    pub(crate) seat: Seat,
    /// What it has used.
    pub(crate) account: Account,
    /// Its deadline, and the worker that keeps it.
    pub(crate) deadline: Option<DeadlineKey>,
}

pub(crate) struct GuestParts {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) clock: Clock,
    pub(crate) port: Option<Arc<Port>>,
    pub(crate) immediate: bool,
    pub(crate) machine: Option<Arc<Machine>>,
    pub(crate) cores: u32,
    pub(crate) processor: ProcessorSpec,
    pub(crate) console: ConsoleState,
    pub(crate) candidate: Option<Box<Candidate>>,
    pub(crate) keep_core: bool,
    pub(crate) cell: Weak<Shared>,
}

impl Guest {
    pub(crate) fn new(parts: GuestParts) -> Guest {
        let slot = |_| CoreSlot {
            state: Mutex::new(CoreState::Stopped(None)),
            worker: AtomicU32::new(0),
            idle: AtomicBool::new(false),
            sleep: AtomicU64::new(0),
            heard: AtomicU64::new(0),
        };
        Guest {
            id: parts.id,
            name: parts.name,
            memory: parts.memory,
            clock: parts.clock,
            port: parts.port,
            immediate: parts.immediate,
            machine: parts.machine,
            used: AtomicBool::new(true),
            cores: (0..parts.cores).map(slot).collect(),
            console: Mutex::new(parts.console),
            candidate: Mutex::new(parts.candidate),
            cell: parts.cell,
            must_ring: AtomicBool::new(true),
            processor: parts.processor,
            entered: OnceLock::new(),
            cpu_ns: AtomicU64::new(0),
            limit_clock: AtomicU64::new(0),
            promise_clock: AtomicU64::new(0),
            end: OnceLock::new(),
            tracer: Tracer::default(),
            flags: Flags::default(),
            allocation: Allocation::default(),
            debugging: Mutex::default(),
            kept: parts.keep_core.then(Box::default),
        }
    }

    pub(crate) fn registers(&self) -> &Registers {
        // SAFETY: the page holds a `Registers` since the guest was made; only the VMM writes it, and what changes while the guest
        // exists are atomics.
        unsafe { &*self.memory.registers() }
    }

    /// The counters in the guest's virtual registers.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.registers().counters
    }

    /// The scheduling part of the virtual registers.
    #[must_use]
    pub fn schedule(&self) -> &Schedule {
        &self.registers().schedule
    }

    /// A copy of the counters now.
    #[must_use]
    pub fn counter_values(&self) -> CounterValues {
        self.copy_counters();
        self.counters().into()
    }

    /// Frames dropped on the way from and to the guest, by reason.
    #[must_use]
    pub fn drops(&self) -> Vec<(&'static str, u64)> {
        let Some(port) = &self.port else { return Vec::new() };
        let mut all: Vec<(&'static str, u64)> = Vec::new();
        for (reason, n) in port.counters().rx.drops.iter().chain(port.counters().tx.drops.iter()) {
            match all.iter_mut().find(|(name, _)| *name == reason.name()) {
                Some((_, sum)) => *sum += n,
                None => all.push((reason.name(), n)),
            }
        }
        all
    }

    /// How many cores it has, whether they were started or not.
    #[must_use]
    pub fn cores(&self) -> usize {
        self.cores.len()
    }

    /// When its first instruction ran, if it has: the moment before its machine was entered for the first time.
    #[must_use]
    pub fn entered(&self) -> Option<Instant> {
        self.entered.get().copied()
    }

    /// Processor time that its cores have used.
    #[must_use]
    pub fn cpu_time(&self) -> Duration {
        Duration::from_nanos(self.cpu_ns.load(Ordering::Relaxed))
    }

    /// Accounts for processor time used until `now` on the cell's clock, nanoseconds. Returns how much of it the guest was promised.
    pub(crate) fn charge(&self, ns: u64, now: u64) -> u64 {
        let total = self.cpu_ns.fetch_add(ns, Ordering::Relaxed) + ns;
        self.schedule().cpu_ns.store(total, Ordering::Relaxed);
        let tick = |clock: &AtomicU64, rate: Rate, until: u64, ns: u64| {
            let charged = |clock| Some(rate.charge(clock, until, ns));
            // Never refused: the closure always has an answer.
            let _ = clock.fetch_update(Ordering::Relaxed, Ordering::Relaxed, charged);
        };
        if let Some(limit) = self.processor.most() {
            tick(&self.limit_clock, limit, now, ns);
        }
        let Some(promise) = self.processor.promise() else { return 0 };
        let clock = self.promise_clock.load(Ordering::Relaxed);
        let promised = promise.part(clock, now.saturating_sub(ns), ns);
        tick(&self.promise_clock, promise, now, promised);
        promised
    }

    /// From when on it runs as it was promised, if it was promised anything.
    pub(crate) fn due(&self) -> Option<u64> {
        Some(self.processor.promise()?.due_at(self.promise_clock.load(Ordering::Relaxed)))
    }

    /// For how long from `now` on it runs as it was promised.
    pub(crate) fn promised_left(&self, now: u64) -> u64 {
        self.processor.promise().map_or(0, |p| p.left(self.promise_clock.load(Ordering::Relaxed), now))
    }

    /// From when on it may run, if not at `now`.
    pub(crate) fn capped_until(&self, now: u64) -> Option<u64> {
        let at = self.processor.most()?.ready_at(self.limit_clock.load(Ordering::Relaxed));
        (at > now).then_some(at)
    }

    /// How long it may run from `now` on, if that is limited.
    pub(crate) fn cap_left(&self, now: u64) -> Option<Duration> {
        let limit = self.processor.most()?;
        Some(Duration::from_nanos(limit.left(self.limit_clock.load(Ordering::Relaxed), now)))
    }

    /// Says in the virtual registers how long the running core may go on, if others wait; a guest whose upcalls want to know is told.
    pub(crate) fn announce_end(&self, left: Option<Duration>) {
        let at = left.map_or(0, |left| self.clock.now() + u64::try_from(left.as_nanos()).unwrap_or(0));
        let schedule = self.schedule();
        if at == 0 && schedule.quantum_end.load(Ordering::Relaxed) == 0 {
            return;
        }
        schedule.quantum_end.store(at, Ordering::Relaxed);
        if at == 0 {
            return;
        }
        // Others wait for the processor: looking is no longer welcome.
        schedule.look_ns.store(0, Ordering::Relaxed);
        for (core, _) in (0u32..).zip(&self.cores) {
            let control = self.memory.control(core);
            if schedule.running.load(Ordering::Relaxed) & (1 << core) != 0
                && control.upcall_mask.load(Ordering::Relaxed) & interrupt::PREEMPT != 0
            {
                self.trace_interrupts(core, interrupt::PREEMPT);
                foraker_memory::guest::raise(control, interrupt::PREEMPT);
            }
        }
    }

    /// Brings the counters of the network in the virtual registers up to date.
    pub(crate) fn copy_counters(&self) {
        if let Some(port) = &self.port {
            let (from, to) = (port.counters(), self.counters());
            to.rx_frames.store(from.rx.frames(), Ordering::Relaxed);
            to.rx_bytes.store(from.rx.bytes(), Ordering::Relaxed);
            to.tx_frames.store(from.tx.frames(), Ordering::Relaxed);
            to.tx_bytes.store(from.tx.bytes(), Ordering::Relaxed);
            to.rx_dropped.store(from.rx.drops.total(), Ordering::Relaxed);
            to.tx_dropped.store(from.tx.drops.total(), Ordering::Relaxed);
        }
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn end(&self) -> Option<&End> {
        self.end.get()
    }

    /// Whether it has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.flags.ended()
    }

    /// Ends the guest. The first cause stays; cores that run are called out.
    pub fn finish(&self, end: End) {
        if self.end.set(end).is_err() {
            return;
        }
        self.flags.end();
        let cell = self.cell.upgrade();
        for slot in &self.cores {
            let mut state = slot.lock();
            if matches!(*state, CoreState::Active) {
                continue;
            }
            // A worker keeps what is to be kept: whoever ends the guest may not be allowed to ask its machine.
            let kept = self.keeps_cores() && matches!(*state, CoreState::Idle(_) | CoreState::Held(_));
            let after = if kept { CoreState::Active } else { CoreState::Gone };
            let before = std::mem::replace(&mut *state, after);
            drop(state);
            if let (CoreState::Idle(vcore) | CoreState::Held(vcore), Some(cell)) = (before, &cell) {
                if kept {
                    cell.enqueue(vcore, Queued::Woken);
                } else {
                    cell.take_back(vcore);
                }
            }
        }
        if let Some(cell) = cell {
            cell.call_workers_of(self);
            cell.on_guest_end(self);
            cell.waiters.tell();
        }
        if self.is_debugged() {
            self.tell_debugger();
        }
    }

    /// Ends the guest with a fault.
    pub(crate) fn fault(&self, fault: Fault) {
        self.finish(End::Faulted(Box::new(fault)));
    }

    /// A damaged ring: the guest's doing, whoever found it.
    pub(crate) fn ring_fault(&self, text: String) {
        self.fault(Fault {
            cause: Cause::Ring(text),
            core: 0,
            rip: 0,
            registers: kvm_bindings::kvm_regs::default(),
        });
    }

    /// What it asked for, or gave back, since this was asked last: how many bytes it is to have, or has.
    #[must_use]
    pub fn take_wish(&self) -> Option<u64> {
        self.allocation.take_wish()
    }

    /// What it asked for is granted or refused.
    pub fn answer_wish(&self, bytes: u64, granted: bool) {
        if allocation::settle(self, bytes, granted) {
            self.raise(0, interrupt::RESOURCES);
        }
    }

    /// It has so many bytes of its memory from now on. False where that cannot be.
    pub(crate) fn have_memory(&self, bytes: u64) -> bool {
        let confined = self.memory.confine(bytes);
        if confined {
            self.registers().resources.memory_allocated.store(bytes, Ordering::SeqCst);
        }
        confined
    }

    /// Whether it has touched memory that it had given back.
    pub(crate) fn is_out_of_bounds(&self) -> bool {
        self.allocation.is_confined() && self.memory.is_out_of_bounds()
    }

    /// Raises interrupts on a core and makes it runnable if it idles. A running guest sees them at its next look, unless it was
    /// launched with immediate delivery: then it is called out.
    pub fn raise(&self, core: u32, bits: u64) {
        let Some(slot) = self.cores.get(core as usize) else { return };
        self.trace_interrupts(core, bits);
        foraker_memory::guest::raise(self.memory.control(core), bits);
        if slot.idle.load(Ordering::SeqCst) {
            self.wake(core);
        } else if self.immediate
            && let Some(cell) = self.cell.upgrade()
        {
            cell.call_workers_of(self);
        }
    }

    /// A bare acknowledgement has come. If it is the one that the guest awaits, it rests on, with the deadline that it has named for that; otherwise
    /// it is an interrupt.
    pub(crate) fn hear_acknowledgement(&self, number: u64) {
        if self.awaited().is_none_or(|(awaited, _)| awaited != number) {
            return self.raise(0, interrupt::NET_RX);
        }
        let Some(slot) = self.cores.first() else { return };
        // A core that is about to rest looks at this.
        slot.heard.store(number, Ordering::SeqCst);
        if !slot.idle.load(Ordering::SeqCst) {
            return;
        }
        let mut state = slot.lock();
        if let CoreState::Idle(vcore) = &mut *state
            && let Some(cell) = self.cell.upgrade()
            && let Some((_, until)) = self.awaited()
        {
            cell.cancel_deadline(vcore);
            let home = slot.worker.load(Ordering::Relaxed) as usize;
            if cell.set_deadline(vcore, home, slot.sleep.load(Ordering::SeqCst), until) {
                return;
            }
        }
        drop(state);
        self.raise(0, interrupt::NET_RX);
    }

    /// The acknowledgement for which the guest does not want to be woken, if there is one, and until when it rests once that has come.
    pub(crate) fn awaited(&self) -> Option<(u64, u64)> {
        let control = self.memory.control(0);
        let number = control.awaited.load(Ordering::SeqCst);
        (number != 0).then(|| (number, control.awaited_until.load(Ordering::SeqCst)))
    }

    /// Asks the guest to end itself.
    pub fn ask_to_stop(&self) {
        self.raise(0, interrupt::STOP);
    }

    /// Takes the machine of a guest that rests. None if it does not, or needs it.
    pub(crate) fn give_up_machine(&self) -> Option<Core> {
        let slot = self.cores.first().filter(|_| self.cores.len() == 1)?;
        let mut state = slot.lock();
        // Whoever wakes it meanwhile waits for the state.
        let (CoreState::Idle(vcore) | CoreState::Held(vcore)) = &mut *state else { return None };
        let Seat::Here(core) = &mut vcore.seat else { return None };
        let saved = core.save().ok()?;
        core.machine().detach().ok()?;
        match std::mem::replace(&mut vcore.seat, Seat::Away(Box::new(saved))) {
            Seat::Here(core) => Some(core),
            Seat::Away(_) => None,
        }
    }

    /// Makes an idle core runnable.
    pub(crate) fn wake(&self, core: u32) {
        let Some(slot) = self.cores.get(core as usize) else { return };
        let mut state = slot.lock();
        if let CoreState::Idle(_) = *state
            && let CoreState::Idle(vcore) = std::mem::replace(&mut *state, CoreState::Active)
        {
            slot.idle.store(false, Ordering::SeqCst);
            if self.must_hold(core) {
                *state = CoreState::Held(vcore);
                return;
            }
            drop(state);
            if let Some(cell) = self.cell.upgrade() {
                cell.enqueue(vcore, if self.immediate { Queued::First } else { Queued::Woken });
            }
        }
    }
}

impl VirtualCore {
    /// Puts the core to rest in its slot unless an interrupt is pending or the guest has ended. Gives it back if so.
    pub(crate) fn park(self: Box<Self>) -> Option<Box<Self>> {
        let guest = Arc::clone(&self.guest);
        let slot = guest.cores.get(self.index as usize)?;
        let control = guest.memory.control(self.index);
        let mut state = slot.lock();
        // Its end looks into the slot under the lock, once, before or after this.
        if guest.has_ended() {
            return Some(self);
        }
        // First say that it idles, then look once more: whoever raises an interrupt does it in the other order.
        slot.idle.store(true, Ordering::SeqCst);
        if control.pending.load(Ordering::SeqCst) != 0 {
            slot.idle.store(false, Ordering::SeqCst);
            return Some(self);
        }
        *state = CoreState::Idle(self);
        None
    }
}
