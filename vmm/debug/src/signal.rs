//! What a debugger calls a fault: the signal that Linux would send a program for it.

use foraker_cell::{Cause, Fault};

pub(crate) const SIGILL: u8 = 4;
pub(crate) const SIGTRAP: u8 = 5;
pub(crate) const SIGBUS: u8 = 7;
pub(crate) const SIGFPE: u8 = 8;
pub(crate) const SIGSEGV: u8 = 11;

/// The number of the signal.
pub(crate) fn of(fault: &Fault) -> u8 {
    match fault.cause {
        Cause::Exception { vector, .. } => match vector {
            0 | 16 | 19 => SIGFPE,
            1 | 3 => SIGTRAP,
            6 => SIGILL,
            17 => SIGBUS,
            _ => SIGSEGV,
        },
        Cause::Ring(_) | Cause::Upcall(_) | Cause::GivenBack => SIGSEGV,
        Cause::Machine(_) => SIGBUS,
    }
}
