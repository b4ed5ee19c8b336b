//! Looking into a guest that does not run: the state of its cores, and its memory.
//!
//! One at a time looks into a guest, and holds it meanwhile. Everything that is read was the guest's to choose, and everything that is written stays within
//! what it could have written itself, but for its text and read-only data, of which it is given a copy of its own.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use foraker_machine::{MachineError, Saved};
use foraker_memory::MemoryError;

use crate::guest::{CoreState, Guest, Seat, VirtualCore};
use crate::report::End;

/// Why a guest cannot be looked into, or changed.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// Somebody else does.
    #[error("somebody else debugs or dumps it: try again when that is over")]
    Busy,
    /// It did not leave its cores.
    #[error("the guest has not left its cores within {0:?}: the cell is busy, try again")]
    TooLong(Duration),
    /// It runs.
    #[error("the guest runs")]
    Runs,
    /// It has no such core, or that has not been started.
    #[error("the guest has no core {0} that could be looked into")]
    NoCore(u32),
    /// A register cannot hold this.
    #[error("{0:#x} is no address that an instruction pointer can hold")]
    Register(u64),
    /// The guest cannot reach this.
    #[error("{0:#x} is not within the guest's memory, or not to be written")]
    Address(u64),
    /// There are too many.
    #[error("{0} breakpoints are the most")]
    Breakpoints(usize),
    /// The host.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The host.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The host refused something else.
    #[error("{0}: {1}")]
    Os(&'static str, std::io::Error),
}

/// The state of the cores of a guest that has ended with a fault.
#[derive(Debug, Default)]
pub(crate) struct KeptCores(Mutex<Vec<(u32, Saved)>>);

/// A guest that is held and looked into. It goes on when this is dropped, unless it is paused.
#[derive(Debug)]
pub struct Inspection {
    guest: Arc<Guest>,
}

impl Guest {
    /// Holds the guest, waits at most so long until it has left its cores, and looks into it. May be done with one that is paused or has ended, too: what
    /// is known then of its cores is that of the one that faulted, or of all if the guest was started with [`crate::GuestSpec::keep_core`].
    ///
    /// # Errors
    /// [`InspectError::Busy`] and [`InspectError::TooLong`].
    pub fn inspect(self: &Arc<Self>, most: Duration) -> Result<Inspection, InspectError> {
        if !self.begin_inspection() {
            return Err(InspectError::Busy);
        }
        let inspection = Inspection { guest: Arc::clone(self) };
        inspection.hold(most)?;
        Ok(inspection)
    }

    /// Whether it has ended with a fault, and somebody wants the state of its cores.
    pub(crate) fn keeps_cores(&self) -> bool {
        self.kept.is_some() && matches!(self.end(), Some(End::Faulted(_)))
    }

    /// The guest has ended, and this was one of its cores: its state is kept if somebody wants it.
    pub(crate) fn keep_core(&self, vcore: &mut VirtualCore) {
        if let (Some(kept), Some(End::Faulted(fault))) = (&self.kept, self.end())
            && let Some(mut saved) = state_of(vcore)
        {
            if fault.core == vcore.index {
                // Until now it stood where it reported the fault.
                saved.set_registers(fault.registers);
            }
            kept.0.lock().unwrap_or_else(PoisonError::into_inner).push((vcore.index, saved));
        }
    }

    /// What is known of a core that has ended.
    fn last_state(&self, index: u32) -> Option<Saved> {
        let kept = self.kept.as_ref().and_then(|kept| {
            let kept = kept.0.lock().unwrap_or_else(PoisonError::into_inner);
            kept.iter().find(|(core, _)| *core == index).map(|(_, saved)| saved.clone())
        });
        kept.or_else(|| match self.end()? {
            End::Faulted(fault) if fault.core == index => Some(Saved::of_registers(fault.registers)),
            _ => None,
        })
    }
}

fn state_of(vcore: &mut VirtualCore) -> Option<Saved> {
    match &mut vcore.seat {
        Seat::Here(core) => core.save().ok(),
        Seat::Away(saved) => Some((**saved).clone()),
    }
}

impl Inspection {
    /// The guest.
    #[must_use]
    pub fn guest(&self) -> &Arc<Guest> {
        &self.guest
    }

