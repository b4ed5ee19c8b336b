//! How a guest ended, and the report of a fault.

use std::sync::atomic::Ordering;

use foraker_abi::fault::{ERROR_CODE_VECTORS, EXCEPTIONS, GP, PF, UD};
use foraker_abi::layout::SYSCALL_STUB;
use foraker_abi::registers::Counters;
use kvm_bindings::kvm_regs;

/// Why a guest is no more.
#[derive(Clone, Debug)]
pub enum End {
    /// It called `terminate`.
    Exited(u64),
    /// It did what it may not do.
    Faulted(Box<Fault>),
    /// Somebody or a limit ended it; the text says which.
    Killed(String),
}

/// What a guest did that it may not do, and where.
#[derive(Clone, Debug)]
pub struct Fault {
    /// What happened.
    pub cause: Cause,
    /// The core it happened on.
    pub core: u32,
    /// Instruction pointer.
    pub rip: u64,
    /// The other registers at that instruction.
    pub registers: kvm_regs,
}

/// Kinds of fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The processor raised an exception.
    Exception {
        /// Its vector.
        vector: u8,
        /// Its error code, where the vector has one.
        error_code: Option<u64>,
        /// For a page fault, the address.
        address: Option<u64>,
    },
    /// A ring that it shares with the VMM is damaged; the text says how.
    Ring(String),
    /// An upcall could not be delivered; the address is that of the stack.
    Upcall(u64),
    /// It touched memory that it had given back.
    GivenBack,
    /// The machine cannot run on; the text is for whoever mends the VMM.
    Machine(String),
}

impl Cause {
    /// Mnemonic and name of the exception, for instance `#PF` and `page fault`.
    #[must_use]
    pub fn name(&self) -> (&'static str, &'static str) {
        match self {
            Cause::Exception { vector, .. } => EXCEPTIONS
                .iter()
                .find(|(v, ..)| v == vector)
                .map_or(("#??", "unexpected exception"), |(_, mnemonic, name, _)| (mnemonic, name)),
            Cause::Ring(_) => ("ring", "damaged ring"),
            Cause::Upcall(_) => ("upcall", "upcall to a stack that cannot be written"),
            Cause::GivenBack => ("memory", "use of memory that was given back"),
            Cause::Machine(_) => ("machine", "machine state that cannot be run"),
        }
    }
}

impl Fault {
    /// Takes apart what the processor stored when it entered the stub of `vector`.
    ///
    /// `registers` are those at the exit from the stub, whose RIP, RSP and RFLAGS the frame replaces. A `syscall` is reported as
    /// the invalid opcode that it is where the processor refuses it by itself.
    #[must_use]
    pub fn from_frame(
        core: u32,
        vector: u8,
        mut registers: kvm_regs,
        frame: [u64; 6],
        address: u64,
    ) -> Fault {
        let has_code = vector < 32 && ERROR_CODE_VECTORS >> vector & 1 == 1;
        let [first, rest @ ..] = frame;
        let (error_code, [rip, _cs, flags, stack]) = if has_code {
            let [rip, cs, flags, stack, _ss] = rest;
            (Some(first), [rip, cs, flags, stack])
        } else {
            let [cs, flags, stack, ..] = rest;
            (None, [first, cs, flags, stack])
        };
        registers.rip = rip;
        registers.rflags = flags;
        registers.rsp = stack;
        let address = (vector == PF).then_some(address);
        Fault { cause: Cause::Exception { vector, error_code, address }, core, rip, registers }
    }

    /// `syscall` on a back end that executes it: RCX holds the address behind the instruction, R11 the flags.
    #[must_use]
    pub fn from_syscall(core: u32, mut registers: kvm_regs) -> Fault {
        registers.rip = registers.rcx.wrapping_sub(2);
        registers.rflags = registers.r11;
        let cause = Cause::Exception { vector: UD, error_code: None, address: None };
        Fault { cause, core, rip: registers.rip, registers }
    }

