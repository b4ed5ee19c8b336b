//! Guests that are kept off the processors: *paused* by whoever owns them, or *held* for a moment by whoever looks into them.
//!
//! A worker asks for all of it with the load that also tells it whether the guest has ended. A core that may not run is put into its slot; a core that
//! rests there is left where it is, and one that would be woken waits in the slot instead. What comes meanwhile (interrupts, frames, deadlines) is in
//! the guest's memory, as for any guest that does not run, and is seen when it goes on.
//!
//! Whoever holds a guest sets the flag first and then looks for its cores; whoever puts a core somewhere does it under the lock of its slot, and
//! looks at the flag there once more. So a core is never left behind, nor let go too early.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::guest::{CoreSlot, CoreState, Guest, VirtualCore};
use crate::queue::Queued;

/// The guest has ended.
const ENDED: u32 = 1 << 0;
/// Its owner has paused it.
const PAUSED: u32 = 1 << 1;
/// Somebody looks into it: one at a time.
const INSPECTED: u32 = 1 << 2;
/// Whoever looks into it holds it.
const HELD: u32 = 1 << 3;
/// It has a debugger.
const DEBUGGED: u32 = 1 << 4;

/// What a worker asks of a guest before each entry, in one load.
#[derive(Debug, Default)]
pub(crate) struct Flags(AtomicU32);

impl Flags {
    fn has(&self, any: u32) -> bool {
        self.0.load(Ordering::SeqCst) & any != 0
    }

    /// Sets flags. Returns whether one of them was set before.
    fn set(&self, flags: u32) -> bool {
        self.0.fetch_or(flags, Ordering::SeqCst) & flags != 0
    }

    /// Clears flags. Returns whether one of them was set before.
    fn clear(&self, flags: u32) -> bool {
        self.0.fetch_and(!flags, Ordering::SeqCst) & flags != 0
    }

    /// The guest has ended.
    pub(crate) fn end(&self) {
        self.set(ENDED);
    }

    pub(crate) fn ended(&self) -> bool {
        self.has(ENDED)
    }

    /// Whether a core of the guest may be entered as it is: what a worker asks most often.
    pub(crate) fn are_clear(&self) -> bool {
        self.0.load(Ordering::SeqCst) == 0
    }
}

/// Those who wait until some guest has left its cores: few, and seldom, so that one for the cell will do.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    lock: Mutex<()>,
    changed: Condvar,
}

