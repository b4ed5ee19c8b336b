//! The supervisor and its cells, through the real command.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use foraker_tests::api;
use foraker_tests::bounds::{emulated, eventually, seconds, stretched};
use foraker_tests::crowd::{Crowd, ask_each};
use foraker_tests::http::{self, Connection};
use foraker_tests::launch::{free_port, image};
use foraker_tests::leftover;
use foraker_tests::supervisor::{LIMIT, Listed, Serve, ask, serve, socket, state};
use foraker_tests::usage::Usage;
use serde_json::json;

fn web(guest: &Listed) -> SocketAddr {
    SocketAddr::from((guest.ipv4.expect("an address"), 80))
}

const WEB: [&str; 5] = ["--small-pages", "-m", "2M", "--name", "web"];

#[test]
fn guests_run_are_listed_and_stop() {
    let serve = Serve::start("list", 2, "10.110");
    let (hello, httpd) = (image("hello").display().to_string(), image("httpd").display().to_string());
    let one = serve.ask(&["run", "-d", &hello]);
    assert_eq!((one.status, one.stdout.trim()), (0, "1"), "{one}");
    let more = serve.ask(&[&["run", "-d", "--count", "4"], &WEB[..], &[&httpd]].concat());
    assert_eq!((more.status, more.stdout.trim()), (0, "2..5"), "{more}");
    let guests = serve.guests();
    assert_eq!(guests.iter().map(|g| g.id).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    let webs: Vec<_> = guests.iter().filter(|g| g.name.starts_with("web-")).collect();
    assert_eq!(webs.len(), 4, "{guests:?}");
    for cell in 0..2 {
        assert_eq!(webs.iter().filter(|g| g.cell == cell).count(), 2, "evenly spread: {guests:?}");
    }
    for guest in &webs {
        assert_eq!(guest.phase, "running");
        http::wait_until_serving(web(guest), seconds(10));
    }
    let stopped = serve.ask(&["stop", "2", "3"]);
    assert_eq!(stopped.stdout.trim(), "2\n3", "{stopped}");
    let ended = eventually(seconds(10), || {
        serve.guests().iter().filter(|g| [2, 3].contains(&g.id)).all(|g| g.phase == "exit 0")
    });
    assert!(ended, "{:?}", serve.guests());
    let again = serve.ask(&["stop", "2"]);
    assert_eq!((again.status, again.stdout.trim()), (0, "2"), "what has ended already has ended: {again}");
    let logs = serve.ask(&["logs", "hello"]);
    assert!(logs.stdout.starts_with("hello from hello"), "{logs}");
    let ended = serve.stop();
    assert_eq!((ended.status, ended.stdout.as_str()), (0, ""), "{ended}");
}

#[test]
fn a_killed_cell_takes_only_its_own_guests_and_they_come_back() {
    let serve = Serve::start("kill", 2, "10.112");
    let httpd = image("httpd").display().to_string();
    let run =
        serve.ask(&[&["run", "-d", "--count", "6", "--restart", "on-failure"], &WEB[..], &[&httpd]].concat());
    assert_eq!(run.status, 0, "{run}");
    let before = serve.guests();
    for guest in &before {
        http::wait_until_serving(web(guest), seconds(10));
    }
    let cells = serve.cells();
    assert_eq!(cells.len(), 2);
    let neighbour = before.iter().find(|g| g.cell == 1).expect("one on the other cell");
    let killed = std::time::Instant::now();
    // SAFETY: ends a process that this test's supervisor has started.
    assert_eq!(unsafe { libc::kill(cells[0], libc::SIGKILL) }, 0);
    // The others never notice.
    for _ in 0..20 {
        assert_eq!(http::get(web(neighbour), "/hello.txt").expect("an answer").status, 200);
    }
    let back = eventually(seconds(10), || {
        let now = serve.guests();
        now.iter().all(|g| g.phase == "running" && (g.cell == 1 || g.restarts == 1))
    });
    println!("back after {:?}", killed.elapsed());
    let after = serve.guests();
    assert!(back, "{after:?}");
    for (old, new) in before.iter().zip(&after) {
        assert_eq!((old.id, old.ipv4, old.cell), (new.id, new.ipv4, new.cell), "the same place and address");
        assert_eq!(new.restarts, u32::from(new.cell == 0), "{new:?}");
        http::wait_until_serving(web(new), seconds(10));
    }
    assert_eq!(serve.stop().status, 0);
}

/// Waits until a server answers, with little patience for each attempt: one that got no answer because its cell was gone shall not
/// outlast the cell's return.
fn answers_by(server: SocketAddr, deadline: Instant) -> Result<Instant, String> {
    let patience = Duration::from_millis(400);
    loop {
        let answer = Connection::open_within(server, patience).and_then(|mut c| c.get("/hello.txt"));
        let now = Instant::now();
        match answer {
            Ok(answer) if answer.status == 200 => return Ok(now),
            other if now >= deadline => return Err(format!("{server} does not answer: {other:?}")),
            _ => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// What is promised of a cell that dies while everybody is busy: its guests are back at once, and the others' clients see nothing.
#[test]
fn a_cell_killed_under_load_is_back_within_two_seconds() {
    /// Guests of all three cells.
    const GUESTS: usize = 60;
    const BACK: Duration = Duration::from_secs(2);
    const KILLED: usize = 1;

    let serve = Serve::start("load", 3, "10.140");
    let httpd = image("httpd").display().to_string();
    let guests = if emulated() { GUESTS / 4 } else { GUESTS };
    let count = guests.to_string();
    let run =
        serve.ask(&[&["run", "-d", "--count", &count, "--restart", "always"], &WEB[..], &[&httpd]].concat());
    assert_eq!(run.status, 0, "{run}");
    let before = serve.guests();
    assert_eq!(before.len(), guests);
    let (lost, others): (Vec<_>, Vec<_>) = before.iter().partition(|g| g.cell == KILLED);
    assert_eq!(lost.len(), guests / 3, "evenly spread: {before:?}");
    let servers = |guests: &[&Listed]| guests.iter().map(|g| web(g)).collect::<Vec<_>>();
    let (lost, others) = (servers(&lost), servers(&others));
    for server in lost.iter().chain(&others) {
        http::wait_until_serving(*server, seconds(10));
    }
    // Those of the cell that dies are asked too: it is killed with requests under way.
    let (beside, doomed) = (Crowd::start(&others, 4), Crowd::start(&lost, 2));
    std::thread::sleep(seconds(1));
    let cells = serve.cells();
    let pid = cells[KILLED];
    let devices = leftover::taps_of(u32::try_from(pid).expect("a process"));
    assert_eq!(devices.len(), 1, "a cell has one TAP device: {devices:?}");
    let good = doomed.finish();
    assert!(good.good > 0 && good.failed.is_empty(), "{good:?}");
    let doomed = Crowd::start(&lost, 2);
    let killed = Instant::now();
    // SAFETY: ends a process that this test's supervisor has started.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
    let deadline = killed + stretched(BACK);
    let back: Vec<_> = std::thread::scope(|scope| {
        let wait = |server: &SocketAddr| {
            let server = *server;
            scope.spawn(move || answers_by(server, deadline))
        };
        let waiting: Vec<_> = lost.iter().map(wait).collect();
        waiting.into_iter().map(|w| w.join().expect("a client does not panic")).collect()
    });
    let problems: Vec<_> = back.iter().filter_map(|result| result.as_ref().err()).collect();
    assert!(problems.is_empty(), "{problems:?}\n{}", serve.running.stderr());
    let slowest = back.into_iter().flatten().max().expect("guests").saturating_duration_since(killed);
    println!("{} guests are back after {slowest:?} at the latest", lost.len());
    assert!(slowest <= stretched(BACK), "back only after {slowest:?}");
    drop(doomed);
    // For a while longer: what the return costs is not to be paid by others either.
    std::thread::sleep(seconds(1));
    let seen = beside.finish();
    println!("{} requests to the others, slowest {:?}", seen.good, seen.slowest);
    assert!(seen.failed.is_empty(), "the others' errors: {:?}", seen.failed);
    assert!(seen.good >= others.len() as u64, "{} requests only", seen.good);
    assert!(!devices.iter().any(leftover::exists), "the dead cell's device is left behind: {devices:?}");
    let after = serve.guests();
    for (old, new) in before.iter().zip(&after) {
        assert_eq!((old.id, old.ipv4, old.cell), (new.id, new.ipv4, new.cell), "the same place and address");
        let restarts = u32::from(old.cell == KILLED);
        assert_eq!((new.phase.as_str(), new.restarts), ("running", restarts), "{new:?}");
    }
    assert!(ask_each(&[lost, others].concat()).is_empty());
    // Asserts that no process and no device is left.
    assert_eq!(serve.stop().status, 0);
}

/// Nobody keeps the memory of a guest that has ended, not even a thread that sleeps and served it last.
#[test]
fn memory_of_ended_guests_is_given_back() {
    let serve = Serve::start("memory", 1, "10.145");
    let hostile = image("hostile").display().to_string();
    let cell = serve.cells()[0];
    for round in 1..=4 {
        let run = serve.ask(&["run", "-d", &hostile, "touch-memory"]);
        assert_eq!(run.status, 0, "{run}");
        assert!(eventually(seconds(10), || serve.guests().iter().all(|g| g.phase == "exit 0")));
        let given_back = eventually(seconds(10), || Usage::of(cell).arena == 0);
        assert!(given_back, "guest {round} left {}", Usage::of(cell));
    }
    assert_eq!(serve.stop().status, 0);
}

#[test]
fn published_ports_belong_to_their_guests_lives() {
    let serve = Serve::start("publish", 2, "10.94");
    let httpd = image("httpd").display().to_string();
    let port = free_port();
    let (publish, server) = (format!("{port}:80"), SocketAddr::from(([127, 0, 0, 1], port)));
    let run =
        |more: &[&str]| serve.ask(&[&["run", "-d", "-p", &publish], more, &WEB[..], &[&httpd]].concat());
    let first = run(&[]);
    assert_eq!((first.status, first.stdout.trim()), (0, "1"), "{first}");
    http::wait_until_serving(server, seconds(10));
    // The same port again, on the other cell: that guest is refused, and the first one serves on.
    assert_eq!(run(&[]).stdout.trim(), "2");
    let refused = |id: u64| serve.guests().iter().any(|g| g.id == id && g.phase.contains("is in use"));
    assert!(eventually(seconds(10), || refused(2)), "{:?}", serve.guests());
    assert_eq!(http::get(server, "/bytes/9999").expect("an answer").body.len(), 9999);
    // With its guest the port ends, and with it a connection that somebody keeps.
    let mut kept = http::Connection::open(server).expect("a connection");
    assert_eq!(kept.get("/hello.txt").expect("an answer").status, 200);
    assert_eq!(serve.ask(&["kill", "1"]).status, 0);
    assert!(eventually(seconds(10), || serve.guests().iter().any(|g| g.id == 1 && g.phase != "running")));
    assert!(kept.is_closed());
    assert!(std::net::TcpStream::connect(server).is_err(), "nobody listens any more");
    // Whoever comes next may have it, and has it again after its cell has died.
    let next = run(&["--restart", "on-failure"]);
    assert_eq!(next.stdout.trim(), "3", "{next}");
    http::wait_until_serving(server, seconds(10));
    let cell = serve.guests().iter().find(|g| g.id == 3).expect("it is listed").cell;
    // SAFETY: ends a process that this test's supervisor has started.
    assert_eq!(unsafe { libc::kill(serve.cells()[cell], libc::SIGKILL) }, 0);
    assert!(eventually(seconds(10), || serve.guests().iter().any(|g| g.id == 3 && g.restarts == 1)));
    http::wait_until_serving(server, seconds(10));
    assert_eq!(serve.stop().status, 0);
}

/// More guests than machines: each answers whenever it is asked, and none is worse for having lost its machine meanwhile.
#[test]
fn guests_share_machines() {
    let serve = Serve::start_with("warm", 1, "10.119", &["--machines", "2"]);
    let httpd = image("httpd").display().to_string();
    let ran = serve.ask(&[&["run", "-d", "--count", "8"], &WEB[..], &[&httpd]].concat());
    assert_eq!(ran.status, 0, "{ran}");
    let guests = serve.guests();
    for round in 0..3 {
        for guest in &guests {
            http::wait_until_serving(web(guest), seconds(10));
            let answer = http::get(web(guest), "/bytes/3000").expect("an answer");
            assert_eq!((answer.status, answer.body.len()), (200, 3000), "round {round}: {guest:?}");
        }
    }
    let still = serve.guests();
    assert!(still.iter().all(|g| g.phase == "running" && g.restarts == 0), "{still:?}");
    // Those without a machine hear as well that they are to stop.
    assert_eq!(serve.ask(&["stop", "--all"]).stdout.trim(), "8");
    let ended = eventually(seconds(10), || serve.guests().iter().all(|g| g.phase == "exit 0"));
    assert!(ended, "{:?}", serve.guests());
    assert_eq!(serve.stop().status, 0);
}

/// Whether a process is in a control group of its own.
fn has_own_group(process: i32) -> bool {
    let groups = std::fs::read_to_string(format!("/proc/{process}/cgroup")).expect("a process");
    groups.lines().any(|line| line.contains("/foraker-"))
}

/// Processor time of a process so far, seconds.
fn processor_time(process: i32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("a process");
    // The name, which may hold anything, ends with the last parenthesis.
    let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: f64 = fields.skip(11).take(2).map(|n| n.parse::<f64>().expect("ticks")).sum();
    ticks / 100.0
}

/// A share means the same in every cell: guests of one that have three times the share of those of another get three times as much of the processors.
#[test]
fn shares_hold_between_cells() {
    let serve = Serve::start("shares", 2, "10.111");
    if !serve.cells().into_iter().all(has_own_group) {
        println!("skipped: no control group may be made here, so that cells share the processors alike");
        assert_eq!(serve.stop().status, 0);
        return;
    }
    let hostile = image("hostile").display().to_string();
    // As many for each cell as there are processors, in turn.
    for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
        for share in ["300", "100"] {
            let ran = serve.ask(&["run", "-d", "--cpu-shares", share, &hostile, "endless-loop"]);
            assert_eq!(ran.status, 0, "{ran}");
        }
    }
    let guests = serve.guests();
    assert!(guests.iter().all(|g| g.cell == (g.id as usize + 1) % 2), "in turn: {guests:?}");
    let used = || serve.cells().into_iter().map(processor_time).collect::<Vec<_>>();
    // Cells say what they ask for every half a second; a busy machine disturbs a few seconds, not all.
    let held = eventually(seconds(20), || {
        let before = used();
        std::thread::sleep(Duration::from_secs(2));
        let after = used();
        let grown: Vec<_> = after.iter().zip(&before).map(|(after, before)| after - before).collect();
        (2.0..4.5).contains(&(grown[0] / grown[1].max(0.01)))
    });
    assert!(held, "{:?}", used());
    assert_eq!(serve.ask(&["kill", "--all"]).status, 0);
    assert_eq!(serve.stop().status, 0);
}

#[test]
fn one_supervisor_at_a_time_and_a_dead_one_is_not_in_the_way() {
    let mut first = Serve::start("twice", 1, "10.114");
    let second = serve(&first.socket, 1, "10.115", &[]).wait(LIMIT);
    assert_eq!(second.status, 125, "{second}");
    assert!(second.stderr.contains("a supervisor runs already"), "{second}");
    // Nor may another take its cells' subnets.
    let other = serve(&socket("same-subnet"), 1, "10.114", &[]).wait(LIMIT);
    assert_eq!(other.status, 125, "{other}");
    assert!(other.stderr.contains("10.114.0.0/16 holds an address of this host"), "{other}");
    // Its cells end by themselves: `wait` asserts that nothing of it is left but the socket.
    first.running.note_devices();
    first.running.signal(libc::SIGKILL);
    assert_eq!(first.running.wait(LIMIT).status, 128 + 9);
    assert!(first.socket.exists());
    let third = Serve::start("twice", 1, "10.116");
    assert_eq!(third.stop().status, 0);
}

#[test]
fn a_supervisor_answers_while_cells_of_a_killed_one_are_still_there() {
    let first = Serve::start("follows", 1, "10.117");
    let probe = image("probe").display().to_string();
    let guest = ["run", "-d", "--no-net", "--small-pages", "-m", "2M", "--restart", "always", &probe, "idle"];
    assert_eq!(first.ask(&guest).status, 0);
    // As a cell of it does until the kernel has taken all of its machines apart.
    let mark = std::fs::File::open(state(&first.socket).join("cells.lock")).expect("the cells' mark");
    mark.lock_shared().expect("cells have it together");
    let (killed, second) = first.killed_and_followed();
    let health = api::ask(&second.socket, "GET", "/health", None);
    assert_eq!((health.status, &health.json()["missing_cells"]), (503, &json!(1)));
    assert_eq!(second.guests()[0].phase, "waiting");
    let next = second.ask(&["run", "-d", "--no-wait", "--no-net", &probe, "idle"]);
    assert_eq!(next.stdout.trim(), "2", "{next}");
    // Asserts that nothing of it is left.
    assert_eq!(killed.wait(LIMIT).status, 128 + 9);
    assert!(second.cells().is_empty(), "a cell was started beside another one");
    drop(mark);
    let run = || second.guests().iter().all(|g| g.phase == "running");
    assert!(eventually(seconds(20), run), "{:?}", second.guests());
    assert_eq!(api::ask(&second.socket, "GET", "/health", None).status, 200);
    assert_eq!(second.stop().status, 0);
}

#[test]
fn what_cannot_be_done_is_said_in_one_line() {
    let hello = image("hello").display().to_string();
    let nobody = ask(&socket("nobody"), &["run", "-d", &hello]);
    assert_eq!(nobody.status, 125, "{nobody}");
    assert!(nobody.stderr.contains("start one with `vmm serve`"), "{nobody}");
    let file = std::env::temp_dir().join(format!("foraker-{}-file", std::process::id()));
    std::fs::write(&file, "precious").expect("a file");
    let taken = serve(&file, 1, "10.118", &[]).wait(LIMIT);
    assert_eq!(taken.status, 125, "{taken}");
    assert_eq!(std::fs::read_to_string(&file).expect("still there"), "precious");
    std::fs::remove_file(&file).expect("removed");

    let serve = Serve::start("errors", 1, "10.119");
    for (arguments, expected) in [
        (vec!["run", "-d", "--restart", "sometimes", &hello], "choose no, on-failure or always"),
        (vec!["run", "-d", "--count", "0", &hello], "1..=1000000"),
        (vec!["run", "-d", "/nowhere"], "/nowhere"),
        (vec!["stop", "77"], "there is no guest 77"),
        (vec!["run", "-d", "--count", "2", "--net", "-p", "8080:80", &hello], "publish one guest at a time"),
        (vec!["run", "-d", "--no-net", "-p", "8080:80", &hello], "has no network"),
        (vec!["run", "-d", "--network", "blue", "--net", &hello], "vmm network create blue"),
    ] {
        let ended = serve.ask(&arguments);
        assert_eq!(ended.status, 125, "{arguments:?}: {ended}");
        assert_eq!(ended.stderr.lines().count(), 1, "{arguments:?}: {ended}");
        assert!(ended.stderr.contains(expected), "{arguments:?}: {ended}");
    }
    // What only the cell finds out is said, too, and stands in the list.
    let small = serve.ask(&["run", "-d", "-m", "64K", &hello]);
    assert!(small.status == 125 && small.stderr.contains("at least"), "{small}");
    let guests = serve.guests();
    assert!(
        guests.iter().any(|g| g.phase.starts_with("refused: ") && g.phase.contains("at least")),
        "{guests:?}"
    );
    assert_eq!(serve.stop().status, 0);
}
