//! Looking into guests of a daemon: gdb on those that run, dumps that gdb opens, traces; and what becomes of those who do not behave. These tests need gdb, and
//! run on the host only.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use foraker_tests::api;
use foraker_tests::bounds::{emulated, eventually, seconds};
use foraker_tests::http;
use foraker_tests::launch::{Running, free_port, image, vmm};
use foraker_tests::supervisor::{Serve, state};
use serde_json::Value;

const SMALL: [&str; 3] = ["--small-pages", "-m", "4M"];

/// Whether gdb can be expected: inside an emulated machine there is nothing but the tests.
fn absent() -> bool {
    if emulated() {
        println!("not here: there is no gdb in an emulated machine");
    }
    emulated()
}

/// A daemon with a web server, and where that is.
fn web(name: &str, subnet: &str) -> (Serve, SocketAddr) {
    let serve = Serve::start(name, 1, subnet);
    let run = serve.ask(
        &[&["run", "-d", "--name", "web"], &SMALL[..], &[&image("httpd").display().to_string()]].concat(),
    );
    assert_eq!((run.status, run.stdout.as_str()), (0, "1\n"), "{run}");
    let server = SocketAddr::from((serve.guests()[0].ipv4.expect("an address"), 80));
    http::wait_until_serving(server, seconds(10));
    (serve, server)
}

/// What gdb says to these commands.
fn gdb(files: &[&Path], commands: &[&str]) -> String {
    said(start_gdb(files, commands))
}

fn start_gdb(files: &[&Path], commands: &[&str]) -> Child {
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-batch", "-ex", "set debuginfod enabled off"]).args(files);
    commands.iter().for_each(|command| _ = gdb.args(["-ex", command]));
    let child = gdb.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    child.unwrap_or_else(|e| panic!("this test needs gdb, which cannot be run ({e}): install it"))
}

fn said(gdb: Child) -> String {
    let output = gdb.wait_with_output().expect("gdb's end");
    let both = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    both.concat()
}

/// How gdb reaches a guest.
fn target(serve: &Serve, guest: &str) -> String {
    format!("target remote | {} debug --socket {} {guest}", vmm().display(), serve.socket.display())
}

/// The linkage name of a function: the string in an image's table that has this in it.
fn symbol(name: &str, part: &str) -> String {
    let bytes = std::fs::read(image(name)).expect("the image");
    let at = bytes.windows(part.len()).position(|window| window == part.as_bytes()).expect("the name");
    let start = bytes[..at].iter().rposition(|b| *b == 0).expect("a table") + 1;
    let end = at + bytes[at..].iter().position(|b| *b == 0).expect("a table");
    String::from_utf8(bytes[start..end].to_vec()).expect("a name")
}

/// A file that is gone with its owner.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        Scratch(std::env::temp_dir().join(format!("foraker-debugging-{name}-{}", std::process::id())))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A connection of a debugger to a guest, made by hand. Returns the head of the answer, too.
fn connection(serve: &Serve, guest: &str) -> (UnixStream, String) {
    let mut stream = UnixStream::connect(&serve.socket).expect("a daemon");
    stream.set_read_timeout(Some(seconds(30))).expect("a limit");
    let request = format!(
        "GET /guests/{guest}/debug HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: gdb-remote\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("written");
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).expect("an answer") == 1 {
        head.push(byte[0]);
    }
    (stream, String::from_utf8_lossy(&head).into_owned())
}

/// The same, once whoever was there before has gone.
fn debugger(serve: &Serve) -> UnixStream {
    let mut made = None;
    let there = eventually(seconds(20), || {
        let (stream, head) = connection(serve, "web");
        made = head.starts_with("HTTP/1.1 101").then_some(stream);
        made.is_some()
    });
    assert!(there, "nobody may debug it");
    made.expect("made")
}

/// A packet of gdb's protocol.
fn packet(text: &str) -> String {
    format!("${text}#{:02x}", text.bytes().fold(0u8, u8::wrapping_add))
}

