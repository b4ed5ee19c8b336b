//! Each hypercall's contract: results and error codes.

use core::sync::atomic::Ordering;

use foraker_abi::hypercall::*;
use foraker_abi::layout::{self, PAGE_SIZE};
use guest_libos::registers;

use crate::report::Report;

/// A hypercall with all its arguments.
pub(crate) fn call(number: u64, [a, b, c, d, e]: [u64; 5]) -> i64 {
    // SAFETY: callers name only memory that nothing else uses, and cores whose entry they define.
    unsafe { guest_libos::hypercall::raw(number, a, b, c, d, e) }
}

pub(crate) fn run(report: &mut Report) {
    report.equal("call.nop", call(NOP, [0; 5]), 0);
    report.equal("call.yield", call(YIELD, [0; 5]), 0);
    report.equal("call.ready", call(READY, [0; 5]), 0);
    let expected = if registers().net.present == 0 { E_UNSUPPORTED } else { 0 };
    report.equal("call.doorbell_net", call(DOORBELL, [DEVICE_NET, 0, 0, 0, 0]), expected);
    report.equal("call.doorbell_nothing", call(DOORBELL, [0; 5]), 0);
    report.equal("call.doorbell_unknown_device", call(DOORBELL, [1 << 40, 0, 0, 0, 0]), E_INVALID);
    guest_libos::hypercall::doorbell_async();
    report.equal("call.doorbell_port_returns", call(NOP, [0; 5]), 0);
    report.equal("call.unknown", call(COUNT, [0; 5]), E_UNKNOWN);
    report.equal("call.unknown_high_half", call(1 << 32, [0; 5]), E_UNKNOWN);
    report.equal("call.unknown_all_ones", call(u64::MAX, [0; 5]), E_UNKNOWN);
    report.equal("call.ignores_spare_arguments", call(NOP, [u64::MAX; 5]), 0);
    console(report);
    memory(report);
    resources(report);
}

fn console(report: &mut Report) {
    let text = b"note console from text\n";
    let length = text.len() as u64;
    report.equal("console.takes_all", call(CONSOLE, [text.as_ptr() as u64, length, 0, 0, 0]), length as i64);
    report.equal("console.nothing", call(CONSOLE, [text.as_ptr() as u64, 0, 0, 0, 0]), 0);
    let mut stack = *b"note console from stack\n";
    let length = stack.len() as u64;
    report.equal(
        "console.from_stack",
        call(CONSOLE, [(&raw mut stack) as u64, length, 0, 0, 0]),
        length as i64,
    );
    // A whole line of 4095 characters and its end, then one byte more.
    let heap = registers().heap_start;
    for i in 0..CONSOLE_MAX {
        let byte = if (i + 1).is_multiple_of(CONSOLE_MAX) { b'\n' } else { b'.' };
        // SAFETY: nothing is allocated in this program: the heap's first pages are free.
        unsafe { ((heap + i) as *mut u8).write_volatile(byte) };
    }
    let taken = call(CONSOLE, [heap, CONSOLE_MAX, 0, 0, 0]);
    report.equal("console.largest", taken, CONSOLE_MAX as i64);
    let refused = call(CONSOLE, [heap, CONSOLE_MAX + 1, 0, 0, 0]);
    report.equal("console.longer_is_refused", refused, E_INVALID);
    let across = heap + PAGE_SIZE - 6;
    let taken = call(CONSOLE, [across, 6, 0, 0, 0]);
    report.equal("console.end_of_page", taken, 6);
    report.equal("console.null", call(CONSOLE, [0, 1, 0, 0, 0]), E_ADDRESS);
    report.equal("console.wraps", call(CONSOLE, [u64::MAX, 2, 0, 0, 0]), E_ADDRESS);
    let end = registers().memory_end;
    report.equal("console.behind_memory", call(CONSOLE, [end, 1, 0, 0, 0]), E_ADDRESS);
    report.equal("console.across_end", call(CONSOLE, [end - 1, 2, 0, 0, 0]), E_ADDRESS);
    let last = (end - 1) as *mut u8;
    // SAFETY: the last byte of the heap, which nothing uses.
    unsafe { last.write_volatile(b'\n') };
    report.equal("console.last_byte", call(CONSOLE, [end - 1, 1, 0, 0, 0]), 1);
}

