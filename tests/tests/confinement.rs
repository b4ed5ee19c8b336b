//! Every thread of a process that runs guests, and of the supervisor, is confined: as the kernel says it, not as the VMM does.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use foraker_tests::bounds::{eventually, seconds};
use foraker_tests::http;
use foraker_tests::launch::{Running, free_port, httpd, image, launch, vmm};
use foraker_tests::supervisor::{LIMIT, Serve, ask, state};

/// Bits of capabilities (`linux/capability.h`).
const DAC_OVERRIDE: u64 = 1 << 1;
const SETPCAP: u64 = 1 << 8;
const NET_BIND_SERVICE: u64 = 1 << 10;
const NET_ADMIN: u64 = 1 << 12;
const SYS_PTRACE: u64 = 1 << 19;
const SYS_NICE: u64 = 1 << 23;
const SYS_RESOURCE: u64 = 1 << 24;

/// What the kernel says of a thread.
#[derive(Debug)]
struct Thread {
    /// `main` for the first one.
    name: String,
    status: String,
}

impl Thread {
    fn field(&self, name: &str) -> &str {
        let line = self.status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(str::trim).unwrap_or_else(|| panic!("no {name}: {self:?}"))
    }

    fn capabilities(&self, set: &str) -> u64 {
        u64::from_str_radix(self.field(set), 16).expect("a mask")
    }
}

/// Threads of a process. One that ends meanwhile is none.
fn threads(process: u32) -> Vec<Thread> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).expect("a process");
    let first = process.to_string();
    let text = |path: &Path, name| std::fs::read_to_string(path.join(name)).ok();
    let thread = |path: &Path| {
        let main = path.file_name().is_some_and(|name| name == first.as_str());
        let name = if main { "main".to_owned() } else { text(path, "comm")?.trim().to_owned() };
        Some(Thread { name, status: text(path, "status")? })
    };
    tasks.flatten().filter_map(|task| thread(&task.path())).collect()
}

/// What a thread may keep, by its name.
fn may_keep(name: &str, main: u64) -> u64 {
    match name {
        "neighbours" => NET_ADMIN,
        // Where the host lets no limit be raised, it is this that lets it go before others.
        "uplink" => SYS_NICE,
        "main" => main,
        _ => 0,
    }
}