/// Sends a packet, and returns the answer's content.
fn exchange(stream: &mut UnixStream, text: &str) -> String {
    stream.write_all(packet(text).as_bytes()).expect("written");
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.contains(&b'#') && stream.read(&mut byte).expect("an answer") == 1 {
        answer.push(byte[0]);
    }
    stream.write_all(b"+").expect("written");
    let mut sum = [0; 2];
    stream.read_exact(&mut sum).expect("a sum");
    String::from_utf8_lossy(&answer).trim_start_matches(['+', '$']).trim_end_matches('#').to_owned()
}

fn answers(server: SocketAddr) -> bool {
    let mut connection = http::Connection::open_within(server, Duration::from_secs(2));
    connection.as_mut().is_ok_and(|connection| connection.get("/hello.txt").is_ok_and(|a| a.status == 200))
}

/// Nobody debugs the guest: it stands for nobody, and the next one is welcome.
fn is_let_go(serve: &Serve, server: SocketAddr) -> bool {
    let goes_on = || eventually(seconds(20), || answers(server));
    let was_let_go = goes_on();
    drop(debugger(serve));
    was_let_go && goes_on()
}

#[test]
fn gdb_debugs_a_guest_of_the_daemon_and_leaves_it_as_it_was() {
    if absent() {
        return;
    }
    let (serve, server) = web("gdb", "10.213");
    let other = image("httpd").display().to_string();
    assert_eq!(serve.ask(&[&["run", "-d", "--name", "other"], &SMALL[..], &[&other]].concat()).status, 0);
    let neighbour = SocketAddr::from((serve.guests()[1].ipv4.expect("an address"), 80));
    http::wait_until_serving(neighbour, seconds(10));
    let sign = Scratch::new("sign");
    let debugged = start_gdb(
        &[&image("httpd")],
        &[
            &target(&serve, "web"),
            &format!("break {}", symbol("httpd", "11Transmitter4take")),
            &format!("shell touch {}", sign.0.display()),
            "continue",
            "info registers rip rsp",
            "p/x $xmm1",
            "bt 2",
            "stepi",
            "info threads",
            "delete",
            "detach",
        ],
    );
    assert!(eventually(seconds(30), || sign.0.exists()), "gdb does not come so far");
    let asker = std::thread::spawn(move || http::get(server, "/hello.txt").expect("an answer").status);
    // Its neighbour of the same image does not stop, and whoever else comes is refused.
    assert!(answers(neighbour));
    let said = said(debugged);
    assert!(said.contains("Breakpoint 1, "), "{said}");
    assert!(said.lines().any(|line| line.starts_with("#0") && line.contains("take")), "{said}");
    assert!(said.contains("rip ") && said.contains("$1 = "), "{said}");
    assert!(said.contains("core 0 of web") && said.contains("detached"), "{said}");
    assert_eq!(asker.join().expect("an answer"), 200, "what came while it stood is answered");
    assert!(is_let_go(&serve, server));
    // Over TCP, on this host alone.
    let open = serve.ask(&["debug", "web", "--listen", "0.0.0.0:0"]);
    assert!(open.status == 125 && open.stderr.contains("listen on 127.0.0.1"), "{open}");
    let (address, socket) = (format!("127.0.0.1:{}", free_port()), serve.socket.display().to_string());
    let mut listening = Running::start(&["debug", "web", "--listen", &address, "--socket", &socket]);
    listening.wait_for(seconds(10), "where it listens", |text| text.contains(&address));
    let far = gdb(&[&image("httpd")], &[&format!("target remote {address}"), "info registers rip", "detach"]);
    assert!(far.contains("rip ") && far.contains("detached"), "{far}");
    assert_eq!(listening.wait(seconds(20)).status, 0);
    assert!(is_let_go(&serve, server));
    assert_eq!(serve.stop().status, 0);
}

