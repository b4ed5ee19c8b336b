//! Prints what confinement costs: of a system call in a worker, with the filter and without, and of a process' start. Runs of both kinds in turn, each in a
//! process of its own; medians and quartiles.

use std::process::Command;
use std::time::{Duration, Instant};

use foraker_confine::{Files, Kind, begin, enter, finish};

/// Runs of each kind.
const RUNS: usize = 40;
/// Calls of a run.
const CALLS: u32 = 200_000;
const KVM_RUN: u64 = 0xae80;

/// Nanoseconds of a call that the kernel refuses at once: without a descriptor.
fn call(number: i64, request: u64) -> f64 {
    let start = Instant::now();
    for _ in 0..CALLS {
        // SAFETY: no descriptor, so that nothing is done.
        unsafe { libc::syscall(number, -1i64, request, 0u64) };
    }
    start.elapsed().as_nanos() as f64 / f64::from(CALLS)
}

fn microseconds(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1000.0
}

/// One run, in a process of its own.
fn run(confined: bool) {
    let mut times = Vec::new();
    if confined {
        let start = Instant::now();
        begin(Files::default()).expect("begun");
        times.push(("begin, us", microseconds(start.elapsed())));
        let entered = std::thread::spawn(|| {
            let start = Instant::now();
            enter(Kind::Worker);
            let entered = microseconds(start.elapsed());
            (entered, call(libc::SYS_ioctl, KVM_RUN), call(libc::SYS_read, 0))
        });
        let (entered, ioctl, read) = entered.join().expect("confined");
        times.extend([("enter, us", entered), ("ioctl, ns", ioctl), ("read, ns", read)]);
        let start = Instant::now();
        finish(Kind::Launch).expect("finished");
        times.push(("finish, us", microseconds(start.elapsed())));
    } else {
        times.extend([("ioctl, ns", call(libc::SYS_ioctl, KVM_RUN)), ("read, ns", call(libc::SYS_read, 0))]);
    }
    for (name, time) in times {
        println!("{name}={time:.1}");
    }
}

fn main() {
    let kind = std::env::args().nth(1);
    if let Some(kind) = kind {
        return run(kind == "confined");
    }
    let own = std::env::current_exe().expect("this program");
    let mut all: std::collections::BTreeMap<(String, &str), Vec<f64>> = std::collections::BTreeMap::new();
    for round in 0..RUNS {
        let mut kinds = ["without", "confined"];
        kinds.rotate_left(round % 2);
        for kind in kinds {
            let output = Command::new(&own).arg(kind).output().expect("run");
            for line in String::from_utf8_lossy(&output.stdout).lines() {
                let (name, time) = line.split_once('=').expect("a time");
                all.entry((name.to_owned(), kind)).or_default().push(time.parse().expect("a number"));
            }
        }
    }
    for ((name, kind), mut times) in all {
        times.sort_by(f64::total_cmp);
        let at = |part: usize| times[times.len() * part / 4];
        println!(
            "{name:<11} {kind:<9} median {:>7.1}, quartiles {:.1} and {:.1}, n = {}",
            at(2),
            at(1),
            at(3),
            times.len()
        );
    }
}
