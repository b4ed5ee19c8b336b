//! Registers, flags, vector state and the red zone across everything that leaves the guest: only RAX may change.

use core::arch::naked_asm;
use core::sync::atomic::Ordering;

use foraker_abi::hypercall as hc;
use foraker_abi::interrupt;
use foraker_abi::registers::CPU_AVX;
use guest_libos::registers;
use guest_libos::registers::control;

use crate::interrupts;
use crate::report::Report;

/// Words of the red zone.
const RED: usize = 16;
/// Index of RSP among the general registers.
const RSP: usize = 4;
/// CF, PF, AF, ZF, SF, DF, OF, AC and ID.
const FLAGS: u64 = 0x0024_0cd5;
/// The interrupt flag, which this architecture does not have: it reads as the back end likes, and cannot be changed.
const NOT_A_FLAG: u64 = 0x200;

/// What a core holds. Offsets are used by `crossing`.
#[derive(Clone, PartialEq)]
#[repr(C, align(64))]
struct Context {
    /// 0x000: RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    general: [u64; 16],
    /// 0x080.
    flags: u64,
    /// 0x088: MXCSR, then the x87 control word.
    control: [u32; 2],
    /// 0x090: RSP as it was before.
    stack: u64,
    /// 0x098.
    spare: u64,
    /// 0x0a0: the red zone, from the top down.
    red_zone: [u64; RED],
    /// 0x120: not used, up to 0x140.
    spare1: [u64; 4],
    /// 0x140: YMM0 to YMM15, of which SSE uses the lower halves.
    vectors: [[u64; 4]; 16],
}

const _: () = {
    use core::mem::offset_of;
    assert!(offset_of!(Context, flags) == 0x80 && offset_of!(Context, control) == 0x88);
    assert!(offset_of!(Context, stack) == 0x90 && offset_of!(Context, red_zone) == 0xa0);
    assert!(offset_of!(Context, vectors) == 0x140);
};

/// Loads everything from the first argument, does one thing, and stores everything to the second.
type Crossing = unsafe extern "C" fn(*const Context, *mut Context);

