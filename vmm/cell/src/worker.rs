//! A worker: one thread that runs the cores of many guests, one at a time.
//!
//! Pick a core, enter it, handle the typed exit, next. A core is preempted only when another one waits. A worker without work
//! sleeps until a core is queued, a deadline comes, or, when it watches the network, a frame arrives.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use foraker_abi::control::RED_ZONE;
use foraker_abi::hypercall::FOREVER;
use foraker_abi::interrupt;
use foraker_abi::layout::IMAGE_BASE;
use foraker_machine::attention::Alarm;
use foraker_machine::{Attention, Exit};
use vmm_sys_util::eventfd::EventFd;

use crate::cell::Shared;
use crate::errand::Run;
use crate::guest::{CoreState, Guest, VirtualCore};
use crate::hypercalls::{self, After};
use crate::report::{Cause, Fault};

/// How long a core runs while others wait.
const QUANTUM: Duration = Duration::from_millis(10);

/// How long a worker stays awake for a guest that is being made.
const EXPECT: Duration = Duration::from_millis(2);

/// What others see of a worker.
#[derive(Debug)]
pub(crate) struct WorkerShared {
    pub(crate) attention: &'static Attention,
    queue: Mutex<VecDeque<Box<VirtualCore>>>,
    waiting: AtomicUsize,
    sleeping: AtomicBool,
    /// Guests that are being made and will be queued here within a fraction of a millisecond.
    expected: AtomicUsize,
    /// What a worker that waits for such a guest can do meanwhile.
    errand: Mutex<Option<Arc<dyn Run>>>,
    event: EventFd,
    /// The guest that runs here.
    running: Mutex<Option<Arc<Guest>>>,
}

impl WorkerShared {
    pub(crate) fn new() -> std::io::Result<WorkerShared> {
        Ok(WorkerShared {
            // Lives as long as the process: a signal may look at it at any time.
            attention: Box::leak(Box::default()),
            queue: Mutex::default(),
            waiting: AtomicUsize::new(0),
            sleeping: AtomicBool::new(false),
            expected: AtomicUsize::new(0),
            errand: Mutex::default(),
            event: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            running: Mutex::default(),
        })
    }

    pub(crate) fn push(&self, vcore: Box<VirtualCore>) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(vcore);
        // Counted before looking whether it sleeps; the sleeper says that it sleeps before looking at the count.
        let before = self.waiting.fetch_add(1, Ordering::SeqCst);
        if !self.wake() && before == 0 && !self.attention.is_mine() {
            self.attention.call();
        }
    }

    /// Announces that a core will be queued soon: waking up from sleep takes about as long as making a machine, so the worker does it
    /// meanwhile. Lasts until the value is dropped.
    pub(crate) fn expect(&self) -> Expected<'_> {
        self.expected.fetch_add(1, Ordering::SeqCst);
        self.wake();
        Expected(self)
    }

    /// Gives the worker something to do while it waits for an expected core. It may never come to it.
    pub(crate) fn ask(&self, errand: Arc<dyn Run>) {
        *self.errand.lock().unwrap_or_else(PoisonError::into_inner) = Some(errand);
    }

    /// Wakes the worker if it sleeps.
    pub(crate) fn wake(&self) -> bool {
        let sleeps = self.sleeping.swap(false, Ordering::SeqCst);
        if sleeps {
            // An event counter that is full is readable, which is all that is wanted.
            let _ = self.event.write(1);
        }
        sleeps
    }

    pub(crate) fn is_sleeping(&self) -> bool {
        self.sleeping.load(Ordering::SeqCst)
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// The guest that runs here now.
    pub(crate) fn running(&self) -> Option<Arc<Guest>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn runs(&self, guest: &Guest) -> bool {
        self.running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .is_some_and(|g| std::ptr::eq(Arc::as_ptr(g), guest))
    }
}

/// A core will be queued soon.
pub(crate) struct Expected<'a>(&'a WorkerShared);

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        self.0.expected.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A deadline's place in its worker's queue: when, and a number that makes it unique.
pub(crate) type DeadlineKey = (Instant, u64);

/// Whose deadline it is.
struct Sleeper {
    guest: Weak<Guest>,
    core: u32,
    /// The core's sleep number when it was set: one that was woken since has another.
    sleep: u64,
}

/// The thread's own part.
pub(crate) struct Worker {
    cell: Arc<Shared>,
    index: usize,
    alarm: Alarm,
    deadlines: BTreeMap<DeadlineKey, Sleeper>,
    next_deadline: u64,
}

