//! The pool of machines: made ahead of need, and taken back from guests that have ended.
//!
//! A machine that comes back is reset before it is kept: nothing of its former guest is in its registers, and its memory is taken away. A machine with
//! further cores is not kept, because a virtual CPU cannot be taken away from it; nor one that has not ended in order. Taking memory away waits for the
//! kernel, as a rule a tenth of a millisecond, at times ten: the pool's thread does it, as workers have guests that wait.
//!
//! A cell may have fewer machines than guests. A guest that rests can do without: its core's state is saved, its machine goes to another, and it is
//! *warm* until somebody wakes it. Who gives up its machine is [`foraker_policy::holders`]' to say. Taking a machine away costs the kernel half a
//! millisecond, so that some are taken ahead of need, too: the pool's thread keeps them ready, within the same bound.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use foraker_confine::Kind;
use foraker_machine::{Attention, Core, Host, Machine, MachineError};
use foraker_memory::{Arena, GuestMemory, Shared};
use foraker_policy::holders::{Found, Holders};

use crate::ahead::Ahead;
use crate::guest::Guest;
use crate::templates::Captured;

/// New machines are made only after so long without a start: while guests start in a row, making machines for later takes time from them.
const QUIET: Duration = Duration::from_millis(10);
/// The same for starts that are made ahead, and for machines that are taken away ahead: by then a guest has given its first answer.
const ANSWERED: Duration = Duration::from_millis(2);
/// When to look again for a machine that could be taken away, after all were busy.
const BUSY: Duration = Duration::from_millis(50);
/// Threads that give machines back to the host when a cell stops, and how many machines make one more worth its while.
const DROPPERS: usize = 8;
const MANY: usize = 16;
/// After the host had no machine to give.
const REFUSED: Duration = Duration::from_secs(1);

/// Machines that no guest has, each with its core 0.
#[derive(Debug)]
pub(crate) struct Machines {
    host: Arc<Host>,
    /// Where guests that start from templates have their memory.
    arena: Arc<Arena>,
    pool: Mutex<Pool>,
    changed: Condvar,
    /// Made or taken away ahead.
    spare: usize,
    /// Most that are kept without a guest.
    most: usize,
    /// Most that there are, as long as any guest can do without its own.
    limit: usize,
    holders: Mutex<Holders<Weak<Guest>>>,
    reused: AtomicU64,
    /// Guests that have lost their machine so far.
    taken_away: AtomicU64,
    /// Starts that were made ahead and found their guest.
    started_ahead: AtomicU64,
}

#[derive(Debug)]
struct Pool {
    ready: Vec<Core>,
    /// Have come back, and still have the memory of the guests that had them.
    returned: Vec<Core>,
    /// Starts that were made ahead, the oldest first. Their machines are among the spare ones.
    ahead: VecDeque<Ahead>,
    /// Starts that are to be made ahead, the oldest first.
    wanted: VecDeque<Arc<Captured>>,
    /// On their way to a guest.
    moving: usize,
    /// When a guest was started last.
    started: Instant,
    /// When a machine was needed last.
    obtained: Instant,
    stopping: bool,
}

impl Pool {
    fn spare(&self) -> usize {
        self.ready.len() + self.ahead.len()
    }

    /// Machines that are nobody's.
    fn all(&self) -> usize {
        self.spare() + self.returned.len() + self.moving
    }

    /// A machine, best one that has this shared part: of those, the one that came last, as what it needs is most likely still in the processor's caches.
    fn take(&mut self, shared: &Arc<Shared>) -> Option<Core> {
        match self.ready.iter().rposition(|core| core.machine().has(shared)) {
            Some(at) => Some(self.ready.remove(at)),
            None => self.ready.pop(),
        }
    }
}

/// What the pool's thread does next.
enum Next {
    /// Nothing, until something has changed.
    Wait,
    /// Nothing for a while.
    Rest(Duration),
    /// Something that takes time, while the pool is not locked.
    Do(Task),
}

enum Task {
    /// Gives a machine back to the host.
    Drop(Core),
    /// Makes a machine that has come back fit for another guest.
    Empty(Core),
    /// Takes a machine away from a guest that rests.
    TakeAway,
    /// Makes a machine.
    Make,
    /// Makes a start ahead.
    Prepare(Core, Arc<Captured>),
    /// Makes a plain machine of one.
    Strip(Ahead),
}

