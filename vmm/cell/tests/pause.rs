//! Guests that are paused: not one instruction is executed, nothing that comes meanwhile is lost, and they can be ended as any other.

use std::arch::global_asm;
use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use foraker_abi::hypercall::resources::CORE_START;
use foraker_abi::hypercall::{IDLE, PORT, RESOURCES, TERMINATE};
use foraker_abi::interrupt;
use foraker_abi::layout::{CONTROL, REGISTERS};
use foraker_abi::registers::Registers;
use foraker_cell::trace::Event;
use foraker_cell::{Cell, Config, End, Guest, GuestSpec, LoadedImage, ProcessorSpec};

mod asm;
use asm::code;

global_asm!(
    ".pushsection .rodata",
    ".globl pause_count, pause_count_end, pause_both, pause_both_end, pause_rest, pause_rest_end, pause_nap, pause_nap_end",
    // Counts in the first word of its heap.
    "pause_count:",
    "mov r15d, {registers}",
    "mov rbx, [r15 + {heap_start}]",
    "2: inc qword ptr [rbx]",
    "jmp 2b",
    "pause_count_end:",
    // Has core 1 count in the second word, and counts in the first.
    "pause_both:",
    "mov r15d, {registers}",
    "mov rbx, [r15 + {heap_start}]",
    "mov edi, {core_start}",
    "mov esi, 1",
    "lea rdx, [rip + 3f]",
    "lea r10, [rbx + 0x2000]",
    "lea r8, [rbx + 8]",
    "mov eax, {resources}",
    "out {port}, al",
    "mov rdi, rbx",
    "3: inc qword ptr [rdi]",
    "jmp 3b",
    "pause_both_end:",
    // Rests until an interrupt comes, and ends with what is pending.
    "pause_rest:",
    "mov rdi, -1",
    "mov eax, {idle}",
    "out {port}, al",
    "mov r15d, {control}",
    "mov rdi, [r15]",
    "mov eax, {terminate}",
    "out {port}, al",
    "pause_rest_end:",
    // The same, with a deadline.
    "pause_nap:",
    "mov edi, 300000000",
    "mov eax, {idle}",
    "out {port}, al",
    "mov r15d, {control}",
    "mov rdi, [r15]",
    "mov eax, {terminate}",
    "out {port}, al",
    "pause_nap_end:",
    ".popsection",
    registers = const REGISTERS,
    control = const CONTROL,
    heap_start = const offset_of!(Registers, heap_start),
    core_start = const CORE_START,
    resources = const RESOURCES,
    terminate = const TERMINATE,
    idle = const IDLE,
    port = const PORT,
);

unsafe extern "C" {
    static pause_count: u8;
    static pause_count_end: u8;
    static pause_both: u8;
    static pause_both_end: u8;
    static pause_rest: u8;
    static pause_rest_end: u8;
    static pause_nap: u8;
    static pause_nap_end: u8;
}

fn image(from: &'static u8, to: &'static u8) -> Arc<LoadedImage> {
    // SAFETY: the callers name labels defined above.
    LoadedImage::of_code(&unsafe { code(from, to) })
}

fn count() -> Arc<LoadedImage> {
    // SAFETY: labels defined above.
    unsafe { image(&pause_count, &pause_count_end) }
}

fn rest() -> Arc<LoadedImage> {
    // SAFETY: as above.
    unsafe { image(&pause_rest, &pause_rest_end) }
}

fn cell(config: Config) -> Cell {
    Cell::new(&config).expect("a usable /dev/kvm")
}

fn plain(workers: usize) -> Config {
    Config { kept_machines: 64, ..Config::new(workers, 64 << 20, std::io::stderr().as_raw_fd()) }
}

