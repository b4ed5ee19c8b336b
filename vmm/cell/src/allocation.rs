//! How much of its memory a guest has: it gives back what it does not need, and asks for it when it does.
//!
//! What is provisioned and what is allocated are two things, as in Akaros (Rhoden, Klues, Zhu, Brewer, SoCC 2011). Giving back takes effect at once. Who
//! asks is answered later, by whoever decides: by an interrupt, and in the virtual registers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use foraker_abi::hypercall::{E_INVALID, E_LIMIT, E_UNSUPPORTED, MEMORY_MAX};
use foraker_policy::token_bucket::TokenBucket;

use crate::cell::Shared;
use crate::guest::Guest;

/// Changes a second, and at once: somebody else has to hear of each.
const CHANGES: u64 = 16;
const AT_ONCE: u64 = 64;

/// What a guest has changed, and what it waits for.
#[derive(Debug)]
pub(crate) struct Allocation {
    /// It has given something back in its life.
    confined: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    limit: TokenBucket,
    /// What whoever decides has not heard of.
    wish: Option<u64>,
    /// What it has asked for, until that is answered.
    asked: Option<u64>,
}

impl Default for Allocation {
    fn default() -> Allocation {
        let state = State { limit: TokenBucket::new(CHANGES, AT_ONCE, 0), wish: None, asked: None };
        Allocation { confined: AtomicBool::new(false), state: Mutex::new(state) }
    }
}

impl Allocation {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_confined(&self) -> bool {
        self.confined.load(Ordering::Relaxed)
    }

    pub(crate) fn take_wish(&self) -> Option<u64> {
        self.lock().wish.take()
    }
}

/// An answer has come. Whether it is to what the guest waits for.
pub(crate) fn settle(guest: &Guest, bytes: u64, granted: bool) -> bool {
    let mut state = guest.allocation.lock();
    let waited = state.asked.take_if(|asked| *asked == bytes).is_some();
    if waited && granted {
        // Before another core of the guest can change it.
        guest.have_memory(bytes);
    }
    waited
}

/// The guest wants to have so many bytes of its memory. Returns the hypercall's result.
pub(crate) fn resize(cell: &Shared, guest: &Guest, bytes: u64) -> i64 {
    if !guest.memory.can_be_confined(bytes) {
        return E_INVALID;
    }
    let mut state = guest.allocation.lock();
    let now = guest.registers().resources.memory_allocated.load(Ordering::SeqCst);
    if now.saturating_sub(bytes) > MEMORY_MAX
        || state.asked.is_some()
        || !state.limit.take(guest.clock.now(), 1)
    {
        return E_LIMIT;
    }
    if bytes <= now {
        guest.allocation.confined.store(true, Ordering::Relaxed);
        if !guest.have_memory(bytes) {
            return E_UNSUPPORTED;
        }
    } else {
        state.asked = Some(bytes);
    }
    state.wish = Some(bytes);
    drop(state);
    if cell.gatekept {
        cell.tell();
    } else {
        guest.answer_wish(bytes, true);
    }
    0
}