/// Asserts that every thread is confined. Returns their names.
fn assert_confined(process: u32, main: u64) -> BTreeSet<String> {
    // Threads are confined first thing; one that has just been started may not be yet.
    let confined = |thread: &Thread| thread.field("Seccomp") == "2";
    assert!(eventually(seconds(5), || threads(process).iter().all(confined)), "{:?}", threads(process));
    let all = threads(process);
    assert!(!all.is_empty(), "no threads");
    for thread in &all {
        assert_eq!(thread.field("NoNewPrivs"), "1", "{thread:?}");
        assert_eq!(thread.field("Seccomp"), "2", "{thread:?}");
        let kept = may_keep(&thread.name, main);
        for set in ["CapEff", "CapPrm"] {
            assert_eq!(thread.capabilities(set) & !kept, 0, "{set}: {thread:?}");
        }
        for set in ["CapInh", "CapAmb"] {
            assert_eq!(thread.capabilities(set), 0, "{set}: {thread:?}");
        }
        // The bounding set can be emptied by who has the capability for that: root, as a rule.
        // SAFETY: a call without arguments.
        if unsafe { libc::geteuid() } == 0 {
            assert_eq!(thread.capabilities("CapBnd"), 0, "{thread:?}");
        }
    }
    all.into_iter().map(|thread| thread.name).collect()
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

#[test]
fn every_thread_of_a_launch_is_confined() {
    let (mut running, server) = httpd(&[], &[]);
    http::wait_until_serving(server, seconds(10));
    assert_eq!(http::get(server, "/bytes/9999").expect("an answer").body.len(), 9999);
    let seen = assert_confined(running.pid(), 0);
    let expected = names(&["main", "worker-0", "uplink", "neighbours", "pager", "published"]);
    assert!(expected.is_subset(&seen), "{seen:?}");
    running.signal(libc::SIGTERM);
    assert_eq!(running.wait(Duration::from_secs(20)).status, 0);
}

#[test]
fn every_thread_of_a_cell_is_confined() {
    let serve = Serve::start("confined", 1, "10.146");
    let web = image("httpd").display().to_string();
    let port = free_port();
    let (publish, server) = (format!("{port}:80"), SocketAddr::from(([127, 0, 0, 1], port)));
    let run = serve.ask(&["run", "-d", "-p", &publish, &web]);
    assert_eq!(run.status, 0, "{run}");
    http::wait_until_serving(server, seconds(10));
    // The pool's thread makes machines when guests no longer come.
    let run = serve.ask(&["run", "--count", "3", &web]);
    assert_eq!(run.status, 0, "{run}");
    let cell = u32::try_from(serve.cells()[0]).expect("a process");
    let seen = assert_confined(cell, NET_BIND_SERVICE);
    let expected =
        ["main", "worker-0", "uplink", "neighbours", "machines", "pager", "ends", "demand", "published"];
    assert!(names(&expected).is_subset(&seen), "{seen:?}");
    // A guest's end takes other ways than its start.
    assert_eq!(serve.ask(&["stop", "--all"]).stdout.trim(), "4");
    assert!(eventually(seconds(10), || serve.guests().iter().all(|g| g.phase == "exit 0")));
    assert_eq!(assert_confined(cell, NET_BIND_SERVICE), seen);
    assert_eq!(serve.cells(), [i32::try_from(cell).expect("a process")], "the same process");
    assert_eq!(serve.stop().status, 0);
}

/// The child of a supervisor that starts cells.
fn launcher_of(process: u32) -> u32 {
    let pids = std::fs::read_dir("/proc").expect("processes").flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let parent = |pid: &u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line =
            status.lines().find_map(|line| line.strip_prefix("PPid:").map(str::trim).map(str::to_owned));
        line == Some(process.to_string())
    };
    let children: Vec<_> = pids.filter(parent).collect();
    assert_eq!(children.len(), 1, "a supervisor has one child: {children:?}");
    children[0]
}

