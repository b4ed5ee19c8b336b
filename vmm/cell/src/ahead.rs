//! Starts that are made ahead: a machine that has a template's memory already, and everything in its page tables that guests like it need first.
//!
//! No instruction of the guest's has run, and what makes it this guest and no other (addresses, entropy, incarnation, time) is written when it is started.

use std::sync::Arc;

use foraker_machine::{Attention, Core, Host};
use foraker_memory::{Arena, GuestMemory};

use crate::cell::CellError;
use crate::templates::Captured;

/// A start that was made ahead.
#[derive(Debug)]
pub(crate) struct Ahead {
    captured: Arc<Captured>,
    core: Core,
    memory: Arc<GuestMemory>,
}

impl Ahead {
    /// Makes a start from `captured` on this machine. If the calling thread may run it, the machine visits what guests touch first.
    ///
    /// # Errors
    /// The arena is full, or the host refuses.
    pub(crate) fn new(
        mut core: Core,
        captured: Arc<Captured>,
        arena: &Arc<Arena>,
        host: &Host,
        attention: &Attention,
    ) -> Result<Ahead, CellError> {
        let memory = Arc::new(GuestMemory::new(arena, &captured.memory)?);
        core.machine().attach(&memory)?;
        if host.runs_on_any_thread() {
            core.visit(memory.page_tables(), memory.itinerary(), attention)?;
            memory.forget_itinerary();
        }
        core.resume(memory.page_tables(), &captured.core)?;
        Ok(Ahead { captured, core, memory })
    }

    /// Whether it is a start from this template.
    pub(crate) fn is_of(&self, captured: &Arc<Captured>) -> bool {
        Arc::ptr_eq(&self.captured, captured)
    }

    /// For the guest that it was made for, or to be taken apart.
    pub(crate) fn into_parts(self) -> (Core, Arc<GuestMemory>) {
        (self.core, self.memory)
    }
}
