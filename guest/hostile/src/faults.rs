//! Guests that end with a fault: one instruction each.
//!
//! Before the instruction runs, a line `expect rip=... address=...` says what the report has to name.

use core::hint::black_box;

use foraker_abi::layout;
use guest_libos::println;

use crate::case::{Case, Verdict, case};
use crate::guest;
use crate::instruction::{self as ins, Primitive, offset};

/// An address inside the canonical lower half that no guest has: guests have at most 2^40 bytes.
const WILD: u64 = 0x3000_0000_0000;
/// An address in the upper half, where kernels live.
const KERNEL_HALF: u64 = 0xffff_8880_0000_0000;
/// The page that Linux keeps for its oldest system calls.
const VSYSCALL: u64 = 0xffff_ffff_ff60_0000;
/// The lowest address that is not canonical.
const NON_CANONICAL: u64 = 0x8000_0000_0000;
/// Code that would return at once, in pages that may not be executed.
static mut CODE: [u8; 16] = [0xc3; 16];
/// Read-only data.
static CONSTANT: [u8; 16] = [0x5a; 16];

/// The cases.
pub(crate) const CASES: &[Case] = &[
    case("ud2", || plain(ins::ud2)),
    case("locked-nop", || plain(ins::locked_nop)),
    case("too-long", || plain(ins::too_long)),
    case("divide-by-zero", || strike(ins::divide, [0; 4], 0, None)),
    case("breakpoint", || strike(ins::int3, [0; 4], offset::INT3, None)),
    case("int-3", || strike(ins::int_3, [0; 4], offset::INT_N, None)),
    case("int-4", || strike(ins::int_4, [0; 4], offset::INT_N, None)),
    case("int-14", || plain(ins::int_14)),
    case("int-32", || plain(ins::int_32)),
    case("int-128", || plain(ins::int_128)),
    case("int-255", || plain(ins::int_255)),
    case("icebp", || strike(ins::icebp, [0; 4], offset::ICEBP, None)),
    case("trap-flag", || strike(ins::trap_flag, [0; 4], offset::TRAP_FLAG, None)),
    case("alignment", || strike(ins::alignment, [0; 4], offset::ALIGNMENT, None)),
    case("x87", || strike(ins::x87, [0; 4], offset::X87, None)),
    case("simd", || strike(ins::simd, [0; 4], offset::SIMD, None)),
    case("registers", || strike(ins::patterns, [0; 4], offset::PATTERNS, None)),
    case("null-read", || at(ins::read_byte, 0)),
    case("null-write", || at(ins::write_byte, 0)),
    case("null-jump", || lands(0)),
    case("wild-read", || at(ins::read_byte, WILD)),
    case("wild-write", || at(ins::write_byte, WILD)),
    case("wild-jump", || lands(WILD)),
    case("kernel-half-read", || at(ins::read_byte, KERNEL_HALF)),
    case("kernel-half-write", || at(ins::write_byte, KERNEL_HALF)),
    case("kernel-half-jump", || lands(KERNEL_HALF)),
    case("vsyscall-read", || at(ins::read_byte, VSYSCALL)),
    case("vsyscall-jump", || lands(VSYSCALL)),
    case("last-byte-read", || at(ins::read_byte, u64::MAX)),
    case("write-text", || at(ins::write_byte, ins::ud2 as *const () as u64)),
    case("write-rodata", || at(ins::write_byte, address_of(&CONSTANT))),
    case("write-registers", || at(ins::write_byte, layout::REGISTERS + 0x40)),
    case("write-boot", || at(ins::write_byte, layout::BOOT)),
    case("read-descriptors", || at(ins::read_byte, layout::GDT)),
    case("write-descriptors", || at(ins::write_byte, layout::IDT + 14 * 16)),
    case("write-task-state", || at(ins::write_byte, layout::TASK_STATES + 4)),
    case("jump-fault-stub", || lands(layout::FAULT_STUBS + 14 * layout::FAULT_STUB_SIZE)),
    case("read-fault-stack", || at(ins::read_byte, layout::FAULT_STACK)),
    case("write-fault-stack", || at(ins::write_byte, layout::FAULT_STACK + 8)),
    case("read-page-tables", || at(ins::read_byte, guest::registers().memory_end)),
    case("write-page-tables", || at(ins::write_byte, guest::registers().memory_end)),
    case("read-memory-end", || at(ins::read_byte, guest::stack_bottom() + guest::registers().memory_size)),
    case("read-guard-page", || at(ins::read_byte, guest::stack_bottom() - 1)),
    case("execute-data", || lands((&raw const CODE) as u64)),
    case("execute-rodata", || lands(address_of(&CONSTANT))),
    case("execute-stack", execute_stack),
    case("execute-registers", || lands(layout::REGISTERS)),
    case("stack-overflow", || strike(ins::push_forever, [0; 4], 0, Some(guest::stack_bottom() - 8))),
    case("non-canonical-read", || strike(ins::read_byte, [NON_CANONICAL, 0, 0, 0], 0, None)),
    case("non-canonical-write", || strike(ins::write_byte, [NON_CANONICAL, 0, 0, 0], 0, None)),
    case("non-canonical-stack", || {
        strike(ins::read_by_stack, [NON_CANONICAL, 0, 0, 0], offset::READ_BY_STACK, None)
    }),
    case("non-canonical-jump", || at(ins::jump, NON_CANONICAL)),
    case("hlt", || plain(ins::hlt)),
    case("cli", || plain(ins::cli)),
    case("sti", || plain(ins::sti)),
    case("rdmsr", || strike(ins::rdmsr, [0, 0, 0, 0xc000_0080], 0, None)),
    case("wrmsr", || strike(ins::wrmsr, [0, 0, 0, 0xc000_0082], 0, None)),
    case("read-cr0", || plain(ins::read_cr0)),
    case("read-cr3", || plain(ins::read_cr3)),
    case("write-cr3", || plain(ins::write_cr3)),
    case("write-cr4", || plain(ins::write_cr4)),
    case("read-dr7", || plain(ins::read_dr7)),
    case("lgdt", || strike(ins::lgdt, [address_of(&CONSTANT), 0, 0, 0], 0, None)),
    case("lidt", || strike(ins::lidt, [address_of(&CONSTANT), 0, 0, 0], 0, None)),
    case("ltr", || strike(ins::ltr, [0x28, 0, 0, 0], 0, None)),
    case("invlpg", || plain(ins::invlpg)),
    case("wbinvd", || plain(ins::wbinvd)),
    case("clts", || plain(ins::clts)),
    case("swapgs", || plain(ins::swapgs)),
    case("xsetbv", || plain(ins::xsetbv)),
    case("kernel-segment", || strike(ins::load_segment, [u64::from(layout::KERNEL_CODE), 0, 0, 0], 0, None)),
    case("kernel-far-return", || {
        strike(ins::far_return, [u64::from(layout::KERNEL_CODE), 0, 0, 0], offset::FAR_RETURN, None)
    }),
    case("kernel-interrupt-return", || {
        strike(
            ins::interrupt_return,
            [u64::from(layout::KERNEL_CODE), 0, 0, 0],
            offset::INTERRUPT_RETURN,
            None,
        )
    }),
    case("syscall", || plain(ins::syscall)),
    case("sysenter", || plain(ins::sysenter)),
    case("vmcall", || may_pass(ins::vmcall)),
    case("vmmcall", || may_pass(ins::vmmcall)),
    case("port-out", || plain(ins::out_immediate)),
    case("port-in", || plain(ins::in_immediate)),
    case("port-out-8", || port(ins::out_8, 0x3f8)),
    case("port-out-16", || port(ins::out_16, 0xcf8)),
    case("port-out-32", || port(ins::out_32, 0xcf8)),
    case("port-in-8", || port(ins::in_8, 0x3f8)),
    case("port-in-16", || port(ins::in_16, 0x1f0)),
    case("port-in-32", || port(ins::in_32, 0xcfc)),
    case("port-last", || port(ins::out_32, 0xffff)),
    case("port-out-string", || string_port(ins::out_string, 0x3f8)),
    case("port-in-string", || string_port(ins::in_string, 0x1f0)),
    case("port-hypercall-16", || plain(ins::out_hypercall_16)),
    case("port-hypercall-32", || plain(ins::out_hypercall_32)),
    case("port-hypercall-in", || plain(ins::in_hypercall)),
    case("port-hypercall-string", || {
        println!("expect");
        string_port_silently(ins::out_string, 0x7e);
        println!("nothing happened");
        Verdict::Held
    }),
    case("port-fault", || plain(ins::out_fault_port)),
    case("port-doorbell-in", || plain(ins::in_doorbell)),
    case("endless-loop", || {
        println!("expect");
        // SAFETY: the loop touches nothing.
        unsafe { ins::spin(0, 0, 0, 0) };
        Verdict::WentOn
    }),
];

