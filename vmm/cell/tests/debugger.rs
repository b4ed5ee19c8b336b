//! Breakpoints, single steps and faults that stop a guest: the same on every back end, and of no consequence for other guests of the image.

use std::arch::global_asm;
use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foraker_abi::hypercall::resources::CORE_START;
use foraker_abi::hypercall::{NOP, PORT, RESOURCES, TERMINATE};
use foraker_abi::layout::{IMAGE_BASE, REGISTERS};
use foraker_abi::registers::Registers;
use foraker_cell::{
    Cause, Cell, Config, Debugger, End, Go, Guest, GuestSpec, InspectError, LoadedImage, Stop, Why,
};

mod asm;
use asm::code;

global_asm!(
    ".pushsection .rodata",
    ".globl debug_count, debug_count_loop, debug_count_next, debug_count_end",
    ".globl debug_steps, debug_steps_call, debug_steps_push, debug_steps_pop, debug_steps_last, debug_steps_end",
    ".globl debug_fails, debug_fails_there, debug_fails_end",
    ".globl debug_both, debug_both_loop, debug_both_end",
    // Counts in the first word of its heap.
    "debug_count:",
    "mov r15d, {registers}",
    "mov rdi, [r15 + {heap_start}]",
    "debug_count_loop:",
    "inc qword ptr [rdi]",
    "debug_count_next:",
    "jmp debug_count_loop",
    "debug_count_end:",
    // A hypercall, and flags that go to the stack and come back, and the end with what they were.
    "debug_steps:",
    "mov eax, {nop}",
    "debug_steps_call:",
    "out {port}, al",
    "stc",
    "debug_steps_push:",
    "pushfq",
    "pop rdi",
    "push rdi",
    "debug_steps_pop:",
    "popfq",
    "mov eax, {terminate}",
    "debug_steps_last:",
    "out {port}, al",
    "debug_steps_end:",
    // An instruction that nobody has, and a breakpoint of its own.
    "debug_fails:",
    "mov edi, 1",
    "int3",
    "mov edi, 2",
    "debug_fails_there:",
    "ud2",
    "mov eax, {terminate}",
    "out {port}, al",
    "debug_fails_end:",
    // Two cores that count in the same loop, each in its own word.
    "debug_both:",
    "mov r15d, {registers}",
    "mov rbx, [r15 + {heap_start}]",
    "mov edi, {core_start}",
    "mov esi, 1",
    "lea rdx, [rip + debug_both_loop]",
    "lea r10, [rbx + 0x2000]",
    "lea r8, [rbx + 8]",
    "mov eax, {resources}",
    "out {port}, al",
    "mov rdi, rbx",
    "debug_both_loop:",
    "inc qword ptr [rdi]",
    "jmp debug_both_loop",
    "debug_both_end:",
    ".popsection",
    registers = const REGISTERS,
    heap_start = const offset_of!(Registers, heap_start),
    core_start = const CORE_START,
    resources = const RESOURCES,
    terminate = const TERMINATE,
    nop = const NOP,
    port = const PORT,
);

macro_rules! labels {
    ($($label:ident),*) => { unsafe extern "C" { $(static $label: u8;)* } };
}

labels!(
    debug_count,
    debug_count_loop,
    debug_count_next,
    debug_count_end,
    debug_steps,
    debug_steps_call,
    debug_steps_push,
    debug_steps_pop,
    debug_steps_last,
    debug_steps_end,
    debug_fails,
    debug_fails_there,
    debug_fails_end,
    debug_both,
    debug_both_loop,
    debug_both_end
);

/// The image of the instructions between two labels, and where a third is in a guest.
macro_rules! guest {
    ($from:ident, $to:ident) => {
        // SAFETY: labels defined above, the first before the second.
        LoadedImage::of_code(&unsafe { code(&$from, &$to) })
    };
}

macro_rules! place {
    ($from:ident, $at:ident) => {
        // SAFETY: labels defined above, the first before the second.
        IMAGE_BASE + unsafe { code(&$from, &$at) }.len() as u64
    };
}

const SOON: Duration = Duration::from_secs(20);

fn cell() -> Cell {
    let config = Config { kept_machines: 4, ..Config::new(2, 64 << 20, std::io::stderr().as_raw_fd()) };
    Cell::new(&config).expect("a usable /dev/kvm")
}

