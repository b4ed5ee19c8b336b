//! The smallest guest, and what every launch shares: output, status, report, arguments, environment.

use std::ffi::OsStr;
use std::time::Duration;

use foraker_tests::bounds::{emulated, stretched};
use foraker_tests::launch::{Running, image, launch};

const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn hello_says_hello() {
    let ended = launch([image("hello")]).wait(LIMIT);
    assert_eq!(ended.status, 0, "{ended}");
    assert!(ended.stdout.starts_with("hello from hello"), "{ended}");
    assert_eq!(ended.stdout.lines().count(), 1, "{ended}");
    assert_eq!(ended.stderr, "", "{ended}");
}

#[test]
fn the_report_is_the_last_line() {
    let ended = launch(["--json".as_ref(), "--name".as_ref(), "world".as_ref(), image("hello").as_os_str()])
        .wait(LIMIT);
    assert_eq!(ended.status, 0, "{ended}");
    assert_eq!(ended.stdout.lines().count(), 1, "{ended}");
    assert!(ended.stderr.contains("hello from world"), "the console goes to standard error: {ended}");
    let report = ended.report();
    let guest = report.guest("world");
    assert_eq!((guest.end.as_str(), guest.status), ("exit", Some(0)), "{guest:?}");
    assert!(guest.fault.is_none() && guest.reason.is_none(), "{guest:?}");
    assert!(guest.counter("exits") >= 2, "{guest:?}");
    assert!(guest.cpu_seconds > 0.0 && report.seconds > 0.0 && report.seconds < 600.0, "{report:?}");
    assert!(report.network.is_none() && guest.ipv4.is_none(), "{report:?}");
}

#[test]
fn memory_is_as_asked() {
    let ended = launch(["-m".as_ref(), "2M".as_ref(), image("hello").as_os_str()]).wait(LIMIT);
    assert!(ended.stdout.contains("memory 2048 KiB"), "{ended}");
}

#[test]
fn several_guests_mark_their_lines() {
    let program = image("hello").display().to_string();
    let ended = launch(["--name", "a", &program, "+", "--name", "b", &program, "+", "--name", "c", &program])
        .wait(LIMIT);
    assert_eq!(ended.status, 0, "{ended}");
    for name in ["a", "b", "c"] {
        let line = format!("{name}| hello from {name}");
        assert!(ended.stdout.lines().any(|l| l.starts_with(&line)), "{line}: {ended}");
    }
}

#[test]
fn arguments_and_environment_arrive() {
    let program = image("conformance");
    let arguments: Vec<&OsStr> = ["--no-net", "-e", "COLOUR=blue", "-e", "EMPTY=", "--env", "SPACED=a b=c"]
        .map(OsStr::new)
        .into_iter()
        .chain([program.as_os_str()])
        .chain(["first", "--second", "-p", "", "fünf", "with space"].map(OsStr::new))
        .collect();
    let ended = launch(arguments).wait(Duration::from_secs(60));
    let expected = [
        "note argument conformance",
        "note argument first",
        "note argument --second",
        "note argument -p",
        "note argument ",
        "note argument fünf",
        "note argument with space",
        "note environment COLOUR=blue",
        "note environment EMPTY=",
        "note environment SPACED=a b=c",
    ];
    let lines: Vec<&str> =
        ended.stdout.lines().filter(|l| l.starts_with("note arg") || l.starts_with("note env")).collect();
    assert_eq!(lines, expected, "{ended}");
}

#[test]
fn the_guests_status_is_the_commands() {
    let program = image("hostile");
    let status = |case: &str| launch([program.as_os_str(), case.as_ref()]).wait(LIMIT).status;
    assert_eq!(status("list"), 0);
    assert_eq!(status("no-such-case"), 64);
    assert_eq!(status("panic"), 101);
    assert_eq!(status("ud2"), 120);
    // What a guest may not use is not mistaken for the VMM's own.
    assert_eq!(status("terminate-vmm-status"), 119);
    assert_eq!(status("terminate-large"), 119);
}

#[test]
fn the_first_status_that_is_not_zero_counts() {
    let (hello, hostile) = (image("hello").display().to_string(), image("hostile").display().to_string());
    let arguments = ["--name", "good", &hello, "+", "--name", "bad", &hostile, "panic"];
    let ended = launch(arguments).wait(LIMIT);
    assert_eq!(ended.status, 101, "{ended}");
}

#[test]
fn help_and_version() {
    for (arguments, part) in
        [(&["--help"][..], "launch"), (&["launch", "--help"][..], "--publish"), (&["--version"][..], "vmm ")]
    {
        let ended = Running::start(arguments).wait(LIMIT);
        assert_eq!(ended.status, 0, "{ended}");
        assert!(ended.stdout.contains(part), "{part}: {ended}");
    }
}

#[test]
fn the_doctor_finds_this_machine_usable() {
    let ended = Running::start(&["doctor"]).wait(LIMIT);
    assert_eq!(ended.status, 0, "{ended}");
    assert!(ended.stdout.contains("/dev/kvm"), "{ended}");
    let ended = Running::start(&["doctor", "--json"]).wait(LIMIT);
    let value: serde_json::Value = serde_json::from_str(ended.stdout.trim()).expect("one JSON object");
    assert!(value.is_object(), "{ended}");
}

#[test]
fn many_launches_at_once() {
    let threads: Vec<_> = (0..8)
        .map(|_| {
            std::thread::spawn(|| (0..3).map(|_| launch([image("hello")]).wait(LIMIT).status).sum::<i32>())
        })
        .collect();
    assert_eq!(threads.into_iter().map(|t| t.join().expect("no panic")).sum::<i32>(), 0);
}

/// On one worker: a guest with the least share beside one with the greatest has what it was promised, and what it leaves is the other's.
#[test]
fn processor_time_that_was_promised_is_given() {
    let program = image("hostile").display().to_string();
    let promised = ["--name", "promised", "--no-net", "--cpu-shares", "1", "--provision-cpus", "0.3"];
    let greedy = ["--name", "greedy", "--no-net", "--cpu-shares", "10000"];
    let both = |options: &[&str], case: &str| {
        // Where the machine is emulated, starting takes seconds, alarms are 4 ms late, and a change of guests takes as long.
        let timeout = if emulated() { "15" } else { "3" };
        let launch_options = ["--json", "--workers", "1", "--timeout", timeout];
        let first = [&launch_options[..], options, &[&program, case]].concat();
        let both = [&first[..], &["+"], &greedy, &[&program, "endless-loop"]].concat();
        let report = launch(both).wait(stretched(LIMIT)).report();
        (report.guest("promised").cpu_seconds, report.guest("greedy").cpu_seconds)
    };
    let (own, others) = both(&promised, "endless-loop");
    let kept = if emulated() { 0.2..0.8 } else { 0.25..0.4 };
    assert!(kept.contains(&(own / (own + others))), "{own} s and {others} s");
    // It sleeps: what was promised is lent.
    let (own, others) = both(&promised, "sleep-forever");
    assert!(own < 0.1 * others && others > 1.0, "{own} s and {others} s");
    // Without the promise it would have next to nothing.
    let (own, others) = both(&promised[..5], "endless-loop");
    let little = if emulated() { 0.2 } else { 0.1 };
    assert!(own < little * (own + others), "{own} s and {others} s");
}
