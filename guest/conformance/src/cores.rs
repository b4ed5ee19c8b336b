//! Further cores: start, wake, stop, start again. Nothing to check where there is one core.

use core::arch::naked_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use foraker_abi::control::CoreControl;
use foraker_abi::hypercall::{E_INVALID, E_LIMIT, FOREVER, IDLE, RESOURCES, resources};
use foraker_abi::{interrupt, layout};
use guest_libos::{now, println, registers};

use crate::calls::call;
use crate::report::Report;

/// Bytes of each core's stack, in the heap.
const STACK: u64 = 16 << 10;
/// How long core 0 waits for another.
const PATIENCE_NS: u64 = 20_000_000_000;

/// What each core did last: 1 started, 2 woken.
static PROGRESS: [AtomicU64; layout::MAX_CORES as usize] =
    [const { AtomicU64::new(0) }; layout::MAX_CORES as usize];
/// RSP at each core's first instruction.
static STACKS: [AtomicU64; layout::MAX_CORES as usize] =
    [const { AtomicU64::new(0) }; layout::MAX_CORES as usize];

fn slot(core: u64) -> &'static CoreControl {
    // SAFETY: the control page has a slot for each of `MAX_CORES`.
    unsafe { &*((layout::CONTROL + core * size_of::<CoreControl>() as u64) as *const CoreControl) }
}

/// First instructions of a core: RDI holds the argument, RSP the stack.
#[unsafe(naked)]
unsafe extern "C" fn enter() -> ! {
    naked_asm!("mov rsi, rsp", "xor ebp, ebp", "call {body}", "ud2", body = sym body)
}

extern "C" fn body(core: u64, stack: u64) -> ! {
    let place = core as usize % PROGRESS.len();
    STACKS[place].store(stack, Ordering::SeqCst);
    PROGRESS[place].fetch_add(1, Ordering::SeqCst);
    while slot(core).pending.swap(0, Ordering::SeqCst) & interrupt::WAKE == 0 {
        call(IDLE, [FOREVER, 0, 0, 0, 0]);
    }
    PROGRESS[place].fetch_add(1, Ordering::SeqCst);
    loop {
        call(RESOURCES, [resources::CORE_STOP, 0, 0, 0, 0]);
    }
}

fn stack_of(core: u64) -> u64 {
    registers().heap_start + (1 << 17) + core * STACK
}

fn start(core: u64) -> i64 {
    let entry = enter as *const () as u64;
    call(RESOURCES, [resources::CORE_START, core, entry, stack_of(core), core])
}

/// Waits until a core got that far.
fn wait_for(core: u64, progress: u64) -> bool {
    let end = now() + PATIENCE_NS;
    while now() < end {
        if PROGRESS[core as usize].load(Ordering::SeqCst) >= progress {
            return true;
        }
        call(IDLE, [now() + 100_000, 0, 0, 0, 0]);
    }
    false
}

pub(crate) fn run(report: &mut Report) {
    let cores = u64::from(registers().cores);
    let beyond = start(cores);
    report.check("cores.none_beyond", matches!(beyond, E_INVALID | E_LIMIT), format_args!("{beyond}"));
    for core in 1..cores {
        report.equal("cores.start", start(core), 0);
        report.check("cores.runs", wait_for(core, 1), format_args!("core {core} did not run"));
        let stack = STACKS[core as usize].load(Ordering::SeqCst);
        report.equal("cores.stack", stack, stack_of(core));
        let again = start(core);
        report.check("cores.not_started_twice", again < 0, format_args!("{again}"));
        let running = registers().schedule.running.load(Ordering::SeqCst);
        println!("note running {running:#x} while core {core} idles");
    }
    for core in 1..cores {
        let woken = call(RESOURCES, [resources::CORE_WAKE, core, 0, 0, 0]);
        report.equal("cores.wake", woken, 0);
        report.check("cores.woken", wait_for(core, 2), format_args!("core {core} sleeps on"));
    }
    for core in 1..cores {
        restart(report, core);
    }
}

/// A core that stopped can be started again; it may take a moment until it has stopped.
fn restart(report: &mut Report, core: u64) {
    let end = now() + PATIENCE_NS;
    let mut result = start(core);
    while result != 0 && now() < end {
        call(IDLE, [now() + 100_000, 0, 0, 0, 0]);
        result = start(core);
    }
    report.equal("cores.start_again", result, 0);
    report.check("cores.runs_again", wait_for(core, 3), format_args!("core {core} did not run again"));
    call(RESOURCES, [resources::CORE_WAKE, core, 0, 0, 0]);
    report.check("cores.stops_again", wait_for(core, 4), format_args!("core {core} did not stop"));
}