    /// Holds it again.
    pub(crate) fn hold(&self, most: Duration) -> Result<(), InspectError> {
        self.guest.hold();
        if self.guest.wait_until_held(most) { Ok(()) } else { Err(InspectError::TooLong(most)) }
    }

    /// Its cores that have a state, in order.
    #[must_use]
    pub fn cores(&self) -> Vec<u32> {
        let all = (0u32..).zip(&self.guest.cores);
        let has = |(index, slot): (u32, &crate::guest::CoreSlot)| {
            let there = match &*slot.lock() {
                CoreState::Idle(_) | CoreState::Held(_) => true,
                CoreState::Gone => self.guest.last_state(index).is_some(),
                CoreState::Active | CoreState::Stopped(_) => false,
            };
            there.then_some(index)
        };
        all.filter_map(has).collect()
    }

    /// The state of a core.
    ///
    /// # Errors
    /// [`InspectError::NoCore`].
    pub fn core(&self, index: u32) -> Result<Saved, InspectError> {
        let slot = self.guest.cores.get(index as usize).ok_or(InspectError::NoCore(index))?;
        let state = match &mut *slot.lock() {
            CoreState::Idle(vcore) | CoreState::Held(vcore) => state_of(vcore),
            CoreState::Gone => self.guest.last_state(index),
            CoreState::Active | CoreState::Stopped(_) => None,
        };
        state.ok_or(InspectError::NoCore(index))
    }

    /// Has a core go on from another state. One that rested does so no longer: where it is now it does not wait for anything.
    ///
    /// # Errors
    /// There is no such core, its instruction pointer is no address, or the host refuses the state.
    pub fn set_core(&mut self, index: u32, state: &Saved) -> Result<(), InspectError> {
        let rip = state.registers().rip;
        // The guest has the lower half, and not all of that.
        if rip >> 47 != 0 {
            return Err(InspectError::Register(rip));
        }
        let slot = self.guest.cores.get(index as usize).ok_or(InspectError::NoCore(index))?;
        let mut there = slot.lock();
        let (CoreState::Idle(vcore) | CoreState::Held(vcore)) = &mut *there else {
            return Err(InspectError::NoCore(index));
        };
        match &mut vcore.seat {
            Seat::Here(core) => core.resume(self.guest.memory.page_tables(), state)?,
            Seat::Away(saved) => **saved = state.clone(),
        }
        *there = match std::mem::replace(&mut *there, CoreState::Active) {
            CoreState::Idle(vcore) => {
                slot.idle.store(false, Ordering::SeqCst);
                CoreState::Held(vcore)
            }
            other => other,
        };
        Ok(())
    }

    /// Copies what the guest would read there, as far as it can. Returns how many bytes.
    #[must_use]
    pub fn read(&self, address: u64, to: &mut [u8]) -> usize {
        let done = self.guest.memory.peek(address, to);
        if let Some(read) = to.get_mut(..done) {
            self.guest.hide_breakpoints(address, read);
        }
        done
    }

    /// Writes to the guest's memory: where it can write itself, and into its text and read-only data.
    ///
    /// # Errors
    /// [`InspectError::Address`], and nothing is written; the host has no memory for a copy of the text; the guest runs.
    pub fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), InspectError> {
        if !self.guest.wait_until_held(Duration::ZERO) {
            return Err(InspectError::Runs);
        }
        let memory = &self.guest.memory;
        if address < memory.plan().shared_end {
            memory.make_private()?;
            self.share_anew()?;
        }
        if memory.poke(address, bytes) {
            self.guest.keep_breakpoints(address, bytes);
            return Ok(());
        }
        Err(InspectError::Address(address))
    }

    /// Its machine is to have the copy.
    fn share_anew(&self) -> Result<(), InspectError> {
        for slot in &self.guest.cores {
            if let CoreState::Idle(vcore) | CoreState::Held(vcore) = &*slot.lock()
                && let Seat::Here(core) = &vcore.seat
            {
                // All cores have one machine.
                return Ok(core.machine().share_anew(&self.guest.memory)?);
            }
        }
        // One that is given a machine later is given the copy with it.
        Ok(())
    }
}

impl Drop for Inspection {
    fn drop(&mut self) {
        self.guest.end_inspection();
    }
}
