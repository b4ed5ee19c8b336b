//! Single instructions that a guest has no right to, or that fail.
//!
//! Each primitive is a naked function that takes what its instruction needs in the argument registers, so that the
//! instruction stands at the very start of the function (or at a known offset): the address that the report must
//! name is known before it runs.

use core::arch::naked_asm;

/// A primitive: arguments in RDI, RSI, RDX and RCX.
pub(crate) type Primitive = unsafe extern "C" fn(u64, u64, u64, u64) -> u64;

macro_rules! primitives {
    ($($(#[$doc:meta])* $name:ident: $($text:literal),+;)*) => {$(
        $(#[$doc])*
        #[unsafe(naked)]
        pub(crate) unsafe extern "C" fn $name(_: u64, _: u64, _: u64, _: u64) -> u64 {
            naked_asm!($($text,)+ "ret")
        }
    )*};
}

primitives! {
    /// Reads a byte at the first argument.
    read_byte: "mov al, [rdi]";
    /// Writes a byte at the first argument.
    write_byte: "mov byte ptr [rdi], 0";
    /// Jumps to the first argument; a `ret` there comes back.
    jump: "jmp rdi";
    /// Reads below a stack pointer that is the first argument: the stack segment is the one concerned.
    read_by_stack: "xchg rsp, rdi", "mov al, [rsp]", "xchg rsp, rdi";
    /// Pushes until there is no stack.
    push_forever: "2: push rax", "jmp 2b";

    /// The instruction that is promised to be invalid.
    ud2: "ud2";
    /// What does not write memory may not be locked.
    locked_nop: ".byte 0xf0, 0x90";
    /// Sixteen bytes are one more than an instruction may have.
    too_long: ".byte 0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x90";
    /// Divides by the fourth argument.
    divide: "div ecx";
    /// One byte breakpoint.
    int3: "int3";
    /// Two byte breakpoint.
    int_3: ".byte 0xcd, 3";
    /// Software interrupt at the vector of overflow.
    int_4: ".byte 0xcd, 4";
    /// Software interrupt at the vector of page faults.
    int_14: ".byte 0xcd, 14";
    /// Software interrupt at the first vector without a gate.
    int_32: ".byte 0xcd, 32";
    /// Software interrupt at the vector that old Linux system calls use.
    int_128: ".byte 0xcd, 0x80";
    /// Software interrupt at the last vector.
    int_255: ".byte 0xcd, 0xff";
    /// The undocumented debug trap.
    icebp: ".byte 0xf1";
    /// Sets the trap flag; the trap comes behind the following instruction.
    trap_flag: "pushfq", "or dword ptr [rsp], 0x100", "popfq", "nop";
    /// Sets the alignment flag and reads an odd address.
    alignment: "pushfq", "or dword ptr [rsp], 0x40000", "popfq", "mov eax, [rsp + 1]";
    /// Divides by zero with that x87 exception unmasked; the wait reports it.
    x87: "fninit", ".byte 0x68; .long 0x37b", "fldcw [rsp]", "pop rax", "fld1", "fldz", "fdivp", "fwait";
    /// Divides by zero with that SIMD exception unmasked.
    simd: ".byte 0x68; .long 0x1d80", "ldmxcsr [rsp]", "pop rax", "xorps xmm1, xmm1", "mov eax, 0x3f800000",
        "movd xmm0, eax", "divss xmm0, xmm1";

    /// Stops the processor.
    hlt: "hlt";
    /// Disables interrupts.
    cli: "cli";
    /// Enables interrupts.
    sti: "sti";
    /// Reads the model-specific register that the fourth argument names.
    rdmsr: "rdmsr";
    /// Writes it.
    wrmsr: "wrmsr";
    /// Reads a control register.
    read_cr0: "mov rax, cr0";
    /// Reads the page tables' root.
    read_cr3: "mov rax, cr3";
    /// Writes the page tables' root.
    write_cr3: "mov cr3, rdi";
    /// Writes the feature switches.
    write_cr4: "mov cr4, rdi";
    /// Reads a debug register.
    read_dr7: "mov rax, dr7";
    /// Loads the global descriptor table from the first argument.
    lgdt: "lgdt [rdi]";
    /// Loads the interrupt descriptor table from the first argument.
    lidt: "lidt [rdi]";
    /// Loads the task register from the first argument.
    ltr: "ltr di";
    /// Forgets a translation.
    invlpg: "invlpg [rdi]";
    /// Writes caches back and empties them.
    wbinvd: "wbinvd";
    /// Clears the task-switched flag.
    clts: "clts";
    /// Exchanges GS with the kernel's.
    swapgs: "swapgs";
    /// Switches extended state on and off.
    xsetbv: "xsetbv";
    /// Loads a data segment register from the first argument.
    load_segment: "mov ds, di";
    /// Returns to the code segment that is the first argument.
    far_return: "push rdi", "lea rax, [rip + 2f]", "push rax", "rex64 retf", "2: add rsp, 0";
    /// Returns from an interrupt that never was, to the code segment that is the first argument.
    interrupt_return: "mov rax, rsp", "push 0x1b", "push rax", "pushfq", "push rdi", "lea rax, [rip + 2f]",
        "push rax", "iretq", "2: nop";
    /// The system call instruction.
    syscall: "syscall";
    /// The older system call instruction.
    sysenter: "sysenter";
    /// A hypercall of another architecture (Intel's encoding).
    vmcall: "vmcall";
    /// A hypercall of another architecture (AMD's encoding).
    vmmcall: "vmmcall";

    /// Writes to a port by its number, the debug port of a PC.
    out_immediate: "out 0x80, al";
    /// Reads from a port by its number, the keyboard of a PC.
    in_immediate: "in al, 0x60";
    /// Writes a byte to the port in DX.
    out_8: "out dx, al";
    /// Writes two bytes to the port in DX.
    out_16: "out dx, ax";
    /// Writes four bytes to the port in DX.
    out_32: "out dx, eax";
    /// Reads a byte from the port in DX.
    in_8: "in al, dx";
    /// Reads two bytes from the port in DX.
    in_16: "in ax, dx";
    /// Reads four bytes from the port in DX.
    in_32: "in eax, dx";
    /// Writes a string from RSI to the port in DX.
    out_string: "rep outsb";
    /// Reads a string from the port in DX to RDI.
    in_string: "rep insb";
    /// Two bytes to the port of hypercalls.
    out_hypercall_16: "out 0x7e, ax";
    /// Four bytes to the port of hypercalls.
    out_hypercall_32: "out 0x7e, eax";
    /// Reads the port of hypercalls.
    in_hypercall: "in al, 0x7e";
    /// Speaks as a fault stub does.
    out_fault_port: "out 0x7d, al";
    /// Reads the doorbell's port.
    in_doorbell: "in al, 0x7c";

    /// Loops forever without an exit.
    spin: "2: jmp 2b";
    /// Fills every general register with a pattern of its own, and ends at `ud2`.
    patterns: "mov rax, 0x0101010101010101", "mov rcx, 0x0202020202020202", "mov rdx, 0x0303030303030303",
        "mov rbx, 0x0404040404040404", "mov rsp, 0x0505050505050505", "mov rbp, 0x0606060606060606",
        "mov rsi, 0x0707070707070707", "mov rdi, 0x0808080808080808", "mov r8, 0x0909090909090909",
        "mov r9, 0x0a0a0a0a0a0a0a0a", "mov r10, 0x0b0b0b0b0b0b0b0b", "mov r11, 0x0c0c0c0c0c0c0c0c",
        "mov r12, 0x0d0d0d0d0d0d0d0d", "mov r13, 0x0e0e0e0e0e0e0e0e", "mov r14, 0x0f0f0f0f0f0f0f0f",
        "mov r15, 0x1010101010101010", "ud2";
}

/// Offset of the failing instruction, or of the one behind it where a trap is reported behind its cause.
pub(crate) mod offset {
    /// `int3`: behind one byte.
    pub(crate) const INT3: u64 = 1;
    /// `int 3` and `int 4`: behind two bytes.
    pub(crate) const INT_N: u64 = 2;
    /// `icebp`: behind one byte.
    pub(crate) const ICEBP: u64 = 1;
    /// Behind `pushfq` (1), `or` (7), `popfq` (1) and `nop` (1).
    pub(crate) const TRAP_FLAG: u64 = 10;
    /// At the read behind `pushfq`, `or` and `popfq`.
    pub(crate) const ALIGNMENT: u64 = 9;
    /// At `fwait`, behind 2 + 5 + 3 + 1 + 2 + 2 + 2 bytes.
    pub(crate) const X87: u64 = 17;
    /// At `divss`, behind 5 + 4 + 1 + 3 + 5 + 4 bytes.
    pub(crate) const SIMD: u64 = 22;
    /// At the `mov` behind `xchg`.
    pub(crate) const READ_BY_STACK: u64 = 3;
    /// At the far return behind `push`, `lea` and `push`.
    pub(crate) const FAR_RETURN: u64 = 9;
    /// At `iretq`, behind 3 + 2 + 1 + 1 + 1 + 7 + 1 bytes.
    pub(crate) const INTERRUPT_RETURN: u64 = 16;
    /// At `ud2`, behind sixteen moves of ten bytes.
    pub(crate) const PATTERNS: u64 = 160;
}