/// A primitive without arguments that fails at its first instruction.
fn plain(primitive: Primitive) -> Verdict {
    strike(primitive, [0; 4], 0, None)
}

/// A primitive that fails at `address`.
fn at(primitive: Primitive, address: u64) -> Verdict {
    strike(primitive, [address, 0, 0, 0], 0, Some(address))
}

/// A jump that arrives at `address` and fails there.
fn lands(address: u64) -> Verdict {
    println!("expect rip={address:#x} address={address:#x}");
    // SAFETY: control does not come back, or comes back by a `ret` at the address.
    unsafe { ins::jump(address, 0, 0, 0) };
    Verdict::WentOn
}

/// Says which instruction fails, and with which address, and runs it.
fn strike(primitive: Primitive, [a, b, c, d]: [u64; 4], offset: u64, address: Option<u64>) -> Verdict {
    let rip = primitive as *const () as u64 + offset;
    match address {
        Some(address) => println!("expect rip={rip:#x} address={address:#x}"),
        None => println!("expect rip={rip:#x}"),
    }
    run(primitive, [a, b, c, d])
}

/// A primitive that may do nothing at all.
fn may_pass(primitive: Primitive) -> Verdict {
    plain(primitive);
    println!("nothing happened");
    Verdict::Held
}

/// A primitive that uses the port in its third argument.
fn port(primitive: Primitive, port: u64) -> Verdict {
    strike(primitive, [0, 0, port, 0], 0, None)
}

/// A string instruction of two bytes at a port.
fn string_port(primitive: Primitive, port: u64) -> Verdict {
    let mut buffer = [0u8; 2];
    let address = (&raw mut buffer) as u64;
    strike(primitive, [address, address, port, 2], 0, None)
}

/// The same without the line that says where.
fn string_port_silently(primitive: Primitive, port: u64) -> Verdict {
    let mut buffer = [0u8; 2];
    let address = (&raw mut buffer) as u64;
    run(primitive, [address, address, port, 2])
}

fn execute_stack() -> Verdict {
    let code = black_box([0xc3u8; 16]);
    lands((&raw const code) as u64)
}

fn address_of(bytes: &'static [u8]) -> u64 {
    black_box(bytes).as_ptr() as u64
}

fn run(primitive: Primitive, [a, b, c, d]: [u64; 4]) -> Verdict {
    // SAFETY: what the primitive does is the case's purpose; if it is not stopped, it leaves the registers that the
    // C convention wants kept as they were.
    unsafe { primitive(a, b, c, d) };
    Verdict::WentOn
}
