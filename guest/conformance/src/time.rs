//! Time without exits, and `idle` with deadlines.

use core::sync::atomic::Ordering;

use foraker_abi::hypercall::{FOREVER, IDLE};
use foraker_abi::interrupt;
use guest_libos::registers::control;
use guest_libos::{now, println, registers};

use crate::calls::call;
use crate::report::Report;

/// How late a timer may be on a machine that does other things too.
const LATE_NS: u64 = 2_000_000_000;

/// How early a deadline may come, nanoseconds: not at all, unless the variable `UNSTABLE_CLOCK` says that the host's
/// time-stamp counter is not to be trusted. (KVM then holds a guest's counter back when it changes the processor.)
pub(crate) fn early_ns() -> u64 {
    if guest_libos::env("UNSTABLE_CLOCK").is_some() { 10_000_000 } else { 0 }
}

pub(crate) fn run(report: &mut Report) {
    fields(report);
    monotonic(report);
    no_exits(report);
    idle_deadlines(report);
    idle_past(report);
}

fn fields(report: &mut Report) {
    let t = &registers().time;
    let start = now();
    report.check("time.starts_near_0", start < 600_000_000_000, format_args!("{start} ns"));
    let hz = t.tsc_hz.load(Ordering::SeqCst);
    report.check("time.tsc_hz", (100_000_000..20_000_000_000).contains(&hz), format_args!("{hz}"));
    let multiplier = t.multiplier.load(Ordering::SeqCst);
    let expected = ((1_000_000_000u128 << 32) / u128::from(hz.max(1))) as u64;
    let close = multiplier.abs_diff(expected) <= expected / 1000;
    report.check("time.multiplier", close, format_args!("{multiplier}, {expected} by tsc_hz"));
    report.equal("time.sequence_even", t.sequence.load(Ordering::SeqCst) & 1, 0);
    // After 2020, before 2100.
    let wall = guest_libos::time::wall() / 1_000_000_000;
    report.check("time.wall", (1_577_836_800..4_102_444_800).contains(&wall), format_args!("{wall} s"));
    println!("note wall {wall}");
}

fn monotonic(report: &mut Report) {
    let mut last = now();
    let mut back = 0u32;
    let mut still = 0u32;
    for _ in 0..200_000 {
        let next = now();
        back += u32::from(next < last);
        still += u32::from(next == last);
        last = next;
    }
    report.equal("time.never_goes_back", back, 0);
    report.check("time.goes_on", still < 199_000, format_args!("{still} of 200000 readings alike"));
}

fn no_exits(report: &mut Report) {
    guest_libos::hypercall::nop();
    let before = registers().counters.exits.load(Ordering::SeqCst);
    for _ in 0..100_000 {
        core::hint::black_box(now());
    }
    guest_libos::hypercall::nop();
    let exits = registers().counters.exits.load(Ordering::SeqCst) - before;
    // The nop, and what preemption there was.
    report.check("time.costs_no_exit", exits < 1000, format_args!("{exits} exits for 100000 readings"));
}

fn idle_deadlines(report: &mut Report) {
    let (mut latest, mut earliest) = (0, 0);
    for wait in [1u64, 1_000, 50_000, 500_000, 2_000_000, 20_000_000, 100_000_000] {
        control().pending.swap(0, Ordering::SeqCst);
        let until = now() + wait;
        let result = call(IDLE, [until, 0, 0, 0, 0]);
        let woken = now();
        let pending = control().pending.swap(0, Ordering::SeqCst);
        let name = "time.idle_until";
        report.equal(name, result, 0);
        // Something else may wake a guest early (STOP, a frame); nothing else is configured here but the network.
        let early = woken + early_ns() < until && pending & !interrupt::TIMER == 0;
        report.check(name, !early, format_args!("{wait} ns: {} ns early", until.wrapping_sub(woken)));
        earliest = until.saturating_sub(woken).max(earliest);
        if woken >= until {
            report.check(
                name,
                pending & interrupt::TIMER != 0,
                format_args!("TIMER not pending: {pending:#x}"),
            );
            latest = latest.max(woken - until);
        }
    }
    report.check("time.idle_wakes_in_time", latest < LATE_NS, format_args!("{latest} ns late"));
    println!("note latest_timer_ns {latest}");
    println!("note earliest_timer_ns {earliest}");
}

fn idle_past(report: &mut Report) {
    for until in [0, 1, now() - 1, now()] {
        control().pending.swap(0, Ordering::SeqCst);
        let start = now();
        let result = call(IDLE, [until, 0, 0, 0, 0]);
        let took = now() - start;
        let holds = result == 0 && took < LATE_NS;
        report.check("time.idle_until_past", holds, format_args!("until {until}: {result}, {took} ns"));
    }
    // With something pending there is nothing to wait for.
    control().pending.fetch_or(interrupt::WAKE, Ordering::SeqCst);
    let start = now();
    let result = call(IDLE, [FOREVER, 0, 0, 0, 0]);
    let took = now() - start;
    let pending = control().pending.swap(0, Ordering::SeqCst);
    report.check(
        "time.idle_while_pending",
        result == 0 && took < LATE_NS,
        format_args!("{result}, {took} ns"),
    );
    report.check("time.idle_takes_no_bits", pending & interrupt::WAKE != 0, format_args!("{pending:#x}"));
}
