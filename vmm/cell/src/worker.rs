//! A worker: one thread that runs the cores of many guests, one at a time.
//!
//! Pick a core, enter it, handle the typed exit, next. Which core, and for how long, is [`foraker_policy::cpu`]'s to say. A worker without
//! work sleeps until a core is queued, a deadline comes, or, when it watches the network, a frame arrives.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use foraker_abi::control::RED_ZONE;
use foraker_abi::interrupt;
use foraker_abi::layout::IMAGE_BASE;
use foraker_machine::{Core, Exit};
use foraker_policy::cpu::HEARTBEAT_NS;

use crate::cell::Shared;
use crate::guest::{CoreSlot, CoreState, Guest, Seat, VirtualCore};
use crate::hypercalls::{self, After};
use crate::queue::{Queued, Timer, WorkerShared, nanoseconds, since};
use crate::report::{Cause, End, Fault};
use crate::vigil::Vigil;

/// How long a worker stays awake for a guest that is being made.
const EXPECT: Duration = Duration::from_millis(2);
/// How long after the end of its turn a guest has left its core, most of the time.
const LATE: Duration = Duration::from_millis(1);
/// How often a guest on which nobody waits is called out, so that its worker sees whether others have too much to do.
const HEARTBEAT: Duration = Duration::from_nanos(HEARTBEAT_NS);

/// The thread's own part.
pub(crate) struct Worker {
    cell: Arc<Shared>,
    index: usize,
    vigil: Vigil,
    /// How long the thread had waited for a processor when that was of interest last, nanoseconds.
    waited: u64,
}

/// How a core's turn ended.
enum Left {
    /// It wants another turn.
    Again(Box<VirtualCore>),
    /// Its guest has used its limit of processor time, and may run again then, on the cell's clock.
    Capped(Box<VirtualCore>, u64),
    /// Its guest is paused or held.
    Held(Box<VirtualCore>),
    /// It rests in its slot.
    Resting,
    /// It stops until it is started again.
    Stopped(Box<VirtualCore>),
    /// Its guest has ended.
    Ended(Box<VirtualCore>),
    /// Its machine is in no state to be used again.
    Broken,
}

impl Worker {
    /// Makes the worker of the calling thread.
    pub(crate) fn new(cell: Arc<Shared>, index: usize) -> std::io::Result<Worker> {
        cell.workers[index].adopt()?;
        let vigil = Vigil::new(cell.workers[index].event())?;
        Ok(Worker { cell, index, vigil, waited: 0 })
    }

    fn mine(&self) -> &WorkerShared {
        &self.cell.workers[self.index]
    }

    /// Works until the cell stops.
    pub(crate) fn work(&mut self) {
        while !self.cell.is_stopping() {
            self.fire_timers();
            match self.mine().take(&self.cell.workers) {
                Some(vcore) => self.run(vcore),
                None => self.sleep(),
            }
        }
    }

    /// Runs a core for a turn.
    fn run(&mut self, mut vcore: Box<VirtualCore>) {
        let guest = Arc::clone(&vcore.guest);
        let index = vcore.index;
        let Some(slot) = guest.cores.get(index as usize) else { return };
        guest.used.store(true, Ordering::Relaxed);
        self.cell.cancel_deadline(&mut vcore);
        slot.worker.store(u32::try_from(self.index).unwrap_or(0), Ordering::Relaxed);
        let started = Instant::now();
        self.mine().begin_turn(&guest, vcore.account, started);
        guest.schedule().running.fetch_or(1 << index, Ordering::Relaxed);
        let left = self.turn(vcore, &guest, slot, started);
        guest.schedule().running.fetch_and(!(1 << index), Ordering::Relaxed);
        self.cell.after_leaving(&guest, matches!(left, Left::Again(_)));
        self.mine().end_turn();
        let rests = |state| *slot.lock() = state;
        match left {
            Left::Again(vcore) => self.mine().push(vcore, Queued::Again),
            Left::Capped(mut vcore, at) => {
                let timer = Timer::Capped { guest: Arc::downgrade(&guest), core: index };
                vcore.deadline = Some((self.index, self.mine().set_timer(at, timer)));
                self.put_aside(vcore, |_| true);
            }
            Left::Held(vcore) => self.put_aside(vcore, |guest| guest.must_hold(index)),
            Left::Resting => {}
            Left::Stopped(vcore) => match vcore.seat {
                Seat::Here(core) => rests(CoreState::Stopped(Some((core, vcore.account)))),
                // A guest of several cores keeps its machine.
                Seat::Away(_) => rests(CoreState::Gone),
            },
            Left::Ended(mut vcore) => {
                guest.keep_core(&mut vcore);
                rests(CoreState::Gone);
                self.cell.take_back(vcore);
            }
            Left::Broken => rests(CoreState::Gone),
        }
        guest.has_put_down();
    }

