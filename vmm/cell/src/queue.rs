//! What others see of a worker: its run queue, its deadlines, and how to wake it or call it out of a guest.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use foraker_machine::Attention;
use foraker_machine::attention::Alarm;
use foraker_policy::cpu::{Account, RunQueue, Tuning};
use foraker_policy::demand::{Asked, Demand};
use foraker_policy::wheel::{Key, Wheel};
use vmm_sys_util::eventfd::EventFd;

use crate::contention::Delay;
use crate::errand::Run;
use crate::guest::{Guest, VirtualCore};

/// Why a core is queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Queued {
    /// It has woken up, or is new.
    Woken,
    /// Its turn is over, and it wants another.
    Again,
    /// Now, before all others.
    First,
}

/// The turn of the core that a worker runs.
#[derive(Debug)]
struct Turn {
    guest: Arc<Guest>,
    /// As it was when the turn began.
    account: Account,
    started: Instant,
    /// For how long from then on it runs as its guest was promised, nanoseconds.
    promised: u64,
}

#[derive(Debug)]
struct Queue {
    ready: RunQueue<Box<VirtualCore>>,
    turn: Option<Turn>,
    /// The worker's own, made by its thread.
    alarm: Option<Alarm>,
    /// When the alarm goes off, while the worker is in a guest.
    armed: Option<Instant>,
    /// Shares of the cores that wait and the one that runs, and what their guests were promised.
    shares: Demand,
    promises: Demand,
    /// Where the cell's clock starts.
    epoch: Instant,
}

/// What a worker keeps until its time comes.
#[derive(Debug)]
pub(crate) enum Timer {
    /// Wake a core that idles, if it has not been woken since.
    Deadline {
        /// Whose.
        guest: Weak<Guest>,
        /// Which.
        core: u32,
        /// The core's sleep number when it was set.
        sleep: u64,
    },
    /// Queue a core again that was put aside because its guest had used up its limit of processor time.
    Capped {
        /// Whose.
        guest: Weak<Guest>,
        /// Which.
        core: u32,
    },
}

/// Where a deadline is: its worker, and its place there.
pub(crate) type DeadlineKey = (usize, Key);

/// A worker as others see it.
#[derive(Debug)]
pub(crate) struct WorkerShared {
    pub(crate) attention: &'static Attention,
    queue: Mutex<Queue>,
    /// Length of the queue, to be read without the lock.
    waiting: AtomicUsize,
    /// The virtual time that the cell has come to, for all workers.
    floor: Arc<AtomicU64>,
    timers: Mutex<Wheel<Timer>>,
    sleeping: AtomicBool,
    /// Guests that are being made and will be queued here within a fraction of a millisecond.
    expected: AtomicUsize,
    /// What a worker that waits for such a guest can do meanwhile.
    errand: Mutex<Option<Arc<dyn Run>>>,
    event: EventFd,
    /// Of the worker's thread, where the host keeps such accounts.
    delay: OnceLock<Delay>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Nanoseconds of a duration, all there are if it is longer than 584 years.
pub(crate) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Queue {
    /// A core waits or runs from now on.
    fn begins(&mut self, guest: &Guest, now: Instant) {
        let now = since(self.epoch, now);
        self.shares.add(guest.processor.share, now);
        if let Some(promise) = guest.processor.provision {
            self.promises.add(promise, now);
        }
    }

    /// It does so no longer.
    fn ends(&mut self, guest: &Guest, now: Instant) {
        let now = since(self.epoch, now);
        self.shares.remove(guest.processor.share, now);
        if let Some(promise) = guest.processor.provision {
            self.promises.remove(promise, now);
        }
    }

    /// When the present turn is over, if anybody waits.
    fn end_of_turn(&self) -> Option<Instant> {
        let turn = self.turn.as_ref()?;
        let length = self.ready.turn(&turn.account, since(self.epoch, turn.started), turn.promised)?;
        turn.started.checked_add(Duration::from_nanos(length))
    }

    /// Whether somebody waits here for what was promised, because the one that runs was promised something, too.
    fn keeps_waiting(&self, now: Instant) -> bool {
        self.turn.as_ref().is_some_and(|turn| turn.promised > 0) && self.ready.is_due(since(self.epoch, now))
    }

    fn arm(&mut self, at: Instant, now: Instant) {
        if let Some(alarm) = &mut self.alarm {
            alarm.set(at.saturating_duration_since(now));
            self.armed = Some(at);
        }
    }
}

impl WorkerShared {
    /// `epoch` is where the cell's clock starts.
    pub(crate) fn new(floor: &Arc<AtomicU64>, epoch: Instant) -> std::io::Result<WorkerShared> {
        let queue = Queue {
            ready: RunQueue::new(Tuning::default()),
            turn: None,
            alarm: None,
            armed: None,
            shares: Demand::default(),
            promises: Demand::default(),
            epoch,
        };
        Ok(WorkerShared {
            // Lives as long as the process: a signal may look at it at any time.
            attention: Box::leak(Box::default()),
            queue: Mutex::new(queue),
            waiting: AtomicUsize::new(0),
            floor: Arc::clone(floor),
            timers: Mutex::new(Wheel::new(0)),
            sleeping: AtomicBool::new(false),
            expected: AtomicUsize::new(0),
            errand: Mutex::default(),
            event: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            delay: OnceLock::new(),
        })
    }