fn memory(report: &mut Report) {
    let heap = registers().heap_start;
    for operation in [memory::PIN, memory::UNPIN, memory::WILL_NEED, memory::COLD] {
        let result = call(MEMORY, [operation, heap, 4 * PAGE_SIZE, 0, 0]);
        let holds = matches!(result, 0 | E_UNSUPPORTED | E_LIMIT);
        report.check("memory.advice", holds, format_args!("operation {operation}: {result}"));
    }
    report.equal("memory.unknown_operation", call(MEMORY, [99, heap, PAGE_SIZE, 0, 0]), E_INVALID);
    report.equal("memory.odd_address", call(MEMORY, [memory::DISCARD, heap + 1, PAGE_SIZE, 0, 0]), E_INVALID);
    report.equal("memory.odd_length", call(MEMORY, [memory::DISCARD, heap, 17, 0, 0]), E_INVALID);
    let end = registers().memory_end;
    report.equal("memory.behind", call(MEMORY, [memory::DISCARD, end, PAGE_SIZE, 0, 0]), E_ADDRESS);
    let text = call(MEMORY, [memory::DISCARD, layout::IMAGE_BASE, PAGE_SIZE, 0, 0]);
    report.equal("memory.discard_text", text, E_ADDRESS);
    let large = call(MEMORY, [memory::COLD, heap, MEMORY_MAX + PAGE_SIZE, 0, 0]);
    report.equal("memory.too_much_at_once", large, E_LIMIT);
}

fn resources(report: &mut Report) {
    report.equal("resources.unknown_operation", call(RESOURCES, [99, 0, 0, 0, 0]), E_INVALID);
    report.equal("resources.stop_core_0", call(RESOURCES, [resources::CORE_STOP, 0, 0, 0, 0]), E_INVALID);
    let (entry, stack) = (run as *const () as u64, registers().heap_start + PAGE_SIZE);
    let again = call(RESOURCES, [resources::CORE_START, 0, entry, stack, 0]);
    report.equal("resources.start_core_0", again, E_INVALID);
    let cores = u64::from(registers().cores);
    report.equal(
        "resources.wake_no_core",
        call(RESOURCES, [resources::CORE_WAKE, cores, 0, 0, 0]),
        E_INVALID,
    );
    report.equal("resources.wake_itself", call(RESOURCES, [resources::CORE_WAKE, 0, 0, 0, 0]), 0);
    let pending = guest_libos::registers::control().pending.swap(0, Ordering::SeqCst);
    let wake = foraker_abi::interrupt::WAKE;
    report.check("resources.wake_sets_bit", pending & wake != 0, format_args!("{pending:#x}"));
    resize(report);
}

/// Gives back the last pages of the heap, and asks for them: nobody else wants them.
fn resize(report: &mut Report) {
    const PAGES: u64 = 16;
    let r = registers();
    let allocated = || r.resources.memory_allocated.load(Ordering::SeqCst);
    let resize = |bytes| call(RESOURCES, [resources::MEMORY, bytes, 0, 0, 0]);
    let (whole, least) = (r.memory_size, r.memory_size - (r.memory_end - r.heap_start));
    let last = (r.memory_end - 1) as *mut u8;
    // SAFETY: the last byte of the heap, which nothing uses.
    unsafe { last.write_volatile(7) };
    for (what, bytes) in
        [("odd", whole - 17), ("too_little", least - PAGE_SIZE), ("too_much", whole + PAGE_SIZE)]
    {
        report.equal(what, resize(bytes), E_INVALID);
    }
    report.equal("resources.memory_kept", allocated(), whole);
    report.equal("resources.memory_given_back", resize(whole - PAGES * PAGE_SIZE), 0);
    report.equal("resources.memory_is_less", allocated(), whole - PAGES * PAGE_SIZE);
    report.equal("resources.memory_asked_for", resize(whole), 0);
    report.equal("resources.memory_is_back", allocated(), whole);
    let pending = guest_libos::registers::control().pending.swap(0, Ordering::SeqCst);
    let decided = foraker_abi::interrupt::RESOURCES;
    report.check("resources.memory_sets_bit", pending & decided != 0, format_args!("{pending:#x}"));
    // SAFETY: as above.
    report.equal("resources.memory_reads_zero", unsafe { last.read_volatile() }, 0);
}
