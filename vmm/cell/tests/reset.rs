//! A machine that changes guests: one guest fills every register, vector, x87 and segment base, and all its memory; the next one on the same
//! machine looks for any of it at its first instruction.
//!
//! Debug registers are not in a guest's reach; the machine resets them all the same.

use std::arch::global_asm;
use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foraker_abi::hypercall::{IDLE, PORT, TERMINATE};
use foraker_abi::layout::REGISTERS;
use foraker_abi::registers::Registers;
use foraker_cell::{Cell, Config, End, Guest, GuestSpec, LoadedImage};

mod asm;
use asm::code;

// `fill` ends by falling into `look`, so that both together show that what is left is found.
global_asm!(
    ".pushsection .rodata",
    ".globl reset_fill, reset_fill_end, reset_leave, reset_leave_end, reset_look, reset_look_end, reset_rest, reset_rest_end",
    "reset_fill:",
    // The heap.
    "mov r15d, {registers}",
    "mov rdi, [r15 + {heap_start}]",
    "mov rbx, rdi",
    "mov rcx, [r15 + {memory_end}]",
    "sub rcx, rdi",
    "mov al, 0xa5",
    "rep stosb",
    // Everything that XCR0 enables, from an XSAVE area of 0xa5 with a header that makes sense.
    "xor ecx, ecx",
    "xgetbv",
    "mov [rbx + 512], eax",
    "mov [rbx + 516], edx",
    "lea rdi, [rbx + 520]",
    "mov ecx, 7",
    "xor eax, eax",
    "rep stosq",
    "mov word ptr [rbx], 0x127f",
    "mov dword ptr [rbx + 24], 0x9fc0",
    "mov eax, -1",
    "mov edx, -1",
    "xrstor [rbx]",
    // The rights of protection key 0, which are among it where a back end leaves the host's XCR0 in force, are not to keep it from its own memory.
    "xor ecx, ecx",
    "xgetbv",
    "test eax, 0x200",
    "jz 2f",
    "mov eax, 0xa5a5a5a4",
    "xor edx, edx",
    "wrpkru",
    "2:",
    "mov eax, 0x12345678",
    "wrfsbase rax",
    "wrgsbase rax",
    "std",
    "mov rax, 0xa5a5a5a5a5a5a5a5",
    "mov rcx, rax",
    "mov rdx, rax",
    "mov rbx, rax",
    "mov rbp, rax",
    "mov rsi, rax",
    "mov rdi, rax",
    "mov r8, rax",
    "mov r9, rax",
    "mov r10, rax",
    "mov r11, rax",
    "mov r12, rax",
    "mov r13, rax",
    "mov r14, rax",
    "mov r15, rax",
    "reset_fill_end:",
    "reset_leave:",
    "mov edi, 7",
    "mov eax, {terminate}",
    "out {port}, al",
    "reset_leave_end:",
    "reset_look:",
    // General registers and flags.
    "or rax, rbx",
    "or rax, rcx",
    "or rax, rdx",
    "or rax, rbp",
    "or rax, rsi",
    "or rax, rdi",
    "or rax, r8",
    "or rax, r9",
    "or rax, r10",
    "or rax, r11",
    "or rax, r12",
    "or rax, r13",
    "or rax, r14",
    "or rax, r15",
    "mov r14, rax",
    "pushfq",
    "pop rax",
    // The arithmetic flags are those of the last instruction: zero and parity.
    "and rax, ~0x8d5",
    "xor rax, 0x202",
    "or r14, rax",
    "cld",
    "rdfsbase rax",
    "or r14, rax",
    "rdgsbase rax",
    "or r14, rax",
    // Memory.
    "mov r15d, {registers}",
    "mov rbx, [r15 + {heap_start}]",
    "mov rdi, rbx",
    "mov rcx, [r15 + {memory_end}]",
    "sub rcx, rdi",
    "xor eax, eax",
    "repe scasb",
    "setne al",
    "or r14, rax",
    // x87 and vectors: two control words, and zeros.
    "mov eax, -1",
    "mov edx, -1",
    "xsave [rbx]",
    "xor word ptr [rbx], 0x37f",
    "xor dword ptr [rbx + 24], 0x1f80",
    "mov dword ptr [rbx + 28], 0",
    "lea rdi, [rbx + 512]",
    "mov ecx, 8",
    "xor eax, eax",
    "rep stosq",
    "mov rdi, rbx",
    "mov ecx, 4096",
    "xor eax, eax",
    "repe scasb",
    "setne al",
    "or r14, rax",
    "mov rdi, r14",
    "mov eax, {terminate}",
    "out {port}, al",
    "reset_look_end:",
    "reset_rest:",
    "mov rdi, -1",
    "mov eax, {idle}",
    "out {port}, al",
    "jmp reset_rest",
    "reset_rest_end:",
    ".popsection",
    registers = const REGISTERS,
    heap_start = const offset_of!(Registers, heap_start),
    memory_end = const offset_of!(Registers, memory_end),
    terminate = const TERMINATE,
    idle = const IDLE,
    port = const PORT,
);

