//! The pool of machines: made ahead of need, and taken back from guests that have ended.
//!
//! A machine that comes back is reset before it is kept: nothing of its former guest is in its registers, and its memory is taken away. A machine with
//! further cores is not kept, because a virtual CPU cannot be taken away from it; nor one that has not ended in order.
//!
//! A cell may have fewer machines than guests. A guest that rests can do without: its core's state is saved, its machine goes to another, and it is
//! *warm* until somebody wakes it. Who gives up its machine is [`foraker_policy::holders`]' to say.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use foraker_machine::{Core, Host, Machine, MachineError};
use foraker_policy::holders::{Found, Holders};

use crate::guest::Guest;

/// The pool is filled up only after so long without a start: while guests start in a row, making machines for later takes time from them.
const QUIET: Duration = Duration::from_millis(10);

/// Machines that no guest has, each with its core 0.
#[derive(Debug)]
pub(crate) struct Machines {
    host: Arc<Host>,
    pool: Mutex<Pool>,
    changed: Condvar,
    /// Made ahead.
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
            spare,
            most: most.max(spare),
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
        if pool.ready.len() < self.spare {
            self.changed.notify_one();
        }
        core
    }

    /// A machine for a guest: that of one which rests once guests have as many as they may, else one that waits. None when a new one is to be made.
    pub(crate) fn obtain(&self) -> Option<Core> {
        let shared = (self.limit < usize::MAX).then(|| self.take_away(self.limit.saturating_sub(1)));
        shared.flatten().or_else(|| self.take())
    }

    /// A guest has a machine from now on, and may have to do without it later.
    pub(crate) fn hold(&self, guest: &Arc<Guest>) {
        if self.limit < usize::MAX && guest.cores.len() == 1 {
            self.holders().add(Arc::downgrade(guest));
        }
    }

    fn holders(&self) -> MutexGuard<'_, Holders<Weak<Guest>>> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a machine away if guests have more than they may: some could not do without theirs when others came. Returns whether there may be
    /// another one to take.
    pub(crate) fn trim(&self) -> bool {
        if self.limit == usize::MAX {
            return false;
        }
        let Some(core) = self.take_away(self.limit) else { return false };
        let mut pool = self.lock();
        if pool.ready.len() < self.spare {
            pool.ready.push(core);
        }
        true
    }

    /// Takes the machine of a guest that rests, if more than so many have one.
    fn take_away(&self, unless: usize) -> Option<Core> {
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
            if pool.ready.len() >= self.spare {
                pool = self.changed.wait(pool).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let since = pool.taken.elapsed();
            if since < QUIET {
                let wait = self.changed.wait_timeout(pool, QUIET - since);
                pool = wait.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            drop(pool);
            let made = self.make();
            pool = self.lock();
            match made {
                Ok(core) => pool.ready.push(core),
                Err(e) => {
                    log::warn!("no machine can be made ahead: {e}");
                    let wait = self.changed.wait_timeout(pool, Duration::from_secs(1));
                    pool = wait.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }

    /// Ends [`Self::keep_filling`].
    pub(crate) fn stop(&self) {
        self.lock().stopping = true;
        self.changed.notify_all();
    }
}
