//! What gdb makes of it: dumps of guests that have faulted and of guests that run, and guests that it debugs.
//!
//! Environment: `IMAGES` names the folder of images; without it `target/images` is taken. gdb must be installed.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::net::{IpAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use foraker_cell::trace::Event;
use foraker_cell::{Cell, Config, End, Guest, GuestSpec, LoadedImage, NetworkConfig, NetworkSpec};
use foraker_debug::{DebugError, DumpError, Dumped, Session, dump, serve};

const PATIENCE: Duration = Duration::from_secs(20);
const MOST: u64 = 64 << 20;

fn image(name: &str) -> PathBuf {
    let folder = std::env::var_os("IMAGES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/images"), PathBuf::from);
    let path = folder.join(name);
    assert!(path.exists(), "there is no image {}: build them with `cargo xtask images`", path.display());
    path
}

fn cell() -> Cell {
    let config = Config { kept_machines: 4, ..Config::new(2, 256 << 20, std::io::stderr().as_raw_fd()) };
    Cell::new(&config).expect("a usable /dev/kvm")
}

fn spec(name: &str, arguments: &[&str]) -> GuestSpec {
    let arguments = arguments.iter().map(|s| (*s).to_owned()).collect();
    GuestSpec { arguments, ..GuestSpec::new(LoadedImage::open(&image(name)).unwrap(), name) }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let since = Instant::now();
    while !done() {
        assert!(since.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The symbol of an image that has this in its name.
fn symbol(name: &str, part: &str) -> String {
    use object::read::elf::ElfFile64;
    use object::{Object, ObjectSymbol};
    let bytes = std::fs::read(image(name)).unwrap();
    let file: ElfFile64 = ElfFile64::parse(&*bytes).unwrap();
    let found = file
        .symbols()
        .find_map(|symbol| symbol.name().ok().filter(|name| name.contains(part)).map(str::to_owned));
    found.unwrap_or_else(|| panic!("{name} has no symbol with {part} in it"))
}

/// A file that is gone with its owner.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        Scratch(std::env::temp_dir().join(format!("foraker-{name}-{}", std::process::id())))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// What gdb says, all of it.
fn gdb(arguments: &[&Path], commands: &[&str]) -> String {
    gdb_meanwhile(arguments, commands, |_| ())
}

/// The same, with something done meanwhile that is told gdb's process.
fn gdb_meanwhile(arguments: &[&Path], commands: &[&str], meanwhile: impl FnOnce(u32)) -> String {
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-batch", "-ex", "set debuginfod enabled off"]).args(arguments);
    for command in commands {
        gdb.args(["-ex", command]);
    }
    let gdb = gdb.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let gdb = gdb.unwrap_or_else(|e| panic!("this test needs gdb, which cannot be run ({e}): install it"));
    meanwhile(gdb.id());
    let output = gdb.wait_with_output().unwrap();
    let both = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let said = both.concat();
    eprintln!("{said}");
    said
}

fn dump_to(scratch: &Scratch, guest: &Arc<Guest>) -> Dumped {
    let to = BufWriter::new(File::create(&scratch.0).unwrap());
    let dumped = dump(guest, PATIENCE, MOST, to).unwrap();
    assert_eq!(std::fs::metadata(&scratch.0).unwrap().len(), dumped.bytes);
    dumped
}

#[test]
fn the_dump_of_a_guest_that_faulted_names_the_function() {
    let cell = cell();
    for keep_core in [true, false] {
        let guest = cell.start(&GuestSpec { keep_core, ..spec("hostile", &["null-write"]) }).unwrap();
        until("it faults", || guest.has_ended());
        let Some(End::Faulted(fault)) = guest.end() else { panic!("{:?}", guest.end()) };
        let scratch = Scratch::new("fault");
        let dumped = dump_to(&scratch, &guest);
        assert_eq!(dumped.cores, 1);
        assert!(dumped.memory < 4 << 20, "{dumped:?}: a small guest has a small dump");
        let said = gdb(
            &[&image("hostile"), &scratch.0],
            &["bt", "info registers rip rsp", "p/x $xmm0", "x/2i $rip", "p/x $mxcsr"],
        );
        assert!(said.contains("SIGSEGV"), "the signal is missing");
        let frame = said.lines().find(|line| line.starts_with("#0")).expect("a backtrace");
        assert!(frame.contains("write_byte"), "{frame}");
        assert!(
            said.contains(&format!("{:#x}", fault.rip))
                && said.contains(&format!("{:#x}", fault.registers.rsp))
        );
        assert!(said.contains("$2 = 0x1f80"), "the state of the vectors is not what it starts with");
        // It is still the guest's own memory, which is not given back before it is forgotten.
        cell.forget(&guest);
    }
}

#[test]
fn the_dump_of_a_guest_that_runs_holds_what_it_holds_and_it_goes_on() {
    let cell = cell();
    // Computes without end.
    let guest = cell.start(&spec("hostile", &["endless-loop"])).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert!(!guest.has_ended(), "{:?}", guest.end());
    let scratch = Scratch::new("run");
    for paused in [false, true] {
        if paused {
            guest.pause();
        }
        let dumped = dump_to(&scratch, &guest);
        assert_eq!(dumped.cores, 1);
        assert_eq!(guest.is_paused(), paused);
        let text = guest.memory.visible().nth(1).unwrap().0.start;
        let said = gdb(
            &[&image("hostile"), &scratch.0],
            &["bt", &format!("x/4xb {text:#x}"), "x/2gx $rsp", "info threads"],
        );
        assert!(said.contains("#0  0x") || said.contains("#0  "), "a backtrace");
        let mut bytes = [0; 4];
        assert_eq!(guest.memory.peek(text, &mut bytes), 4);
        let expected = bytes.map(|b| format!("0x{b:02x}")).join("\t");
        assert!(said.contains(&expected), "{expected}");
        assert!(!said.contains("Cannot access memory"));
    }
    guest.resume();
    let before = guest.cpu_time();
    until("it goes on", || guest.cpu_time() > before);
    // What is too large is not begun.
    let mut nothing = Vec::new();
    assert!(matches!(dump(&guest, PATIENCE, 4096, &mut nothing), Err(DumpError::TooLarge { .. })));
    assert!(nothing.is_empty());
    guest.finish(End::Killed("the test has seen enough".to_owned()));
    until("its core is gone", || {
        matches!(dump(&guest, PATIENCE, MOST, &mut nothing), Err(DumpError::Nothing))
    });
}

/// Serves one session of gdb on a socket.
fn served(socket: &Scratch, guest: &Arc<Guest>) -> JoinHandle<Result<Session, DebugError>> {
    let listener = UnixListener::bind(&socket.0).unwrap();
    let guest = Arc::clone(guest);
    std::thread::spawn(move || serve(&guest, listener.accept().unwrap().0, PATIENCE))
}

/// A request to a guest's web server, and the first line of the answer.
fn request(address: IpAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&(address, 80).into(), Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: guest\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.lines().next().unwrap_or_default().to_owned())
}

#[test]
fn gdb_debugs_a_server_and_leaves_it_as_it_was() {
    let network = Some(NetworkConfig::default());
    let config = Config { network, ..Config::new(2, 256 << 20, std::io::stderr().as_raw_fd()) };
    let cell = Cell::new(&config).expect("a usable /dev/kvm, and the right to make a TAP device");
    let spec = GuestSpec { network: Some(NetworkSpec::default()), ..spec("httpd", &[]) };
    let (guest, other) = (cell.start(&spec).unwrap(), cell.start(&spec).unwrap());
    let address = |guest: &Guest| IpAddr::from(guest.port.as_ref().unwrap().ipv4());
    let (here, there) = (address(&guest), address(&other));
    until("it answers", || request(here).is_ok_and(|line| line.contains("200")));
    let (socket, sign) = (Scratch::new("socket"), Scratch::new("sign"));
    let mut trace = other.trace(1000).unwrap();
    let session = served(&socket, &guest);
    let mut answer = None;
    let said = gdb_meanwhile(
        &[&image("httpd")],
        &[
            &format!("target remote {}", socket.0.display()),
            &format!("break {}", symbol("httpd", "11Transmitter4take")),
            &format!("shell touch {}", sign.0.display()),
            "continue",
            "info registers rip rsp",
            "p/x $xmm1",
            "bt 4",
            "x/i $pc",
            "stepi",
            "stepi",
            "info threads",
            "delete",
            "detach",
        ],
        |_| {
            until("gdb lets it go on", || sign.0.exists());
            answer = Some(std::thread::spawn(move || request(here)));
            // Its neighbour of the same image does not stop.
            assert!(request(there).unwrap().contains("200"));
        },
    );
    assert!(said.contains("Breakpoint 1, "), "it is not hit");
    let frame = said.lines().find(|line| line.starts_with("#0")).expect("a backtrace");
    assert!(frame.contains("take"), "{frame}");
    assert!(said.contains("core 0 of httpd") && said.contains("detached"), "{said}");
    assert!(!said.contains("Cannot") && !said.contains("rror"), "{said}");
    let events: Vec<Event> = std::iter::from_fn(|| trace.take()).map(|happened| happened.event).collect();
    let is = |of: fn(&Event) -> bool| events.iter().any(of);
    assert!(
        is(|event| matches!(event, Event::Received(60..=1514)))
            && is(|event| matches!(event, Event::Sent(60..=65535))),
        "{events:?}"
    );
    assert_eq!(session.join().unwrap().unwrap(), Session::Detached);
    // What came while it stood was not lost, and it is as it was before.
    assert!(answer.unwrap().join().unwrap().unwrap().contains("200"));
    for _ in 0..20 {
        assert!(request(here).unwrap().contains("200"));
    }
}

#[test]
fn gdb_sees_a_fault_and_decides() {
    let cell = cell();
    let guest = cell.start(&GuestSpec { paused: true, ..spec("hostile", &["null-write"]) }).unwrap();
    let (socket, sign) = (Scratch::new("fault-socket"), Scratch::new("fault-sign"));
    let session = served(&socket, &guest);
    let said = gdb_meanwhile(
        &[&image("hostile")],
        &[
            &format!("target remote {}", socket.0.display()),
            &format!("shell touch {}", sign.0.display()),
            "continue",
            "bt 2",
            // gdb passes the signal on.
            "continue",
        ],
        |_| {
            until("gdb lets it go on", || sign.0.exists());
            guest.resume();
        },
    );
    assert!(said.contains("Program received signal SIGSEGV"), "{said}");
    assert!(said.lines().any(|line| line.starts_with("#0") && line.contains("write_byte")), "{said}");
    assert!(said.contains("Program terminated with signal SIGSEGV"), "{said}");
    assert_eq!(session.join().unwrap().unwrap(), Session::Ended);
    assert!(matches!(guest.end(), Some(End::Faulted(_))), "{:?}", guest.end());
    let socket = Scratch::new("ended-socket");
    let session = served(&socket, &guest);
    drop(std::os::unix::net::UnixStream::connect(&socket.0).unwrap());
    assert!(matches!(session.join().unwrap(), Err(DebugError::Ended)));
}

#[test]
fn gdb_interrupts_a_guest_changes_it_and_kills_it() {
    let cell = cell();
    let guest = cell.start(&spec("hostile", &["endless-loop"])).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    // Once it leaves by being closed, and once it kills.
    for last in ["disconnect", "kill"] {
        let (socket, sign) = (Scratch::new("interrupt-socket"), Scratch::new("interrupt-sign"));
        let session = served(&socket, &guest);
        let said = gdb_meanwhile(
            &[&image("hostile")],
            &[
                &format!("target remote {}", socket.0.display()),
                &format!("shell touch {}", sign.0.display()),
                "continue",
                "bt 1",
                "set var $rbx = 0x1234567890",
                "set var $xmm3.uint128 = 0x77",
                "set {long}($rsp - 256) = 0x5566",
                "flushregs",
                "p/x $rbx",
                "p/x $xmm3.uint128",
                "p/x *(long*)($rsp - 256)",
                "x/gx 0",
                "stepi",
                last,
            ],
            |process| {
                until("gdb lets it go on", || sign.0.exists());
                let before = guest.cpu_time();
                until("it goes on", || guest.cpu_time() > before);
                std::thread::sleep(Duration::from_millis(300));
                assert!(
                    Command::new("kill").args(["-INT", &process.to_string()]).status().unwrap().success()
                );
            },
        );
        assert!(said.contains("Program received signal SIGINT"), "{said}");
        assert!(said.lines().any(|line| line.starts_with("#0") && line.contains("spin")), "{said}");
        for value in ["= 0x1234567890", "= 0x77", "= 0x5566"] {
            assert!(said.contains(value), "{value}: {said}");
        }
        assert!(said.contains("Cannot access memory at address 0x0"), "{said}");
        let expected = if last == "kill" { Session::Killed } else { Session::Detached };
        assert_eq!(session.join().unwrap().unwrap(), expected);
        assert_eq!(guest.has_ended(), last == "kill");
        if last != "kill" {
            let before = guest.cpu_time();
            until("it goes on", || guest.cpu_time() > before);
        }
    }
}