#[test]
fn a_debugger_that_does_not_behave_is_its_own_trouble() {
    if absent() {
        return;
    }
    let (serve, server) = web("debuggers", "10.214");
    // Others compute meanwhile, on every worker.
    let hostile = image("hostile").display().to_string();
    let busy = ["run", "-d", "--no-net", "--count", "3", "--name", "busy", &hostile, "endless-loop"];
    assert_eq!(serve.ask(&busy).status, 0);
    let cells = serve.cells();
    // One at a time.
    let (mut first, head) = connection(&serve, "web");
    assert!(
        head.starts_with("HTTP/1.1 101 ") && head.to_lowercase().contains("upgrade: gdb-remote"),
        "{head}"
    );
    assert!(exchange(&mut first, "?").starts_with('T'));
    assert!(!answers(server), "it stands");
    let second = serve.ask(&["debug", "web"]);
    assert_eq!(second.status, 125, "{second}");
    assert!(second.stderr.contains("somebody else debugs or dumps it") && second.stderr.lines().count() == 1);
    let dump = serve.ask(&["dump", "web", "-o", "/nowhere/core"]);
    assert!(dump.status == 125 && dump.stderr.contains("/nowhere/core"), "{dump}");
    let dump = api::ask(&serve.socket, "GET", "/guests/web/core", None);
    assert!(dump.status == 409 && dump.is_a_problem(), "{}", dump.text());
    // It vanishes: at a stop, in the middle of a packet, while the guest runs.
    drop(first);
    assert!(is_let_go(&serve, server));
    let mut half = debugger(&serve);
    half.write_all(b"$m200000,1").expect("written");
    drop(half);
    assert!(is_let_go(&serve, server));
    let mut running = debugger(&serve);
    running.write_all(packet("c").as_bytes()).expect("written");
    assert!(eventually(seconds(10), || answers(server)), "it runs under its debugger");
    drop(running);
    assert!(is_let_go(&serve, server));
    // gdb itself is killed, with a breakpoint in the guest.
    let sign = Scratch::new("killed");
    let mut killed = start_gdb(
        &[&image("httpd")],
        &[
            &target(&serve, "web"),
            &format!("break {}", symbol("httpd", "11Transmitter4take")),
            &format!("shell touch {}", sign.0.display()),
            "continue",
        ],
    );
    assert!(eventually(seconds(30), || sign.0.exists()), "gdb does not come so far");
    killed.kill().expect("killed");
    killed.wait().expect("its end");
    assert!(is_let_go(&serve, server));
    // Anything but the protocol: noise, packets without end, requests of the wrong form.
    let noise: Vec<u8> = (0..200_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let long = [b"$".as_slice(), &vec![b'A'; 300_000]].concat();
    for garbage in
        [noise.as_slice(), &long, b"GET / HTTP/1.1\r\n\r\n", b"$vCont;c:ffff;s:0#00", b"\x03\x03$#00$#"]
    {
        let mut stream = debugger(&serve);
        // It may have heard enough.
        let _ = stream.write_all(garbage);
        drop(stream);
        assert!(is_let_go(&serve, server));
    }
    for wrong in
        ["qRcmd,zz", "mffffffffffffffff,ffffffffffffffff", "G00", "P10=", "Z0,zz,1", "vCont;z", "Hg-7", "m,"]
    {
        let mut stream = debugger(&serve);
        assert!(exchange(&mut stream, "?").starts_with('T'));
        stream.write_all(packet(wrong).as_bytes()).expect("written");
        drop(stream);
    }
    assert!(is_let_go(&serve, server));
    // Without the word for it there is no change of protocols; the API describes what there is.
    let described = api::ask(&serve.socket, "GET", "/openapi.json", None).json();
    let answers_of = |path: &str| described["paths"][path]["get"]["responses"].clone();
    assert!(answers_of("/guests/{id}/debug")["101"].is_object(), "{described}");
    assert!(answers_of("/guests/{id}/core")["200"]["content"]["application/octet-stream"].is_object());
    assert!(answers_of("/guests/{id}/trace")["200"]["content"]["application/x-ndjson"].is_object());
    assert!(described["components"]["schemas"]["Traced"].is_object());
    let plain = api::ask(&serve.socket, "GET", "/guests/web/debug", None);
    assert!(plain.status == 426 && plain.is_a_problem(), "{} {}", plain.head, plain.text());
    for (guest, status) in [("nobody", 404), ("7", 404)] {
        assert!(connection(&serve, guest).1.starts_with(&format!("HTTP/1.1 {status}")));
    }
    // The guest ends under its debugger, as it runs and as it stands, and so does the session.
    for runs in [true, false] {
        let mut last = debugger(&serve);
        assert!(exchange(&mut last, "?").starts_with('T'));
        if runs {
            last.write_all(packet("c").as_bytes()).expect("written");
        }
        assert_eq!(serve.ask(&["kill", "web"]).status, 0);
        let mut rest = Vec::new();
        last.read_to_end(&mut rest).expect("the end of the session");
        assert_eq!(String::from_utf8_lossy(&rest).contains("$X09"), runs, "{rest:?}");
        assert!(eventually(seconds(10), || serve.guests()[0].phase.starts_with("killed")));
        if runs {
            assert_eq!(serve.ask(&["start", "web"]).status, 0);
            assert!(eventually(seconds(20), || serve.guests()[0].phase == "running"));
        }
    }
    let ended = serve.ask(&["debug", "web"]);
    assert!(ended.status == 125 && ended.stderr.contains("does not run: it is killed"), "{ended}");
    // One that gdb ends; and one that it sees fault, and lets.
    let mut killer = {
        assert_eq!(serve.ask(&["start", "web"]).status, 0);
        assert!(eventually(seconds(20), || serve.guests()[0].phase == "running"));
        debugger(&serve)
    };
    killer.write_all(packet("k").as_bytes()).expect("written");
    assert!(eventually(seconds(10), || serve.guests()[0].phase == "killed: its debugger ended it"));
    let kept = ["run", "-d", "--name", "kept", "--keep-core", "-m", "4M", "--small-pages", "httpd"];
    assert_eq!(serve.ask(&kept).status, 0);
    let mut debugged = start_gdb(
        &[&image("httpd")],
        &[&target(&serve, "kept"), "set var $rip = 0x1000", "continue", "p/x $rip", "continue"],
    );
    // It rested, and nobody asks it for anything: it goes on because it is elsewhere now.
    let over = || debugged.try_wait().is_ok_and(|status| status.is_some());
    assert!(eventually(seconds(60), over), "it does not fault");
    let said = said(debugged);
    assert!(said.contains("received signal SIGSEGV") && said.contains("= 0x1000"), "{said}");
    assert!(said.contains("terminated with signal SIGSEGV"), "{said}");
    assert!(eventually(seconds(30), || serve.guests().last().is_some_and(|g| g.phase.starts_with("fault"))));
    let core = Scratch::new("debugged");
    let dump = serve.ask(&["dump", "kept", "-o", &core.0.display().to_string()]);
    assert_eq!(dump.status, 0, "{dump}");
    assert!(gdb(&[&image("httpd"), &core.0], &["p/x $rip"]).contains("= 0x1000"));
    assert_eq!(serve.cells(), cells, "no cell has died of it");
    // A daemon that stops waits for no debugger.
    assert_eq!(serve.ask(&["start", "web"]).status, 0);
    assert!(eventually(seconds(10), || serve.guests()[0].phase == "running"));
    let (mut open, head) = connection(&serve, "web");
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    assert_eq!(serve.stop().status, 0);
    let mut rest = Vec::new();
    assert!(open.read_to_end(&mut rest).is_ok() || rest.is_empty());
}

#[test]
fn gdb_opens_the_dump_of_a_guest_that_runs_and_it_goes_on() {
    if absent() {
        return;
    }
    let (serve, server) = web("dump", "10.215");
    let core = Scratch::new("core");
    let name = core.0.display().to_string();
    std::fs::write(&core.0, b"what was there before").expect("a file");
    let small = serve.ask(&["dump", "web", "-o", &name, "--max-size", "4K"]);
    assert!(small.status == 125 && small.stderr.contains("may have 4096"), "{small}");
    assert_eq!(std::fs::read(&core.0).expect("it"), b"what was there before");
    for paused in [false, true] {
        if paused {
            assert_eq!(serve.ask(&["pause", "web"]).status, 0);
        }
        let dump = serve.ask(&["dump", "web", "-o", &name]);
        assert_eq!(dump.status, 0, "{dump}");
        assert!(dump.stderr.starts_with(&name), "{dump}");
        let said = gdb(&[&image("httpd"), &core.0], &["bt", "info threads", "x/2i $pc", "p/x $mxcsr"]);
        assert!(said.contains("on_core_0") && said.contains("__foraker_guest_main"), "{said}");
        assert!(said.contains("Core was generated by `web'") && !said.contains("Cannot access"), "{said}");
        assert_eq!(answers(server), !paused);
    }
    assert_eq!(serve.ask(&["resume", "web"]).status, 0);
    assert!(eventually(seconds(10), || answers(server)));
    // Through the API, whose answer says its size.
    let answer = api::ask(&serve.socket, "GET", "/guests/1/core", None);
    let length = format!("content-length: {}", answer.body.len());
    assert!(answer.status == 200 && answer.head.to_lowercase().contains(&length), "{}", answer.head);
    assert!(answer.body.starts_with(b"\x7fELF"));
    let bad = api::ask(&serve.socket, "GET", "/guests/1/core?most=0", None);
    assert!(bad.status == 422 && bad.is_a_problem());
    assert_eq!(serve.stop().status, 0);
}

#[test]
fn the_core_of_a_guest_that_faults_is_kept_where_that_was_asked_for() {
    if absent() {
        return;
    }
    let serve = Serve::start("cores", 1, "10.216");
    let hostile = image("hostile").display().to_string();
    let run = |more: &[&str], case: &str| {
        serve.ask(&[&["run", "--no-net"], &SMALL[..], more, &[&hostile, case]].concat())
    };
    assert_eq!(run(&[], "null-write").status, 120);
    assert_eq!(run(&["--keep-core"], "null-write").status, 120);
    let cells = serve.cells();
    let core = Scratch::new("kept");
    let name = core.0.display().to_string();
    let none = serve.ask(&["dump", "1", "-o", &name]);
    assert!(
        none.status == 125 && none.stderr.contains("start") && none.stderr.contains("--keep-core"),
        "{none}"
    );
    assert!(!core.0.exists());
    let faulted = |serve: &Serve, guest: &str, options: &[&str]| {
        let dump = serve.ask(&[&["dump", guest, "-o", &name], options].concat());
        assert_eq!(dump.status, 0, "{dump}");
        gdb(&[&image("hostile"), &core.0], &["bt 1", "info registers rip", "p/x $xmm0"])
    };
    let said = faulted(&serve, "2", &[]);
    assert!(said.contains("SIGSEGV") && said.contains("write_byte"), "{said}");
    let bytes = std::fs::metadata(&core.0).expect("the dump").len();
    let inspected = |guest| serve.ask(&["inspect", guest]).stdout;
    assert!(inspected("2").contains(&format!("\"core_bytes\": {bytes}")), "{}", inspected("2"));
    assert!(!inspected("1").contains("core_bytes"), "{}", inspected("1"));
    // A ring that whoever serves it finds damaged, on whatever thread; the guest may rest meanwhile.
    let ring = ["run", "--net", "--keep-core", "-m", "4M", "--small-pages", &hostile, "tx-ring-ones"];
    assert_eq!(serve.ask(&ring).status, 120);
    assert!(faulted(&serve, "3", &[]).contains("SIGSEGV"));
    // One that comes back: what runs, and what was kept.
    let restarts = run(&["-d", "--keep-core", "--restart", "always", "--name", "again"], "null-write");
    assert_eq!(restarts.status, 0, "{restarts}");
    assert!(eventually(seconds(20), || serve.guests()[3].restarts > 1), "{:?}", serve.guests());
    let said = faulted(&serve, "again", &["--kept"]);
    assert!(said.contains("write_byte"), "{said}");
    assert_eq!(serve.ask(&["kill", "again"]).status, 0);
    assert_eq!(serve.cells(), cells, "no cell has died of it");
    // It outlives the daemon, and not its guest.
    let serve = serve.stopped_and_started_again();
    let said = faulted(&serve, "2", &[]);
    assert!(said.contains("write_byte"), "{said}");
    let file = state(&serve.socket).join("cores/2.core");
    assert!(file.is_file());
    assert_eq!(serve.ask(&["rm", "2"]).status, 0);
    assert!(eventually(seconds(5), || !file.exists()), "its core is left behind");
    assert_eq!(serve.stop().status, 0);
}

#[test]
fn a_trace_has_exits_interrupts_and_packets() {
    let (serve, server) = web("trace", "10.217");
    let socket = serve.socket.display().to_string();
    let mut traced =
        Running::start(&["trace", "web", "--format", "json", "--for", "4s", "--socket", &socket]);
    traced.wait_for(seconds(20), "a line", |text| answers(server) && text.contains("packet"));
    let second = serve.ask(&["trace", "web"]);
    assert!(second.status == 125 && second.stderr.contains("somebody else traces it"), "{second}");
    let traced = traced.wait(seconds(30));
    assert_eq!(traced.status, 0, "{traced}");
    let lines: Vec<Value> =
        traced.stdout.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
    let has = |kind: &str, what: &str| {
        lines
            .iter()
            .any(|l| l["kind"] == kind && l["what"].as_str().is_some_and(|text| text.starts_with(what)))
    };
    assert!(has("exit", "hypercall idle"), "{traced}");
    assert!(has("interrupt", "interrupt net-rx"), "{traced}");
    assert!(has("packet", "received ") && has("packet", "sent "), "{traced}");
    let bytes = |l: &Value| l["bytes"].as_u64().is_some_and(|bytes| (54..65536).contains(&bytes));
    assert!(lines.iter().filter(|l| l["kind"] == "packet").all(bytes), "{traced}");
    let times: Vec<u64> = lines.iter().filter_map(|l| l["at_ns"].as_u64()).collect();
    assert!(times.len() == lines.len() && times.last() > times.first());
    // So many, live, as a table; and when the guest ends.
    let counted = Running::start(&["trace", "web", "--count", "5", "--socket", &socket]);
    assert!(eventually(seconds(20), || answers(server) && counted.stdout().lines().count() == 5));
    let counted = counted.wait(seconds(10));
    assert!(counted.stdout.lines().all(|line| line.contains("  core 0   ")), "{counted}");
    let mut open = Running::start(&["trace", "web", "--socket", &socket]);
    open.wait_for(seconds(20), "a line", |text| answers(server) && text.contains("packet"));
    assert_eq!(serve.ask(&["kill", "web"]).status, 0);
    assert_eq!(open.wait(seconds(10)).status, 0);
    let over = serve.ask(&["trace", "web"]);
    assert!(over.status == 125 && over.stderr.contains("does not run"), "{over}");
    assert_eq!(serve.stop().status, 0);
}

/// A guest that does more than anybody reads loses some of its own trace, and it is said how much; whoever goes makes room for the next.
#[test]
fn what_finds_no_room_in_a_trace_is_counted() {
    let serve = Serve::start("dropped", 1, "10.218");
    let hostile = image("hostile").display().to_string();
    let run = serve.ask(
        &[&["run", "-d", "--no-net", "--name", "busy"], &SMALL[..], &[&hostile, "endless-nop"]].concat(),
    );
    assert_eq!(run.status, 0, "{run}");
    // Asks, and reads nothing for a while: what the sockets and the ring have no room for is dropped.
    let mut slow = UnixStream::connect(&serve.socket).expect("a daemon");
    slow.set_read_timeout(Some(seconds(30))).expect("a limit");
    slow.write_all(b"GET /guests/busy/trace HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("written");
    let mut text = String::new();
    let mut piece = vec![0; 1 << 16];
    let since = std::time::Instant::now();
    while !text.contains("\"dropped\"") && since.elapsed() < seconds(60) {
        std::thread::sleep(Duration::from_millis(500));
        let read = slow.read(&mut piece).expect("a part");
        assert!(read > 0, "it ends");
        text.push_str(&String::from_utf8_lossy(&piece[..read]));
    }
    assert!(text.contains("things happened for which there was no room"), "{}", text.len());
    drop(slow);
    let next = || serve.ask(&["trace", "busy", "--count", "3"]).stdout.lines().count() == 3;
    assert!(eventually(seconds(20), next));
    assert_eq!(serve.ask(&["kill", "busy"]).status, 0);
    assert_eq!(serve.stop().status, 0);
}
