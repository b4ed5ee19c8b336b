//! Bad input: one clear line that says what is wrong and what to do, status 125, nothing left behind.

use std::fs::{self, File};
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use foraker_tests::launch::{Ended, Running, free_port, image, launch, vmm};

const LIMIT: Duration = Duration::from_secs(10);

/// A file that is gone when this is.
struct Temporary(PathBuf);

impl Temporary {
    fn new(name: &str, content: &[u8]) -> Temporary {
        let path = std::env::temp_dir().join(format!("foraker-test-{}-{name}", std::process::id()));
        File::create(&path).and_then(|mut f| f.write_all(content)).expect("a temporary file");
        Temporary(path)
    }

    fn text(&self) -> String {
        self.0.display().to_string()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// One line on standard error that holds these parts, nothing on standard output, and the VMM's own status.
fn refused(ended: &Ended, parts: &[&str]) {
    assert_eq!(ended.status, 125, "{ended}");
    assert_eq!(ended.stdout, "", "{ended}");
    assert_eq!(ended.stderr.lines().count(), 1, "one line: {ended}");
    assert!(ended.stderr.starts_with("vmm: "), "{ended}");
    for part in parts {
        assert!(ended.stderr.contains(part), "{part:?} is missing: {ended}");
    }
    assert!(
        !ended.stderr.contains("panicked") && !ended.stderr.contains("os error"),
        "not for people: {ended}"
    );
}

fn hello() -> String {
    image("hello").display().to_string()
}

#[test]
fn malformed_options() {
    let program = hello();
    let lines: [(&[&str], &str); 16] = [
        (&["--memory", "lots"], "'lots' is not a size"),
        (&["--memory", "-1"], "-1"),
        (&["--cores", "0"], "0 cores"),
        (&["--cores", "65"], "65 cores"),
        (&["--cores", "many"], "many"),
        (&["-p", "80"], "'80' is not a published port"),
        (&["-p", "99999:80"], "not a published port"),
        (&["-p", "80:80/udp"], "cannot publish udp"),
        (&["-e", "NOVALUE"], "is not a variable"),
        (&["--timeout", "soon"], "'soon' is not a number"),
        (&["--timeout", "0"], "'0'"),
        (&["--subnet", "10.0.0.1/24"], "is not a subnet"),
        (&["--subnet", "10.0.0.0/99"], "is not a subnet"),
        (&["--ip", "300.1.1.1"], "300.1.1.1"),
        (&["--service", "nobody"], "nobody"),
        (&["--no-such-option"], "--no-such-option"),
    ];
    for (options, part) in lines {
        let arguments: Vec<&str> = options.iter().copied().chain([program.as_str()]).collect();
        refused(&launch(arguments).wait(LIMIT), &[part]);
    }
}

#[test]
fn nothing_to_do() {
    refused(&Running::start::<&str>(&[]).wait(LIMIT), &["vmm launch"]);
    refused(&Running::start(&["fly"]).wait(LIMIT), &["fly"]);
    refused(&launch::<&str>([]).wait(LIMIT), &["IMAGE"]);
    let program = hello();
    refused(&launch([program.as_str(), "+"]).wait(LIMIT), &["IMAGE"]);
}

#[test]
fn names_are_given_once() {
    let program = hello();
    refused(
        &launch([program.as_str(), "+", &program]).wait(LIMIT),
        &["two guests are called hello", "--name"],
    );
}

#[test]
fn files_that_are_no_image() {
    refused(&launch(["/nonexistent/image"]).wait(LIMIT), &["/nonexistent/image", "No such file"]);
    refused(&launch(["/"]).wait(LIMIT), &["/"]);
    let empty = Temporary::new("empty", b"");
    refused(&launch([empty.text()]).wait(LIMIT), &[&empty.text()]);
    let text = Temporary::new("text", b"#!/bin/sh\necho this is no image\n");
    refused(&launch([text.text()]).wait(LIMIT), &[&text.text(), "ELF"]);
    // An ELF file for this processor, but not for this architecture.
    let own = vmm().display().to_string();
    refused(&launch([own.as_str()]).wait(LIMIT), &[&own, "image"]);
}

#[test]
fn damaged_images() {
    let good = fs::read(image("hello")).expect("the image");
    for length in [1, 4, 63, 64, 100, 500, good.len() / 2] {
        let cut = Temporary::new(&format!("cut-{length}"), &good[..length]);
        let ended = launch([cut.text()]).wait(LIMIT);
        // A file that ends behind all that is loaded is whole as far as the VMM is concerned.
        if ended.status != 0 {
            refused(&ended, &[&cut.text()]);
        } else {
            assert!(length > 64, "{ended}");
        }
    }
    // Bytes changed all over the headers: a clear refusal, or a guest that runs into the wall, never more.
    for at in (4..400).step_by(7) {
        let mut bytes = good.clone();
        bytes[at] ^= 0xff;
        let spoilt = Temporary::new(&format!("spoilt-{at}"), &bytes);
        let limit = foraker_tests::bounds::seconds(2).as_secs().to_string();
        let ended = launch(["--timeout", &limit, &spoilt.text()]).wait(LIMIT);
        match ended.status {
            0..=121 => {}
            _ => refused(&ended, &[&spoilt.text()]),
        }
    }
}

#[test]
fn another_version() {
    let mut bytes = fs::read(image("hello")).expect("the image");
    let name = bytes.windows(8).position(|w| w == foraker_abi::note::NAME).expect("the note");
    let version = &mut bytes[name + 8..name + 12];
    assert_eq!(version, foraker_abi::VERSION.to_le_bytes());
    version.copy_from_slice(&77u32.to_le_bytes());
    let other = Temporary::new("version", &bytes);
    refused(&launch([other.text()]).wait(LIMIT), &[&other.text(), "77", "version"]);
}

#[test]
fn too_little_and_too_much_memory() {
    let program = hello();
    for size in ["1", "4K", "64K"] {
        refused(&launch(["--memory", size, &program]).wait(LIMIT), &["hello", "memory"]);
    }
    refused(&launch(["--memory", "8192T", &program]).wait(LIMIT), &["memory"]);
}

#[test]
fn a_port_in_use() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("its address").port();
    let program = image("httpd").display().to_string();
    let ended = launch(["-p", &format!("{port}:80"), &program]).wait(LIMIT);
    refused(&ended, &[&port.to_string(), "use"]);
}

#[test]
fn a_published_port_without_a_network() {
    let program = hello();
    let publish = format!("{}:80", free_port());
    refused(&launch(["--no-net", "-p", &publish, &program]).wait(LIMIT), &["no network", "--net"]);
}

#[test]
fn network_options_without_a_network() {
    let program = hello();
    refused(&launch(["--no-net", "--tap", "nosuch0", &program]).wait(LIMIT), &["network"]);
    let pcap = std::env::temp_dir().join("foraker-test-never-written.pcap").display().to_string();
    refused(&launch(["--no-net", "--pcap", &pcap, &program]).wait(LIMIT), &["network"]);
    assert!(!std::path::Path::new(&pcap).exists());
}

#[test]
fn a_device_that_is_not_there() {
    let program = hello();
    // A name longer than Linux has them, and one that no device can be made of.
    refused(
        &launch(["--net", "--tap", "a-name-that-is-far-too-long", &program]).wait(LIMIT),
        &["a-name-that"],
    );
    refused(&launch(["--net", "--tap", "lo", &program]).wait(LIMIT), &["lo"]);
}

#[test]
fn addresses_outside_the_subnet() {
    let program = image("httpd").display().to_string();
    let ended = launch(["--subnet", "10.98.77.0/24", "--ip", "10.98.78.9", &program]).wait(LIMIT);
    refused(&ended, &["10.98.78.9"]);
    // The host's own side, and twice the same.
    refused(
        &launch(["--subnet", "10.98.77.0/24", "--ip", "10.98.77.1", &program]).wait(LIMIT),
        &["10.98.77.1"],
    );
    let twice = [
        "--subnet",
        "10.98.77.0/24",
        "--name",
        "a",
        "--ip",
        "10.98.77.9",
        &program,
        "+",
        "--name",
        "b",
        "--ip",
        "10.98.77.9",
        &program,
    ];
    refused(&launch(twice).wait(LIMIT), &["10.98.77.9"]);
}

#[test]
fn a_pcap_file_that_cannot_be_written() {
    let program = image("httpd").display().to_string();
    let ended = launch(["--pcap", "/nonexistent/folder/x.pcap", &program]).wait(LIMIT);
    refused(&ended, &["/nonexistent/folder/x.pcap"]);
}

#[test]
fn arguments_that_do_not_fit() {
    let program = hello();
    let long = "x".repeat(9000);
    refused(&launch([program.as_str(), &long]).wait(LIMIT), &["arguments"]);
}

/// Runs the command with less than it needs, set up in the child before it starts.
fn deprived(arguments: &[&str], deprive: fn() -> std::io::Result<()>) -> Ended {
    let mut command = Command::new(vmm());
    command.args(arguments).stdin(Stdio::null());
    // SAFETY: `deprive` makes system calls only, and neither allocates nor takes locks.
    unsafe { command.pre_exec(deprive) };
    let output = command.output().expect("it can be run");
    Ended {
        status: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Becomes a user who owns nothing.
fn become_nobody() -> std::io::Result<()> {
    // SAFETY: three system calls without memory.
    let results = unsafe { [libc::setgroups(0, std::ptr::null()), libc::setgid(65534), libc::setuid(65534)] };
    if results.iter().all(|&r| r == 0) { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

fn is_root() -> bool {
    // SAFETY: a system call without memory.
    unsafe { libc::geteuid() == 0 }
}

#[test]
fn kvm_that_may_not_be_used() {
    assert!(is_root(), "this test needs root, to give it up");
    // The binary and the image must be readable by anybody: copies in a place of their own.
    let program = readable_copy("hello", &fs::read(image("hello")).expect("the image"));
    let text = program.text();
    let ended = deprived(&["launch", &text], become_nobody);
    refused(&ended, &["/dev/kvm"]);
}

#[test]
fn no_right_to_make_a_device() {
    assert!(is_root(), "this test needs root, to give it up");
    let program = readable_copy("httpd", &fs::read(image("httpd")).expect("the image"));
    let text = program.text();
    let ended = deprived(&["launch", "--net", &text], drop_network_rights);
    refused(&ended, &["TAP"]);
}

fn readable_copy(name: &str, content: &[u8]) -> Temporary {
    use std::os::unix::fs::PermissionsExt;
    let file = Temporary::new(&format!("readable-{name}"), content);
    fs::set_permissions(&file.0, fs::Permissions::from_mode(0o644)).expect("its mode");
    file
}

/// Gives up what makes network devices, for good.
fn drop_network_rights() -> std::io::Result<()> {
    const CAP_NET_ADMIN: libc::c_ulong = 12;
    // SAFETY: a system call without memory. What the bounding set lacks, a program started by root does not get.
    let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, CAP_NET_ADMIN, 0, 0, 0) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
