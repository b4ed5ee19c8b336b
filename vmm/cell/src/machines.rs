//! The pool of machines: made ahead of need, and taken back from guests that have ended.
//!
//! A machine that comes back is reset before it is kept: nothing of its former guest is in its registers, and its memory is taken away. A machine with
//! further cores is not kept, because a virtual CPU cannot be taken away from it; nor one that has not ended in order.
//!
//! A cell may have fewer machines than guests. A guest that rests can do without: its core's state is saved, its machine goes to another, and it is
//! *warm* until somebody wakes it. Who gives up its machine is [`foraker_policy::holders`]' to say. Taking a machine away costs the kernel half a
//! millisecond, so that some are taken ahead of need, too: the pool's thread keeps them ready, within the same bound.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use foraker_machine::{Core, Host, Machine, MachineError};
use foraker_policy::holders::{Found, Holders};

use crate::guest::Guest;

/// The pool is filled up only after so long without a start: while guests start in a row, making machines for later takes time from them.
const QUIET: Duration = Duration::from_millis(10);
/// When to look again for a machine that could be taken away, after all were busy.
const BUSY: Duration = Duration::from_millis(50);

/// Machines that no guest has, each with its core 0.
#[derive(Debug)]
pub(crate) struct Machines {
    host: Arc<Host>,
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
}

#[derive(Debug)]
struct Pool {
    ready: Vec<Core>,
    /// When one was taken last.
    taken: Instant,
    stopping: bool,
}

impl Machines {
    /// A pool that is filled up to `spare` machines and keeps at most `most` of those that come back.
    pub(crate) fn new(host: Arc<Host>, spare: usize, most: usize, limit: Option<usize>) -> Machines {
        let pool = Pool { ready: Vec::new(), taken: Instant::now(), stopping: false };
        Machines {
            host,
            pool: Mutex::new(pool),
            changed: Condvar::new(),
            // With few machines for all, the last one is nobody's reserve.
            spare: limit.map_or(spare, |limit| spare.min(limit / 4)),
            most: limit.map_or(most.max(spare), |limit| spare.min(limit)),
            limit: limit.unwrap_or(usize::MAX),
            holders: Mutex::default(),
            reused: AtomicU64::new(0),
            taken_away: AtomicU64::new(0),
        }
    }

    pub(crate) fn host(&self) -> &Arc<Host> {
        &self.host
    }

    fn lock(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a machine's core 0, the one that came last: what it needs is most likely still in the processor's caches.
    pub(crate) fn take(&self) -> Option<Core> {
        let mut pool = self.lock();
        pool.taken = Instant::now();
        let core = pool.ready.pop();
        // Not for each: whoever is woken takes time from the guest that starts.
        if pool.ready.len() <= self.spare / 2 && self.spare > 0 {
            self.changed.notify_one();
        }
        core
    }

    /// A machine for a guest: one that waits, else, once guests have as many as they may, that of one which rests. None when a new one is to be made.
    pub(crate) fn obtain(&self) -> Option<Core> {
        self.take().or_else(|| self.take_away(self.limit.saturating_sub(1)))
    }

    /// A guest has a machine from now on, and may have to do without it later.
    pub(crate) fn hold(&self, guest: &Arc<Guest>) {
        if self.is_limited() && guest.cores.len() == 1 {
            self.holders().add(Arc::downgrade(guest));
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
        let all = |holders: &Holders<_>| holders.len() + pool.ready.len();
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
        let mut core = core?;
        match core.reset() {
            Ok(()) => Some(core),
            Err(e) => {
                log::debug!("a machine is not used again: {e}");
                None
            }
        }
    }

    /// Takes back the core of a guest that has ended in order and had one core.
    pub(crate) fn put_back(&self, mut core: Core) {
        if self.most == 0 || self.lock().ready.len() >= self.most {
            return;
        }
        match core.reset().and_then(|()| core.machine().detach()) {
            Ok(()) => {
                self.reused.fetch_add(1, Ordering::Relaxed);
                self.lock().ready.push(core);
            }
            Err(e) => log::debug!("a machine is not used again: {e}"),
        }
    }

    /// Machines that came back and were kept.
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

    /// Fills the pool until it is told to stop.
    pub(crate) fn keep_filling(&self) {
        let mut pool = self.lock();
        while !pool.stopping {
            let surplus = self.surplus(&pool);
            if pool.ready.len() >= self.spare && !surplus {
                pool = self.changed.wait(pool).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            if surplus && pool.ready.len() > self.spare {
                // Those of guests that have ended go first.
                let core = pool.ready.pop();
                drop(pool);
                drop(core);
                pool = self.lock();
                continue;
            }
            if surplus || self.is_limited() && self.holders().len() + pool.ready.len() >= self.limit {
                drop(pool);
                let core = self.take_away(self.limit.saturating_sub(self.spare));
                pool = self.lock();
                match core {
                    Some(core) if pool.ready.len() < self.spare => pool.ready.push(core),
                    Some(_) => {}
                    // All are busy.
                    None => pool = self.rest(pool, BUSY),
                }
                continue;
            }
            let since = pool.taken.elapsed();
            if since < QUIET {
                pool = self.rest(pool, QUIET - since);
                continue;
            }
            drop(pool);
            let made = self.make();
            pool = self.lock();
            match made {
                Ok(core) => pool.ready.push(core),
                Err(e) => {
                    log::warn!("no machine can be made ahead: {e}");
                    pool = self.rest(pool, Duration::from_secs(1));
                }
            }
        }
    }

    fn rest<'a>(&self, pool: MutexGuard<'a, Pool>, most: Duration) -> MutexGuard<'a, Pool> {
        self.changed.wait_timeout(pool, most).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Whether somebody must fill the pool.
    pub(crate) fn needs_filling(&self) -> bool {
        self.spare > 0 || self.is_limited()
    }

    /// Ends [`Self::keep_filling`].
    pub(crate) fn stop(&self) {
        self.lock().stopping = true;
        self.changed.notify_all();
    }
}
