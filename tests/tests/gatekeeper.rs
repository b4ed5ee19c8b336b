//! Who is admitted, who waits and who is refused, through the real command.

use foraker_tests::bounds::{eventually, seconds};
use foraker_tests::launch::image;
use foraker_tests::supervisor::Serve;

/// A guest that rests until it is asked to end.
const RESTS: [&str; 4] = ["--no-net", "-m", "1M", "--small-pages"];

fn run(serve: &Serve, options: &[&str]) -> foraker_tests::launch::Ended {
    let probe = image("probe").display().to_string();
    serve.ask(&[&["run", "-d"], options, &RESTS[..], &[&probe, "idle"]].concat())
}

/// Where the guest of this number is in its life.
fn phase(serve: &Serve, id: u64) -> String {
    serve.guests().into_iter().find(|g| g.id == id).expect("a guest").phase
}

fn becomes(serve: &Serve, id: u64, expected: &str) {
    let there = eventually(seconds(10), || phase(serve, id) == expected);
    assert!(there, "guest {id} is not {expected}: {:?}", serve.guests());
}

#[test]
fn what_can_never_be_admitted_is_refused_with_the_reason() {
    let serve = Serve::start_with("never", 1, "10.124", &["--memory", "16M", "--cpus", "2"]);
    let set = serve.ask(&["owner", "set", "small", "--max-memory", "2M", "--max-guests", "1"]);
    assert_eq!(set.status, 0, "{set}");
    for (options, expected) in [
        (&["-m", "64M"][..], "it needs 64.6 MiB of memory, and the host gives 16 MiB of memory in all"),
        (&["-m", "1M", "--cpus", "2.5"], "it needs 2.5 processors, and the host gives 2 processors in all"),
        (&["--owner", "small", "-m", "2M"], "refused for owner small: it needs 2.6 MiB of memory"),
        (&["-m", "1M", "--owner", "a b"], "is no name of an owner"),
    ] {
        let probe = image("probe").display().to_string();
        let ended = serve.ask(&[&["run", "-d", "--no-net"], options, &[&probe, "idle"]].concat());
        assert_eq!((ended.status, ended.stderr.lines().count()), (125, 1), "{options:?}: {ended}");
        assert!(ended.stderr.contains(expected), "{options:?}: {ended}");
    }
    let set = serve.ask(&["owner", "set", "greedy", "--provision-memory", "17M"]);
    assert!(set.status == 125 && set.stderr.contains("the host gives 16 MiB"), "{set}");
    assert!(serve.guests().is_empty(), "nothing of it is there");
    assert_eq!(serve.stop().status, 0);
}

#[test]
fn who_finds_no_room_waits_in_a_line_that_is_bounded() {
    let serve = Serve::start_with("line", 1, "10.125", &["--max-guests", "2", "--max-waiting", "4"]);
    let set = serve.ask(&["owner", "set", "small", "--max-guests", "1"]);
    assert_eq!(set.status, 0, "{set}");
    assert_eq!(run(&serve, &["--count", "2", "--owner", "small"]).status, 0);
    becomes(&serve, 1, "running");
    assert_eq!(phase(&serve, 2), "waiting", "its owner may have one");
    assert_eq!(run(&serve, &[]).status, 0, "another owner may");
    // Taken whole or not at all: two of an owner may wait.
    let refused = run(&serve, &["--count", "3"]);
    assert_eq!((refused.status, refused.stderr.lines().count()), (125, 1), "{refused}");
    assert!(refused.stderr.contains("its owner's part of the line is full: 2 of its guests"), "{refused}");
    assert_eq!(run(&serve, &["--count", "2"]).stdout.trim(), "4..5");
    assert_eq!(run(&serve, &["--owner", "third", "--priority", "7"]).stdout.trim(), "6");
    let refused = run(&serve, &["--owner", "fourth"]);
    assert!(refused.status == 125 && refused.stderr.contains("the line is full: 4 guests"), "{refused}");
    // Its owner and the third have nothing now: who waits for longer comes first.
    assert_eq!(serve.ask(&["stop", "3"]).status, 0);
    becomes(&serve, 4, "running");
    assert_eq!((phase(&serve, 2).as_str(), phase(&serve, 6).as_str()), ("waiting", "waiting"));
    assert_eq!(serve.ask(&["stop", "1"]).status, 0);
    becomes(&serve, 2, "running");
    // Who waits can be ended too.
    assert_eq!(serve.ask(&["stop", "5"]).status, 0);
    assert_eq!(phase(&serve, 5), "killed: while it waited");
    let owners = serve.ask(&["owner", "ls"]);
    let line = owners.stdout.lines().find(|l| l.starts_with("small ")).expect("an owner");
    assert!(line.contains(" 1/1 ") && line.contains(" 50.0% "), "{owners}");
    assert_eq!(serve.stop().status, 0);
}

