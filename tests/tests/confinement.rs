//! Every thread of a process that runs guests is confined: as the kernel says it, not as the VMM does.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use foraker_tests::bounds::{eventually, seconds};
use foraker_tests::http;
use foraker_tests::launch::{free_port, httpd, image, launch, vmm};
use foraker_tests::supervisor::Serve;

/// Bits of capabilities (`linux/capability.h`).
const NET_BIND_SERVICE: u64 = 1 << 10;
const NET_ADMIN: u64 = 1 << 12;
const SYS_NICE: u64 = 1 << 23;

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
