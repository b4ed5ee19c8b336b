//! Hypercalls: numbers and arguments come from the guest, so each is checked here and nowhere else.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use foraker_abi::hypercall::{
    self as h, CONSOLE_MAX, E_ADDRESS, E_INVALID, E_LIMIT, E_UNKNOWN, E_UNSUPPORTED, MEMORY_MAX,
};
use foraker_abi::interrupt;
use foraker_abi::layout::{IMAGE_BASE, PAGE_SIZE};
use foraker_machine::{Core, Start};

use crate::allocation;
use crate::cell::Shared;
use crate::guest::{CoreState, Guest, Seat, VirtualCore};
use crate::queue::Queued;
use crate::report::End;

/// What the worker does after a hypercall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// Enter the guest again.
    Continue,
    /// Let others run first.
    Yield,
    /// Rest until an interrupt is pending or guest time has come.
    Idle(u64),
    /// The core stops until it is started again.
    Stop,
    /// The guest has ended.
    Ended,
}

/// Carries out the hypercall that core `index` has exited with.
pub(crate) fn dispatch(cell: &Shared, guest: &Arc<Guest>, index: u32, core: &mut Core) -> After {
    let r = core.registers();
    let (number, a, b, c, d) = (r.rax, r.rdi, r.rsi, r.rdx, r.r10);
    let mut after = After::Continue;
    let result = match number {
        h::NOP => 0,
        h::READY => {
            cell.capture(guest, core);
            0
        }
        h::IDLE => {
            after = After::Idle(a);
            0
        }
        h::YIELD => {
            after = After::Yield;
            0
        }
        h::TERMINATE => {
            guest.finish(End::Exited(a));
            return After::Ended;
        }
        h::CONSOLE => console(cell, guest, a, b),
        h::DOORBELL => {
            if a & !(h::DEVICE_NET | h::DEVICE_BLOCK) != 0 {
                E_INVALID
            } else if a & h::DEVICE_BLOCK != 0 || guest.port.is_none() && a != 0 {
                E_UNSUPPORTED
            } else {
                if a & h::DEVICE_NET != 0 {
                    cell.serve_guest(guest);
                }
                0
            }
        }
        h::MEMORY => memory(guest, a, b, c),
        h::RESOURCES => match a {
            h::resources::CORE_START => core_start(cell, guest, b, c, d, core.registers().r8),
            h::resources::CORE_STOP if index > 0 => {
                after = After::Stop;
                0
            }
            h::resources::CORE_STOP => E_INVALID,
            h::resources::CORE_WAKE => {
                match u32::try_from(b).ok().filter(|i| (*i as usize) < guest.cores.len()) {
                    Some(core) => {
                        guest.raise(core, interrupt::WAKE);
                        0
                    }
                    None => E_INVALID,
                }
            }
            h::resources::MEMORY => allocation::resize(cell, guest, b),
            _ => E_INVALID,
        },
        _ => E_UNKNOWN,
    };
    core.set_result(result);
    after
}

fn console(cell: &Shared, guest: &Guest, address: u64, length: u64) -> i64 {
    if length > CONSOLE_MAX {
        return E_INVALID;
    }
    let mut buffer = [0u8; CONSOLE_MAX as usize];
    let Some(bytes) = usize::try_from(length).ok().and_then(|n| buffer.get_mut(..n)) else {
        return E_INVALID;
    };
    if bytes.is_empty() {
        return 0;
    }
    if !guest.memory.read(address, bytes) {
        return E_ADDRESS;
    }
    let mut state = guest.console.lock().unwrap_or_else(PoisonError::into_inner);
    let dropped = if state.limit.take(guest.clock.now(), length) {
        state.lines.write(&cell.console, bytes) as u64
    } else {
        length
    };
    drop(state);
    if dropped > 0 {
        guest.counters().console_dropped.fetch_add(dropped, Ordering::Relaxed);
    }
    length.cast_signed()
}

fn memory(guest: &Guest, op: u64, address: u64, length: u64) -> i64 {
    if length > MEMORY_MAX {
        return E_LIMIT;
    }
    if !address.is_multiple_of(PAGE_SIZE) || !length.is_multiple_of(PAGE_SIZE) {
        return E_INVALID;
    }
    let done = match op {
        h::memory::DISCARD => guest.memory.discard(address, length),
        h::memory::PIN | h::memory::WILL_NEED => guest.memory.populate(address, length),
        // All memory stays resident, so there is nothing to undo and nothing to let go.
        h::memory::UNPIN | h::memory::COLD => guest.memory.owns_pages(address, length),
        _ => return E_INVALID,
    };
    if done { 0 } else { E_ADDRESS }
}

fn core_start(cell: &Shared, guest: &Arc<Guest>, core: u64, entry: u64, stack: u64, argument: u64) -> i64 {
    let Some((index, slot)) = u32::try_from(core).ok().and_then(|i| Some((i, guest.cores.get(i as usize)?)))
    else {
        return E_INVALID;
    };
    let limits = IMAGE_BASE..=guest.memory.plan().memory_end;
    if !limits.contains(&entry) || !limits.contains(&stack) {
        return E_ADDRESS;
    }
    let start = Start { entry, stack, argument };
    let mut state = slot.lock();
    let CoreState::Stopped(kept) = &mut *state else { return E_INVALID };
    let (core, account) = match kept.take() {
        Some((mut core, account)) => {
            core.restart(start);
            (core, account)
        }
        None => match guest.machine.as_ref().map(|machine| {
            let mut core = machine.create_core(index)?;
            core.begin(guest.memory.page_tables(), start).map(|()| core)
        }) {
            Some(Ok(core)) => (core, guest.processor.account()),
            // Not logged: the guest can repeat it without limit.
            _ => return E_LIMIT,
        },
    };
    *state = CoreState::Active;
    drop(state);
    let seat = Seat::Here(core);
    let vcore = VirtualCore { guest: Arc::clone(guest), index, seat, account, deadline: None };
    cell.enqueue(Box::new(vcore), Queued::Woken);
    0
}
