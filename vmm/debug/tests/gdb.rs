//! What gdb makes of it: dumps of guests that have faulted and of guests that run.
//!
//! Environment: `IMAGES` names the folder of images; without it `target/images` is taken. gdb must be installed.

use std::fs::File;
use std::io::BufWriter;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foraker_cell::{Cell, Config, End, Guest, GuestSpec, LoadedImage};
use foraker_debug::{DumpError, Dumped, dump};

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
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-batch", "-ex", "set debuginfod enabled off"]).args(arguments);
    for command in commands {
        gdb.args(["-ex", command]);
    }
    let output =
        gdb.output().unwrap_or_else(|e| panic!("this test needs gdb, which cannot be run ({e}): install it"));
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
