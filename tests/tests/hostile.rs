//! Misbehaving guests: each ends with exactly the report that its case expects, and a web server that was launched in
//! the same command never notices.

use std::time::{Duration, Instant};

use foraker_tests::bounds::{emulated, eventually, seconds, stretched};
use foraker_tests::hostile::{self, CALLS, Case, Expect, FAULTS, FLOODS, RINGS, is_done, judge};
use foraker_tests::http;
use foraker_tests::launch::{httpd, image, launch};
use foraker_tests::prober::Prober;

/// Cases in one launch, beside the web server.
const TOGETHER: usize = 8;
/// How long guests wait before their deeds, so that requests are under way, and how long these go on behind the deeds.
fn margins() -> (Duration, Duration) {
    if emulated() {
        (Duration::from_millis(1200), Duration::from_millis(800))
    } else {
        (Duration::from_millis(300), Duration::from_millis(300))
    }
}

/// How long endless deeds are watched.
const ENDLESS: Duration = Duration::from_millis(1500);
/// The longest that an answer may take while neighbours misbehave.
const SLOWEST: Duration = Duration::from_secs(5);

/// The lines of a guest's console.
fn lines_of<'a>(stderr: &'a str, name: &str) -> Vec<&'a str> {
    let prefix = format!("{name}| ");
    stderr.lines().filter_map(|line| line.strip_prefix(&prefix)).collect()
}

/// Launches the web server and some cases, asks the server all the while, and returns what is wrong.
fn neighbours(cases: &[&Case]) -> Vec<String> {
    let (before, after) = margins();
    let delay = format!("DELAY_MS={}", before.as_millis());
    let program = image("hostile").display().to_string();
    let mut beside = Vec::new();
    for case in cases {
        beside.extend(["+", "--name", case.name, "-e", &delay].map(str::to_owned));
        beside.extend(case.options.iter().map(|&option| option.to_owned()));
        beside.extend([program.clone(), case.name.to_owned()]);
    }
    let (mut running, server) = httpd(&[], &beside);
    http::wait_until_serving(server, Duration::from_secs(10));
    let prober = Prober::start(server);
    let started = Instant::now();
    let undone = |stderr: &str| -> Vec<&str> {
        cases.iter().map(|case| case.name).filter(|name| !is_done(&lines_of(stderr, name))).collect()
    };
    let done =
        eventually(Duration::from_secs(20), || undone(&running.stderr()).is_empty() || !running.is_running());
    let endless = cases.iter().any(|case| matches!(case.expect, Expect::Endless));
    std::thread::sleep(if endless { ENDLESS } else { after });
    let seen = prober.finish();
    let watched = started.elapsed();
    let mut problems = Vec::new();
    if !done {
        problems.push(format!("not done in time: {:?}", undone(&running.stderr())));
    }
    let ended = running.stop();
    let report = ended.report();
    for case in cases {
        if let Err(problem) = judge(case, report.guest(case.name), &lines_of(&ended.stderr, case.name)) {
            problems.push(problem);
        }
    }
    let names: Vec<_> = cases.iter().map(|case| case.name).collect();
    println!("{} requests in {watched:?}, slowest {:?}, beside {names:?}", seen.good, seen.slowest);
    if !seen.errors.is_empty() {
        problems.push(format!("the neighbour's errors beside {names:?}: {:?}", seen.errors));
    }
    if seen.good < if emulated() { 3 } else { 20 } {
        problems.push(format!("the neighbour answered {} requests only beside {names:?}", seen.good));
    }
    if seen.slowest > stretched(SLOWEST) {
        problems.push(format!("the neighbour took {:?} for an answer beside {names:?}", seen.slowest));
    }
    let web = report.guest("web");
    if web.end != "exit" || web.status != Some(0) {
        problems.push(format!("the neighbour ended with {} {:?} {:?}", web.end, web.status, web.fault));
    }
    problems
}

