//! Guests that misbehave, each in one way: the first argument names it, `list` prints all names.
//!
//! A case that the VMM stops prints `expect ...` first (see [`faults`]); one that comes back ends with status 0 when
//! the VMM answered as the architecture says, 1 when it should have been stopped, and 2 when the answer was another.
#![no_std]
#![no_main]

mod calls;
mod case;
mod faults;
mod floods;
mod frame;
mod guest;
mod instruction;
mod raw_ring;
mod rings;

use case::Verdict;
use guest_libos::println;

guest_libos::entry!(main, stack: guest::STACK, net: true);

/// Status when there is no such case.
const UNKNOWN: i32 = 64;

fn main() -> i32 {
    let Some(name) = guest_libos::args().nth(1) else {
        println!("usage: hostile CASE | list");
        return UNKNOWN;
    };
    let tables = [faults::CASES, calls::CASES, rings::CASES, floods::CASES];
    let mut cases = tables.into_iter().flatten();
    if name == "list" {
        cases.for_each(|case| println!("{}", case.name));
        return 0;
    }
    let Some(case) = cases.find(|case| case.name == name) else {
        println!("no such case: {name}");
        return UNKNOWN;
    };
    wait();
    let verdict = (case.run)();
    match verdict {
        Verdict::Held => println!("held"),
        Verdict::WentOn => println!("went on"),
        Verdict::Failed => println!("failed"),
    }
    verdict.status()
}

/// Waits as long as the variable `DELAY_MS` says, so that those who look on are ready.
fn wait() {
    let delay: u64 = guest_libos::env("DELAY_MS").and_then(|text| text.parse().ok()).unwrap_or(0);
    let until = guest_libos::now() + delay * 1_000_000;
    while guest_libos::now() < until {
        guest_libos::hypercall::idle(until);
        guest_libos::registers::control().pending.store(0, core::sync::atomic::Ordering::SeqCst);
    }
}