    /// Puts a core aside that may not run now. If that has changed meanwhile, it runs again, or has ended.
    fn put_aside(&self, vcore: Box<VirtualCore>, stays: impl FnOnce(&Guest) -> bool) {
        if let Some(back) = vcore.put_aside(stays) {
            self.mine().push(back, Queued::Again);
        }
    }

    /// Enters the core, again and again, until its turn is over.
    fn turn(
        &mut self,
        mut vcore: Box<VirtualCore>,
        guest: &Arc<Guest>,
        slot: &CoreSlot,
        started: Instant,
    ) -> Left {
        let mut charged = started;
        loop {
            if !guest.flags.are_clear() {
                if guest.has_ended() {
                    return Left::Ended(vcore);
                }
                if guest.must_hold(vcore.index) {
                    return Left::Held(vcore);
                }
            }
            if guest.is_out_of_bounds() {
                guest.fault(out_of_bounds(&mut vcore));
                return Left::Ended(vcore);
            }
            self.fire_timers();
            if let Some(at) = guest.capped_until(self.cell.clock(charged)) {
                return Left::Capped(vcore, at);
            }
            let VirtualCore { seat: Seat::Here(core), index, .. } = &mut *vcore else {
                match self.cell.give_machine(&mut vcore) {
                    Ok(()) => continue,
                    Err(e) => {
                        guest.finish(End::Killed(format!("there is no machine for it: {e}")));
                        return Left::Ended(vcore);
                    }
                }
            };
            let index = *index;
            let limit = self.cell.service_limit();
            let watch = self.cell.watch_limit(self.index);
            let entered = Instant::now();
            let soonest = limit.into_iter().chain(watch).min();
            let end = self.mine().before_entry(self.next_event(guest, entered, soonest), entered);
            self.cell.before_entry(guest, end.is_some());
            guest.announce_end(end);
            let debugged = guest.is_debugged();
            let stepping = if debugged { guest.before_debugged_entry(index, core) } else { None };
            // After the notice of the end, which may be what the guest wants to be called for.
            if stepping.is_none()
                && let Err(fault) = deliver_upcall(guest, index, core)
            {
                guest.fault(*fault);
                return Left::Ended(vcore);
            }
            let _ = guest.entered.set(entered);
            let exit = core.run(self.mine().attention);
            let inside = entered.elapsed();
            let stalled = overrun(inside, end);
            self.mine().after_exit();
            guest.counters().exits.fetch_add(1, Ordering::Relaxed);
            guest.trace_exit(index, exit, || core.registers().rax);
            if debugged && let Err(e) = guest.after_debugged_exit(index, core, stepping, exit) {
                guest.finish(End::Killed(format!("its debugger cannot go on: {e}")));
                return Left::Broken;
            }
            let after = match exit {
                Exit::Hypercall => {
                    self.cell.note_entry(inside);
                    hypercalls::dispatch(&self.cell, guest, index, core)
                }
                Exit::Doorbell => {
                    self.cell.serve_guest(guest);
                    After::Continue
                }
                Exit::Interrupted => {
                    self.mine().attention.take();
                    // The alarm may have been a deadline's; left in place, it would call the guest out again at once.
                    self.fire_timers();
                    self.cell.serve_guest(guest);
                    let ran = entered.elapsed();
                    if watch.is_some_and(|watch| ran >= watch) {
                        self.cell.hand_watch_over(self.index);
                    }
                    if limit.is_some_and(|limit| ran >= limit) && !self.was_kept_waiting(ran) {
                        self.cell.service_limit_reached();
                    }
                    After::Continue
                }
                Exit::Fault(_) | Exit::Port | Exit::Shutdown | Exit::Broken(_) => {
                    let fault = fault_of(guest, index, core, exit);
                    if debugged && matches!(exit, Exit::Fault(_)) && guest.trap(core, stepping, &fault) {
                        After::Continue
                    } else {
                        guest.fault(fault);
                        After::Ended
                    }
                }
            };
            // Before the time is taken: what a guest has others do for it is its own time.
            match after {
                After::Idle(_) => self.cell.serve_idle(guest, self.mine().waiting() > 0),
                _ => self.cell.receive_if_due(),
            }
            let now = Instant::now();
            let used = since(charged, now).saturating_sub(nanoseconds(stalled));
            charged = now;
            let promised = guest.charge(used, self.cell.clock(now));
            vcore.account.charge(used, promised);
            if let After::Idle(_) = after {
                // Whether there is more to do at once or not: it does not compute without end.
                vcore.account.rested();
            }
            let over = self.mine().turn_is_over(now) || self.makes_room(&vcore, started, now);
            match after {
                After::Continue if over => return Left::Again(vcore),
                After::Continue => {}
                After::Yield if over || self.mine().waiting() > 0 => return Left::Again(vcore),
                After::Yield => {}
                After::Idle(until) => match self.rest(vcore, slot, until) {
                    None => return Left::Resting,
                    Some(back) if over => return Left::Again(back),
                    Some(back) => vcore = back,
                },
                After::Stop => return Left::Stopped(vcore),
                After::Ended if matches!(exit, Exit::Shutdown | Exit::Broken(_)) => return Left::Broken,
                After::Ended => return Left::Ended(vcore),
            }
        }
    }

