//! The virtual ethernet from outside: echo, neighbours, published ports, several launches, captures, limits, counters.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use foraker_tests::bounds::{emulated, eventually, seconds, stretched};
use foraker_tests::http;
use foraker_tests::launch::{Running, free_port, httpd, image, launch};

const LIMIT: Duration = Duration::from_secs(10);

/// Launches one guest; returns it with its address once its console says what is looked for.
fn guest(options: &[&str], program: &str, arguments: &[&str], sign: &str) -> (Running, Ipv4Addr) {
    let path = image(program).display().to_string();
    let mut all = vec!["--json", "--log-level", "info", "--name", "g"];
    all.extend_from_slice(options);
    all.push(&path);
    all.extend_from_slice(arguments);
    let mut running = launch(all);
    running.wait_for(LIMIT, "its address", |text| address_in(text).is_some());
    let address = address_in(&running.stderr()).expect("an address");
    running.wait_for(LIMIT, sign, |text| text.contains(sign));
    (running, address)
}

/// The address in the VMM's message about it.
fn address_in(text: &str) -> Option<Ipv4Addr> {
    text.lines().find_map(|l| l.split_once("guest g has address ")?.1.trim().parse().ok())
}

fn connect(address: Ipv4Addr, port: u16) -> TcpStream {
    let to = SocketAddr::new(IpAddr::V4(address), port);
    let stream = TcpStream::connect_timeout(&to, stretched(LIMIT)).unwrap_or_else(|e| panic!("{to}: {e}"));
    stream.set_read_timeout(Some(stretched(LIMIT))).expect("a time limit");
    stream.set_write_timeout(Some(stretched(LIMIT))).expect("a time limit");
    stream
}