    /// Gives a report the form that it has where the processor itself decides, as the manuals say. `kvm-pvm` calls a software
    /// interrupt through a gate that CPL 3 may not use an invalid opcode, and it enters the stub of `syscall` at CPL 3, where
    /// the fetch fails. A processor that QEMU emulates counts such a gate in units of its 16 bytes, and names the address
    /// behind the instruction for some vectors. `read` reads two bytes of the guest.
    #[must_use]
    pub fn in_common_form(self, read: impl Fn(u64) -> Option<[u8; 2]>) -> Fault {
        const SYSCALL: [u8; 2] = [0x0f, 0x05];
        let Cause::Exception { vector, error_code, .. } = self.cause else { return self };
        match (vector, read(self.rip)) {
            (UD, Some([INT, n])) => self.through_gate(n),
            (GP, Some([INT, n])) if of_gate(error_code, n) => self.through_gate(n),
            (GP, _) => match read(self.rip.wrapping_sub(2)) {
                Some([INT, n]) if of_gate(error_code, n) => {
                    let rip = self.rip.wrapping_sub(2);
                    let registers = kvm_regs { rip, ..self.registers };
                    Fault { rip, registers, ..self }.through_gate(n)
                }
                _ => self,
            },
            (PF, _)
                if self.rip == SYSCALL_STUB && read(self.registers.rcx.wrapping_sub(2)) == Some(SYSCALL) =>
            {
                Fault::from_syscall(self.core, self.registers)
            }
            _ => self,
        }
    }

    /// `int n` through a gate that CPL 3 may not use.
    fn through_gate(self, n: u8) -> Fault {
        let error_code = Some(u64::from(n) * GATE_UNIT + GATE_OF_IDT);
        Fault { cause: Cause::Exception { vector: GP, error_code, address: None }, ..self }
    }

    /// A port that the I/O bitmap of the back end let through: reported as the fault that it is elsewhere.
    #[must_use]
    pub fn from_port(core: u32, registers: kvm_regs) -> Fault {
        let cause = Cause::Exception { vector: GP, error_code: Some(0), address: None };
        Fault { cause, core, rip: registers.rip, registers }
    }
}

/// The first byte of `int n`.
const INT: u8 = 0xcd;
/// Error codes count entries of a descriptor table in units of eight bytes, whatever an entry's size.
const GATE_UNIT: u64 = 8;
/// Error code: the entry is one of the interrupt descriptor table.
const GATE_OF_IDT: u64 = 2;

/// Whether an error code names the gate of `int n`, counted in one way or the other. Only gates set the bit of the interrupt
/// descriptor table, so no other instruction has such a code.
fn of_gate(error_code: Option<u64>, n: u8) -> bool {
    [GATE_UNIT, 16].iter().any(|unit| error_code == Some(u64::from(n) * unit + GATE_OF_IDT))
}

/// A copy of a guest's counters.
#[derive(Clone, Copy, Debug, Default)]
pub struct CounterValues {
    /// Exits to the VMM.
    pub exits: u64,
    /// Frames put into the receive ring.
    pub rx_frames: u64,
    /// Bytes of them.
    pub rx_bytes: u64,
    /// Frames taken from the transmit ring and sent.
    pub tx_frames: u64,
    /// Bytes of them.
    pub tx_bytes: u64,
    /// Frames for the guest that were dropped.
    pub rx_dropped: u64,
    /// Frames of the guest that were refused.
    pub tx_dropped: u64,
    /// Console bytes that were dropped.
    pub console_dropped: u64,
}