    /// Makes the calling thread the worker's.
    pub(crate) fn adopt(&self) -> std::io::Result<()> {
        self.attention.adopt()?;
        locked(&self.queue).alarm = Some(Alarm::new()?);
        if let Some(delay) = Delay::of_this_thread() {
            let _ = self.delay.set(delay);
        }
        Ok(())
    }

    /// How long the worker has been ready to run without a processor since it began, nanoseconds.
    pub(crate) fn waited_for_processor(&self) -> u64 {
        self.delay.get().map_or(0, Delay::total)
    }

    /// Queues a core. If the one that runs is to make room for it, its end of turn is set; only when that is now it is called out.
    pub(crate) fn push(&self, vcore: Box<VirtualCore>, queued: Queued) {
        let mut queue = locked(&self.queue);
        let mut account = vcore.account;
        account.due = vcore.guest.due();
        queue.begins(&vcore.guest, Instant::now());
        // While a core runs on, nobody takes the next: the time has gone on all the same.
        let running = queue.turn.as_ref().map(|t| t.account.used_after(nanoseconds(t.started.elapsed())));
        if let Some(floor) = queue.ready.floor(running) {
            self.floor.fetch_max(floor, Ordering::Relaxed);
        }
        match queued {
            Queued::Woken => queue.ready.wake(account, self.floor.load(Ordering::Relaxed), vcore),
            Queued::Again => queue.ready.put_back(account, vcore),
            Queued::First => queue.ready.put_first(account, vcore),
        }
        // Counted before looking whether it sleeps; the sleeper says that it sleeps before looking at the count.
        self.waiting.store(queue.ready.len(), Ordering::SeqCst);
        if let Some(end) = queue.end_of_turn() {
            let now = Instant::now();
            if let Some(turn) = &queue.turn {
                turn.guest.announce_end(Some(end.saturating_duration_since(now)));
            }
            if end <= now {
                if !self.attention.is_mine() {
                    self.attention.call();
                }
            } else if queue.armed.is_some_and(|at| end < at) {
                queue.arm(end, now);
            }
        }
        drop(queue);
        self.wake();
    }

    /// Takes the core that runs next: its own, or one of `others` that is far behind.
    pub(crate) fn take(&self, others: &[WorkerShared]) -> Option<Box<VirtualCore>> {
        let now = Instant::now();
        let (mine, due) = if self.waiting() == 0 {
            (None, false)
        } else {
            let queue = locked(&self.queue);
            (queue.ready.first(), queue.ready.is_due(since(queue.epoch, now)))
        };
        let behind = |w: &&WorkerShared| {
            !std::ptr::eq(*w, self) && w.waiting() > 0 && {
                let queue = locked(&w.queue);
                queue.ready.is_behind(mine) || !due && queue.keeps_waiting(now)
            }
        };
        let from = others.iter().find(behind).unwrap_or(self);
        if from.waiting() == 0 {
            return None;
        }
        let mut queue = locked(&from.queue);
        let first = queue.ready.first();
        let at = since(queue.epoch, now);
        let (account, mut vcore) = queue.ready.pop(at)?;
        from.waiting.store(queue.ready.len(), Ordering::SeqCst);
        queue.ends(&vcore.guest, now);
        drop(queue);
        self.floor.fetch_max(first.unwrap_or(0), Ordering::Relaxed);
        vcore.account = account;
        Some(vcore)
    }

    /// Whether a core that has used so much virtual time should make room for one of another worker's queue.
    pub(crate) fn is_behind(&self, used: u64) -> bool {
        self.waiting() > 0 && {
            let queue = locked(&self.queue);
            queue.ready.is_behind(Some(used)) || queue.keeps_waiting(Instant::now())
        }
    }

    /// Whether it runs a guest as that was promised.
    pub(crate) fn keeps_a_promise(&self) -> bool {
        locked(&self.queue).turn.as_ref().is_some_and(|turn| turn.promised > 0)
    }

    /// A core's turn begins here.
    pub(crate) fn begin_turn(&self, guest: &Arc<Guest>, account: Account, started: Instant) {
        let mut queue = locked(&self.queue);
        queue.begins(guest, started);
        let promised = guest.promised_left(since(queue.epoch, started));
        queue.turn = Some(Turn { guest: Arc::clone(guest), account, started, promised });
    }

