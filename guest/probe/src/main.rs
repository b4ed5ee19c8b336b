//! Measures from inside what cannot be measured from outside. The benchmarks launch it.
//!
//! - `probe hypercall BATCHES CALLS`: round trip of a hypercall that does nothing; one line for each batch.
//! - `probe compute`: computes until it is asked to stop, without an exit; then one line: rounds of work per second.
//! - `probe idle`: says so, and then rests until it is asked to stop: what a live idle guest costs.
//! - `probe resolve 4|6 NAME...`: one line for each name, with its addresses of that family or with what went wrong.
//! - `probe lend MILLISECONDS`: again and again gives back all memory that it does not use, waits so long, asks for it, uses it, and waits once more; a line
//!   for each, the last with the time to the answer.
//! - `probe net`: TCP that is read and discarded (port 5001), TCP that is written for ever (5002), UDP echoes with time
//!   stamps (5003), until it is asked to stop.
#![no_std]
#![no_main]

mod network;

use core::time::Duration;

use guest_libos::net::{Family, resolve_all};
use guest_libos::time::Instant;
use guest_libos::{args, hypercall, interrupt, memory, print, println, registers, task};

guest_libos::entry!(main, net: true);

const USAGE: &str =
    "usage: probe hypercall BATCHES CALLS | compute | idle | resolve 4|6 NAME... | lend MILLISECONDS | net";

fn main() -> Result<(), &'static str> {
    let mut arguments = args().skip(1);
    match arguments.next() {
        Some("hypercall") => {
            let mut number = || arguments.next()?.parse().ok().filter(|n| *n > 0);
            let (batches, calls) = (number().ok_or(USAGE)?, number().ok_or(USAGE)?);
            hypercalls(batches, calls);
            Ok(())
        }
        Some("compute") => {
            compute();
            Ok(())
        }
        Some("idle") => {
            println!("idle");
            while interrupt::take() & interrupt::STOP == 0 {
                hypercall::idle(u64::MAX);
            }
            Ok(())
        }
        Some("resolve") => {
            let family = match arguments.next() {
                Some("4") => Family::V4,
                Some("6") => Family::V6,
                _ => return Err(USAGE),
            };
            task::run(resolve(family, arguments));
            Ok(())
        }
        Some("lend") => {
            let wait = arguments.next().and_then(|n| n.parse().ok()).ok_or(USAGE)?;
            task::run(lend(Duration::from_millis(wait)))
                .map_err(|_| "memory cannot be given back or asked for")
        }
        Some("net") => task::run(network::serve()).map_err(|_| "the network cannot be used"),
        _ => Err(USAGE),
    }
}

async fn resolve(family: Family, names: impl Iterator<Item = &'static str>) {
    for name in names {
        print!("{name}:");
        match resolve_all(name, family).await {
            Ok(addresses) => addresses.iter().for_each(|address| print!(" {address}")),
            Err(e) => print!(" {e}"),
        }
        println!();
    }
}

/// Computes as a batch program does: it never rests, and sees by memory alone that it is asked to stop.
fn compute() {
    /// Steps of a round: some ten microseconds.
    const STEPS: u64 = 10_000;
    let (start, mut rounds, mut state) = (Instant::now(), 0u64, 1u64);
    while interrupt::take() & interrupt::STOP == 0 {
        for _ in 0..STEPS {
            state = core::hint::black_box(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
        rounds += 1;
    }
    let us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX).max(1);
    println!("rounds_per_second {}", rounds.saturating_mul(1_000_000) / us);
}

async fn lend(wait: Duration) -> Result<(), hypercall::Error> {
    let whole = registers().memory_size;
    while !task::is_shutdown_requested() {
        println!("lent {}", whole - memory::give_back_unused(0)?);
        task::sleep(wait).await;
        let start = Instant::now();
        let granted = memory::request(whole).await?;
        println!("{} after {} us", if granted { "granted" } else { "refused" }, start.elapsed().as_micros());
        if granted {
            let last = (registers().memory_end - 8) as *mut u64;
            // SAFETY: the last word of the heap, which has just come back, and which the allocator has not reached.
            let value = unsafe { last.read_volatile() };
            // SAFETY: as above.
            unsafe { last.write_volatile(!0) };
            println!("reads {value}");
        }
        task::sleep(wait).await;
    }
    Ok(())
}

fn hypercalls(batches: u32, calls: u32) {
    for _ in 0..batches {
        let start = Instant::now();
        for _ in 0..calls {
            hypercall::nop();
        }
        println!("hypercall_ns {}", start.elapsed().as_nanos() / u128::from(calls));
    }
}
