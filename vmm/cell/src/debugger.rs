//! Debugging a guest: breakpoints, single steps, and faults that stop it instead of ending it.
//!
//! No debugging mode of KVM is used, and no debug register: a breakpoint is `int3` in a copy of the text that is the guest's alone, a single step is the
//! processor's trap flag, and both end up in the fault stubs that every guest has, on every back end. Whatever core gets there first stops
//! the guest, all cores of it; from the stub it is put back to where the guest was. Where a second core got there, too, it is put back to
//! do it again.
//!
//! What a guest does meanwhile disturbs nobody but its debugger: each stop is one of its own exits, and it runs no further before it is told to.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use foraker_abi::fault::{BP, DB};
use foraker_machine::{Core, Exit, MachineError};
use foraker_memory::GuestMemory;
use vmm_sys_util::eventfd::EventFd;

use crate::guest::Guest;
use crate::inspect::{InspectError, Inspection};
use crate::report::{Cause, Fault};

/// Most breakpoints of a guest.
pub const MOST_BREAKPOINTS: usize = 1024;
/// `int3`.
const BREAKPOINT: u8 = 0xcc;
/// `pushfq`, and the prefixes that it may have.
const PUSH_FLAGS: u8 = 0x9c;
const PREFIXES: [u8; 2] = [0x48, 0x66];
/// The trap flag, in the second byte of the flags on a stack.
const TRAP: u8 = 1;

/// What a core does while the guest goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Go {
    /// It runs.
    #[default]
    Run,
    /// It executes one instruction, and then the guest stops.
    Step,
    /// It stays where it is.
    Stay,
}

/// Why a guest has stopped.
#[derive(Clone, Debug)]
pub enum Why {
    /// The core is at a breakpoint, whose instruction is yet to be executed.
    Breakpoint,
    /// It has executed one instruction, as it was told to.
    Step,
    /// It did what ends a guest that nobody debugs. After `int3` of its own it is behind that, otherwise at the instruction that failed.
    Fault(Box<Fault>),
}

/// Where and why a guest has stopped.
#[derive(Clone, Debug)]
pub struct Stop {
    /// The core.
    pub core: u32,
    /// Why.
    pub why: Why,
}

/// What a guest and its debugger share.
#[derive(Debug)]
pub(crate) struct Debugging {
    /// What each core does; the rest of them run.
    going: Vec<Go>,
    stop: Option<Stop>,
    /// Addresses, and the bytes that were there.
    breakpoints: BTreeMap<u64, u8>,
    event: Arc<EventFd>,
}

impl Debugging {
    fn going(&self, core: u32) -> Go {
        self.going.get(core as usize).copied().unwrap_or_default()
    }
}

/// A step that is under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stepping {
    /// The instruction stores the flags: the trap flag among them is not the guest's.
    stores_flags: bool,
}

impl Guest {
    fn debugging(&self) -> MutexGuard<'_, Option<Box<Debugging>>> {
        self.debugging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether its debugger has told this core to stay.
    pub(crate) fn stays(&self, core: u32) -> bool {
        self.debugging().as_ref().is_some_and(|debugging| debugging.going(core) == Go::Stay)
    }

    /// A debugged guest's core is about to be entered. If it is to execute one instruction only, that is arranged, and nothing else may be done to it.
    pub(crate) fn before_debugged_entry(&self, index: u32, core: &mut Core) -> Option<Stepping> {
        if self.debugging().as_ref()?.going(index) != Go::Step {
            return None;
        }
        let mut instruction = [0; 2];
        let read = self.memory.peek(core.registers().rip, &mut instruction);
        let stores_flags = match instruction.get(..read) {
            Some([PUSH_FLAGS, ..]) => true,
            Some([prefix, PUSH_FLAGS]) => PREFIXES.contains(prefix),
            _ => false,
        };
        core.set_trap(true);
        Some(Stepping { stores_flags })
    }

    /// The core has come out. Returns an error if it cannot be told what it was in the middle of: then it must not go on.
    pub(crate) fn after_debugged_exit(
        &self,
        index: u32,
        core: &mut Core,
        stepping: Option<Stepping>,
        exit: Exit,
    ) -> Result<(), MachineError> {
        match exit {
            _ if stepping.is_none() => {}
            // These are the instruction.
            Exit::Hypercall | Exit::Doorbell => {
                core.forget_trap()?;
                if let Some(debugging) = &mut *self.debugging() {
                    debugging.stop.get_or_insert(Stop { core: index, why: Why::Step });
                }
                self.hold();
                self.tell_debugger();
            }
            Exit::Interrupted => core.set_trap(false),
            Exit::Fault(_) | Exit::Port | Exit::Shutdown | Exit::Broken(_) => {}
        }
        Ok(())
    }

