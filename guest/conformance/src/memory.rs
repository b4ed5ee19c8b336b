//! Memory as far as it can be judged without a fault.

use foraker_abi::hypercall::{MEMORY, memory};
use foraker_abi::layout::{self, PAGE_SIZE};
use guest_libos::registers;

use crate::calls::call;
use crate::report::Report;

/// Bytes of the test areas.
const SIZE: usize = 20_000;

static mut ZEROS: [u8; SIZE] = [0; SIZE];
static mut INITIALISED: [u8; SIZE] = [0xc7; SIZE];
static CONSTANT: [u8; SIZE] = [0x3d; SIZE];

/// Whether each of `length` bytes at an address is `value`.
fn holds(address: u64, length: u64, value: u8) -> bool {
    // SAFETY: callers name memory that is mapped.
    (address..address + length).all(|place| unsafe { (place as *const u8).read_volatile() } == value)
}

fn write(address: u64, value: u8) {
    // SAFETY: callers name memory of this program that nothing else uses.
    unsafe { (address as *mut u8).write_volatile(value) };
}

/// Before anything was written.
pub(crate) fn initial(report: &mut Report) {
    let size = SIZE as u64;
    report.check("memory.bss_is_zero", holds((&raw const ZEROS) as u64, size, 0), format_args!("not zero"));
    let data = holds((&raw const INITIALISED) as u64, size, 0xc7);
    report.check("memory.data_is_initialised", data, format_args!("other content"));
    report.check("memory.rodata", holds(CONSTANT.as_ptr() as u64, size, 0x3d), format_args!("other content"));
    let (heap, end) = (registers().heap_start, registers().memory_end);
    let fresh = holds(heap, PAGE_SIZE, 0) && holds(end - PAGE_SIZE, PAGE_SIZE, 0);
    report.check("memory.heap_is_zero", fresh, format_args!("not zero"));
    let unused = holds(registers().stack_top - crate::STACK, 1024, 0);
    report.check("memory.stack_is_zero", unused, format_args!("not zero"));
}

pub(crate) fn run(report: &mut Report) {
    places(report);
    stack(report);
    heap(report);
    discard(report);
}

/// The linker and the VMM agree on where things are.
fn places(report: &mut Report) {
    let text = run as *const () as u64;
    let shared = layout::IMAGE_BASE..layout::PRIVATE_BASE;
    report.check("layout.text", shared.contains(&text), format_args!("{text:#x}"));
    let rodata = CONSTANT.as_ptr() as u64;
    report.check("layout.rodata", shared.contains(&rodata), format_args!("{rodata:#x}"));
    let data = (&raw const INITIALISED) as u64;
    let own = layout::DATA_BASE..registers().heap_start;
    report.check("layout.data", own.contains(&data), format_args!("{data:#x}"));
    let local = 0u8;
    let here = (&raw const local) as u64;
    let stack = registers().stack_top - crate::STACK..registers().stack_top;
    report.check("layout.stack", stack.contains(&here), format_args!("{here:#x}"));
}

/// Every page of the stack that the note asks for is there; the guard below is a hostile guest's affair.
fn stack(report: &mut Report) {
    let bottom = registers().stack_top - crate::STACK;
    write(bottom, 0x11);
    let kept = holds(bottom, 1, 0x11);
    write(bottom, 0);
    report.check("memory.stack_size", kept, format_args!("lost a byte at {bottom:#x}"));
}

/// Pages across the heap hold what is written to them.
fn heap(report: &mut Report) {
    let (start, end) = (registers().heap_start, registers().memory_end);
    let pages = (end - start) / PAGE_SIZE;
    let step = (pages / 64).max(1);
    let places = || (0..pages).step_by(step as usize).map(|page| start + page * PAGE_SIZE);
    for (i, place) in places().enumerate() {
        write(place + 100, i as u8 ^ 0x55);
    }
    let kept = places().enumerate().all(|(i, place)| holds(place + 100, 1, i as u8 ^ 0x55));
    report.check("memory.heap_keeps", kept, format_args!("{pages} pages from {start:#x}"));
    write(end - 1, 0x77);
    report.check("memory.last_byte", holds(end - 1, 1, 0x77), format_args!("{end:#x}"));
}

fn discard(report: &mut Report) {
    let start = registers().heap_start + 8 * PAGE_SIZE;
    for page in 0..4 {
        for place in (0..PAGE_SIZE).step_by(64) {
            write(start + page * PAGE_SIZE + place, 0xe1);
        }
    }
    let result = call(MEMORY, [memory::DISCARD, start + PAGE_SIZE, 2 * PAGE_SIZE, 0, 0]);
    report.equal("memory.discard", result, 0);
    let gone = holds(start + PAGE_SIZE, 2 * PAGE_SIZE, 0);
    report.check("memory.discard_reads_as_zeros", gone, format_args!("content is left"));
    let kept = holds(start, 1, 0xe1) && holds(start + 3 * PAGE_SIZE, 1, 0xe1);
    report.check("memory.discard_keeps_neighbours", kept, format_args!("a neighbouring page changed"));
    write(start + PAGE_SIZE, 0xe2);
    let written = holds(start + PAGE_SIZE, 1, 0xe2) && holds(start + PAGE_SIZE + 1, PAGE_SIZE - 1, 0);
    report.check("memory.discard_then_write", written, format_args!("the page cannot be used again"));
    let data = &raw const INITIALISED as u64;
    let page = (data + PAGE_SIZE) & !(PAGE_SIZE - 1);
    let result = call(MEMORY, [memory::DISCARD, page, PAGE_SIZE, 0, 0]);
    let zeros = result == 0 && holds(page, PAGE_SIZE, 0) && holds(page - 1, 1, 0xc7);
    report.check("memory.discard_data", zeros, format_args!("{result}"));
}
