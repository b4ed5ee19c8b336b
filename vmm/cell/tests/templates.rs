//! Guests that start from where another one was ready, some of them on a machine that was made ready ahead: each goes on with the former's registers and
//! memory, and is somebody else.

use std::arch::global_asm;
use std::collections::HashSet;
use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foraker_abi::hypercall::{PORT, READY, TERMINATE};
use foraker_abi::layout::REGISTERS;
use foraker_abi::registers::Registers;
use foraker_cell::{Cell, Config, End, Guest, GuestSpec, LoadedImage};

mod asm;
use asm::code;

// Ends with what the middle part puts into RDI, shifted by 8; below, whether `ready` has returned again (bit 0), and whether anything was lost (bit 1).
global_asm!(
    ".pushsection .rodata",
    ".globl template_begin, template_begin_end, template_id, template_id_end, template_entropy, template_entropy_end",
    ".globl template_end, template_end_end",
    "template_begin:",
    "mov r15d, {registers}",
    "mov rbx, [r15 + {heap_start}]",
    "mov dword ptr [rbx], 0x11223344",
    "mov dword ptr [rbx + 0x9000], 0x55667788",
    "mov r12, 0x123456789abcdef0",
    "movq xmm5, r12",
    "mov r13, rsp",
    "mov eax, {ready}",
    "out {port}, al",
    "mov r14, rax",
    "xor ecx, ecx",
    "cmp dword ptr [rbx], 0x11223344",
    "setne cl",
    "cmp dword ptr [rbx + 0x9000], 0x55667788",
    "setne dl",
    "or cl, dl",
    "mov rax, 0x123456789abcdef0",
    "cmp r12, rax",
    "setne dl",
    "or cl, dl",
    "movq rsi, xmm5",
    "cmp rsi, rax",
    "setne dl",
    "or cl, dl",
    "cmp r13, rsp",
    "setne dl",
    "or cl, dl",
    "lea r14, [r14 + 2*rcx]",
    "template_begin_end:",
    "template_id:",
    "mov rdi, [r15 + {guest_id}]",
    "template_id_end:",
    "template_entropy:",
    "mov rdi, [r15 + {entropy}]",
    "template_entropy_end:",
    "template_end:",
    "shl rdi, 8",
    "or rdi, r14",
    "mov eax, {terminate}",
    "out {port}, al",
    "template_end_end:",
    ".popsection",
    registers = const REGISTERS,
    heap_start = const offset_of!(Registers, heap_start),
    guest_id = const offset_of!(Registers, guest_id),
    entropy = const offset_of!(Registers, entropy),
    ready = const READY,
    terminate = const TERMINATE,
    port = const PORT,
);

unsafe extern "C" {
    static template_begin: u8;
    static template_begin_end: u8;
    static template_id: u8;
    static template_id_end: u8;
    static template_entropy: u8;
    static template_entropy_end: u8;
    static template_end: u8;
    static template_end_end: u8;
}

fn image(middle: Vec<u8>) -> Arc<LoadedImage> {
    // SAFETY: labels defined above.
    let (begin, end) =
        unsafe { (code(&template_begin, &template_begin_end), code(&template_end, &template_end_end)) };
    LoadedImage::of_code(&[begin, middle, end].concat())
}

fn cell() -> Cell {
    let spare = Config {
        spare_machines: 4,
        kept_machines: 4,
        ..Config::new(1, 64 << 20, std::io::stderr().as_raw_fd())
    };
    Cell::new(&spare).expect("a usable /dev/kvm")
}

/// Runs a guest to its end: what it is, whether it has started from a template, and what it tells.
fn run(cell: &Cell, image: &Arc<LoadedImage>, owner: &str) -> (u64, bool, u64) {
    let spec = GuestSpec {
        memory: 1 << 20,
        from_template: Some(owner.to_owned()),
        ..GuestSpec::new(Arc::clone(image), "guest")
    };
    let guest: Arc<Guest> = cell.start(&spec).unwrap();
    let since = Instant::now();
    while !guest.has_ended() {
        assert!(since.elapsed() < Duration::from_secs(30), "it does not end");
        std::thread::sleep(Duration::from_millis(1));
    }
    let Some(End::Exited(status)) = guest.end() else { panic!("{:?}", guest.end()) };
    cell.forget(&guest);
    assert_eq!(status & 2, 0, "registers or memory were lost");
    (guest.id, status & 1 == 1, status >> 8)
}

/// Runs guests until some have found their start made ahead: how many, at most 200.
fn run_many(cell: &Cell, image: &Arc<LoadedImage>, mut look: impl FnMut(u64, bool, u64)) {
    for _ in 0..200 {
        let (id, again, told) = run(cell, image, "owner");
        look(id, again, told);
        if cell.started_ahead() >= 5 {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("{} of 200 starts were made ahead", cell.started_ahead());
}

#[test]
fn each_goes_on_from_there_as_somebody_else() {
    let cell = cell();
    // SAFETY: labels defined above.
    let image = image(unsafe { code(&template_id, &template_id_end) });
    assert!(!run(&cell, &image, "owner").1, "the first one is the template");
    run_many(&cell, &image, |id, again, told| {
        assert!(again);
        assert_eq!(told, id);
    });
    assert!(!run(&cell, &image, "another").1, "what an owner's guest did is no other owner's start");
}

#[test]
fn none_has_the_entropy_of_another() {
    let cell = cell();
    // SAFETY: labels defined above.
    let image = image(unsafe { code(&template_entropy, &template_entropy_end) });
    let mut seen = HashSet::from([run(&cell, &image, "owner").2]);
    run_many(&cell, &image, |_, again, told| {
        assert!(again && told != 0);
        assert!(seen.insert(told), "twice: {told:#x}");
    });
}