    /// The turn is over.
    pub(crate) fn end_turn(&self) {
        let mut queue = locked(&self.queue);
        if let Some(turn) = queue.turn.take() {
            queue.ends(&turn.guest, Instant::now());
        }
    }

    /// What the cores that waited or ran here asked for, as means since this was asked last.
    pub(crate) fn demand(&self) -> Asked {
        let mut queue = locked(&self.queue);
        let now = since(queue.epoch, Instant::now());
        Asked { shares: queue.shares.take(now), promised: queue.promises.take(now) }
    }

    /// The worker is about to enter its guest: the alarm is set to the end of the turn or to `at`, whichever comes first. Returns how much
    /// of the turn is left, if anybody waits.
    pub(crate) fn before_entry(&self, at: Option<Instant>, now: Instant) -> Option<Duration> {
        let mut queue = locked(&self.queue);
        let end = if self.waiting() > 0 { queue.end_of_turn() } else { None };
        match end.into_iter().chain(at).min() {
            Some(at) => queue.arm(at, now),
            // Whoever queues a core may set it.
            None => queue.armed = Some(now + Duration::from_secs(3600)),
        }
        end.map(|end| end.saturating_duration_since(now))
    }

    /// The worker has left its guest.
    pub(crate) fn after_exit(&self) {
        let mut queue = locked(&self.queue);
        queue.armed = None;
        if let Some(alarm) = &mut queue.alarm {
            alarm.clear();
        }
    }

    /// Whether somebody waits and the turn is over.
    pub(crate) fn turn_is_over(&self, now: Instant) -> bool {
        self.waiting() > 0 && locked(&self.queue).end_of_turn().is_some_and(|end| end <= now)
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
        *locked(&self.errand) = Some(errand);
    }

    /// Takes what the worker may do while it waits.
    pub(crate) fn take_errand(&self) -> Option<Arc<dyn Run>> {
        locked(&self.errand).take()
    }

    /// Whether a core will be queued here soon.
    pub(crate) fn expects(&self) -> bool {
        self.expected.load(Ordering::SeqCst) > 0
    }

    /// Wakes the worker if it sleeps.
    pub(crate) fn wake(&self) -> bool {
        let sleeps = self.sleeping.load(Ordering::SeqCst) && self.sleeping.swap(false, Ordering::SeqCst);
        if sleeps {
            // An event counter that is full is readable, which is all that is wanted.
            let _ = self.event.write(1);
        }
        sleeps
    }

    /// Says whether the worker sleeps: before it looks at the queue for the last time, and when it is awake again.
    pub(crate) fn set_sleeping(&self, sleeping: bool) {
        self.sleeping.store(sleeping, Ordering::SeqCst);
    }

    pub(crate) fn is_sleeping(&self) -> bool {
        self.sleeping.load(Ordering::SeqCst)
    }

    /// Whether this is the calling thread's, and has neither a core that runs nor one that waits.
    pub(crate) fn is_mine_and_free(&self) -> bool {
        self.attention.is_mine() && self.waiting() == 0 && locked(&self.queue).turn.is_none()
    }

    /// What becomes readable when the sleeping worker is woken.
    pub(crate) fn event(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    /// Forgets that it was woken.
    pub(crate) fn clear_event(&self) {
        // Non-blocking; only says that somebody woke this worker.
        let _ = self.event.read();
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// The guest that runs here now.
    pub(crate) fn running(&self) -> Option<Arc<Guest>> {
        locked(&self.queue).turn.as_ref().map(|turn| Arc::clone(&turn.guest))
    }

    pub(crate) fn runs(&self, guest: &Guest) -> bool {
        locked(&self.queue).turn.as_ref().is_some_and(|turn| std::ptr::eq(Arc::as_ptr(&turn.guest), guest))
    }

    /// Keeps something until `at`, nanoseconds of the cell's clock.
    pub(crate) fn set_timer(&self, at: u64, timer: Timer) -> Key {
        locked(&self.timers).insert(at, timer)
    }

    /// Forgets a deadline.
    pub(crate) fn cancel_timer(&self, key: Key) {
        locked(&self.timers).remove(key);
    }

    /// How many timers there are.
    pub(crate) fn timers(&self) -> usize {
        locked(&self.timers).len()
    }

    /// When the first timer may be due.
    pub(crate) fn next_timer(&self) -> Option<u64> {
        locked(&self.timers).next()
    }

    /// Takes a timer whose time has come.
    pub(crate) fn due_timer(&self, now: u64) -> Option<Timer> {
        locked(&self.timers).expire(now)
    }
}

/// A core will be queued soon.
pub(crate) struct Expected<'a>(&'a WorkerShared);

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        self.0.expected.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Nanoseconds from a cell's start to a moment.
pub(crate) fn since(epoch: Instant, at: Instant) -> u64 {
    nanoseconds(at.saturating_duration_since(epoch))
}
