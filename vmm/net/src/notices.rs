//! What the caller of the network has to do afterwards: interrupts to raise, guests to end.

use std::sync::Arc;

use crate::port::Port;
use crate::ring::RingFault;

/// How far back a repeated interrupt is looked for.
const RECENT: usize = 4;

/// Collected by [`crate::Uplink`]'s calls while they hold locks, and acted on by their caller, who holds none. Reused
/// from call to call, so that nothing is allocated.
#[derive(Debug, Default)]
pub struct Notices {
    interrupts: Vec<(Arc<Port>, u64)>,
    acknowledgements: Vec<(Arc<Port>, u64)>,
    faults: Vec<(Arc<Port>, RingFault)>,
}

impl Notices {
    /// None yet, with room for some.
    #[must_use]
    pub fn new() -> Self {
        Notices {
            interrupts: Vec::with_capacity(64),
            acknowledgements: Vec::with_capacity(64),
            faults: Vec::new(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.interrupts.is_empty() && self.acknowledgements.is_empty() && self.faults.is_empty()
    }

    /// The interrupts to raise (bits of [`foraker_abi::interrupt`]), and forgets them. A port may come up more than
    /// once if many ports were served.
    pub fn interrupts(&mut self) -> impl Iterator<Item = (Arc<Port>, u64)> {
        self.interrupts.drain(..)
    }

    /// Guests that were given a bare TCP acknowledgement and nothing else, with what [`foraker_abi::control::CoreControl::awaited`] says of it, and
    /// forgets them: an interrupt, unless it is the one that the guest awaits.
    pub fn acknowledgements(&mut self) -> impl Iterator<Item = (Arc<Port>, u64)> {
        self.acknowledgements.drain(..)
    }

    /// The guests that broke a ring, once each, and forgets them.
    pub fn faults(&mut self) -> impl Iterator<Item = (Arc<Port>, RingFault)> {
        self.faults.drain(..)
    }

    #[inline]
    pub(crate) fn raise(&mut self, port: &Arc<Port>, bits: u64) {
        for (other, raised) in self.interrupts.iter_mut().rev().take(RECENT) {
            if Arc::ptr_eq(other, port) {
                *raised |= bits;
                return;
            }
        }
        self.interrupts.push((Arc::clone(port), bits));
    }

    pub(crate) fn acknowledge(&mut self, port: &Arc<Port>, number: u64) {
        self.acknowledgements.push((Arc::clone(port), number));
    }

    pub(crate) fn fault(&mut self, port: &Arc<Port>, fault: RingFault) {
        self.faults.push((Arc::clone(port), fault));
    }
}
