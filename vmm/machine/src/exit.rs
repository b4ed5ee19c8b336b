//! Typed exits.

use foraker_abi::hypercall::{DOORBELL_PORT, FAULT_PORT, PORT};
use foraker_abi::layout::{FAULT_STUB_SIZE, FAULT_STUBS, SYSCALL_STUB};
use kvm_ioctls::VcpuExit;

/// Why a core left the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A hypercall; number and arguments are in the registers.
    Hypercall,
    /// The asynchronous doorbell, where no event descriptor caught it.
    Doorbell,
    /// A fault stub ran: the vector, or [`Exit::SYSCALL`].
    Fault(u8),
    /// The guest used a port that it may not use.
    Port,
    /// A signal, or somebody wants this thread.
    Interrupted,
    /// The processor could not deliver a fault: the machine is in no state to run on.
    Shutdown,
    /// KVM gave up; the number is the raw exit reason or error.
    Broken(i32),
}

impl Exit {
    /// In [`Exit::Fault`]: `syscall` was executed.
    pub const SYSCALL: u8 = 32;
}

/// What the processor was doing when the exit was taken apart needs its RIP, so this is the second half of the decoding.
pub(crate) fn of_port(port: u16, bytes: usize, rip: u64) -> Exit {
    match (u8::try_from(port), bytes) {
        (Ok(PORT), 1) => Exit::Hypercall,
        (Ok(DOORBELL_PORT), 1) => Exit::Doorbell,
        (Ok(FAULT_PORT), 1) if (FAULT_STUBS..SYSCALL_STUB + FAULT_STUB_SIZE).contains(&rip) => {
            // At most 32, as the range says. The guest cannot execute there: the pages are the supervisor's.
            Exit::Fault(u8::try_from((rip - FAULT_STUBS) / FAULT_STUB_SIZE).unwrap_or(Exit::SYSCALL))
        }
        _ => Exit::Port,
    }
}

/// The first half: what KVM said.
pub(crate) enum Raw {
    Out(u16, usize),
    Done(Exit),
}

pub(crate) fn raw(result: Result<VcpuExit<'_>, kvm_ioctls::Error>) -> Raw {
    Raw::Done(match result {
        Ok(VcpuExit::IoOut(port, data)) => return Raw::Out(port, data.len()),
        Ok(VcpuExit::IoIn(..)) => Exit::Port,
        Ok(VcpuExit::Intr) => Exit::Interrupted,
        Ok(VcpuExit::Shutdown) => Exit::Shutdown,
        Ok(VcpuExit::Hlt) => Exit::Broken(5),
        Ok(VcpuExit::MmioRead(..) | VcpuExit::MmioWrite(..)) => Exit::Broken(6),
        Ok(VcpuExit::FailEntry(..)) => Exit::Broken(9),
        Ok(VcpuExit::InternalError) => Exit::Broken(17),
        Ok(_) => Exit::Broken(0),
        Err(e) if e.errno() == libc::EINTR || e.errno() == libc::EAGAIN => Exit::Interrupted,
        Err(e) => Exit::Broken(-e.errno()),
    })
}