fn spec(image: Arc<LoadedImage>) -> GuestSpec {
    GuestSpec { memory: 1 << 20, ..GuestSpec::new(image, "guest") }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let since = Instant::now();
    while !done() {
        assert!(since.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

const SOON: Duration = Duration::from_secs(20);

/// A counter in the guest's heap.
fn counter(guest: &Guest, word: u64) -> u64 {
    let mut bytes = [0; 8];
    assert!(guest.memory.read(guest.memory.plan().heap_start + 8 * word, &mut bytes));
    u64::from_le_bytes(bytes)
}

fn counts(guest: &Guest, word: u64) -> bool {
    let before = counter(guest, word);
    let since = Instant::now();
    while since.elapsed() < SOON {
        if counter(guest, word) != before {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}

fn stands_still(guest: &Guest, words: u64) {
    let all = || (0..words).map(|word| counter(guest, word)).collect::<Vec<_>>();
    let before = all();
    std::thread::sleep(Duration::from_millis(60));
    assert_eq!(before, all(), "it has run while it was paused");
}

fn kill(guest: &Guest) {
    guest.finish(End::Killed("the test has seen enough".to_owned()));
}

fn status(guest: &Guest) -> u64 {
    until("it ends", || guest.has_ended());
    match guest.end() {
        Some(End::Exited(status)) => *status,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_paused_guest_executes_nothing_and_goes_on() {
    let cell = cell(plain(1));
    let guest = cell.start(&spec(count())).unwrap();
    assert!(!guest.is_paused() && !guest.wait_until_held(Duration::ZERO), "it may run");
    for _ in 0..20 {
        assert!(counts(&guest, 0));
        guest.pause();
        guest.pause();
        assert!(guest.is_paused() && guest.wait_until_held(SOON));
        stands_still(&guest, 1);
        guest.resume();
        guest.resume();
        assert!(!guest.is_paused());
    }
    assert!(counts(&guest, 0));
}

#[test]
fn all_cores_of_a_guest_are_paused() {
    let cell = cell(plain(2));
    // SAFETY: labels defined above.
    let image = unsafe { image(&pause_both, &pause_both_end) };
    let guest = cell.start(&GuestSpec { cores: 2, ..spec(image) }).unwrap();
    for _ in 0..5 {
        assert!(counts(&guest, 0) && counts(&guest, 1));
        guest.pause();
        assert!(guest.wait_until_held(SOON));
        stands_still(&guest, 2);
        guest.resume();
    }
    assert!(counts(&guest, 0) && counts(&guest, 1));
}

#[test]
fn a_guest_can_be_paused_before_its_first_instruction() {
    let cell = cell(plain(1));
    let guest = cell.start(&GuestSpec { paused: true, ..spec(count()) }).unwrap();
    assert!(guest.wait_until_held(SOON));
    stands_still(&guest, 1);
    assert_eq!((counter(&guest, 0), guest.entered()), (0, None));
    guest.resume();
    assert!(counts(&guest, 0));
}

#[test]
fn a_guest_is_killed_while_it_is_paused_and_its_machine_goes_to_the_next() {
    let cell = cell(plain(1));
    for (round, image) in [count(), rest(), count(), rest()].into_iter().enumerate() {
        let guest = cell.start(&spec(image)).unwrap();
        if round < 2 {
            until("it runs", || guest.entered().is_some());
        }
        guest.pause();
        assert!(guest.wait_until_held(SOON));
        kill(&guest);
        assert!(guest.wait_until_held(SOON));
        until("its machine is kept", || cell.machines_reused() == 1 + round as u64);
        guest.resume();
        assert!(guest.has_ended());
        cell.forget(&guest);
        until("nothing holds it", || Arc::strong_count(&guest) == 1);
    }
}

#[test]
fn a_deadline_that_passes_meanwhile_is_seen_at_once() {
    let cell = cell(plain(1));
    // SAFETY: labels defined above.
    let image = unsafe { image(&pause_nap, &pause_nap_end) };
    let guest = cell.start(&spec(image)).unwrap();
    guest.pause();
    assert!(guest.wait_until_held(SOON));
    std::thread::sleep(Duration::from_millis(500));
    assert!(!guest.has_ended());
    let since = Instant::now();
    guest.resume();
    assert_eq!(status(&guest), interrupt::TIMER);
    assert!(since.elapsed() < Duration::from_millis(250), "it waited once more: {:?}", since.elapsed());
}

#[test]
fn interrupts_that_come_meanwhile_are_pending() {
    let cell = cell(plain(1));
    // At rest, and before its first instruction.
    for paused in [false, true] {
        let guest = cell.start(&GuestSpec { paused, ..spec(rest()) }).unwrap();
        until("it is where it should be", || paused || guest.schedule().running.load(Ordering::Relaxed) == 0);
        guest.pause();
        assert!(guest.wait_until_held(SOON));
        guest.raise(0, interrupt::NET_RX);
        guest.ask_to_stop();
        std::thread::sleep(Duration::from_millis(50));
        assert!(!guest.has_ended() && guest.wait_until_held(Duration::ZERO));
        guest.resume();
        assert_eq!(status(&guest), interrupt::NET_RX | interrupt::STOP);
    }
}

#[test]
fn a_guest_at_its_limit_of_processor_time_is_paused_and_killed_as_any_other() {
    let cell = cell(plain(1));
    let processor = ProcessorSpec { limit: Some(50), ..ProcessorSpec::default() };
    for round in 0..3 {
        let guest = cell.start(&GuestSpec { processor, ..spec(count()) }).unwrap();
        assert!(counts(&guest, 0));
        // Most of the time it sits out its limit.
        std::thread::sleep(Duration::from_millis(100));
        for _ in 0..10 {
            guest.pause();
            assert!(guest.wait_until_held(SOON));
            stands_still(&guest, 1);
            guest.resume();
            assert!(counts(&guest, 0));
        }
        if round == 1 {
            guest.pause();
        }
        kill(&guest);
        until("its machine is kept", || cell.machines_reused() == 1 + round);
        cell.forget(&guest);
    }
}

#[test]
fn a_paused_guest_does_without_its_machine() {
    let cell = cell(Config { machines: Some(1), ..plain(1) });
    let first = cell.start(&spec(count())).unwrap();
    assert!(counts(&first, 0));
    first.pause();
    assert!(first.wait_until_held(SOON));
    let before = counter(&first, 0);
    // There is one machine for both.
    let second = cell.start(&spec(count())).unwrap();
    until("the other has its machine", || cell.machines_taken_away() >= 1);
    assert!(counts(&second, 0));
    assert_eq!(counter(&first, 0), before);
    second.pause();
    assert!(second.wait_until_held(SOON));
    first.resume();
    assert!(counts(&first, 0) && counter(&first, 0) > before, "it goes on from where it was");
    first.pause();
    assert!(first.wait_until_held(SOON));
    kill(&first);
    kill(&second);
}

#[test]
fn a_trace_tells_what_a_guest_did_and_when() {
    let cell = cell(plain(1));
    // SAFETY: labels defined above.
    let image = unsafe { image(&pause_nap, &pause_nap_end) };
    let guest = cell.start(&GuestSpec { paused: true, ..spec(image) }).unwrap();
    assert!(guest.wait_until_held(SOON));
    let mut trace = guest.trace(100).unwrap();
    assert!(guest.trace(100).is_none(), "there is one at a time");
    guest.resume();
    assert_eq!(status(&guest), interrupt::TIMER);
    assert!(guest.wait_until_held(SOON));
    let mut all = Vec::new();
    while let Some(happened) = trace.take() {
        eprintln!("{happened}");
        all.push(happened);
    }
    let of =
        |event| all.iter().find(|happened| happened.event == event).unwrap_or_else(|| panic!("no {event:?}"));
    let (idle, timer, end) = (
        of(Event::Hypercall(IDLE as u32)),
        of(Event::Raised(interrupt::TIMER as u32)),
        of(Event::Hypercall(TERMINATE as u32)),
    );
    assert!(idle.at < timer.at && timer.at < end.at && timer.at >= 300_000_000, "{all:?}");
    assert_eq!(trace.dropped(), 0);
    drop(trace);
    assert!(guest.trace(1).is_some());
}

/// Whatever happens to a guest in whatever order: it goes on after the last resume, or ends when it is killed.
#[test]
fn no_guest_is_stuck_between_pause_resume_and_kill() {
    let cell = cell(plain(2));
    let (count, rest) = (count(), rest());
    let begun = Instant::now();
    let mut rounds = 0;
    while begun.elapsed() < Duration::from_secs(8) {
        let capped = ProcessorSpec { limit: Some(200), ..ProcessorSpec::default() };
        let guests: Vec<Arc<Guest>> = [
            cell.start(&spec(Arc::clone(&count))),
            cell.start(&GuestSpec { immediate: true, ..spec(Arc::clone(&rest)) }),
            cell.start(&GuestSpec { processor: capped, ..spec(Arc::clone(&count)) }),
            cell.start(&spec(Arc::clone(&rest))),
        ]
        .into_iter()
        .map(Result::unwrap)
        .collect();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let (guests, over) = (&guests, &over);
                scope.spawn(move || {
                    let mut n = thread;
                    while !over.load(Ordering::Relaxed) {
                        n = (n * 1_103_515_245 + 12_345) & 0x7fff_ffff;
                        let guest = &guests[n / 8 % guests.len()];
                        match n / 64 % 4 {
                            0 => guest.resume(),
                            1 => _ = guest.wait_until_held(Duration::from_micros(50)),
                            _ => guest.pause(),
                        }
                        if n % 7 == 0 {
                            std::thread::sleep(Duration::from_micros(n as u64 % 300));
                        }
                    }
                });
            }
            std::thread::sleep(Duration::from_millis(50 + rounds % 50));
            if rounds % 2 == 0 {
                // In the middle of it.
                kill(&guests[0]);
                kill(&guests[3]);
            }
            over.store(true, Ordering::Relaxed);
        });
        for guest in &guests {
            guest.resume();
        }
        assert!(counts(&guests[2], 0), "a counter is stuck");
        assert!(rounds % 2 == 0 || counts(&guests[0], 0), "a counter is stuck");
        guests[1].ask_to_stop();
        assert_eq!(status(&guests[1]), interrupt::STOP);
        for guest in &guests {
            guest.pause();
            kill(guest);
        }
        rounds += 1;
        until("all machines are kept", || cell.machines_reused() == 4 * rounds);
        for guest in &guests {
            cell.forget(guest);
        }
    }
    eprintln!("{rounds} rounds");
}