/// Bytes that are different enough that none can take another's place unseen.
fn pattern(length: usize) -> Vec<u8> {
    (0..length as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

#[test]
fn echo_over_tcp() {
    let (running, address) = guest(&[], "echo", &[], "echo");
    let data = pattern(if emulated() { 100_000 } else { 5_000_000 });
    let stream = connect(address, 7);
    let mut writer = stream.try_clone().expect("a second handle");
    let sent = data.clone();
    let thread = std::thread::spawn(move || {
        writer.write_all(&sent).expect("sent");
        writer.shutdown(Shutdown::Write).expect("closed");
    });
    let mut back = Vec::new();
    (&stream).read_to_end(&mut back).expect("received");
    thread.join().expect("no panic");
    assert!(back == data, "{} of {} bytes, or other ones", back.len(), data.len());
    assert_eq!(running.stop().status, 0);
}

#[test]
fn echo_over_udp() {
    let (running, address) = guest(&[], "echo", &[], "echo");
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    socket.connect((address, 7)).expect("a peer");
    socket.set_read_timeout(Some(stretched(Duration::from_secs(1)))).expect("a time limit");
    let mut answered = 0;
    let sizes = [0, 1, 2, 100, 511, 512, 1000, 1471, 1472];
    for size in sizes {
        let data = pattern(size);
        // UDP may lose a packet: a few attempts.
        for _ in 0..5 {
            socket.send(&data).expect("sent");
            let mut back = [0; 2048];
            if socket.recv(&mut back).is_ok_and(|n| back[..n] == data[..]) {
                answered += 1;
                break;
            }
        }
    }
    assert_eq!(answered, sizes.len());
    assert_eq!(running.stop().status, 0);
}

#[test]
fn a_closed_port_refuses() {
    let (running, address) = guest(&[], "echo", &[], "echo");
    let refused = TcpStream::connect_timeout(&SocketAddr::new(address.into(), 4242), stretched(LIMIT));
    assert_eq!(refused.map_err(|e| e.kind()).err(), Some(std::io::ErrorKind::ConnectionRefused));
    assert_eq!(running.stop().status, 0);
}

/// One worker, and a guest that does not leave it alone: what is for its neighbour arrives all the same.
#[test]
fn a_neighbour_that_exits_without_end_keeps_nobody_from_the_network() {
    let (httpd, hostile) = (image("httpd").display().to_string(), image("hostile").display().to_string());
    for (number, case) in ["endless-nop", "endless-unknown", "endless-loop"].into_iter().enumerate() {
        let subnet = format!("10.98.{}.0/24", 70 + number);
        let arguments = [
            &["--workers", "1", "--subnet", &subnet, "--name", "web", &httpd, "+", "--name", "greedy"][..],
            &[&hostile, case],
        ]
        .concat();
        let mut running = launch(arguments);
        let server = SocketAddr::from((Ipv4Addr::new(10, 98, 70 + u8::try_from(number).unwrap(), 2), 80));
        http::wait_until_serving(server, seconds(20));
        for _ in 0..10 {
            let answer = http::get(server, "/bytes/2000").expect(case);
            assert_eq!((answer.status, answer.body.len()), (200, 2000), "{case}");
        }
        running.signal(libc::SIGINT);
        running.signal(libc::SIGINT);
        let _ = running.wait(LIMIT);
    }
}

#[test]
fn guests_talk_to_each_other() {
    let (echo, program) = (image("echo").display().to_string(), image("conformance").display().to_string());
    let arguments = [
        "--subnet",
        "10.98.11.0/24",
        "--name",
        "peer",
        "--ip",
        "10.98.11.77",
        &echo,
        "+",
        "--name",
        "asker",
        "-e",
        "PEER=10.98.11.77",
        "-e",
        "UNSTABLE_CLOCK=1",
        "--cores",
        "1",
        &program,
    ];
    let mut running = launch(arguments);
    running
        .wait_for(Duration::from_secs(60), "the closing line", |text| text.contains("asker| conformance: "));
    let ended = running.stop();
    assert_eq!(ended.status, 0, "{ended}");
    let echoes = ended.stdout.lines().filter(|line| *line == "asker| ok net.arp_target").count();
    assert_eq!(echoes, 2, "gateway and peer answer ARP: {ended}");
    assert!(ended.stdout.contains("asker| ok net.echo"), "{ended}");
}

/// What guests of another network see of an echo server is that there is none; the host reaches both.
#[test]
fn guests_of_different_networks_are_apart() {
    let (echo, program) = (image("echo").display().to_string(), image("conformance").display().to_string());
    let asker = |network| {
        [
            "+",
            "--name",
            "asker",
            "--network",
            network,
            "-e",
            "PEER=10.95.64.77",
            "-e",
            "UNSTABLE_CLOCK=1",
            &program,
        ]
        .map(str::to_owned)
    };
    for (network, apart) in [("blue", false), ("red", true)] {
        let mut arguments = ["--json", "--subnet", "10.95.64.0/24", "--name", "peer", "--ip", "10.95.64.77"]
            .into_iter()
            .chain(["--network", "blue", &echo])
            .map(str::to_owned)
            .collect::<Vec<_>>();
        arguments.extend(asker(network));
        let mut running = launch(arguments);
        running.wait_for(Duration::from_secs(60), "the closing line", |text| {
            text.contains("asker| conformance: ")
        });
        let mut stream = connect(Ipv4Addr::new(10, 95, 64, 77), 7);
        stream.write_all(b"there").expect("sent");
        let mut back = [0; 5];
        stream.read_exact(&mut back).expect("received");
        drop(stream);
        let ended = running.stop();
        let lines = |sign: &str| ended.stderr.lines().filter(|line| line.starts_with(sign)).count();
        // The gateway is the first that is asked, the peer the second.
        assert_eq!(lines("asker| ok net.arp_target"), if apart { 1 } else { 2 }, "{network}: {ended}");
        assert_eq!(ended.report().guest("asker").dropped("isolated") > 0, apart, "{network}: {ended}");
        assert_eq!(ended.status == 0, !apart, "{network}: {ended}");
    }
}

#[test]
fn two_launches_at_the_same_time() {
    let (mut first, one) = httpd(&[], &[]);
    let (mut second, two) = httpd(&[], &[]);
    http::wait_until_serving(one, LIMIT);
    http::wait_until_serving(two, LIMIT);
    let (a, b) = (first.note_devices().to_vec(), second.note_devices().to_vec());
    assert!(a.len() == 1 && b.len() == 1 && a != b, "a device for each: {a:?} {b:?}");
    assert!(a[0].name.starts_with("fk"), "{a:?}");
    for server in [one, two, one, two] {
        assert_eq!(http::get(server, "/bytes/9999").expect("an answer").body.len(), 9999);
    }
    let first = first.stop();
    assert_eq!(http::get(two, "/bytes/9999").expect("the other one serves on").body.len(), 9999);
    let second = second.stop();
    assert_eq!((first.status, second.status), (0, 0));
    let address = |ended: &foraker_tests::launch::Ended| ended.report().guest("web").ipv4.clone();
    assert_ne!(address(&first), address(&second));
}

#[test]
fn the_subnet_and_address_are_as_asked() {
    let (running, address) =
        guest(&["--subnet", "10.98.12.0/24", "--ip", "10.98.12.200"], "echo", &[], "echo");
    assert_eq!(address, Ipv4Addr::new(10, 98, 12, 200));
    let mut stream = connect(address, 7);
    stream.write_all(b"there").expect("sent");
    let mut back = [0; 5];
    stream.read_exact(&mut back).expect("received");
    assert_eq!(&back, b"there");
    drop(stream);
    let ended = running.stop();
    let report = ended.report();
    assert_eq!(report.network.expect("a network").gateway, "10.98.12.1/24");
}

#[test]
fn every_guest_of_a_large_subnet_has_working_ipv6() {
    if !std::path::Path::new("/proc/net/if_inet6").exists() {
        eprintln!("this kernel has no IPv6");
        return;
    }
    let program = image("httpd").display().to_string();
    let (one, two) = (["--name", "one", "--ip", "10.95.3.7"], ["--name", "two", "--ip", "10.95.255.254"]);
    let mut arguments = vec!["--subnet", "10.95.0.0/16"];
    arguments.extend(one.iter().chain([&program.as_str(), &"+"]).chain(&two).chain([&program.as_str()]));
    let running = launch(arguments);
    for address in ["[fd46:4b00:a5f::307]:80", "[fd46:4b00:a5f::fffe]:80"] {
        let server: SocketAddr = address.parse().expect("an address");
        http::wait_until_serving(server, LIMIT);
        assert_eq!(http::get(server, "/bytes/99999").expect("an answer").body.len(), 99_999);
    }
    assert_eq!(running.stop().status, 0);
}

#[test]
fn several_published_ports_on_one_guest() {
    let (one, two) = (free_port(), free_port());
    let (a, b) = (format!("{one}:80"), format!("127.0.0.1:{two}:80"));
    let program = image("httpd").display().to_string();
    let running = launch(["--json", "-p", &a, "-p", &b, &program]);
    for port in [one, two] {
        http::wait_until_serving(SocketAddr::from(([127, 0, 0, 1], port)), LIMIT);
    }
    assert_eq!(running.stop().status, 0);
}

/// Packets of a capture: checks its structure, and returns their bytes.
fn packets(bytes: &[u8]) -> Vec<&[u8]> {
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    match word(0) {
        // libpcap's own form, microseconds or nanoseconds.
        0xa1b2_c3d4 | 0xa1b2_3c4d => {
            assert_eq!(word(20) & 0xffff, 1, "ethernet");
            let mut at = 24;
            let mut found = Vec::new();
            while at < bytes.len() {
                let length = word(at + 8) as usize;
                assert!(length <= word(at + 12) as usize, "captured more than there was");
                found.push(&bytes[at + 16..at + 16 + length]);
                at += 16 + length;
            }
            found
        }
        other => panic!("no capture: {other:#x}"),
    }
}

#[test]
fn the_capture_can_be_read() {
    let path: PathBuf = std::env::temp_dir().join(format!("foraker-test-{}.pcap", std::process::id()));
    let text = path.display().to_string();
    let (running, server) = httpd(&["--pcap", &text], &[]);
    http::wait_until_serving(server, LIMIT);
    assert_eq!(http::get(server, "/bytes/12345").expect("an answer").body.len(), 12_345);
    let ended = running.stop();
    assert_eq!(ended.status, 0, "{ended}");
    let bytes = std::fs::read(&path).expect("the capture");
    let _ = std::fs::remove_file(&path);
    let packets = packets(&bytes);
    assert!(packets.len() > 10, "{} packets", packets.len());
    let is_tcp = |p: &&&[u8]| p.len() > 34 && p[12..14] == [8, 0] && p[23] == 6;
    let (to, from): (Vec<&&[u8]>, Vec<&&[u8]>) =
        packets.iter().filter(is_tcp).partition(|p| p[36..38] == [0, 80]);
    assert!(to.len() > 3 && from.len() > 3, "both directions: {} {}", to.len(), from.len());
    let holds = |part: &[u8]| packets.iter().any(|p| p.windows(part.len()).any(|w| w == part));
    assert!(holds(b"GET /bytes/12345") && holds(b"200 OK"), "the request and its answer");
}

/// Bytes per second of a transfer.
fn speed(server: SocketAddr, size: usize) -> f64 {
    let start = Instant::now();
    assert_eq!(http::get(server, &format!("/bytes/{size}")).expect("an answer").body.len(), size);
    size as f64 / start.elapsed().as_secs_f64()
}

#[test]
fn a_limit_of_bandwidth_holds() {
    // Long enough that the bucket's first fill does not count for much.
    let size = if emulated() { 400_000 } else { 4_000_000 };
    let limit = if emulated() { "40K" } else { "1M" };
    let bytes = if emulated() { 40.0 * 1024.0 } else { 1024.0 * 1024.0 };
    let (running, server) = httpd(&["--tx-bandwidth", limit], &[]);
    http::wait_until_serving(server, LIMIT);
    let reached = speed(server, size);
    assert!(reached < 1.6 * bytes, "{reached} bytes per second with a limit of {bytes}");
    // Frames above the limit wait in the ring, so that TCP uses what is allowed.
    assert!(reached > 0.7 * bytes, "{reached} bytes per second with a limit of {bytes}");
    let ended = running.stop();
    let report = ended.report();
    assert_eq!(report.guest("web").dropped("rate_limited"), 0, "nothing is lost by it");
}

#[test]
fn a_limit_of_packets_holds() {
    let program = image("hostile").display().to_string();
    let limit = seconds(2).as_secs();
    let arguments =
        ["--json", "--timeout", &limit.to_string(), "--tx-packets", "1000", &program, "flood-gateway"];
    let ended = launch(arguments).wait(Duration::from_secs(20));
    let report = ended.report();
    let guest = &report.guests[0];
    // It may send so many, and a tenth of a second's worth at once at the start.
    let most = 1000 * (limit + 1);
    // An emulated machine that is busy with other things may not come to send what is allowed.
    let least = if emulated() { 700 * limit } else { 1000 * (limit - 1) };
    assert!((least..=most).contains(&guest.counter("tx_frames")), "{least} to {most}: {guest:?}");
    assert_eq!(guest.dropped("rate_limited"), 0, "{guest:?}");
}

#[test]
fn forged_frames_are_counted() {
    let program = image("hostile").display().to_string();
    let limit = seconds(1).as_secs().to_string();
    let ended =
        launch(["--json", "--timeout", &limit, &program, "flood-forged"]).wait(Duration::from_secs(20));
    let report = ended.report();
    let guest = &report.guests[0];
    assert_eq!(guest.counter("tx_frames"), 0, "{guest:?}");
    assert!(guest.dropped("forged_source") > 100, "{guest:?}");
    assert!(guest.counter("tx_dropped") >= guest.dropped("forged_source"), "{guest:?}");
}

#[test]
fn a_killed_launch_leaves_no_device() {
    let (mut running, server) = httpd(&[], &[]);
    http::wait_until_serving(server, LIMIT);
    assert_eq!(running.note_devices().len(), 1);
    running.signal(libc::SIGKILL);
    // `wait` asserts that processes and devices are gone.
    assert_eq!(running.wait(LIMIT).status, 128 + 9);
}

#[test]
fn an_existing_device_is_used_and_kept() {
    // Made by hand with the plainest of means, so that the test knows what was there before.
    let name = format!("tt{}", std::process::id() % 100_000);
    let device = tap::Persistent::make(&name);
    let program = image("echo").display().to_string();
    let mut running = launch(["--json", "--tap", &name, "--subnet", "10.98.13.0/24", &program]);
    let up = eventually(LIMIT, || {
        TcpStream::connect_timeout(&"10.98.13.2:7".parse().expect("an address"), Duration::from_secs(1))
            .is_ok()
    });
    running.note_devices();
    assert!(up, "the guest is not reached\n{}", running.stderr());
    running.signal(libc::SIGTERM);
    assert!(eventually(seconds(10), || !running.is_running()));
    assert!(device.exists(), "the device is still there");
}

/// A TAP device that outlives its descriptor, until this is dropped.
mod tap {
    use std::fs::File;
    use std::os::fd::AsRawFd;

    const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
    const TUNSETPERSIST: libc::Ioctl = 0x4004_54cb;
    const IFF_TAP: libc::c_short = 2;
    const IFF_NO_PI: libc::c_short = 0x1000;
    const IFF_VNET_HDR: libc::c_short = 0x4000;

    pub(super) struct Persistent {
        name: String,
    }

    fn attach(name: &str) -> File {
        let file = File::options().read(true).write(true).open("/dev/net/tun").expect("/dev/net/tun");
        // SAFETY: all-zero is a valid request.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
        // SAFETY: a valid descriptor and request.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw const request) };
        assert_eq!(result, 0, "{name}: {}", std::io::Error::last_os_error());
        file
    }

    fn persist(file: &File, on: libc::c_int) {
        // SAFETY: a valid descriptor; the argument is a number.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETPERSIST, on) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }

    impl Persistent {
        pub(super) fn make(name: &str) -> Persistent {
            persist(&attach(name), 1);
            Persistent { name: name.to_owned() }
        }

        pub(super) fn exists(&self) -> bool {
            std::path::Path::new("/sys/class/net").join(&self.name).exists()
        }
    }

    impl Drop for Persistent {
        fn drop(&mut self) {
            if self.exists() {
                persist(&attach(&self.name), 0);
            }
        }
    }
}