impl From<&Counters> for CounterValues {
    fn from(c: &Counters) -> CounterValues {
        let get = |a: &std::sync::atomic::AtomicU64| a.load(Ordering::Relaxed);
        CounterValues {
            exits: get(&c.exits),
            rx_frames: get(&c.rx_frames),
            rx_bytes: get(&c.rx_bytes),
            tx_frames: get(&c.tx_frames),
            tx_bytes: get(&c.tx_bytes),
            rx_dropped: get(&c.rx_dropped),
            tx_dropped: get(&c.tx_dropped),
            console_dropped: get(&c.console_dropped),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_with_and_without_an_error_code() {
        let regs = kvm_regs { rax: 5, rip: 1, ..Default::default() };
        let f = Fault::from_frame(0, 14, regs, [7, 0x1234, 0x23, 0x202, 0x8000, 0x1b], 0xdead);
        assert_eq!(f.cause, Cause::Exception { vector: 14, error_code: Some(7), address: Some(0xdead) });
        assert_eq!(
            (f.rip, f.registers.rip, f.registers.rsp, f.registers.rflags),
            (0x1234, 0x1234, 0x8000, 0x202)
        );
        let f = Fault::from_frame(0, 6, regs, [0x1234, 0x23, 0x202, 0x8000, 0x1b, 0], 0xdead);
        assert_eq!(f.cause, Cause::Exception { vector: 6, error_code: None, address: None });
        assert_eq!((f.rip, f.registers.rsp, f.registers.rax), (0x1234, 0x8000, 5));
        assert_eq!(f.cause.name().0, "#UD");
    }

    #[test]
    fn gates_are_counted_in_one_way() {
        let fault = |rip, code| {
            let registers = kvm_regs { rip, ..Default::default() };
            let cause = Cause::Exception { vector: GP, error_code: Some(code), address: None };
            Fault { cause, core: 0, rip, registers }
        };
        // `int 0x80`, and something else behind it.
        let read = |address| match address {
            0x20_0000 => Some([0xcd, 0x80]),
            0x20_0002 => Some([0x90, 0x90]),
            _ => None,
        };
        for (rip, code) in [(0x20_0000, 0x402), (0x20_0000, 0x802), (0x20_0002, 0x402), (0x20_0002, 0x802)] {
            let common = fault(rip, code).in_common_form(read);
            let expected = Cause::Exception { vector: GP, error_code: Some(0x402), address: None };
            assert_eq!((common.cause, common.rip, common.registers.rip), (expected, 0x20_0000, 0x20_0000));
        }
        // Codes that are no gate's, or another one's, stay, and so does the place.
        for (rip, code) in [(0x20_0002, 0), (0x20_0002, 0x400), (0x20_0000, 0x102), (0x20_0010, 0x802)] {
            let same = fault(rip, code).in_common_form(read);
            assert_eq!((same.cause.clone(), same.rip), (fault(rip, code).cause, rip));
        }
    }

    #[test]
    fn one_form_on_every_back_end() {
        let fault = |vector, rip, rcx| {
            let registers = kvm_regs { rip, rcx, r11: 0x246, ..Default::default() };
            let cause =
                Cause::Exception { vector, error_code: (vector == PF).then_some(0x15), address: None };
            Fault { cause, core: 0, rip, registers }
        };
        let read = |address| match address {
            0x20_0000 => Some([0xcd, 0x80]),
            0x20_0010 => Some([0x0f, 0x0b]),
            0x20_0020 => Some([0x0f, 0x05]),
            _ => None,
        };
        let general = Cause::Exception { vector: GP, error_code: Some(0x402), address: None };
        assert_eq!(fault(UD, 0x20_0000, 0).in_common_form(read).cause, general);
        let invalid = Cause::Exception { vector: UD, error_code: None, address: None };
        assert_eq!(fault(UD, 0x20_0010, 0).in_common_form(read).cause, invalid);
        let call = fault(PF, SYSCALL_STUB, 0x20_0022).in_common_form(read);
        assert_eq!((call.cause, call.rip, call.registers.rflags), (invalid, 0x20_0020, 0x246));
        let jump = fault(PF, SYSCALL_STUB, 0x20_0012).in_common_form(read);
        assert_eq!(jump.rip, SYSCALL_STUB);
    }
}