#[test]
fn what_was_lent_comes_back_when_its_owner_asks() {
    let serve = Serve::start_with("lent", 1, "10.126", &["--cpus", "3"]);
    let set = serve.ask(&["owner", "set", "landlord", "--provision-cpus", "2"]);
    assert_eq!(set.status, 0, "{set}");
    assert_eq!(run(&serve, &["--cpus", "1", "--count", "2"]).status, 0);
    assert_eq!(run(&serve, &["--cpus", "1", "--restart", "on-failure"]).status, 0);
    // `run` waits until they run.
    let asked = run(&serve, &["--cpus", "1", "--owner", "landlord", "--count", "2"]);
    assert_eq!((asked.status, asked.stdout.trim()), (0, "4..5"), "{asked}");
    let phases: Vec<_> = serve.guests().into_iter().map(|g| g.phase).collect();
    let lent = "killed: what it used was lent, and owner landlord asked for it back";
    assert_eq!(phases, ["running", lent, "waiting", "running", "running"]);
    // Its turn comes again.
    assert_eq!(serve.ask(&["stop", "4"]).status, 0);
    becomes(&serve, 3, "running");
    assert_eq!(serve.stop().status, 0);
}

/// The two kinds of provision of a single guest, by what it sees itself.
#[test]
fn what_a_guest_has_lent_comes_back_when_it_asks() {
    // Room for the one, and for what it lends, but not for both.
    let serve = Serve::start_with("guest", 1, "10.127", &["--memory", "20M"]);
    let probe = image("probe").display().to_string();
    let lender = ["run", "-d", "--no-net", "-m", "16M", "--small-pages", "--provision-memory", "16M"];
    let lends = serve.ask(&[&lender[..], &["--provision-cpus", "0.5", &probe, "lend", "500"]].concat());
    assert_eq!(lends.status, 0, "{lends}");
    let refused = serve.ask(&[&lender[..], &[&probe, "lend", "500"]].concat());
    assert!(refused.status == 125 && refused.stderr.contains("would be provisioned in all"), "{refused}");
    let more = serve.ask(&["run", "-d", "-m", "1M", "--provision-memory", "2M", &probe, "idle"]);
    assert!(more.status == 125 && more.stderr.contains("--provision-memory is more than"), "{more}");
    let borrower =
        ["run", "-d", "--no-net", "-m", "8M", "--small-pages", "--restart", "always", &probe, "idle"];
    assert_eq!(serve.ask(&borrower).stdout.trim(), "2");
    // It runs while the lender does without, and makes room as often as that asks.
    let came_back = || serve.guests().iter().find(|g| g.id == 2).is_some_and(|g| g.restarts >= 2);
    assert!(eventually(seconds(20), came_back), "{:?}", serve.guests());
    assert_eq!(phase(&serve, 1), "running");
    let printed = serve.ask(&["logs", "1"]).stdout;
    assert!(printed.contains("granted after") && !printed.contains("refused after"), "{printed}");
    assert!(!printed.lines().any(|l| l.contains("reads ") && !l.ends_with("reads 0")), "{printed}");
    assert_eq!(serve.stop().status, 0);
}

#[test]
fn what_is_settled_for_all_outlives_the_supervisor_and_its_command_line() {
    let serve = Serve::start_with("settled", 2, "10.212", &["--max-guests", "9"]);
    let shown = |serve: &Serve| {
        let shown = serve.ask(&["gatekeeper", "show"]);
        serde_json::from_str::<serde_json::Value>(&shown.stdout).unwrap_or_else(|e| panic!("{e}: {shown}"))
    };
    assert_eq!(shown(&serve)["settings"]["budget"]["guests"], 9);
    let set = serve.ask(&["gatekeeper", "set", "--max-guests", "1", "--max-waiting", "3"]);
    assert_eq!(set.status, 0, "{set}");
    // A cell for the bank alone: settled as long as one is empty.
    let given = serve.ask(&["owner", "set", "bank", "--cells", "1"]);
    assert_eq!(given.status, 0, "{given}");
    let refused = serve.ask(&["owner", "set", "shop", "--cells", "1"]);
    assert!(refused.status == 125 && refused.stderr.lines().count() == 1, "{refused}");
    assert!(refused.stderr.contains("start the supervisor with more --cells"), "{refused}");
    assert_eq!(run(&serve, &["--owner", "bank", "--restart", "always"]).status, 0);
    becomes(&serve, 1, "running");
    assert_eq!(run(&serve, &["--no-wait"]).status, 0);
    becomes(&serve, 2, "waiting");

    let serve = serve.killed_and_started_again();
    let kept = shown(&serve);
    assert_eq!(
        (&kept["settings"]["budget"]["guests"], &kept["settled"]["budget"]["guests"]),
        (&1.into(), &1.into())
    );
    assert_eq!(kept["settings"]["most_waiting"], 3);
    let owners = || serve.ask(&["system", "cells", "--format", "{{owner}}"]).stdout;
    assert_eq!(owners().lines().filter(|line| *line == "bank").count(), 1, "{}", owners());
    becomes(&serve, 1, "running");
    assert_eq!(phase(&serve, 2), "waiting");
    assert_eq!(serve.ask(&["gatekeeper", "reset"]).status, 0);
    becomes(&serve, 2, "running");
    let guests = serve.guests();
    assert_ne!(guests[0].cell, guests[1].cell, "they are in two processes");
    assert!(shown(&serve)["settled"].is_null());
    assert_eq!(serve.stop().status, 0);
}
