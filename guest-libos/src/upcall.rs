//! Upcalls: a function that interrupts whatever core 0 runs, at its next entry after an interrupt was raised.
//!
//! Meant for what cannot wait for the next look: a long computation that must notice `STOP`, or statistics at
//! `PREEMPT`. The executor needs none. The bits that caused the upcall are handed to the handler, and kept for the
//! executor too.

use crate::interrupt::TAKEN_BY_UPCALL;
use core::sync::atomic::{AtomicUsize, Ordering};

static HANDLER: AtomicUsize = AtomicUsize::new(0);

/// Has `handler` called with the pending bits whenever one of `mask` is raised.
///
/// # Safety
/// The handler interrupts code at any instruction, an allocation or a half-changed structure included. It may use
/// atomics, read the virtual registers and the time, and make hypercalls; it may not allocate or free, print, wake
/// tasks, or touch anything that belongs to core 0's tasks and network.
#[cfg_attr(test, allow(unused_variables))]
pub unsafe fn enable(mask: u64, handler: fn(u64)) {
    #[cfg(not(test))]
    {
        HANDLER.store(handler as usize, Ordering::Relaxed);
        let control = crate::registers::control();
        control.upcall_handler.store(entry as *const () as u64, Ordering::Relaxed);
        control.upcall_mask.store(mask, Ordering::Relaxed);
        control.upcall_enabled.store(1, Ordering::Release);
    }
}

/// No upcalls from now on.
pub fn disable() {
    let control = crate::registers::control();
    control.upcall_mask.store(0, Ordering::Relaxed);
    control.upcall_enabled.store(0, Ordering::Release);
}

/// Calls the handler.
#[cfg_attr(test, allow(dead_code))]
extern "C" fn dispatch() {
    let bits = crate::registers::control().pending.swap(0, Ordering::AcqRel);
    TAKEN_BY_UPCALL.fetch_or(bits, Ordering::Release);
    let handler = HANDLER.load(Ordering::Relaxed);
    if handler != 0 {
        // SAFETY: only `enable` stores here, and it stores such a function.
        let handler: fn(u64) = unsafe { core::mem::transmute::<usize, fn(u64)>(handler) };
        handler(bits);
    }
}

/// Bytes for the extended state: all that XCR0 may enable here (x87, SSE, AVX, AVX-512) in XSAVE's standard form.
#[cfg(not(test))]
const EXTENDED_STATE: usize = 2816;

/// Where the VMM enters: RFLAGS and RIP stand on the stack, 128 bytes of red zone above them. Saves every register
/// that the handler may change, extended state included, and returns as the architecture says.
///
/// # Safety
/// For the VMM alone: nothing that calls it as a function leaves that stack.
#[cfg(not(test))]
#[unsafe(naked)]
unsafe extern "C" fn entry() {
    core::arch::naked_asm!(
        "push rbp",
        "mov rbp, rsp",
        "push rax",
        "push rcx",
        "push rdx",
        "push rsi",
        "push rdi",
        "push r8",
        "push r9",
        "push r10",
        "push r11",
        "cld",
        "sub rsp, {size}",
        "and rsp, -64",
        // The kind of save depends on what the VMM enabled.
        "mov ecx, {features}",
        "test byte ptr [rcx], {avx}",
        "jz 2f",
        // XSAVE reads the header that it updates: it must be zero.
        "xor eax, eax",
        "lea rdi, [rsp + 512]",
        "mov ecx, 8",
        "rep stosq",
        "mov eax, -1",
        "mov edx, -1",
        "xsave64 [rsp]",
        "call {dispatch}",
        "mov eax, -1",
        "mov edx, -1",
        "xrstor64 [rsp]",
        "jmp 3f",
        "2:",
        "fxsave64 [rsp]",
        "call {dispatch}",
        "fxrstor64 [rsp]",
        "3:",
        "lea rsp, [rbp - 72]",
        "mov ecx, {enabled}",
        "mov dword ptr [rcx], 1",
        "pop r11",
        "pop r10",
        "pop r9",
        "pop r8",
        "pop rdi",
        "pop rsi",
        "pop rdx",
        "pop rcx",
        "pop rax",
        "pop rbp",
        "popfq",
        "ret 128",
        size = const EXTENDED_STATE,
        features = const foraker_abi::layout::REGISTERS + core::mem::offset_of!(foraker_abi::registers::Registers, cpu_features) as u64,
        avx = const foraker_abi::registers::CPU_AVX,
        enabled = const foraker_abi::layout::CONTROL + core::mem::offset_of!(foraker_abi::control::CoreControl, upcall_enabled) as u64,
        dispatch = sym dispatch,
    )
}