impl Waiters {
    /// A guest that is kept off the processors has put a core down. No slot is locked.
    pub(crate) fn tell(&self) {
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    /// Waits until this holds, at most so long. Returns whether it does.
    pub(crate) fn wait(&self, most: Duration, holds: impl Fn() -> bool) -> bool {
        let since = Instant::now();
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if holds() {
                return true;
            }
            let Some(left) = most.checked_sub(since.elapsed()).filter(|left| !left.is_zero()) else {
                return false;
            };
            guard = self.changed.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Guest {
    /// Keeps the guest off the processors until [`Self::resume`]: it executes no further instruction once its cores have been called out, which
    /// [`Self::wait_until_held`] waits for. Does nothing if it is paused already, or has ended.
    ///
    /// Its memory and state stay. Its time goes on: deadlines that pass meanwhile, and frames and other interrupts that come, are seen when it goes
    /// on; frames beyond its receive ring's room are dropped and counted. A guest that is asked to stop hears of it then. It can be ended as any other.
    pub fn pause(&self) {
        if !self.flags.set(PAUSED) {
            self.call_out();
        }
    }

    /// Lets a paused guest go on. Does nothing if it is not paused.
    pub fn resume(&self) {
        if self.flags.clear(PAUSED) {
            self.let_go();
        }
    }

    /// Whether its owner has paused it.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.flags.has(PAUSED)
    }

    /// Waits at most so long until the guest, which was paused or held or has ended, has left its cores. Returns whether it has; `false` at once when it
    /// may run. A core that waits for its turn is put aside when that comes, so that on a busy cell this can take as long as a round of all guests.
    #[must_use]
    pub fn wait_until_held(&self, most: Duration) -> bool {
        let held = || self.is_off() || !self.is_kept_off();
        if let Some(cell) = self.cell.upgrade()
            && !cell.waiters.wait(most, held)
        {
            return false;
        }
        self.is_off()
    }

    /// Whether it may not run now.
    fn is_kept_off(&self) -> bool {
        self.flags.has(ENDED | PAUSED | HELD)
    }

    /// Whether it may not run, and no core is on a processor or waits for one.
    fn is_off(&self) -> bool {
        let rests = |slot: &CoreSlot| !matches!(*slot.lock(), CoreState::Active);
        self.is_kept_off() && self.cores.iter().all(rests)
    }

    /// Calls the cores that run out of the guest.
    fn call_out(&self) {
        if let Some(cell) = self.cell.upgrade() {
            cell.call_workers_of(self);
            cell.waiters.tell();
        }
    }

    /// Queues the cores that were put aside, as far as they may run now.
    fn let_go(&self) {
        for index in 0..u32::try_from(self.cores.len()).unwrap_or(0) {
            if let Some(vcore) = self.take_held(index)
                && let Some(cell) = self.cell.upgrade()
            {
                cell.enqueue(vcore, Queued::Woken);
            }
        }
    }

    /// Whether a core may not be entered now. Where that changes, whoever changes it looks into the slots afterwards.
    pub(crate) fn must_hold(&self, core: u32) -> bool {
        self.flags.has(PAUSED | HELD) || self.is_debugged() && self.stays(core)
    }

    /// Whether it has a debugger.
    pub(crate) fn is_debugged(&self) -> bool {
        self.flags.has(DEBUGGED)
    }

    /// The guest, which is held, has a debugger from now on.
    pub(crate) fn begin_debugging(&self) {
        self.flags.set(DEBUGGED);
    }

    /// It has no debugger any longer, and is still held.
    pub(crate) fn end_debugging(&self) {
        self.flags.clear(DEBUGGED);
    }

    /// Whoever looks into it lets it go on, and will hold it again.
    pub(crate) fn let_go_held(&self) {
        self.flags.clear(HELD);
        self.let_go();
    }

    /// Whether the caller is the one who looks into it from now on.
    pub(crate) fn begin_inspection(&self) -> bool {
        !self.flags.set(INSPECTED)
    }

    /// Nobody looks into it any longer, so that it goes on.
    pub(crate) fn end_inspection(&self) {
        self.flags.clear(HELD | INSPECTED);
        self.let_go();
    }

    /// Whoever looks into it holds it.
    pub(crate) fn hold(&self) {
        if !self.flags.set(HELD) {
            self.call_out();
        }
    }

    /// Takes a core that was put aside out of its slot, if it may run.
    pub(crate) fn take_held(&self, core: u32) -> Option<Box<VirtualCore>> {
        let slot = self.cores.get(core as usize)?;
        let mut state = slot.lock();
        if !matches!(*state, CoreState::Held(_)) || self.must_hold(core) {
            return None;
        }
        match std::mem::replace(&mut *state, CoreState::Active) {
            CoreState::Held(vcore) => Some(vcore),
            _ => None,
        }
    }

    /// Somebody may wait for a core of this guest to be put down, as it now was.
    pub(crate) fn has_put_down(&self) {
        if self.is_kept_off()
            && let Some(cell) = self.cell.upgrade()
        {
            cell.waiters.tell();
        }
    }
}

impl VirtualCore {
    /// Puts the core aside in its slot, for as long as `stays` says so under the slot's lock. Gives it back if the guest has ended, or it may run.
    pub(crate) fn put_aside(self: Box<Self>, stays: impl FnOnce(&Guest) -> bool) -> Option<Box<Self>> {
        let guest = std::sync::Arc::clone(&self.guest);
        let slot = guest.cores.get(self.index as usize)?;
        let mut state = slot.lock();
        // Its end looks into the slot under the lock, once, before or after this.
        if guest.has_ended() || !stays(&guest) {
            return Some(self);
        }
        *state = CoreState::Held(self);
        None
    }
}
