//! Every misbehaving guest in the same cells as 1,000 well-behaved ones, none of which notices.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use foraker_tests::bounds::{emulated, eventually, seconds};
use foraker_tests::crowd::{Crowd, ask_each};
use foraker_tests::hostile::{self, Case, Expect, judge_listed};
use foraker_tests::launch::image;
use foraker_tests::supervisor::{Listed, Serve};
use foraker_tests::usage::Usage;

/// Well-behaved guests.
const GOOD: usize = 1000;
/// Of these, how many are asked all the while.
const SAMPLE: usize = 50;
/// Misbehaving guests at a time.
const TOGETHER: usize = 8;
/// How long endless deeds are watched.
const ENDLESS: Duration = Duration::from_millis(1000);
/// What a cell may hold more of its own afterwards: machines that are kept for others, and where misbehaving guests were ready.
const PRIVATE: u64 = 48 << 20;
/// What its guests may hold more: pages that good guests have come to need.
const PAGES: u64 = 24 << 20;

fn addresses(guests: &[Listed]) -> Vec<SocketAddr> {
    guests.iter().map(|g| SocketAddr::from((g.ipv4.expect("an address"), 80))).collect()
}

/// Starts a case and waits until it runs; its id.
fn start(serve: &Serve, program: &str, case: &Case) -> u64 {
    let mut arguments = vec!["run", "-d", "--name", case.name];
    for option in case.options {
        // The list of options is that of a launch, where networks have names; here each owner has its own.
        arguments.push(if *option == "--network" { "--owner" } else { option });
    }
    arguments.extend([program, case.name]);
    let run = serve.ask(&arguments);
    assert_eq!(run.status, 0, "{}: {run}", case.name);
    run.stdout.trim().parse().expect("an id")
}

/// Runs some cases at a time; what is wrong with their ends.
fn misbehave(serve: &Serve, program: &str, cases: &[&Case]) -> Vec<String> {
    let ids: Vec<u64> = cases.iter().map(|case| start(serve, program, case)).collect();
    let phases = || -> Vec<String> {
        let guests = serve.guests();
        let phase =
            |id: &u64| guests.iter().find(|g| g.id == *id).map_or("forgotten", |g| &g.phase).to_owned();
        ids.iter().map(phase).collect()
    };
    let mut problems = Vec::new();
    let (endless, ending): (Vec<_>, Vec<_>) =
        ids.iter().zip(cases).partition(|(_, case)| matches!(case.expect, Expect::Endless));
    if !endless.is_empty() {
        std::thread::sleep(ENDLESS);
        for (phase, case) in phases().iter().zip(cases) {
            if matches!(case.expect, Expect::Endless) && phase != "running" {
                problems.push(format!("{}: endless, and listed as {phase:?}", case.name));
            }
        }
        let ids: Vec<String> = endless.iter().map(|(id, _)| id.to_string()).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        let _ = serve.ask(&[&["kill"], &ids[..]].concat());
    }
    let is_open = |phase: &String| ["waiting", "starting", "running", "restarting"].contains(&phase.as_str());
    let mut last = phases();
    eventually(Duration::from_secs(20), || {
        std::thread::sleep(Duration::from_millis(20));
        last = phases();
        !last.iter().any(is_open)
    });
    problems.extend(cases.iter().zip(&last).filter_map(|(case, phase)| judge_listed(case, phase).err()));
    drop(ending);
    problems
}

#[test]
fn the_hostile_suite_beside_a_thousand_good_guests() {
    let good = if emulated() { GOOD / 25 } else { GOOD };
    if good < GOOD {
        println!("NOTE: {good} good guests instead of {GOOD}, as the machine is emulated");
    }
    let serve = Serve::start("beside", 2, "10.143");
    let (httpd, program) = (image("httpd").display().to_string(), image("hostile").display().to_string());
    let began = Instant::now();
    let count = good.to_string();
    let web = ["--small-pages", "-m", "2M", "--name", "good", "--restart", "always"];
    let run = serve.ask(&[&["run", "-d", "--count", &count], &web[..], &[&httpd]].concat());
    assert_eq!(run.status, 0, "{run}");
    println!("{good} guests run after {:?}", began.elapsed());
    let guests = serve.guests();
    let servers = addresses(&guests);
    assert_eq!(servers.len(), good);
    let silent = ask_each(&servers);
    assert!(silent.is_empty(), "{} of them do not answer before: {silent:?}", silent.len());
    let sample: Vec<_> = servers.iter().copied().step_by((good / SAMPLE).max(1)).collect();
    let crowd = Crowd::start(&sample, 2);
    std::thread::sleep(seconds(2));
    let cells = serve.cells();
    let usage = || cells.iter().map(|pid| Usage::of(*pid)).collect::<Vec<_>>();
    let before = usage();

    let chosen = |case: &&Case| std::env::var("CASE").map_or(true, |name| name == case.name);
    let (alone, others): (Vec<&Case>, Vec<_>) = hostile::all().filter(chosen).partition(|case| case.alone);
    let (endless, ending): (Vec<_>, Vec<_>) =
        others.into_iter().partition(|case| matches!(case.expect, Expect::Endless));
    let groups = alone.chunks(1).chain(endless.chunks(TOGETHER)).chain(ending.chunks(TOGETHER));
    let mut problems = Vec::new();
    let (mut cases, began) = (0, Instant::now());
    for group in groups {
        let failed = crowd.seen().failed.len();
        problems.extend(misbehave(&serve, &program, group));
        cases += group.len();
        let seen = crowd.seen();
        if seen.failed.len() > failed {
            let names: Vec<_> = group.iter().map(|case| case.name).collect();
            problems.push(format!("good guests' errors beside {names:?}: {:?}", &seen.failed[failed..]));
        }
    }
    println!("{cases} cases in {:?}", began.elapsed());
    // Memory of guests that have ended, and of requests that are over.
    let mut after = usage();
    let settled = eventually(Duration::from_secs(10), || {
        after = usage();
        before.iter().zip(&after).all(|(b, a)| a.private <= b.private + PRIVATE && a.arena <= b.arena + PAGES)
    });
    for ((number, before), after) in before.iter().enumerate().zip(&after) {
        println!("cell {number} before: {before}\ncell {number} after:  {after}");
    }
    let seen = crowd.finish();
    println!("{} requests, slowest {:?}", seen.good, seen.slowest);
    let silent = ask_each(&servers);
    let noticed: Vec<_> = serve
        .guests()
        .into_iter()
        .filter(|g| g.id <= good as u64 && (g.phase != "running" || g.restarts != 0))
        .collect();
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
    assert!(seen.failed.is_empty(), "errors of good guests: {:?}", seen.failed);
    assert!(noticed.is_empty(), "good guests that did not go on: {noticed:?}");
    assert!(silent.is_empty(), "{} do not answer after: {silent:?}", silent.len());
    assert_eq!(serve.cells(), cells, "cells live on");
    assert!(settled, "cells hold more than before: {before:?} {after:?}");
    assert_eq!(serve.stop().status, 0);
}