impl Worker {
    /// Makes the worker of the calling thread.
    pub(crate) fn new(cell: Arc<Shared>, index: usize) -> std::io::Result<Worker> {
        cell.workers[index].attention.adopt()?;
        Ok(Worker { cell, index, alarm: Alarm::new()?, deadlines: BTreeMap::new(), next_deadline: 0 })
    }

    fn mine(&self) -> &WorkerShared {
        &self.cell.workers[self.index]
    }

    /// Works until the cell stops.
    pub(crate) fn work(&mut self) {
        while !self.cell.is_stopping() {
            self.fire_deadlines();
            match self.next() {
                Some(vcore) => self.run(vcore),
                None => self.sleep(),
            }
        }
    }

    fn next(&self) -> Option<Box<VirtualCore>> {
        let mine = self.mine();
        if mine.waiting() == 0 {
            return None;
        }
        let next = mine.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        if next.is_some() {
            mine.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        next
    }

    /// Runs a core until it rests, ends, or others are to run.
    fn run(&mut self, mut vcore: Box<VirtualCore>) {
        let guest = Arc::clone(&vcore.guest);
        let Some(slot) = guest.cores.get(vcore.index as usize) else { return };
        self.cancel_deadline(&mut vcore);
        slot.worker.store(u32::try_from(self.index).unwrap_or(0), Ordering::Relaxed);
        *self.mine().running.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&guest));
        let schedule = guest.schedule();
        schedule.running.fetch_or(1 << vcore.index, Ordering::Relaxed);
        let started = Instant::now();
        let kept = loop {
            if guest.has_ended() {
                break None;
            }
            self.fire_deadlines();
            let others_wait = self.mine().waiting() > 0;
            self.cell.before_entry(&guest, others_wait);
            announce_end(&vcore, others_wait.then(|| QUANTUM.saturating_sub(started.elapsed())));
            if let Err(fault) = deliver_upcall(&mut vcore) {
                guest.fault(*fault);
                break None;
            }
            let limit = self.cell.service_limit();
            let entered = limit.map(|_| Instant::now());
            self.set_alarm(started, entered.zip(limit));
            let exit = vcore.core.run(self.mine().attention);
            self.alarm.clear();
            let counters = guest.counters();
            counters.exits.fetch_add(1, Ordering::Relaxed);
            let after = match exit {
                Exit::Hypercall => hypercalls::dispatch(&self.cell, &mut vcore),
                Exit::Doorbell => {
                    self.cell.serve_guest(&guest);
                    After::Continue
                }
                Exit::Interrupted => {
                    self.mine().attention.take();
                    // The alarm may have been a deadline's; left in place, it would call the guest out again at once.
                    self.fire_deadlines();
                    self.cell.serve_guest(&guest);
                    if entered.zip(limit).is_some_and(|(at, limit)| at.elapsed() >= limit) {
                        self.cell.service_limit_reached();
                    }
                    After::Continue
                }
                Exit::Fault(_) | Exit::Port | Exit::Shutdown | Exit::Broken(_) => {
                    let fault = fault_of(&mut vcore, exit);
                    guest.fault(fault);
                    After::Ended
                }
            };
            let turn_over = self.turn_over(started);
            match after {
                After::Continue if !turn_over => {}
                After::Continue | After::Yield if self.mine().waiting() > 0 => break Some(vcore),
                After::Continue | After::Yield => {}
                After::Idle(until) => match self.rest(vcore, until) {
                    None => {
                        schedule.running.fetch_and(!(1 << index_of(slot, &guest)), Ordering::Relaxed);
                        self.left(&guest, started);
                        return;
                    }
                    Some(back) if turn_over => break Some(back),
                    Some(back) => vcore = back,
                },
                After::Stop => {
                    schedule.running.fetch_and(!(1 << vcore.index), Ordering::Relaxed);
                    *slot.state.lock().unwrap_or_else(PoisonError::into_inner) =
                        CoreState::Stopped(Some(vcore.core));
                    self.left(&guest, started);
                    return;
                }
                After::Ended => break None,
            }
        };
        self.left(&guest, started);
        schedule.running.fetch_and(!(1 << index_of(slot, &guest)), Ordering::Relaxed);
        match kept {
            Some(vcore) => self.mine().push(vcore),
            None => *slot.state.lock().unwrap_or_else(PoisonError::into_inner) = CoreState::Gone,
        }
    }

    /// The guest no longer runs here.
    fn left(&self, guest: &Arc<Guest>, since: Instant) {
        guest.charge(since.elapsed());
        self.cell.after_leaving(guest);
        *self.mine().running.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether others wait and the quantum is used up.
    fn turn_over(&self, started: Instant) -> bool {
        self.mine().waiting() > 0 && started.elapsed() >= QUANTUM
    }

    /// Sets the alarm for the end of the quantum, if others wait, or the next deadline, whichever comes first.
    ///
    /// Where the rings depend on the guest's exits, it exits after the service limit at the latest.
    fn set_alarm(&mut self, started: Instant, service: Option<(Instant, Duration)>) {
        let quantum = (self.mine().waiting() > 0).then(|| started + QUANTUM);
        let deadline = self.first_deadline();
        let service = service.map(|(entered, limit)| entered + limit);
        if let Some(at) = [quantum, deadline, service].into_iter().flatten().min() {
            self.alarm.set(at.saturating_duration_since(Instant::now()));
        }
    }

    /// Serves the rings and puts the core to rest. Gives it back when an interrupt is pending or the time has come.
    fn rest(&mut self, mut vcore: Box<VirtualCore>, until: u64) -> Option<Box<VirtualCore>> {
        let guest = Arc::clone(&vcore.guest);
        self.cell.serve_idle(&guest);
        let control = guest.memory.control(vcore.index);
        if control.pending.load(Ordering::SeqCst) != 0 {
            return Some(vcore);
        }
        let slot = guest.cores.get(vcore.index as usize)?;
        let sleep = slot.sleep.fetch_add(1, Ordering::SeqCst) + 1;
        if until != FOREVER {
            let left = guest.clock.until(until);
            if left.is_zero() {
                foraker_memory::guest::raise(control, interrupt::TIMER);
                return Some(vcore);
            }
            // A deadline further away than the host's clock reaches never comes.
            if let Some(at) = Instant::now().checked_add(left) {
                let key = (at, self.next_deadline);
                self.next_deadline += 1;
                let sleeper = Sleeper { guest: Arc::downgrade(&guest), core: vcore.index, sleep };
                self.deadlines.insert(key, sleeper);
                vcore.deadline = Some((self.index, key));
            }
        }
        let back = vcore.park();
        back.map(|mut vcore| {
            self.cancel_deadline(&mut vcore);
            vcore
        })
    }

    /// Forgets the deadline of a core that is awake. One that another worker keeps is told by its sleep number, when it comes.
    fn cancel_deadline(&mut self, vcore: &mut VirtualCore) {
        if let Some((worker, key)) = vcore.deadline.take()
            && worker == self.index
        {
            self.deadlines.remove(&key);
        }
    }

    fn first_deadline(&self) -> Option<Instant> {
        self.deadlines.first_key_value().map(|((at, _), _)| *at)
    }

    /// Raises the timer interrupt of every core whose deadline has come.
    fn fire_deadlines(&mut self) {
        if self.deadlines.is_empty() {
            return;
        }
        let now = Instant::now();
        while self.first_deadline().is_some_and(|at| at <= now)
            && let Some((_, due)) = self.deadlines.pop_first()
        {
            if let Some(guest) = due.guest.upgrade()
                && guest
                    .cores
                    .get(due.core as usize)
                    .is_some_and(|s| s.sleep.load(Ordering::SeqCst) == due.sleep)
            {
                guest.raise(due.core, interrupt::TIMER);
            }
        }
    }

    /// Sleeps until there is something to do.
    fn sleep(&mut self) {
        let mine = self.mine();
        let since = Instant::now();
        while mine.expected.load(Ordering::SeqCst) > 0 && since.elapsed() < EXPECT {
            if mine.waiting() > 0 {
                return;
            }
            let errand = mine.errand.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(errand) = errand {
                errand.run();
            }
            // Not a bare spin: whoever makes the guest may be waiting for this very processor.
            std::thread::yield_now();
        }
        mine.sleeping.store(true, Ordering::SeqCst);
        if mine.waiting() == 0 && !self.cell.is_stopping() {
            let deadline = self.first_deadline().map(|at| at.saturating_duration_since(Instant::now()));
            let (watched, patience) = self.cell.watch(self.index);
            let mut polls = [poll_for(mine.event.as_raw_fd()), poll_for(watched.unwrap_or(-1))];
            wait(&mut polls, [deadline, patience].into_iter().flatten().min());
            mine.sleeping.store(false, Ordering::SeqCst);
            if polls[0].revents != 0 {
                // Non-blocking; only says that somebody woke this worker.
                let _ = mine.event.read();
            }
            if polls[1].revents != 0 || patience.is_some() {
                self.cell.watched();
            }
        }
        mine.sleeping.store(false, Ordering::SeqCst);
    }
}