    /// A debugged guest has done what ends a guest: it is put back to where it did it, and stops for its debugger. `false` if it cannot be.
    pub(crate) fn trap(&self, core: &mut Core, stepping: Option<Stepping>, fault: &Fault) -> bool {
        let Cause::Exception { vector, .. } = fault.cause else { return false };
        let mut registers = fault.registers;
        let behind = registers.rip.wrapping_sub(1);
        {
            let mut debugging = self.debugging();
            // The debugger has gone.
            let Some(debugging) = &mut *debugging else { return false };
            let known = debugging.breakpoints.contains_key(&behind);
            let why = match vector {
                BP if known => Why::Breakpoint,
                DB if stepping.is_some() => Why::Step,
                _ => Why::Fault(Box::new(fault.clone())),
            };
            // Its own `int3` is over and done with, unless nobody hears of it.
            if vector == BP && (known || debugging.stop.is_some()) {
                registers.rip = behind;
            }
            debugging.stop.get_or_insert(Stop { core: fault.core, why });
        }
        if vector == DB && stepping.is_some_and(|step| step.stores_flags) {
            self.clear_stored_trap(registers.rsp);
        }
        let back = core.save().and_then(|mut saved| {
            saved.set_registers(registers);
            core.resume(self.memory.page_tables(), &saved)
        });
        if back.is_err() {
            return false;
        }
        self.hold();
        self.tell_debugger();
        true
    }

    /// The flags that were just pushed hold a trap flag that is not the guest's.
    fn clear_stored_trap(&self, stack: u64) {
        let at = stack.wrapping_add(1);
        let mut byte = [0];
        if self.memory.read(at, &mut byte) {
            // It was written there: nobody else can have taken it away.
            let _ = self.memory.write(at, &[byte[0] & !TRAP]);
        }
    }

    /// Something has happened that the debugger waits for.
    pub(crate) fn tell_debugger(&self) {
        if let Some(debugging) = &*self.debugging() {
            // An event counter that is full is readable, which is all that is wanted.
            let _ = debugging.event.write(1);
        }
    }

    /// Makes what was read from `address` on what it would be without breakpoints.
    pub(crate) fn hide_breakpoints(&self, address: u64, bytes: &mut [u8]) {
        if let Some(debugging) = &*self.debugging() {
            for (at, original) in debugging.breakpoints.range(address..) {
                let place = usize::try_from(at - address).ok().and_then(|at| bytes.get_mut(at));
                let Some(byte) = place else { break };
                *byte = *original;
            }
        }
    }

    /// What was written from `address` on is what belongs there; breakpoints stay.
    pub(crate) fn keep_breakpoints(&self, address: u64, bytes: &[u8]) {
        if let Some(debugging) = &mut *self.debugging() {
            for (at, original) in debugging.breakpoints.range_mut(address..) {
                let place = usize::try_from(at - address).ok().and_then(|at| bytes.get(at));
                let Some(byte) = place else { break };
                *original = *byte;
                let _ = self.memory.poke(*at, &[BREAKPOINT]);
            }
        }
    }
}

/// A guest's debugger: there is one at most, and it has the guest to itself. The guest stands when this is made, and goes on, without breakpoints, when
/// it is dropped.
#[derive(Debug)]
pub struct Debugger {
    inspection: Inspection,
    event: Arc<EventFd>,
}

impl Debugger {
    /// Stops a guest and debugs it from now on.
    ///
    /// # Errors
    /// Somebody else looks into it, or it does not leave its cores within `most`; or the host has no descriptor to give.
    pub fn attach(guest: &Arc<Guest>, most: Duration) -> Result<Debugger, InspectError> {
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        let event = Arc::new(event.map_err(|e| InspectError::Os("cannot make an event", e))?);
        let inspection = guest.inspect(most)?;
        *guest.debugging() = Some(Box::new(Debugging {
            going: Vec::new(),
            stop: None,
            breakpoints: BTreeMap::new(),
            event: Arc::clone(&event),
        }));
        guest.begin_debugging();
        Ok(Debugger { inspection, event })
    }

