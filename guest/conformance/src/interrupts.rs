//! Interrupts: by look, and by upcall.

use core::arch::naked_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use foraker_abi::control::RED_ZONE;
use foraker_abi::hypercall::{self as hc, resources};
use foraker_abi::{interrupt, layout};
use guest_libos::registers::control;
use guest_libos::{now, registers};

use crate::calls::call;
use crate::report::Report;
use crate::time;

/// What the handler saw last.
#[repr(C, align(64))]
struct Seen {
    /// 0x00: upcalls.
    count: AtomicU64,
    /// 0x08: pending bits that it took.
    bits: AtomicU64,
    /// 0x10: RSP at its first instruction.
    stack: AtomicU64,
    /// 0x18: flags at its first instruction.
    flags: AtomicU64,
    /// 0x20: `upcall_enabled` at its first instruction.
    enabled: AtomicU64,
    /// 0x28: the address it returns to.
    rip: AtomicU64,
    /// 0x30: the flags it returns with.
    saved_flags: AtomicU64,
    /// 0x38: pending bits to set before it enables upcalls and makes a hypercall; taken by the first upcall.
    nest: AtomicU64,
}

static SEEN: Seen = Seen {
    count: AtomicU64::new(0),
    bits: AtomicU64::new(0),
    stack: AtomicU64::new(0),
    flags: AtomicU64::new(0),
    enabled: AtomicU64::new(0),
    rip: AtomicU64::new(0),
    saved_flags: AtomicU64::new(0),
    nest: AtomicU64::new(0),
};

/// The handler: notes what it sees, takes the pending bits, and returns. When asked to, it first makes an interrupt
/// pending, enables upcalls and leaves the guest once, so that it is entered again on top of itself.
#[unsafe(naked)]
unsafe extern "C" fn handler() {
    naked_asm!(
        "push rax", "push rcx", "push rdx",
        "pushfq",
        "pop rdx",
        "lea rcx, [rip + {seen}]",
        "lea rax, [rsp + 24]",
        "mov [rcx + 0x10], rax",
        "mov [rcx + 0x18], rdx",
        "mov rax, [rsp + 24]", "mov [rcx + 0x30], rax",
        "mov rax, [rsp + 32]", "mov [rcx + 0x28], rax",
        "mov edx, {control}",
        "mov eax, [rdx + 24]", "mov [rcx + 0x20], rax",
        "xor eax, eax",
        "xchg [rdx], rax",
        "mov [rcx + 0x08], rax",
        "lock inc qword ptr [rcx]",
        "xor eax, eax",
        "xchg [rcx + 0x38], rax",
        "test rax, rax",
        "jz 2f",
        "mov [rdx], rax",
        "mov dword ptr [rdx + 24], 1",
        "xor eax, eax",
        "out {port}, al",
        "2:",
        "mov edx, {control}",
        "mov dword ptr [rdx + 24], 1",
        "pop rdx", "pop rcx", "pop rax",
        "popfq",
        "ret {red}",
        seen = sym SEEN,
        control = const layout::CONTROL,
        port = const hc::PORT,
        red = const RED_ZONE,
    )
}

/// Enables upcalls for these interrupts.
pub(crate) fn arm(mask: u64) {
    let slot = control();
    slot.pending.store(0, Ordering::SeqCst);
    slot.upcall_handler.store(handler as *const () as u64, Ordering::SeqCst);
    slot.upcall_mask.store(mask, Ordering::SeqCst);
    slot.upcall_enabled.store(1, Ordering::SeqCst);
}

/// Disables them.
pub(crate) fn disarm() {
    control().upcall_enabled.store(0, Ordering::SeqCst);
    control().upcall_mask.store(0, Ordering::SeqCst);
    control().pending.store(0, Ordering::SeqCst);
}

/// Upcalls so far.
pub(crate) fn count() -> u64 {
    SEEN.count.load(Ordering::SeqCst)
}

/// What the control page holds at the first instruction.
pub(crate) fn initial(report: &mut Report) {
    let slot = control();
    report.equal("control.pending_initial", slot.pending.load(Ordering::SeqCst), 0);
    report.equal("control.enabled_initial", slot.upcall_enabled.load(Ordering::SeqCst), 0);
    report.equal("control.mask_initial", slot.upcall_mask.load(Ordering::SeqCst), 0);
    report.equal("control.handler_initial", slot.upcall_handler.load(Ordering::SeqCst), 0);
}

pub(crate) fn run(report: &mut Report) {
    by_look(report);
    by_upcall(report);
    masked(report);
    nested(report);
    timer(report);
    while_spinning(report);
}

/// The guest takes the bits; the VMM only adds.
fn by_look(report: &mut Report) {
    control().pending.store(interrupt::WAKE | 1 << 40, Ordering::SeqCst);
    call(hc::NOP, [0; 5]);
    let bits = control().pending.swap(0, Ordering::SeqCst);
    report.equal("pending.kept_across_exits", bits, interrupt::WAKE | 1 << 40);
    for _ in 0..3 {
        call(hc::RESOURCES, [resources::CORE_WAKE, 0, 0, 0, 0]);
    }
    report.equal("pending.batched", control().pending.swap(0, Ordering::SeqCst), interrupt::WAKE);
}