    /// Whether the thread, which was in a guest for so long, was without a processor for half of that or more. What it waited before counts, too, the first
    /// time: then the guest is asked again after another such while.
    fn was_kept_waiting(&mut self, ran: Duration) -> bool {
        let total = self.mine().waited_for_processor();
        let waited = total.saturating_sub(std::mem::replace(&mut self.waited, total));
        waited >= nanoseconds(ran) / 2
    }

    /// When the guest must exit at the latest, whoever waits.
    fn next_event(&self, guest: &Guest, now: Instant, service_limit: Option<Duration>) -> Option<Instant> {
        let timer = self.mine().next_timer().and_then(|at| self.cell.moment(at));
        let cap = guest.cap_left(self.cell.clock(now)).and_then(|left| now.checked_add(left));
        // Where the rings depend on the guest's exits, it exits after this limit at the latest.
        let service = service_limit.map(|limit| now + limit);
        // Nor does what it has given back stay its own for long.
        let watched = self.cell.workers.len() > 1 || guest.allocation.is_confined();
        let heartbeat = watched.then(|| now + HEARTBEAT);
        [timer, cap, service, heartbeat].into_iter().flatten().min()
    }

    /// Whether a core on which nobody waits here is to make room for one that waits elsewhere.
    fn makes_room(&self, vcore: &VirtualCore, started: Instant, now: Instant) -> bool {
        self.mine().waiting() == 0
            && now.saturating_duration_since(started) >= HEARTBEAT
            && self.cell.workers.iter().any(|w| w.is_behind(vcore.account.used))
    }

    /// Puts a core whose rings are served to rest. Gives it back when an interrupt is pending or the time has come.
    fn rest(&mut self, mut vcore: Box<VirtualCore>, slot: &CoreSlot, until: u64) -> Option<Box<VirtualCore>> {
        let guest = Arc::clone(&vcore.guest);
        let control = guest.memory.control(vcore.index);
        if control.pending.load(Ordering::SeqCst) != 0 {
            return Some(vcore);
        }
        let sleep = slot.sleep.fetch_add(1, Ordering::SeqCst) + 1;
        let heard = slot.heard.load(Ordering::SeqCst);
        let until = match guest.awaited() {
            // It came while the rings were served.
            Some((number, then)) if vcore.index == 0 && heard == number => then,
            _ => until,
        };
        if !self.cell.set_deadline(&mut vcore, self.index, sleep, until) {
            guest.trace_interrupts(vcore.index, interrupt::TIMER);
            foraker_memory::guest::raise(control, interrupt::TIMER);
            return Some(vcore);
        }
        let back = vcore.park();
        back.map(|mut vcore| {
            self.cell.cancel_deadline(&mut vcore);
            vcore
        })
    }

    /// Wakes the cores whose deadline has come, and queues those again that have sat out their limit.
    fn fire_timers(&self) {
        let now = self.cell.clock(Instant::now());
        while let Some(timer) = self.mine().due_timer(now) {
            match timer {
                Timer::Deadline { guest, core, sleep } => {
                    if let Some(guest) = guest.upgrade()
                        && guest
                            .cores
                            .get(core as usize)
                            .is_some_and(|s| s.sleep.load(Ordering::SeqCst) == sleep)
                    {
                        guest.raise(core, interrupt::TIMER);
                    }
                }
                Timer::Capped { guest, core } => {
                    if let Some(vcore) = guest.upgrade().and_then(|guest| guest.take_held(core)) {
                        self.mine().push(vcore, Queued::Again);
                    }
                }
            }
        }
    }

