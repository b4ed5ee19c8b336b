//! Checks the architecture from inside, line by line: `ok NAME` or `FAIL NAME: detail`.
//!
//! The closing line is `conformance: N ok, N failed`; the exit status is 0 when nothing failed, else 1. Lines
//! `note ...` carry what only a look from outside, or at several runs, can judge.
#![no_std]
#![no_main]

mod calls;
mod context;
mod cores;
mod interrupts;
mod memory;
mod network;
mod processor;
mod report;
mod time;
mod virtual_registers;

/// Bytes of the stack that the image's note asks for: not the default, so that the check means something.
const STACK: u64 = 96 << 10;

guest_libos::entry!(main, stack: STACK, net: true);

fn main() -> i32 {
    let mut report = report::Report::default();
    // First what must hold at the first instruction.
    memory::initial(&mut report);
    network::initial(&mut report);
    interrupts::initial(&mut report);
    virtual_registers::run(&mut report);
    time::run(&mut report);
    calls::run(&mut report);
    memory::run(&mut report);
    processor::run(&mut report);
    context::run(&mut report);
    interrupts::run(&mut report);
    network::run(&mut report);
    cores::run(&mut report);
    report.close()
}