fn by_upcall(report: &mut Report) {
    let before = count();
    arm(interrupt::WAKE);
    call(hc::NOP, [0; 5]);
    report.equal("upcall.none_without_cause", count() - before, 0);
    let result = call(hc::RESOURCES, [resources::CORE_WAKE, 0, 0, 0, 0]);
    report.equal("upcall.once", count() - before, 1);
    report.equal("upcall.result_of_the_call", result, 0);
    report.equal("upcall.bits", SEEN.bits.load(Ordering::SeqCst), interrupt::WAKE);
    report.equal("upcall.disabled_at_entry", SEEN.enabled.load(Ordering::SeqCst), 0);
    let flags = SEEN.flags.load(Ordering::SeqCst);
    report.check("upcall.direction_trap_alignment_clear", flags & 0x4_0500 == 0, format_args!("{flags:#x}"));
    let text = layout::IMAGE_BASE..layout::PRIVATE_BASE;
    let rip = SEEN.rip.load(Ordering::SeqCst);
    report.check("upcall.frame_rip", text.contains(&rip), format_args!("{rip:#x}"));
    let saved = SEEN.saved_flags.load(Ordering::SeqCst);
    report.check("upcall.frame_flags", saved & 2 == 2 && saved >> 22 == 0, format_args!("{saved:#x}"));
    let top = guest_libos::registers().stack_top;
    let stack = SEEN.stack.load(Ordering::SeqCst);
    report.check("upcall.stack", stack < top && top - stack < crate::STACK, format_args!("{stack:#x}"));
    call(hc::NOP, [0; 5]);
    report.equal("upcall.not_again", count() - before, 1);
    disarm();
    control().pending.store(interrupt::WAKE, Ordering::SeqCst);
    call(hc::NOP, [0; 5]);
    report.equal("upcall.not_when_disabled", count() - before, 1);
    control().pending.store(0, Ordering::SeqCst);
}

fn masked(report: &mut Report) {
    let before = count();
    arm(interrupt::NET_TX);
    control().pending.store(interrupt::WAKE, Ordering::SeqCst);
    call(hc::NOP, [0; 5]);
    report.equal("upcall.not_when_masked", count() - before, 0);
    report.equal("upcall.masked_stays_pending", control().pending.load(Ordering::SeqCst), interrupt::WAKE);
    control().pending.store(interrupt::WAKE | interrupt::NET_TX, Ordering::SeqCst);
    call(hc::NOP, [0; 5]);
    report.equal("upcall.any_bit_of_the_mask", count() - before, 1);
    disarm();
}

fn nested(report: &mut Report) {
    let before = count();
    SEEN.nest.store(interrupt::WAKE, Ordering::SeqCst);
    arm(interrupt::WAKE);
    control().pending.store(interrupt::WAKE, Ordering::SeqCst);
    call(hc::NOP, [0; 5]);
    report.equal("upcall.nested", count() - before, 2);
    report.equal("upcall.enabled_behind", control().upcall_enabled.load(Ordering::SeqCst), 1);
    disarm();
}

/// A deadline of `idle` arrives as an upcall too.
fn timer(report: &mut Report) {
    let before = count();
    arm(interrupt::TIMER);
    let until = now() + 20_000_000;
    let result = call(hc::IDLE, [until, 0, 0, 0, 0]);
    let woken = now() + time::early_ns();
    report.equal("upcall.idle_returns", result, 0);
    let early = until.saturating_sub(woken);
    report.check("upcall.after_the_deadline", early == 0, format_args!("{early} ns early"));
    report.equal("upcall.by_timer", count() - before, 1);
    disarm();
}

/// A guest that makes no exits keeps its time. Where others wait for its core (the variable `CROWDED` says so), it can read
/// when its quantum ends, and gets notice of it.
fn while_spinning(report: &mut Report) {
    let crowded = guest_libos::env("CROWDED").is_some();
    let duration = if crowded { 400_000_000 } else { 60_000_000 };
    let before = count();
    if crowded {
        arm(interrupt::PREEMPT);
    }
    let start = now();
    let (mut last, mut longest, mut quantum_end) = (start, 0, 0);
    while last - start < duration {
        let next = now();
        longest = longest.max(next.wrapping_sub(last));
        last = next;
        quantum_end = registers().schedule.quantum_end.load(Ordering::Relaxed).max(quantum_end);
    }
    let notices = count() - before;
    if crowded {
        disarm();
        let plausible = (start..last + 10_000_000_000).contains(&quantum_end);
        report.check("preempt.quantum_end", plausible, format_args!("{quantum_end}, now {last}"));
        report.check("preempt.notice", notices > 0, format_args!("no upcall in {duration} ns"));
        report.check(
            "preempt.others_run",
            longest > 1_000_000,
            format_args!("never away for more than {longest} ns"),
        );
    }
    report.check("preempt.time_goes_on", last > start, format_args!("{start} then {last}"));
    guest_libos::println!("note longest_gap_ns {longest}");
}