/// Runs the cases of a table: as many as possible in one launch, endless ones apart from those that end.
fn table(cases: &'static [Case]) {
    let chosen = |case: &&Case| std::env::var("CASE").is_ok_and(|name| name != case.name);
    let cases: Vec<&Case> = cases.iter().filter(|case| !chosen(case)).collect();
    let (alone, others): (Vec<_>, Vec<_>) = cases.into_iter().partition(|case| case.alone);
    let (endless, ending): (Vec<_>, Vec<_>) =
        others.into_iter().partition(|case: &&Case| matches!(case.expect, Expect::Endless));
    let groups = alone.chunks(1).chain(endless.chunks(TOGETHER)).chain(ending.chunks(TOGETHER));
    let problems: Vec<String> = groups.flat_map(neighbours).collect();
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

#[test]
fn faults() {
    table(FAULTS);
}

#[test]
fn hypercalls_and_control_page() {
    table(CALLS);
}

#[test]
fn rings_and_frames() {
    table(RINGS);
}

#[test]
fn floods() {
    table(FLOODS);
}

/// The guest and the table know the same cases.
#[test]
fn every_case_has_an_expectation() {
    let running = launch([image("hostile").as_os_str(), "list".as_ref()]);
    let ended = running.wait(Duration::from_secs(10));
    let mut listed: Vec<&str> = ended.stdout.lines().collect();
    let mut expected: Vec<&str> = hostile::all().map(|case| case.name).collect();
    listed.sort_unstable();
    expected.sort_unstable();
    assert_eq!(listed, expected);
}

/// Registers stand in the report as they were at the fault.
#[test]
fn registers_are_exact() {
    let program = image("hostile");
    let running = launch([
        "--json".as_ref(),
        "--name".as_ref(),
        "r".as_ref(),
        program.as_os_str(),
        "registers".as_ref(),
    ]);
    let ended = running.wait(Duration::from_secs(10));
    assert_eq!(ended.status, 120, "{ended}");
    let report = ended.report();
    let fault = report.guest("r").fault.as_ref().expect("a fault");
    let order = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
        "r14", "r15",
    ];
    for (number, name) in (1u64..).zip(order) {
        let pattern = format!("{:#x}", number * 0x0101_0101_0101_0101);
        assert_eq!(fault.registers.get(name), Some(&pattern), "{name} in {fault:?}");
    }
    assert!(fault.function.as_deref().is_some_and(|f| f.contains("patterns")), "{fault:?}");
}

/// A fault report for people names what happened and where.
#[test]
fn the_report_for_people_names_the_place() {
    let program = image("hostile");
    let ended = launch([program.as_os_str(), "null-write".as_ref()]).wait(Duration::from_secs(10));
    assert_eq!(ended.status, 120, "{ended}");
    for part in ["#PF", "page fault", "0x6", "address 0x0", "write_byte", "rip"] {
        assert!(ended.stderr.contains(part), "{part} is missing in {ended}");
    }
}

/// An endless loop is ended by the launch's limit of time, and soon.
#[test]
fn an_endless_loop_meets_the_timeout() {
    let program = image("hostile");
    let limit = seconds(1).as_secs().to_string();
    let started = Instant::now();
    let arguments = [
        "--json".as_ref(),
        "--timeout".as_ref(),
        limit.as_ref(),
        program.as_os_str(),
        "endless-loop".as_ref(),
    ];
    let ended = launch(arguments).wait(Duration::from_secs(15));
    assert_eq!(ended.status, 121, "{ended}");
    let guest = &ended.report().guests[0];
    assert_eq!(guest.end, "killed");
    assert!(guest.reason.as_deref().is_some_and(|r| r.contains("timeout")), "{guest:?}");
    assert!(started.elapsed() >= seconds(1), "too early");
}

/// The same loop ends on a second Ctrl-C, at once.
#[test]
fn an_endless_loop_meets_the_second_interrupt() {
    let program = image("hostile");
    let mut running = launch([program.as_os_str(), "endless-loop".as_ref()]);
    running.wait_for(Duration::from_secs(10), "the loop's start", |text| text.contains("expect"));
    running.signal(libc::SIGINT);
    std::thread::sleep(Duration::from_millis(300));
    assert!(running.is_running(), "the first interrupt only asks");
    running.signal(libc::SIGINT);
    let ended = running.wait(Duration::from_secs(3));
    assert_eq!(ended.status, 130, "{ended}");
}

/// A console flood is cut by its limit, and the rest is counted.
#[test]
fn a_console_flood_is_cut() {
    let program = image("hostile");
    let limit = seconds(2).as_secs().to_string();
    let arguments: [&std::ffi::OsStr; 7] = [
        "--json".as_ref(),
        "--timeout".as_ref(),
        limit.as_ref(),
        "--console-bandwidth".as_ref(),
        "64K".as_ref(),
        program.as_os_str(),
        "console-flood".as_ref(),
    ];
    let ended = launch(arguments).wait(Duration::from_secs(15));
    let guest = &ended.report().guests[0];
    assert!(guest.counter("console_dropped") > 100_000, "{guest:?}");
    let most = 64 * 1024 * (seconds(2).as_secs() + 2);
    assert!((ended.stderr.len() as u64) < most, "{} bytes came out", ended.stderr.len());
}