    /// Sleeps until there is something to do.
    fn sleep(&mut self) {
        let Worker { cell, index, vigil, .. } = self;
        let mine = &cell.workers[*index];
        let since = Instant::now();
        while mine.expects() && since.elapsed() < EXPECT {
            if mine.waiting() > 0 {
                return;
            }
            if let Some(errand) = mine.take_errand() {
                errand.run();
            }
            // Not a bare spin: whoever makes the guest may be waiting for this very processor.
            std::thread::yield_now();
        }
        mine.set_sleeping(true);
        if mine.waiting() == 0 && !cell.is_stopping() {
            let deadline = mine.next_timer().and_then(|at| cell.moment(at));
            let deadline = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            let (watched, patience) = cell.watch(*index);
            let woken = vigil.keep(watched, [deadline, patience].into_iter().flatten().min());
            mine.set_sleeping(false);
            if woken.called {
                mine.clear_event();
            }
            if woken.readable || patience.is_some() {
                cell.watched();
            }
        }
        mine.set_sleeping(false);
    }
}

/// The guest touched memory that it had given back: since its last entry, somewhere.
fn out_of_bounds(vcore: &mut VirtualCore) -> Fault {
    let registers = match &mut vcore.seat {
        Seat::Here(core) => *core.registers(),
        Seat::Away(_) => kvm_bindings::kvm_regs::default(),
    };
    Fault { cause: Cause::GivenBack, core: vcore.index, rip: registers.rip, registers }
}

/// How much longer a guest was entered than it could be, if its turn ended after `left`: it is called out then, and what passed after that is not its doing,
/// but that of whoever kept the worker from the processor. What the VMM does for a guest after its exit is its own, however long it takes.
fn overrun(ran: Duration, left: Option<Duration>) -> Duration {
    left.map_or(Duration::ZERO, |left| ran.saturating_sub(left + LATE))
}

/// Enters the guest at its handler if it wants that and an interrupt it waits for is pending.
fn deliver_upcall(guest: &Guest, index: u32, core: &mut Core) -> Result<(), Box<Fault>> {
    let control = guest.memory.control(index);
    if control.upcall_enabled.load(Ordering::Relaxed) != 1
        || control.pending.load(Ordering::SeqCst) & control.upcall_mask.load(Ordering::Relaxed) == 0
    {
        return Ok(());
    }
    control.upcall_enabled.store(0, Ordering::SeqCst);
    let handler = control.upcall_handler.load(Ordering::Relaxed);
    let registers = *core.registers();
    let stack = registers.rsp.wrapping_sub(RED_ZONE + 16);
    let mut frame = [0u8; 16];
    frame[..8].copy_from_slice(&registers.rflags.to_le_bytes());
    frame[8..].copy_from_slice(&registers.rip.to_le_bytes());
    let in_space = (IMAGE_BASE..guest.memory.plan().memory_end).contains(&handler);
    if !in_space || !guest.memory.write(stack, &frame) {
        let cause = Cause::Upcall(if in_space { stack } else { handler });
        return Err(Box::new(Fault { cause, core: index, rip: registers.rip, registers }));
    }
    core.divert(handler, stack);
    Ok(())
}

fn fault_of(guest: &Guest, index: u32, core: &mut Core, exit: Exit) -> Fault {
    let registers = *core.registers();
    let machine =
        |text: String| Fault { cause: Cause::Machine(text), core: index, rip: registers.rip, registers };
    match exit {
        Exit::Fault(Exit::SYSCALL) => Fault::from_syscall(index, registers),
        Exit::Fault(vector) => {
            let Some(frame) = guest.memory.fault_frame(index, registers.rsp) else {
                return machine(format!("vector {vector} with the stack at {:#x}", registers.rsp));
            };
            match core.fault_address() {
                Ok(address) => {
                    let fault = Fault::from_frame(index, vector, registers, frame, address);
                    fault.in_common_form(|address| {
                        let mut bytes = [0; 2];
                        guest.memory.read(address, &mut bytes).then_some(bytes)
                    })
                }
                Err(e) => machine(e.to_string()),
            }
        }
        Exit::Port => Fault::from_port(index, registers),
        Exit::Shutdown => machine("the processor could not deliver a fault".to_owned()),
        other => machine(format!("{other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_passed_after_the_end_of_a_turn_is_nobodys() {
        let ms = Duration::from_millis;
        assert_eq!(overrun(ms(100), None), ms(0), "nobody waits: it may run on");
        assert_eq!(overrun(ms(5), Some(ms(5))), ms(0));
        assert_eq!(overrun(ms(6), Some(ms(5))), ms(0), "a signal takes its time");
        assert_eq!(overrun(ms(90), Some(ms(5))), ms(84));
        assert_eq!(overrun(ms(90), Some(ms(0))), ms(89));
    }
}