macro_rules! crossing {
    ($(#[$doc:meta])* $name:ident, $act:literal, $load:literal, $store:literal) => {
        $(#[$doc])*
        #[unsafe(naked)]
        unsafe extern "C" fn $name(_: *const Context, _: *mut Context) {
            naked_asm!(
                "push rbx", "push rbp", "push r12", "push r13", "push r14", "push r15",
                "pushfq",
                "push rsi",
                "mov [rsi + 0x90], rsp",
                ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
                $load,
                ".endr",
                "ldmxcsr [rdi + 0x88]",
                "fldcw [rdi + 0x8c]",
                "push qword ptr [rdi + 0x80]",
                "popfq",
                ".irp n, 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16",
                "mov rax, [rdi + 0xa0 + 8 * (\\n - 1)]",
                "mov [rsp - 8 * \\n], rax",
                ".endr",
                "mov rax, [rdi]", "mov rcx, [rdi + 0x08]", "mov rdx, [rdi + 0x10]", "mov rbx, [rdi + 0x18]",
                "mov rbp, [rdi + 0x28]", "mov rsi, [rdi + 0x30]",
                "mov r8, [rdi + 0x40]", "mov r9, [rdi + 0x48]", "mov r10, [rdi + 0x50]", "mov r11, [rdi + 0x58]",
                "mov r12, [rdi + 0x60]", "mov r13, [rdi + 0x68]", "mov r14, [rdi + 0x70]", "mov r15, [rdi + 0x78]",
                "mov rdi, [rdi + 0x38]",
                $act,
                // The stack holds the place of the result: take it, and leave RDI there.
                "xchg rdi, [rsp]",
                "mov [rdi], rax", "mov [rdi + 0x08], rcx", "mov [rdi + 0x10], rdx", "mov [rdi + 0x18], rbx",
                "mov [rdi + 0x20], rsp", "mov [rdi + 0x28], rbp", "mov [rdi + 0x30], rsi",
                "mov rax, [rsp]", "mov [rdi + 0x38], rax",
                "mov [rdi + 0x40], r8", "mov [rdi + 0x48], r9", "mov [rdi + 0x50], r10", "mov [rdi + 0x58], r11",
                "mov [rdi + 0x60], r12", "mov [rdi + 0x68], r13", "mov [rdi + 0x70], r14", "mov [rdi + 0x78], r15",
                ".irp n, 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16",
                "mov rax, [rsp - 8 * \\n]",
                "mov [rdi + 0xa0 + 8 * (\\n - 1)], rax",
                ".endr",
                "pushfq",
                "pop qword ptr [rdi + 0x80]",
                "stmxcsr [rdi + 0x88]",
                "fnstcw [rdi + 0x8c]",
                ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
                $store,
                ".endr",
                // The modes that compiled code expects.
                "push 0x1f80",
                "ldmxcsr [rsp]",
                "pop rax",
                "fninit",
                "pop rsi",
                "popfq",
                "pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx",
                "ret",
            )
        }
    };
}

crossing!(
    /// A hypercall, with SSE state.
    hypercall_sse,
    "out 0x7e, al",
    "movups xmm\\n, [rdi + 0x140 + 32 * \\n]",
    "movups [rdi + 0x140 + 32 * \\n], xmm\\n"
);
crossing!(
    /// A hypercall, with AVX state.
    hypercall_avx,
    "out 0x7e, al",
    "vmovups ymm\\n, [rdi + 0x140 + 32 * \\n]",
    "vmovups [rdi + 0x140 + 32 * \\n], ymm\\n"
);
crossing!(
    /// The asynchronous doorbell, with SSE state.
    doorbell_sse,
    "out 0x7c, al",
    "movups xmm\\n, [rdi + 0x140 + 32 * \\n]",
    "movups [rdi + 0x140 + 32 * \\n], xmm\\n"
);
crossing!(
    /// The asynchronous doorbell, with AVX state.
    doorbell_avx,
    "out 0x7c, al",
    "vmovups ymm\\n, [rdi + 0x140 + 32 * \\n]",
    "vmovups [rdi + 0x140 + 32 * \\n], ymm\\n"
);
crossing!(
    /// A loop of RCX rounds that makes no exit of its own, with SSE state.
    spin_sse,
    "2: loop 2b",
    "movups xmm\\n, [rdi + 0x140 + 32 * \\n]",
    "movups [rdi + 0x140 + 32 * \\n], xmm\\n"
);
crossing!(
    /// The same with AVX state.
    spin_avx,
    "2: loop 2b",
    "vmovups ymm\\n, [rdi + 0x140 + 32 * \\n]",
    "vmovups [rdi + 0x140 + 32 * \\n], ymm\\n"
);

/// Patterns that are different in every place.
fn patterns(seed: u64) -> Context {
    let word = |place: u64| (seed + place).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut context = empty();
    for (place, value) in (0..).zip(&mut context.general) {
        *value = word(place);
    }
    for (place, value) in (100..).zip(&mut context.red_zone) {
        *value = word(place);
    }
    for (place, vector) in (200..).step_by(4).zip(&mut context.vectors) {
        for (lane, value) in (0..).zip(vector) {
            *value = word(place + lane);
        }
    }
    // Bit 1 is always set; rounding down, all exceptions masked.
    context.flags = FLAGS | 2;
    context.control = [0x3f80, 0x077f];
    context
}

fn empty() -> Context {
    Context {
        general: [0; 16],
        flags: 0,
        control: [0; 2],
        stack: 0,
        spare: 0,
        red_zone: [0; RED],
        spare1: [0; 4],
        vectors: [[0; 4]; 16],
    }
}

/// Crosses with `arguments` in RAX, RDI, RSI, RDX, R10, R8 and compares everything but RAX; returns RAX.
fn cross(report: &mut Report, name: &str, crossing: [Crossing; 2], arguments: [u64; 6]) -> u64 {
    let avx = registers().cpu_features & CPU_AVX != 0;
    let mut before = patterns(arguments[0] + 7);
    let [rax, rdi, rsi, rdx, r10, r8] = arguments;
    let g = &mut before.general;
    (g[0], g[7], g[6], g[2], g[10], g[8]) = (rax, rdi, rsi, rdx, r10, r8);
    let mut after = empty();
    let [sse, with_avx] = crossing;
    let chosen = if avx { with_avx } else { sse };
    // SAFETY: loads and stores within the two contexts, and restores what the C convention keeps.
    unsafe { chosen(&raw const before, &raw mut after) };
    let result = after.general[0];
    after.general[0] = before.general[0];
    before.general[RSP] = after.stack;
    before.stack = after.stack;
    if !avx {
        before.vectors.iter_mut().for_each(|v| (v[2], v[3]) = (0, 0));
    }
    differences(report, name, &before, &after);
    result
}

fn differences(report: &mut Report, name: &str, before: &Context, after: &Context) {
    let general = before.general.iter().zip(&after.general).position(|(b, a)| b != a);
    let red = before.red_zone.iter().zip(&after.red_zone).position(|(b, a)| b != a);
    let vector = before.vectors.iter().zip(&after.vectors).position(|(b, a)| b != a);
    let flags = (before.flags ^ after.flags) & !NOT_A_FLAG;
    let holds = general.is_none()
        && red.is_none()
        && vector.is_none()
        && flags == 0
        && before.control == after.control;
    report.check(
        name,
        holds,
        format_args!(
            "register {general:?}, red zone {red:?}, vector {vector:?}, flags {:#x} then {:#x}, control {:x?} then {:x?}",
            before.flags, after.flags, before.control, after.control
        ),
    );
}

pub(crate) fn run(report: &mut Report) {
    const HYPERCALL: [Crossing; 2] = [hypercall_sse, hypercall_avx];
    let heap = registers().heap_start;
    let garbage = 0xdead_beef_dead_beef;
    control().pending.swap(0, Ordering::SeqCst);
    let doorbell = if registers().net.present == 0 { hc::E_UNSUPPORTED } else { 0 };
    let calls: [(&str, [u64; 6], i64); 9] = [
        ("context.nop", [hc::NOP, garbage, garbage, garbage, garbage, garbage], 0),
        ("context.idle_past", [hc::IDLE, 1, 0, 0, 0, 0], 0),
        ("context.idle_wait", [hc::IDLE, guest_libos::now() + 3_000_000, 0, 0, 0, 0], 0),
        ("context.yield", [hc::YIELD, 0, 0, 0, 0, 0], 0),
        ("context.console", [hc::CONSOLE, heap, 0, 0, 0, 0], 0),
        ("context.doorbell", [hc::DOORBELL, hc::DEVICE_NET, 0, 0, 0, 0], doorbell),
        ("context.memory", [hc::MEMORY, hc::memory::DISCARD, heap, 4096, 0, 0], 0),
        ("context.error", [hc::CONSOLE, 0, 1, 0, 0, 0], hc::E_ADDRESS),
        ("context.unknown", [hc::COUNT, garbage, garbage, garbage, garbage, garbage], hc::E_UNKNOWN),
    ];
    for (name, arguments, expected) in calls {
        let result = cross(report, name, HYPERCALL, arguments);
        report.equal(name, result.cast_signed(), expected);
    }
    let rax = cross(report, "context.doorbell_port", [doorbell_sse, doorbell_avx], [garbage, 0, 0, 0, 0, 0]);
    report.equal("context.doorbell_port_keeps_rax", rax, garbage);
    spinning(report);
    upcall(report);
}

/// Long enough that the core is taken away and given back, when others want it.
fn spinning(report: &mut Report) {
    let avx = registers().cpu_features & CPU_AVX != 0;
    let mut before = patterns(99);
    before.general[1] = 30_000_000;
    let mut after = empty();
    let spin: Crossing = if avx { spin_avx } else { spin_sse };
    let start = guest_libos::now();
    // SAFETY: as in `cross`.
    unsafe { spin(&raw const before, &raw mut after) };
    let took = guest_libos::now() - start;
    report.equal("context.spin_count", after.general[1], 0);
    (before.general[1], before.general[RSP], before.stack) = (0, after.stack, after.stack);
    if !avx {
        before.vectors.iter_mut().for_each(|v| (v[2], v[3]) = (0, 0));
    }
    differences(report, "context.spin", &before, &after);
    guest_libos::println!("note spun {took} ns");
}

/// An upcall between a hypercall and the next instruction changes nothing that the interrupted code can see.
fn upcall(report: &mut Report) {
    interrupts::arm(interrupt::WAKE);
    control().pending.store(interrupt::WAKE, Ordering::SeqCst);
    let before = interrupts::count();
    let result = cross(report, "context.upcall", [hypercall_sse, hypercall_avx], [hc::NOP, 0, 0, 0, 0, 0]);
    let delivered = interrupts::count() - before;
    interrupts::disarm();
    report.equal("context.upcall_delivered", delivered, 1);
    report.equal("context.upcall_keeps_result", result, 0);
}
