//! The run queue, the loop and its idling.

use super::join::JoinHandle;
use super::timers::{Key, Timers};
use crate::core_local::core_local;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use async_task::Runnable;
use core::cell::{Cell, RefCell};
use core::future::Future;
use core::pin::Pin;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Context, Poll, Waker};
use slab::Slab;

struct Executor {
    ready: RefCell<VecDeque<Runnable>>,
    timers: RefCell<Timers<Option<Waker>>>,
    stop: Cell<bool>,
    stop_wakers: RefCell<Slab<Waker>>,
    spin: Cell<bool>,
    statistics: Cell<Statistics>,
}

/// Counters of the executor.
#[derive(Clone, Copy, Debug, Default)]
pub struct Statistics {
    /// Times a task ran until it waited.
    pub polls: u64,
    /// Rounds of the loop.
    pub rounds: u64,
    /// `idle` hypercalls.
    pub idles: u64,
    /// Times that looking found something, so that no `idle` was needed.
    pub looks: u64,
}

core_local! {
    static EXECUTOR: Executor = Executor {
        ready: RefCell::new(VecDeque::new()),
        timers: RefCell::new(Timers::new()),
        stop: Cell::new(false),
        stop_wakers: RefCell::new(Slab::new()),
        spin: Cell::new(false),
        statistics: Cell::new(Statistics { polls: 0, rounds: 0, idles: 0, looks: 0 }),
    };
}

/// Tasks that another core woke.
static REMOTE: Remote =
    Remote { locked: AtomicBool::new(false), queue: core::cell::UnsafeCell::new(Vec::new()) };

struct Remote {
    locked: AtomicBool,
    queue: core::cell::UnsafeCell<Vec<Runnable>>,
}

// SAFETY: `queue` is only reached while `locked` is held.
unsafe impl Sync for Remote {}

impl Remote {
    fn with<R>(&self, f: impl FnOnce(&mut Vec<Runnable>) -> R) -> R {
        while self.locked.swap(true, Ordering::Acquire) {
            core::hint::spin_loop();
        }
        // SAFETY: the lock is held; `f` does not come back here.
        let result = f(unsafe { &mut *self.queue.get() });
        self.locked.store(false, Ordering::Release);
        result
    }
}

/// Puts a task that can run into the queue. Called by wakers, on any core.
fn schedule(task: Runnable) {
    if crate::core_local::on_core_0() {
        EXECUTOR.with(|executor| executor.ready.borrow_mut().push_back(task));
    } else {
        REMOTE.with(|queue| queue.push(task));
        // Core 0 exists and can always be woken.
        let _ = crate::cores::wake(0);
    }
}

/// Starts a task. It runs on, whether its handle is kept or dropped.
///
/// # Panics
/// On another core than 0.
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    assert!(crate::core_local::on_core_0(), "tasks belong to core 0");
    // SAFETY: the future needs not be `Send`: it is run and dropped on core 0 only, where `schedule` brings every
    // runnable, and its handle cannot leave core 0 either. It borrows nothing. Wakers go through `schedule`, which any core may call.
    let (runnable, task) = unsafe { async_task::spawn_unchecked(future, schedule) };
    runnable.schedule();
    JoinHandle::new(task)
}

/// Runs `main`, and all tasks that it spawns, until it is done. `entry!(async main)` calls this.
///
/// # Panics
/// On another core than 0.
pub fn run<F>(main: F) -> F::Output
where
    F: Future + 'static,
    F::Output: 'static,
{
    crate::logger::init(log::LevelFilter::Info);
    let mut main = core::pin::pin!(spawn(main));
    let mut context = Context::from_waker(Waker::noop());
    loop {
        // The handle is only looked at: the loop goes on by itself until the task is done.
        if let Poll::Ready(output) = main.as_mut().poll(&mut context) {
            // What was sent last, the last answers of a server that stops, still has to leave.
            crate::net::flush();
            return output;
        }
        round_unless(|| main.is_finished());
    }
}

/// Most tasks that run before the network is looked at again.
const BATCH: usize = 256;

/// One round: interrupts, frames received, timers, tasks, frames sent, and idling if nothing remains to do.
#[cfg(test)]
pub(crate) fn round() {
    round_unless(|| false);
}

/// One round, without the idling when all is `done`: nothing might ever end it.
fn round_unless(done: impl Fn() -> bool) {
    let now = crate::now();
    interrupts();
    let more_frames = crate::net::receive(now);
    expire(now);
    let polls = run_ready();
    crate::net::transmit(now);
    let executor_idle = EXECUTOR.with(|executor| {
        let mut statistics = executor.statistics.get();
        statistics.polls += polls as u64;
        statistics.rounds += 1;
        executor.statistics.set(statistics);
        executor.ready.borrow().is_empty()
    });
    if executor_idle && !more_frames && !done() {
        idle();
    } else {
        crate::net::kick();
    }
}