fn index_of(slot: &crate::guest::CoreSlot, guest: &Guest) -> usize {
    guest.cores.iter().position(|s| std::ptr::eq(s, slot)).unwrap_or(0)
}

/// An entry for `poll` that waits for input; a negative descriptor is ignored.
pub(crate) fn poll_for(fd: i32) -> libc::pollfd {
    libc::pollfd { fd, events: libc::POLLIN, revents: 0 }
}

/// Waits for one of several descriptors, at most `timeout` if there is one.
pub(crate) fn wait(polls: &mut [libc::pollfd], timeout: Option<Duration>) {
    let spec = timeout.map(|t| libc::timespec {
        tv_sec: libc::time_t::try_from(t.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(t.subsec_nanos()),
    });
    let spec = spec.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let count = polls.len() as libc::nfds_t;
    // SAFETY: the slice and the time are valid for the call; an interrupted wait is a wait that ended.
    unsafe { libc::ppoll(polls.as_mut_ptr(), count, spec, std::ptr::null()) };
}

/// Says in the virtual registers when the core will be taken away, if others wait; a guest whose upcalls want to know is told.
fn announce_end(vcore: &VirtualCore, left: Option<Duration>) {
    let guest = &vcore.guest;
    let at = left.map_or(0, |left| guest.clock.now() + u64::try_from(left.as_nanos()).unwrap_or(0));
    let end = &guest.schedule().quantum_end;
    if at == 0 && end.load(Ordering::Relaxed) == 0 {
        return;
    }
    end.store(at, Ordering::Relaxed);
    let control = guest.memory.control(vcore.index);
    if at != 0 && control.upcall_mask.load(Ordering::Relaxed) & interrupt::PREEMPT != 0 {
        foraker_memory::guest::raise(control, interrupt::PREEMPT);
    }
}

/// Enters the guest at its handler if it wants that and an interrupt it waits for is pending.
fn deliver_upcall(vcore: &mut VirtualCore) -> Result<(), Box<Fault>> {
    let guest = Arc::clone(&vcore.guest);
    let control = guest.memory.control(vcore.index);
    if control.upcall_enabled.load(Ordering::Relaxed) != 1
        || control.pending.load(Ordering::SeqCst) & control.upcall_mask.load(Ordering::Relaxed) == 0
    {
        return Ok(());
    }
    control.upcall_enabled.store(0, Ordering::SeqCst);
    let handler = control.upcall_handler.load(Ordering::Relaxed);
    let registers = *vcore.core.registers();
    let stack = registers.rsp.wrapping_sub(RED_ZONE + 16);
    let mut frame = [0u8; 16];
    frame[..8].copy_from_slice(&registers.rflags.to_le_bytes());
    frame[8..].copy_from_slice(&registers.rip.to_le_bytes());
    let in_space = (IMAGE_BASE..guest.memory.plan().memory_end).contains(&handler);
    if !in_space || !guest.memory.write(stack, &frame) {
        let cause = Cause::Upcall(if in_space { stack } else { handler });
        return Err(Box::new(Fault { cause, core: vcore.index, rip: registers.rip, registers }));
    }
    vcore.core.divert(handler, stack);
    Ok(())
}

fn fault_of(vcore: &mut VirtualCore, exit: Exit) -> Fault {
    let core = vcore.index;
    let registers = *vcore.core.registers();
    let machine = |text: String| Fault { cause: Cause::Machine(text), core, rip: registers.rip, registers };
    match exit {
        Exit::Fault(Exit::SYSCALL) => Fault::from_syscall(core, registers),
        Exit::Fault(vector) => {
            let Some(frame) = vcore.guest.memory.fault_frame(core, registers.rsp) else {
                return machine(format!("vector {vector} with the stack at {:#x}", registers.rsp));
            };
            match vcore.core.fault_address() {
                Ok(address) => {
                    let fault = Fault::from_frame(core, vector, registers, frame, address);
                    fault.in_common_form(|address| {
                        let mut bytes = [0; 2];
                        vcore.guest.memory.read(address, &mut bytes).then_some(bytes)
                    })
                }
                Err(e) => machine(e.to_string()),
            }
        }
        Exit::Port => Fault::from_port(core, registers),
        Exit::Shutdown => machine("the processor could not deliver a fault".to_owned()),
        other => machine(format!("{other:?}")),
    }
}