#[test]
fn every_thread_of_the_supervisor_is_confined() {
    let serve = Serve::start_with("confined-supervisor", 2, "10.132", &["--ui", "127.0.0.1:0"]);
    let pid = serve.running.pid();
    // What makes it start threads: images that are stored, faults that are looked up, the page, cells that die.
    let hostile = image("hostile").display().to_string();
    let run = serve.ask(&["run", "--net", &hostile, "null-read"]);
    assert_eq!(run.status, 120, "{run}");
    let inspected = serve.ask(&["inspect", "1"]);
    assert!(inspected.stdout.contains("\"function\""), "{inspected}");
    let page = serve.running.stdout();
    let address = page.split("http://").nth(1).and_then(|rest| rest.split('/').next()).expect("an address");
    let mut page = std::net::TcpStream::connect(address).expect("the page");
    page.write_all(format!("GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())
        .expect("asked");
    let mut text = String::new();
    page.read_to_string(&mut text).expect("an answer");
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    let cell = serve.cells()[1];
    // SAFETY: ends a process that this test's supervisor has started.
    assert_eq!(unsafe { libc::kill(cell, libc::SIGKILL) }, 0);
    let dead = format!("process {cell}: signal: 9 (SIGKILL)");
    assert!(eventually(seconds(5), || serve.running.stderr().contains(&dead)), "{}", serve.running.stderr());
    let back = || serve.ask(&["system", "cells"]).stdout.lines().skip(1).all(|line| line.contains(" fk"));
    assert!(eventually(seconds(10), back), "{}", serve.running.stderr());
    let seen = assert_confined(pid, 0);
    let expected = [
        "main",
        "registry",
        "logs",
        "clients",
        "control",
        "page",
        "restarts",
        "cell-0",
        "cell-1",
        "console-0",
        "console-1",
        "to-cell-0",
        "to-cell-1",
    ];
    assert!(names(&expected).is_subset(&seen), "{seen:?}");

    // It cannot start a program. Who can, has no filter, but what cells need of capabilities and no other program.
    let launcher = launcher_of(pid);
    let threads = threads(launcher);
    let [only] = threads.as_slice() else { panic!("it has one thread: {threads:?}") };
    assert_eq!(only.field("NoNewPrivs"), "1", "{only:?}");
    let may = DAC_OVERRIDE | SETPCAP | NET_BIND_SERVICE | NET_ADMIN | SYS_PTRACE | SYS_NICE | SYS_RESOURCE;
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        // SAFETY: a call without arguments.
        if set != "CapBnd" || unsafe { libc::geteuid() } == 0 {
            assert_eq!(only.capabilities(set) & !may, 0, "{set}: {only:?}");
        }
    }
    assert_eq!(serve.stop().status, 0);
}

/// Who is not the user who runs the supervisor can neither ask it nor read what it keeps, unless that is wanted.
#[test]
fn the_socket_and_the_state_are_for_one_user() {
    let mode = |path: &Path| std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    for (options, expected) in [(&[][..], 0o600), (&["--socket-mode", "660"], 0o660)] {
        let serve = Serve::start_with("one-user", 1, "10.138", options);
        assert_eq!(mode(&serve.socket), expected);
        assert_eq!(mode(&state(&serve.socket)), 0o700);
        assert_eq!(serve.stop().status, 0);
    }
}

/// Landlock keeps the supervisor to its state directory: what leads out of it leads nowhere.
#[test]
fn the_supervisor_writes_and_reads_nothing_outside_of_its_state_directory() {
    let serve = Serve::start("state-only", 1, "10.134");
    let folder = std::env::temp_dir().join(format!("foraker-outside-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let images = state(&serve.socket).join("images");
    let kept = images.with_extension("kept");
    let hello = image("hello").display().to_string();
    std::fs::rename(&images, &kept).expect("moved");
    std::os::unix::fs::symlink(&folder, &images).expect("a link");
    let refused = serve.ask(&["run", &hello]);
    let has_landlock = refused.status != 0;
    if has_landlock {
        assert!(refused.stderr.contains("the image cannot be stored: Permission denied"), "{refused}");
        assert_eq!(std::fs::read_dir(&folder).expect("the folder").count(), 0);
    } else {
        println!("skipped: this kernel has no Landlock");
    }
    std::fs::remove_file(&images).expect("removed");
    std::fs::rename(&kept, &images).expect("moved back");
    std::fs::remove_dir_all(&folder).expect("removed");
    if has_landlock {
        assert_eq!(serve.ask(&["run", &hello]).status, 0, "it goes on");
    }
    assert_eq!(serve.stop().status, 0);
}

/// Cells are of the program that the supervisor is of, also when the file of that name has been replaced.
#[test]
fn a_program_that_is_replaced_goes_on() {
    let folder = std::env::temp_dir().join(format!("foraker-replaced-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let (program, socket) = (folder.join("vmm"), folder.join("socket"));
    std::fs::copy(vmm(), &program).expect("a copy");
    let (path, state) = (socket.display().to_string(), folder.join("state").display().to_string());
    let serve =
        ["serve", "--cells", "1", "--first-subnet", "10.137.0.0", "--socket", &path, "--state", &state];
    let mut running = Running::start_program(&program, &serve);
    let cell = || -> Option<i32> {
        let cells = ask(&socket, &["system", "cells"]).stdout;
        let line = cells.lines().nth(1).filter(|line| line.contains(" fk"))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    assert!(eventually(seconds(10), || cell().is_some()), "{}", running.stderr());
    std::fs::remove_file(&program).expect("removed");
    std::fs::write(&program, "#!/bin/false\n").expect("replaced");
    let first = cell().expect("a cell");
    // SAFETY: ends a process that this test's supervisor has started.
    assert_eq!(unsafe { libc::kill(first, libc::SIGKILL) }, 0);
    assert!(eventually(seconds(10), || cell().is_some_and(|now| now != first)), "{}", running.stderr());
    running.signal(libc::SIGTERM);
    assert_eq!(running.wait(LIMIT).status, 0);
    std::fs::remove_dir_all(&folder).expect("removed");
}

/// Without its launcher a supervisor could not start a cell again: it ends in order, says so, and the next one has everything.
#[test]
fn a_supervisor_whose_launcher_is_killed_ends_in_order() {
    let mut serve = Serve::start("no-launcher", 2, "10.135");
    let probe = image("probe").display().to_string();
    let run = serve.ask(&["run", "-d", "--no-net", "--count", "4", "--restart", "always", &probe, "idle"]);
    assert_eq!(run.status, 0, "{run}");
    serve.running.note_devices();
    let launcher = launcher_of(serve.running.pid());
    // SAFETY: ends a process that this test's supervisor has started.
    assert_eq!(unsafe { libc::kill(launcher.cast_signed(), libc::SIGKILL) }, 0);
    let Serve { running, socket, .. } = serve;
    // Asserts that no process and no device is left.
    let ended = running.wait(LIMIT);
    assert_eq!(ended.status, 125, "{ended}");
    let said: Vec<_> = ended.stderr.lines().filter(|line| line.contains("launcher")).collect();
    assert!(said.len() == 1 && said[0].contains(&launcher.to_string()), "{ended}");
    assert!(said[0].contains("start `vmm serve` again"), "{ended}");
    let serve = Serve::start("no-launcher", 2, "10.135");
    assert_eq!(socket, serve.socket);
    let back = eventually(seconds(10), || {
        serve.guests().iter().filter(|g| g.phase == "running" && g.restarts == 1).count() == 4
    });
    assert!(back, "{:?}", serve.guests());
    assert_eq!(serve.stop().status, 0);
}

/// Whoever looks into a guest does it on a thread that may do next to nothing.
#[test]
fn the_thread_that_looks_into_a_guest_is_confined() {
    let serve = Serve::start("confined-look", 1, "10.219");
    let run = serve.ask(&["run", "-d", "--name", "web", &image("httpd").display().to_string()]);
    assert_eq!(run.status, 0, "{run}");
    let cell = u32::try_from(serve.cells()[0]).expect("a process");
    let socket = serve.socket.display().to_string();
    let mut trace = Running::start(&["trace", "web", "--socket", &socket]);
    let there = || threads(cell).iter().any(|thread| thread.name == "debug");
    assert!(eventually(seconds(10), there), "{:?}", threads(cell));
    assert!(assert_confined(cell, NET_BIND_SERVICE).contains("debug"));
    trace.signal(libc::SIGINT);
    assert_eq!(trace.wait(seconds(10)).status, 128 + libc::SIGINT);
    assert!(eventually(seconds(10), || !there()), "it goes with whoever asked");
    assert_eq!(serve.stop().status, 0);
}

/// A process that is not confined is seen as such: the assertions above would notice.
#[test]
fn who_is_not_confined_is_seen() {
    let own = threads(std::process::id());
    // Where tests run under a filter of somebody else's, that says nothing.
    assert!(own.iter().all(|thread| thread.capabilities("CapBnd") != 0 || thread.field("NoNewPrivs") == "0"));
}

/// What a launch is told to write, it writes; functions in reports are found in the image.
#[test]
fn files_that_were_asked_for_are_written_and_read() {
    let folder = std::env::temp_dir().join(format!("foraker-confined-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let (pcap, trace) = (folder.join("frames.pcap"), folder.join("trace"));
    // One is there already, and longer than what comes.
    std::fs::write(&pcap, vec![1; 1 << 20]).expect("a file");
    let arguments = [
        "--net".into(),
        "--pcap".into(),
        pcap.clone().into_os_string(),
        "--trace".into(),
        trace.clone().into_os_string(),
        image("hello").into_os_string(),
    ];
    let ended = launch(arguments).wait(seconds(20));
    assert_eq!(ended.status, 0, "{ended}");
    let captured = std::fs::read(&pcap).expect("the capture");
    assert!((24..1 << 20).contains(&captured.len()), "{}", captured.len());
    assert!(trace.is_file());
    std::fs::remove_dir_all(&folder).expect("removed");
    assert!(vmm().is_file());
}