unsafe extern "C" {
    static reset_fill: u8;
    static reset_fill_end: u8;
    static reset_leave: u8;
    static reset_leave_end: u8;
    static reset_look: u8;
    static reset_look_end: u8;
    static reset_rest: u8;
    static reset_rest_end: u8;
}

fn fill() -> Vec<u8> {
    // SAFETY: labels defined above.
    unsafe { code(&reset_fill, &reset_fill_end) }
}

fn leave() -> Vec<u8> {
    // SAFETY: as above.
    unsafe { code(&reset_leave, &reset_leave_end) }
}

fn look() -> Vec<u8> {
    // SAFETY: as above.
    unsafe { code(&reset_look, &reset_look_end) }
}

fn rest() -> Vec<u8> {
    // SAFETY: as above.
    unsafe { code(&reset_rest, &reset_rest_end) }
}

fn cell() -> Cell {
    let kept = Config { kept_machines: 4, ..Config::new(1, 64 << 20, std::io::stderr().as_raw_fd()) };
    Cell::new(&kept).expect("a usable /dev/kvm")
}

fn until(mut done: impl FnMut() -> bool) {
    let since = Instant::now();
    while !done() {
        assert!(since.elapsed() < Duration::from_secs(30), "nothing happens");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Runs a guest of these instructions to its end.
fn run(cell: &Cell, parts: &[Vec<u8>]) -> u64 {
    let image = LoadedImage::of_code(&parts.concat());
    let guest: Arc<Guest> =
        cell.start(&GuestSpec { memory: 1 << 20, ..GuestSpec::new(image, "guest") }).unwrap();
    until(|| guest.has_ended());
    let status = match guest.end() {
        Some(End::Exited(status)) => *status,
        other => panic!("{other:?}"),
    };
    cell.forget(&guest);
    status
}

#[test]
fn the_next_guest_on_a_machine_sees_nothing_of_the_former() {
    let cell = cell();
    // A new machine is clean, and what is left is found.
    assert_eq!(run(&cell, &[look()]), 0);
    until(|| cell.machines_reused() == 1);
    assert_ne!(run(&cell, &[fill(), look()]), 0);
    for round in 0..4 {
        until(|| cell.machines_reused() == 2 + 2 * round);
        assert_eq!(run(&cell, &[fill(), leave()]), 7);
        until(|| cell.machines_reused() == 3 + 2 * round);
        assert_eq!(run(&cell, &[look()]), 0);
    }
}

/// Whenever a guest is killed, in its turn, at rest or on the way from one to the other, its machine is kept for the next.
#[test]
fn no_machine_is_lost_with_a_guest_that_is_killed() {
    let cell = cell();
    let image = LoadedImage::of_code(&rest());
    for round in 0..300 {
        let guest = cell.start(&GuestSpec { memory: 1 << 20, ..GuestSpec::new(image.clone(), "guest") });
        let guest: Arc<Guest> = guest.unwrap();
        let since = Instant::now();
        while since.elapsed() < Duration::from_micros(5 * (round % 100)) {
            std::hint::spin_loop();
        }
        guest.finish(End::Killed("the test has seen enough".to_owned()));
        until(|| cell.machines_reused() == 1 + round);
        cell.forget(&guest);
    }
}