fn spec(image: &Arc<LoadedImage>) -> GuestSpec {
    GuestSpec { memory: 1 << 20, ..GuestSpec::new(Arc::clone(image), "guest") }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let since = Instant::now();
    while !done() {
        assert!(since.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn counter(guest: &Guest, word: u64) -> u64 {
    let mut bytes = [0; 8];
    assert!(guest.memory.read(guest.memory.plan().heap_start + 8 * word, &mut bytes));
    u64::from_le_bytes(bytes)
}

fn counts(guest: &Guest, word: u64) {
    let before = counter(guest, word);
    until("it counts", || counter(guest, word) != before);
}

fn wait(debugger: &mut Debugger) -> Stop {
    let since = Instant::now();
    loop {
        if let Some(stop) = debugger.stopped(SOON).unwrap() {
            return stop;
        }
        let end = debugger.inspection().guest().end();
        assert!(end.is_none(), "it has ended instead: {end:?}");
        assert!(since.elapsed() < SOON, "it does not stop");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn rip(debugger: &Debugger) -> u64 {
    debugger.inspection().core(0).unwrap().registers().rip
}

/// One step of core 0, to this address.
fn step(debugger: &mut Debugger, to: u64) {
    debugger.go(vec![Go::Step]);
    let stop = wait(debugger);
    assert!(matches!(stop.why, Why::Step), "{stop:?}");
    assert_eq!(rip(debugger), to, "{:#x} instead of {to:#x}", rip(debugger));
    assert_eq!(debugger.inspection().core(0).unwrap().registers().rflags & 0x100, 0, "the trap flag is left");
}

fn status(guest: &Guest) -> u64 {
    until("it ends", || guest.has_ended());
    match guest.end() {
        Some(End::Exited(status)) => *status,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_breakpoint_stops_one_guest_of_an_image() {
    let cell = cell();
    let image = guest!(debug_count, debug_count_end);
    let (guest, other) = (cell.start(&spec(&image)).unwrap(), cell.start(&spec(&image)).unwrap());
    counts(&guest, 0);
    let (at, next) = (place!(debug_count, debug_count_loop), place!(debug_count, debug_count_next));
    let mut debugger = Debugger::attach(&guest, SOON).unwrap();
    assert!(matches!(Debugger::attach(&guest, SOON), Err(InspectError::Busy)));
    assert!(matches!(guest.inspect(SOON), Err(InspectError::Busy)));
    debugger.set_breakpoint(at).unwrap();
    for outside in [0, REGISTERS, guest.memory.plan().heap_start, u64::MAX] {
        assert!(debugger.set_breakpoint(outside).is_err(), "{outside:#x}");
    }
    let mut bytes = [0; 3];
    assert_eq!(debugger.inspection().read(at, &mut bytes), 3);
    assert_eq!(bytes, [0x48, 0xff, 0x07], "what is read is what the program has");
    debugger.go(vec![]);
    let mut last = None;
    for _ in 0..10 {
        let stop = wait(&mut debugger);
        assert!(matches!(stop, Stop { core: 0, why: Why::Breakpoint }), "{stop:?}");
        assert_eq!(rip(&debugger), at);
        let now = counter(&guest, 0);
        assert!(last.is_none_or(|last| now == last + 1), "{last:?} {now}");
        last = Some(now);
        counts(&other, 0);
        // As a debugger goes on from a breakpoint.
        assert!(debugger.clear_breakpoint(at).unwrap());
        step(&mut debugger, next);
        debugger.set_breakpoint(at).unwrap();
        debugger.go(vec![]);
    }
    // While it is on its way to one, perhaps.
    drop(debugger);
    counts(&guest, 0);
    counts(&other, 0);
    for guest in [guest, other] {
        guest.finish(End::Killed("the test has seen enough".to_owned()));
    }
    until("both machines are kept", || cell.machines_reused() == 2);
    // Nothing of it is left in the machine, nor in the image.
    let third = cell.start(&spec(&image)).unwrap();
    counts(&third, 0);
}

#[test]
fn every_instruction_can_be_stepped_over() {
    let cell = cell();
    let image = guest!(debug_steps, debug_steps_end);
    let run = cell.start(&spec(&image)).unwrap();
    let expected = status(&run);
    assert_eq!(expected & 0x101, 1, "it carries");
    let guest = cell.start(&GuestSpec { paused: true, ..spec(&image) }).unwrap();
    let mut debugger = Debugger::attach(&guest, SOON).unwrap();
    guest.resume();
    assert_eq!(rip(&debugger), IMAGE_BASE);
    let (call, push) = (place!(debug_steps, debug_steps_call), place!(debug_steps, debug_steps_push));
    let (pop, last) = (place!(debug_steps, debug_steps_pop), place!(debug_steps, debug_steps_last));
    let addresses = [call, call + 2, push, push + 1, push + 2, pop, pop + 1, last];
    for to in addresses {
        step(&mut debugger, to);
    }
    debugger.go(vec![]);
    // The flags that it stored are the same, whoever looked on.
    assert_eq!(status(&guest), expected);
    assert!(matches!(debugger.stopped(SOON), Ok(None)));
}

#[test]
fn a_fault_stops_a_guest_and_ends_it_only_if_that_is_wanted() {
    let cell = cell();
    let there = place!(debug_fails, debug_fails_there);
    for goes_on in [true, false] {
        let image = guest!(debug_fails, debug_fails_end);
        let guest = cell.start(&GuestSpec { paused: true, ..spec(&image) }).unwrap();
        let mut debugger = Debugger::attach(&guest, SOON).unwrap();
        guest.resume();
        debugger.go(vec![]);
        // Its own breakpoint: it is behind it.
        let stop = wait(&mut debugger);
        let Why::Fault(fault) = stop.why else { panic!("{stop:?}") };
        assert!(matches!(fault.cause, Cause::Exception { vector: 3, .. }), "{fault:?}");
        assert_eq!(rip(&debugger), IMAGE_BASE + 6);
        debugger.go(vec![]);
        let stop = wait(&mut debugger);
        let Why::Fault(fault) = stop.why else { panic!("{stop:?}") };
        assert!(matches!(fault.cause, Cause::Exception { vector: 6, .. }), "{fault:?}");
        assert_eq!((rip(&debugger), fault.rip), (there, there));
        if goes_on {
            let mut state = debugger.inspection().core(0).unwrap();
            let mut registers = *state.registers();
            assert_eq!(registers.rdi, 2);
            (registers.rip, registers.rdi) = (there + 2, 77);
            state.set_registers(registers);
            debugger.inspection_mut().set_core(0, &state).unwrap();
            registers.rip = 1 << 47;
            state.set_registers(registers);
            assert!(debugger.inspection_mut().set_core(0, &state).is_err());
            drop(debugger);
            assert_eq!(status(&guest), 77);
        } else {
            // Again, as nothing has changed; and then it ends.
            debugger.go(vec![]);
            let stop = wait(&mut debugger);
            let Why::Fault(fault) = stop.why else { panic!("{stop:?}") };
            debugger.give_in(*fault);
            assert!(
                matches!(guest.end(), Some(End::Faulted(fault)) if fault.rip == there),
                "{:?}",
                guest.end()
            );
        }
    }
}

#[test]
fn cores_stop_together_and_go_as_they_are_told() {
    let cell = cell();
    let image = guest!(debug_both, debug_both_end);
    let guest = cell.start(&GuestSpec { cores: 2, ..spec(&image) }).unwrap();
    counts(&guest, 0);
    counts(&guest, 1);
    let mut debugger = Debugger::attach(&guest, SOON).unwrap();
    assert_eq!(debugger.inspection().cores(), [0, 1]);
    let stands = |guest: &Guest, word| {
        let before = counter(guest, word);
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(counter(guest, word), before);
    };
    stands(&guest, 0);
    stands(&guest, 1);
    for (going, runs, rests) in [(vec![Go::Stay, Go::Run], 1, 0), (vec![Go::Run, Go::Stay], 0, 1)] {
        debugger.go(going);
        counts(&guest, runs);
        stands(&guest, rests);
        debugger.stop(SOON).unwrap();
        assert!(debugger.stopped(SOON).unwrap().is_none(), "it did not stop by itself");
    }
    // Both run into it; the one that is not reported does it again.
    let at = place!(debug_both, debug_both_loop);
    let mut seen = [0; 2];
    for _ in 0..30 {
        debugger.set_breakpoint(at).unwrap();
        debugger.go(vec![]);
        let Stop { core, why: Why::Breakpoint } = wait(&mut debugger) else { panic!() };
        seen[core as usize] += 1;
        debugger.clear_breakpoint(at).unwrap();
        let mut going = vec![Go::Stay; 2];
        going[core as usize] = Go::Step;
        debugger.go(going);
        assert!(matches!(wait(&mut debugger), Stop { core: stepped, why: Why::Step } if stepped == core));
    }
    eprintln!("stopped at it: {seen:?}");
    drop(debugger);
    counts(&guest, 0);
    counts(&guest, 1);
}