/// What has come of a task.
enum Done {
    Machine(Core),
    Ahead(Ahead),
    Nothing,
    /// Nothing, and not for a while.
    Refused(Duration),
}

/// A machine that is on its way to a guest counts until this is dropped.
pub(crate) struct Moving<'a>(&'a Machines);

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        self.0.lock().moving -= 1;
    }
}

impl Machines {
    /// A pool that is filled up to `spare` machines and keeps at most `most` of those that come back.
    pub(crate) fn new(
        host: Arc<Host>,
        arena: Arc<Arena>,
        spare: usize,
        most: usize,
        limit: Option<usize>,
    ) -> Machines {
        let pool = Pool {
            ready: Vec::new(),
            returned: Vec::new(),
            ahead: VecDeque::new(),
            wanted: VecDeque::new(),
            moving: 0,
            started: Instant::now(),
            obtained: Instant::now(),
            stopping: false,
        };
        Machines {
            host,
            arena,
            pool: Mutex::new(pool),
            changed: Condvar::new(),
            // With few machines for all, the last one is nobody's reserve.
            spare: limit.map_or(spare, |limit| spare.min(limit / 4)),
            most: limit.map_or(most.max(spare), |limit| spare.min(limit)),
            limit: limit.unwrap_or(usize::MAX),
            holders: Mutex::default(),
            reused: AtomicU64::new(0),
            taken_away: AtomicU64::new(0),
            started_ahead: AtomicU64::new(0),
        }
    }

    pub(crate) fn host(&self) -> &Arc<Host> {
        &self.host
    }

