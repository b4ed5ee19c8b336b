//! The architecture as a guest sees it, line by line.

use std::time::Duration;

use foraker_tests::launch::{Ended, image, launch};

const LIMIT: Duration = Duration::from_secs(60);

/// What the guest is told about the time-stamp counter of this machine.
fn clock() -> &'static [&'static str] {
    if foraker_tests::bounds::emulated() { &["-e", "UNSTABLE_CLOCK=1"] } else { &[] }
}

/// Runs the checks; returns the lines.
fn run(options: &[&str]) -> Ended {
    let program = image("conformance").display().to_string();
    let arguments: Vec<&str> = options.iter().chain(clock()).copied().chain([program.as_str()]).collect();
    launch(arguments).wait(LIMIT)
}

/// Everything passed, nothing was left out, and the closing line says so.
fn passed(ended: &Ended, at_least: usize) {
    let failed: Vec<&str> = ended.stdout.lines().filter(|line| line.starts_with("FAIL")).collect();
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
    assert_eq!(ended.status, 0, "{ended}");
    let ok = ended.stdout.lines().filter(|line| line.starts_with("ok ")).count();
    let closing = format!("conformance: {ok} ok, 0 failed");
    assert_eq!(ended.stdout.lines().last(), Some(closing.as_str()), "{ended}");
    assert!(ok >= at_least, "{ok} checks only, expected {at_least}\n{ended}");
}

fn has(ended: &Ended, names: &[&str]) {
    for name in names {
        let line = format!("ok {name}");
        assert!(ended.stdout.lines().any(|l| l == line), "{line} is missing in {ended}");
    }
}

/// What a line `note NAME VALUE` says.
fn note<'a>(ended: &'a Ended, name: &str) -> &'a str {
    let prefix = format!("note {name} ");
    ended
        .stdout
        .lines()
        .find_map(|l| l.strip_prefix(&prefix))
        .unwrap_or_else(|| panic!("no {prefix} in {ended}"))
}

#[test]
fn with_network_and_two_cores() {
    let ended = run(&["--net", "--cores", "2"]);
    passed(&ended, 150);
    has(&ended, &["net.arp_answered", "net.echo", "net.rings_go_around", "cores.woken", "cores.stops_again"]);
    has(&ended, &["context.nop", "context.upcall", "upcall.nested", "time.idle_wakes_in_time"]);
}

#[test]
fn without_network_and_one_core() {
    let ended = run(&["--no-net", "--cores", "1"]);
    passed(&ended, 120);
    has(&ended, &["registers.net.absent", "cores.none_beyond"]);
}

#[test]
fn with_four_cores() {
    passed(&run(&["--no-net", "--cores", "4"]), 130);
}

#[test]
fn with_little_memory() {
    passed(&run(&["--no-net", "--cores", "1", "--memory", "1M"]), 120);
}

#[test]
fn with_much_memory() {
    // More than one 2 MiB page, and not a whole number of them.
    passed(&run(&["--no-net", "--cores", "1", "--memory", "67M"]), 120);
}

#[test]
fn with_immediate_delivery() {
    passed(&run(&["--net", "--immediate", "--cores", "2"]), 150);
}

#[test]
fn with_rings_served_by_workers() {
    passed(&run(&["--net", "--cores", "1", "--service", "worker"]), 130);
}

#[test]
fn with_rings_served_by_the_uplink() {
    passed(&run(&["--net", "--cores", "1", "--service", "uplink"]), 130);
}

#[test]
fn beside_guests_that_never_exit() {
    let hostile = image("hostile").display().to_string();
    let program = image("conformance").display().to_string();
    let mut arguments = vec!["--json", "--timeout"];
    let limit = foraker_tests::bounds::seconds(60).as_secs().to_string();
    arguments.extend([limit.as_str(), "--no-net", "--name", "c", "-e", "CROWDED=1"]);
    arguments.extend(clock());
    arguments.push(&program);
    for name in ["s1", "s2", "s3"] {
        arguments.extend(["+", "--no-net", "--name", name, &hostile, "endless-loop"]);
    }
    let mut running = launch(arguments);
    running.wait_for(LIMIT, "the closing line", |text| text.contains("c| conformance: "));
    running.signal(libc::SIGINT);
    running.signal(libc::SIGINT);
    let ended = running.wait(LIMIT);
    let failed: Vec<&str> = ended.stderr.lines().filter(|line| line.starts_with("c| FAIL")).collect();
    assert!(failed.is_empty(), "{failed:?}");
    for name in ["preempt.quantum_end", "preempt.notice", "preempt.others_run", "context.spin"] {
        assert!(ended.stderr.contains(&format!("c| ok {name}\n")), "{name} is missing: {}", ended.stderr);
    }
}

#[test]
fn identities_differ_between_runs() {
    let (a, b) = (run(&["--no-net", "--cores", "1"]), run(&["--no-net", "--cores", "1"]));
    for name in ["incarnation", "entropy"] {
        assert_ne!(note(&a, name), note(&b, name), "{name}");
    }
}

#[test]
fn the_wall_clock_is_the_hosts() {
    let ended = run(&["--no-net", "--cores", "1"]);
    let host =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    let guest: u64 = note(&ended, "wall").parse().expect("seconds");
    assert!(guest.abs_diff(host) < foraker_tests::bounds::seconds(60).as_secs(), "{guest} and {host}");
}