    /// The guest's cores and memory, as long as it stands.
    #[must_use]
    pub fn inspection(&self) -> &Inspection {
        &self.inspection
    }

    /// The same, to change them.
    pub fn inspection_mut(&mut self) -> &mut Inspection {
        &mut self.inspection
    }

    fn guest(&self) -> &Arc<Guest> {
        self.inspection.guest()
    }

    fn memory(&self) -> &GuestMemory {
        &self.guest().memory
    }

    /// Lets the guest go on: each core as `going` says, those beyond its end as [`Go::Run`]. A guest that is paused stays where it is, for as long.
    pub fn go(&mut self, going: Vec<Go>) {
        if let Some(debugging) = &mut *self.guest().debugging() {
            debugging.going = going;
            debugging.stop = None;
        }
        // What it says is over.
        let _ = self.event.read();
        if self.guest().has_ended() {
            self.guest().tell_debugger();
        }
        self.guest().let_go_held();
    }

    /// Stops the guest wherever it is.
    ///
    /// # Errors
    /// It does not leave its cores within `most`.
    pub fn stop(&mut self, most: Duration) -> Result<(), InspectError> {
        self.inspection.hold(most)
    }

    /// Becomes readable when the guest stops by itself, or ends.
    #[must_use]
    pub fn event(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    /// Why the guest has stopped by itself, if it has since it went on last; waits at most so long until all of it stands.
    ///
    /// # Errors
    /// It does not leave its cores within `most`.
    pub fn stopped(&mut self, most: Duration) -> Result<Option<Stop>, InspectError> {
        let _ = self.event.read();
        let stop = self.guest().debugging().as_ref().and_then(|debugging| debugging.stop.clone());
        if stop.is_some() {
            self.inspection.hold(most)?;
        }
        Ok(stop)
    }

    /// Sets a breakpoint on an instruction of the text. Does nothing if there is one.
    ///
    /// # Errors
    /// There is no text at this address, the guest runs, there are too many breakpoints, or the host has no memory for a copy of the text.
    pub fn set_breakpoint(&mut self, address: u64) -> Result<(), InspectError> {
        let (there, count) = match &*self.guest().debugging() {
            Some(debugging) => (debugging.breakpoints.contains_key(&address), debugging.breakpoints.len()),
            None => (false, 0),
        };
        if there {
            return Ok(());
        }
        if count >= MOST_BREAKPOINTS {
            return Err(InspectError::Breakpoints(MOST_BREAKPOINTS));
        }
        if !self.memory().is_text(address) {
            return Err(InspectError::Address(address));
        }
        let mut original = [0];
        if self.inspection.read(address, &mut original) != 1 {
            return Err(InspectError::Address(address));
        }
        self.inspection.write(address, &[BREAKPOINT])?;
        if let Some(debugging) = &mut *self.guest().debugging() {
            debugging.breakpoints.insert(address, original[0]);
        }
        Ok(())
    }

    /// Takes a breakpoint away. Returns whether there was one.
    ///
    /// # Errors
    /// The guest runs.
    pub fn clear_breakpoint(&mut self, address: u64) -> Result<bool, InspectError> {
        if !self.guest().wait_until_held(Duration::ZERO) {
            return Err(InspectError::Runs);
        }
        let original = match &mut *self.guest().debugging() {
            Some(debugging) => debugging.breakpoints.remove(&address),
            None => None,
        };
        let Some(original) = original else { return Ok(false) };
        if !self.memory().poke(address, &[original]) {
            return Err(InspectError::Address(address));
        }
        Ok(true)
    }

    /// Ends the guest with the fault for which it has stopped, as if nobody debugged it.
    pub fn give_in(&mut self, fault: Fault) {
        self.guest().fault(fault);
    }
}

/// How long a guest whose debugger leaves it may take to stand still, so that its breakpoints can be taken away.
const LEAVING: Duration = Duration::from_secs(60);

impl Drop for Debugger {
    fn drop(&mut self) {
        let guest = Arc::clone(self.guest());
        let standing = self.inspection.hold(LEAVING).is_ok();
        let debugging = guest.debugging().take();
        guest.end_debugging();
        let breakpoints = debugging.map(|debugging| debugging.breakpoints).unwrap_or_default();
        let restored =
            breakpoints.iter().all(|(at, original)| standing && guest.memory.poke(*at, &[*original]));
        if !restored {
            guest.finish(crate::End::Killed(
                "its debugger left, and its text could not be restored".to_owned(),
            ));
        }
    }
}