    fn lock(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A machine for a guest with this shared part: one that waits, else, once guests have as many as they may, that of one which rests. None when a
    /// new one is to be made. It counts as the pool's as long as the second value lives.
    pub(crate) fn obtain(&self, shared: &Arc<Shared>) -> (Option<Core>, Moving<'_>) {
        let mut pool = self.lock();
        pool.moving += 1;
        pool.obtained = Instant::now();
        let moving = Moving(self);
        let core = pool.take(shared);
        let returned = if core.is_none() { pool.returned.pop() } else { None };
        // Where there are no more machines to be had, a guest that is here comes before one that may come.
        let wanting = core.is_none() && returned.is_none();
        let other = if wanting && self.is_limited() { pool.ahead.pop_front() } else { None };
        // Not for each: whoever is woken takes time from the guest that starts.
        if pool.ready.len() <= self.spare / 2 && self.spare > 0 {
            self.changed.notify_one();
        }
        drop(pool);
        let used = returned.or_else(|| Some(other?.into_parts().0));
        (core.or_else(|| self.reuse(used?)).or_else(|| self.take_away(self.limit.saturating_sub(1))), moving)
    }

    /// A guest is started, alone. If it starts from a template, a start that was made ahead for it is taken, and another one is wanted.
    pub(crate) fn start(&self, captured: Option<&Arc<Captured>>) -> Option<(Core, Arc<GuestMemory>)> {
        let mut pool = self.lock();
        pool.started = Instant::now();
        let captured = captured.filter(|_| self.most_ahead() > 0)?;
        pool.wanted.push_back(Arc::clone(captured));
        let at = pool.ahead.iter().position(|ahead| ahead.is_of(captured));
        let found = at.and_then(|at| pool.ahead.remove(at));
        self.changed.notify_one();
        drop(pool);
        found.map(|ahead| {
            self.started_ahead.fetch_add(1, Ordering::Relaxed);
            ahead.into_parts()
        })
    }

    /// A guest is started, one of many.
    pub(crate) fn start_of_many(&self) {
        self.lock().started = Instant::now();
    }

    /// Most starts that are made ahead: half of what is spare is for guests of another kind.
    fn most_ahead(&self) -> usize {
        self.spare / 2
    }

    /// Starts that were made ahead and found their guest.
    pub(crate) fn started_ahead(&self) -> u64 {
        self.started_ahead.load(Ordering::Relaxed)
    }

    /// A guest has a machine from now on, which was on its way until here, and may have to do without it later.
    pub(crate) fn hold(&self, guest: &Arc<Guest>, moving: Option<Moving<'_>>) {
        if self.is_limited() && guest.cores.len() == 1 {
            self.holders().add(Arc::downgrade(guest));
            // Not counted twice.
            drop(moving);
            if self.surplus(&self.lock()) {
                self.changed.notify_one();
            }
        }
    }

    /// Whether guests may have to do without machines.
    fn is_limited(&self) -> bool {
        self.limit < usize::MAX
    }

    /// Whether there are more machines than there may be: some guests could not do without theirs when others came.
    fn surplus(&self, pool: &Pool) -> bool {
        let all = |holders: &Holders<_>| holders.len() + pool.all();
        if !self.is_limited() || all(&self.holders()) <= self.limit {
            return false;
        }
        let gone = |guest: &Weak<Guest>| guest.upgrade().is_none_or(|guest| guest.has_ended());
        self.holders().forget(gone);
        all(&self.holders()) > self.limit
    }

    fn holders(&self) -> MutexGuard<'_, Holders<Weak<Guest>>> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the machine of a guest that rests, if more than so many have one.
    fn take_away(&self, unless: usize) -> Option<Core> {
        if !self.is_limited() {
            return None;
        }
        let mut core = None;
        let mut holders = self.holders();
        if holders.len() <= unless {
            return None;
        }
        holders.victim(|guest| {
            let Some(guest) = guest.upgrade().filter(|guest| !guest.has_ended()) else { return Found::Gone };
            if guest.used.swap(false, Ordering::Relaxed) {
                return Found::Used;
            }
            core = guest.give_up_machine();
            if core.is_some() { Found::Idle } else { Found::Busy }
        })?;
        drop(holders);
        self.taken_away.fetch_add(1, Ordering::Relaxed);
        // Its memory was taken before.
        emptied(core?)
    }

    /// Takes back the core of a guest that has ended in order and had one core.
    pub(crate) fn put_back(&self, core: Core) {
        let mut pool = self.lock();
        if pool.stopping {
            // Nobody comes for it.
            return;
        }
        if self.needs_filling() {
            pool.returned.push(core);
            self.changed.notify_one();
            return;
        }
        let kept = pool.spare() < self.most;
        drop(pool);
        if kept && let Some(core) = self.reuse(core) {
            self.lock().ready.push(core);
        }
    }

    /// A machine that has come back without anything of its former guest.
    fn reuse(&self, core: Core) -> Option<Core> {
        emptied(core).inspect(|_| _ = self.reused.fetch_add(1, Ordering::Relaxed))
    }

    /// Machines that came back and were made fit for others.
    pub(crate) fn reused(&self) -> u64 {
        self.reused.load(Ordering::Relaxed)
    }

    /// Guests that have lost their machine to others so far.
    pub(crate) fn taken_away(&self) -> u64 {
        self.taken_away.load(Ordering::Relaxed)
    }

    /// A machine without a guest.
    fn make(&self) -> Result<Core, MachineError> {
        Machine::new(&self.host)?.create_core(0)
    }

    /// What is to be done for the pool.
    fn next(&self, pool: &mut Pool) -> Next {
        if let Some(core) = pool.returned.pop() {
            let kept = pool.spare() < self.most;
            return Next::Do(if kept { Task::Empty(core) } else { Task::Drop(core) });
        }
        let surplus = self.surplus(pool);
        if surplus && pool.spare() > self.spare {
            // Those of guests that have ended go first.
            return match pool.ready.pop() {
                Some(core) => Next::Do(Task::Drop(core)),
                None => pool.ahead.pop_front().map_or(Next::Wait, |oldest| Next::Do(Task::Strip(oldest))),
            };
        }
        if surplus {
            return Next::Do(Task::TakeAway);
        }
        let since = pool.started.elapsed();
        // The latest starts say what is started next.
        while pool.wanted.len() > self.most_ahead() {
            pool.wanted.pop_front();
        }
        if !pool.wanted.is_empty() && !pool.ready.is_empty() {
            if since < ANSWERED {
                return Next::Rest(ANSWERED - since);
            }
            if pool.ahead.len() + pool.wanted.len() > self.most_ahead()
                && let Some(oldest) = pool.ahead.pop_front()
            {
                return Next::Do(Task::Strip(oldest));
            }
            if let Some(captured) = pool.wanted.pop_front()
                && let Some(core) = pool.take(captured.memory.shared())
            {
                return Next::Do(Task::Prepare(core, captured));
            }
        }
        if pool.spare() >= self.spare {
            return Next::Wait;
        }
        if self.is_limited() && self.holders().len() + pool.all() >= self.limit {
            let since = pool.obtained.elapsed();
            // Whoever has got one is to use it first.
            let rests = since < ANSWERED && !pool.ready.is_empty();
            return if rests { Next::Rest(ANSWERED - since) } else { Next::Do(Task::TakeAway) };
        }
        if since < QUIET { Next::Rest(QUIET - since) } else { Next::Do(Task::Make) }
    }

    /// Fills the pool until it is told to stop.
    pub(crate) fn keep_filling(&self) {
        // Lives as long as the process: a signal may look at it at any time. Nobody calls, though.
        let attention: &'static Attention = Box::leak(Box::default());
        if let Err(e) = attention.adopt() {
            log::warn!("no machine can be made ahead: {e}");
            return;
        }
        foraker_confine::enter(Kind::Machines);
        let mut pool = self.lock();
        while !pool.stopping {
            match self.next(&mut pool) {
                Next::Wait => pool = self.changed.wait(pool).unwrap_or_else(PoisonError::into_inner),
                Next::Rest(time) => pool = self.rest(pool, time),
                Next::Do(task) => {
                    drop(pool);
                    let done = self.act(task, attention);
                    pool = self.lock();
                    match done {
                        Done::Machine(core) if pool.spare() < self.spare.max(self.most) => {
                            pool.ready.push(core)
                        }
                        Done::Machine(_) | Done::Nothing => {}
                        Done::Ahead(ahead) => pool.ahead.push_back(ahead),
                        Done::Refused(time) => pool = self.rest(pool, time),
                    }
                }
            }
        }
        // They hold memory of the cell's arena.
        let ahead = std::mem::take(&mut pool.ahead);
        drop(pool);
        drop(ahead);
        self.drop_returned();
    }

    fn act(&self, task: Task, attention: &Attention) -> Done {
        match task {
            Task::Drop(core) => {
                drop(core);
                Done::Nothing
            }
            Task::Empty(core) => self.reuse(core).map_or(Done::Nothing, Done::Machine),
            // All are busy.
            Task::TakeAway => self
                .take_away(self.limit.saturating_sub(self.spare))
                .map_or(Done::Refused(BUSY), Done::Machine),
            Task::Make => self.make().map_or_else(
                |e| {
                    log::warn!("no machine can be made ahead: {e}");
                    Done::Refused(REFUSED)
                },
                Done::Machine,
            ),
            Task::Prepare(core, captured) => Ahead::new(core, captured, &self.arena, &self.host, attention)
                .map_or_else(
                    |e| {
                        log::debug!("no start can be made ahead: {e}");
                        Done::Nothing
                    },
                    Done::Ahead,
                ),
            Task::Strip(ahead) => emptied(ahead.into_parts().0).map_or(Done::Nothing, Done::Machine),
        }
    }

    fn rest<'a>(&self, pool: MutexGuard<'a, Pool>, most: Duration) -> MutexGuard<'a, Pool> {
        self.changed.wait_timeout(pool, most).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Whether somebody must fill the pool.
    pub(crate) fn needs_filling(&self) -> bool {
        self.spare > 0 || self.is_limited()
    }

    /// Ends [`Self::keep_filling`], and gives all machines that have come back to the host.
    ///
    /// The host takes a millisecond for each, most of it waiting for what several could wait for together.
    pub(crate) fn stop(&self) {
        let mut pool = self.lock();
        pool.stopping = true;
        let returned = pool.returned.len();
        drop(pool);
        self.changed.notify_all();
        std::thread::scope(|scope| {
            for _ in 0..DROPPERS.min(returned / MANY) {
                // Without help it takes longer.
                let _ = std::thread::Builder::new()
                    .stack_size(128 << 10)
                    .spawn_scoped(scope, || self.drop_returned());
            }
            self.drop_returned();
        });
    }

    /// Gives machines that have come back to the host, until there are none.
    fn drop_returned(&self) {
        loop {
            let core = self.lock().returned.pop();
            let Some(core) = core else { return };
            drop(core);
        }
    }
}

/// The machine without anything of its former guest, unless the host refuses: then it must not be used again.
fn emptied(mut core: Core) -> Option<Core> {
    let done = core.reset().and_then(|()| core.machine().detach());
    done.inspect_err(|e| log::debug!("a machine is not used again: {e}")).ok().map(|()| core)
}