fn interrupts() {
    let bits = crate::interrupt::take();
    if bits & crate::interrupt::NET_RX != 0 {
        crate::net::interrupted();
    }
    if bits & crate::interrupt::WAKE != 0 {
        REMOTE.with(|queue| {
            EXECUTOR.with(|executor| executor.ready.borrow_mut().extend(queue.drain(..)));
        });
    }
    if bits & crate::interrupt::RESOURCES != 0 {
        crate::memory::interrupted();
    }
    if bits & crate::interrupt::STOP != 0 {
        EXECUTOR.with(|executor| {
            executor.stop.set(true);
            executor.stop_wakers.borrow().iter().for_each(|(_, waker)| waker.wake_by_ref());
        });
    }
}

/// Wakes what timers are due.
fn expire(now: u64) {
    EXECUTOR.with(|executor| {
        loop {
            let waker = {
                let mut timers = executor.timers.borrow_mut();
                let Some(key) = timers.pop(now) else { break };
                timers.value_mut(key).take()
            };
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    });
}

/// Runs the tasks that are ready now, not those that they make ready.
fn run_ready() -> usize {
    let count = EXECUTOR.with(|executor| executor.ready.borrow().len().min(BATCH));
    for _ in 0..count {
        let Some(task) = EXECUTOR.with(|executor| executor.ready.borrow_mut().pop_front()) else { break };
        task.run();
    }
    count
}

/// Nothing can run: looks at the rings for as long as that is welcome, then gives up the core.
fn idle() {
    let timer = EXECUTOR.with(|executor| executor.timers.borrow().next());
    let until = timer.into_iter().chain(crate::net::next_timer()).min().unwrap_or(u64::MAX);
    let schedule = &crate::registers().schedule;
    let spins = until != u64::MAX && EXECUTOR.with(|executor| executor.spin.get());
    let welcome = || if spins { u64::MAX } else { u64::from(schedule.look_ns.load(Ordering::Relaxed)) };
    let found = welcome() != 0 && {
        crate::net::kick();
        let start = crate::now();
        loop {
            if crate::net::has_frames() || crate::interrupt::pending() != 0 {
                break true;
            }
            let now = crate::now();
            if now >= until {
                break true;
            }
            // Read anew each time: the VMM may end the welcome at any moment.
            if now.saturating_sub(start) >= welcome() {
                break false;
            }
            core::hint::spin_loop();
        }
    };
    if !found {
        let awaited = crate::net::awaited().unwrap_or((0, 0));
        crate::interrupt::do_without(awaited.0, timer.unwrap_or(u64::MAX).min(awaited.1));
        crate::hypercall::idle(until);
    }
    EXECUTOR.with(|executor| {
        let mut statistics = executor.statistics.get();
        if found {
            statistics.looks += 1;
        } else {
            statistics.idles += 1;
        }
        executor.statistics.set(statistics);
    });
}

/// Has the executor spin, instead of idling, while a timer is set: what a system does whose machine offers to idle only without a timeout.
/// For measurements: Denali found that idling with a timeout is what lets many servers share a processor.
pub fn spin_while_timed(spin: bool) {
    EXECUTOR.with(|executor| executor.spin.set(spin));
}

/// Counters of the executor since start.
#[must_use]
pub fn statistics() -> Statistics {
    EXECUTOR.with(|executor| executor.statistics.get())
}

pub(crate) fn stop_requested() -> bool {
    EXECUTOR.with(|executor| executor.stop.get())
}

/// Done when the VMM has asked the guest to end itself soon. Thousands may wait for it.
#[derive(Debug, Default)]
pub struct Shutdown {
    slot: Option<usize>,
}

impl Shutdown {
    pub(super) const fn new() -> Self {
        Shutdown { slot: None }
    }
}

impl Future for Shutdown {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        EXECUTOR.with(|executor| {
            if executor.stop.get() {
                return Poll::Ready(());
            }
            let mut wakers = executor.stop_wakers.borrow_mut();
            match self.slot {
                None => self.slot = Some(wakers.insert(context.waker().clone())),
                Some(slot) => {
                    if !wakers[slot].will_wake(context.waker()) {
                        wakers[slot] = context.waker().clone();
                    }
                }
            }
            Poll::Pending
        })
    }
}

impl Drop for Shutdown {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            let waker = EXECUTOR.with(|executor| executor.stop_wakers.borrow_mut().remove(slot));
            drop(waker);
        }
    }
}

/// A timer of the executor.
pub(crate) struct Timer(Key);

impl Timer {
    pub(crate) fn new() -> Self {
        Timer(EXECUTOR.with(|executor| executor.timers.borrow_mut().insert(None)))
    }

    /// Has `waker` woken at `deadline`. Setting it later than before costs next to nothing.
    pub(crate) fn set(&self, deadline: u64, waker: &Waker) {
        let old = EXECUTOR.with(|executor| {
            let mut timers = executor.timers.borrow_mut();
            timers.set(self.0, deadline);
            let known = timers.value_mut(self.0);
            match known {
                Some(known) if known.will_wake(waker) => None,
                _ => known.replace(waker.clone()),
            }
        });
        // Outside of the borrow: dropping a waker may free a task.
        drop(old);
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let waker = EXECUTOR.with(|executor| executor.timers.borrow_mut().remove(self.0));
        drop(waker);
    }
}
