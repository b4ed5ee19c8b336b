//! A real TAP device, the host's real network stack, and a guest played by the test. Each test has a network
//! namespace of its own. Needs root.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foraker_abi::net::{GSO_TCPV4, Header, NEEDS_CSUM};
use foraker_net::frame::{self, Packet};
use foraker_net::tap::QUEUE_LENGTH;
use foraker_net::{Gateway, Limits, Mac, Notices, Pcap, Port, PortConfig, Switch, Tap, TapError, Uplink};

mod driver;
#[path = "driver/namespace.rs"]
mod namespace;
use driver::{Guest, checksum, ipv4};
use namespace::PacketSocket;

const HOST4: Ipv4Addr = Ipv4Addr::new(10, 213, 77, 1);
const HOST6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x213, 0, 0, 0, 0, 0, 1);
const GUEST6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x213, 0, 0, 0, 0, 0, 2);
const PATIENCE: Duration = Duration::from_secs(10);

struct Cell {
    uplink: Uplink,
    guest: Guest,
    port: Arc<Port>,
    notices: Notices,
}

impl Cell {
    /// A device with addresses and one guest, in a namespace of its own.
    fn new(pcap: Option<Pcap>) -> Self {
        namespace::enter();
        let tap = Tap::create(None).expect("a TAP device");
        tap.set_mtu(1500).expect("an MTU");
        tap.set_queue_length(QUEUE_LENGTH).expect("a length");
        tap.add_ipv4(HOST4, 24).expect("an address");
        tap.add_ipv6(HOST6, 64).expect("an IPv6 address");
        tap.up().expect("up");
        // The kernel always has this one.
        tap.set_congestion_control(HOST4, 24, "reno").expect("a congestion control");
        assert!(tap.set_congestion_control(HOST4, 24, "no-such").is_err());
        assert_eq!(tap.ipv4().expect("readable"), Some((HOST4, 24)));
        let gateway = Gateway { mac: tap.mac().expect("readable"), ipv4: HOST4, ipv6: Some(HOST6) };
        let switch = Arc::new(Switch::new(gateway));
        let uplink = Uplink::new(tap, Arc::clone(&switch), pcap);
        let mut guest = Guest::new(2);
        guest.give(256, 2048);
        let config = PortConfig { ipv6: Some(GUEST6), ..guest.port(0, Limits::default()) };
        let port = switch.add(config).expect("room");
        Cell { uplink, guest, port, notices: Notices::new() }
    }

    fn host(&self) -> (Mac, Ipv4Addr) {
        (self.uplink.switch().gateway().mac, HOST4)
    }

    fn own(&self) -> (Mac, Ipv4Addr) {
        (self.guest.mac, self.guest.ipv4)
    }

    /// Serves the rings until the guest has received a frame for which `pick` has something.
    fn receive_until<T>(&mut self, mut pick: impl FnMut(&Header, &[u8]) -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            self.uplink.receive(64, 0, &mut self.notices).expect("the device is up");
            for _ in self.notices.interrupts() {}
            while let Some((header, bytes)) = self.guest.receive() {
                self.guest.give_back(header.num_buffers);
                if let Some(found) = pick(&header, &bytes) {
                    return found;
                }
            }
        }
        panic!("nothing received; drops: {:?}", self.uplink.counters().rx.drops.iter().collect::<Vec<_>>());
    }

    fn transmit(&mut self) {
        self.uplink.transmit(&self.port, 64, usize::MAX, 0, &mut self.notices);
        assert_eq!(self.notices.faults().count(), 0);
        assert_eq!(self.port.counters().tx.drops.iter().collect::<Vec<_>>(), []);
    }
}

/// Completes a UDP or TCP checksum that holds the sum of the pseudo-header only.
fn complete_checksum(header: &Header, bytes: &mut [u8]) {
    assert_eq!(header.flags & NEEDS_CSUM, NEEDS_CSUM);
    let (start, at) = (usize::from(header.csum_start), usize::from(header.csum_start + header.csum_offset));
    let sum = checksum(&bytes[start..]);
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// The sum over pseudo-header and transport part is 0 when the checksum is right.
fn transport_sum4(bytes: &[u8]) -> u16 {
    let mut all = bytes[26..34].to_vec();
    all.extend([0, bytes[23]]);
    all.extend(u16::try_from(bytes.len() - 34).expect("a packet").to_be_bytes());
    all.extend_from_slice(&bytes[34..]);
    checksum(&all)
}

#[test]
fn the_host_is_told_of_neighbours_and_forgets_them() {
    let cell = Cell::new(None);
    let tap = cell.uplink.link();
    let (mac, address) = (cell.guest.mac, cell.guest.ipv4);
    let known = || {
        // Of the calling thread's namespace.
        let table = std::fs::read_to_string("/proc/thread-self/net/arp").expect("readable");
        let line = table.lines().find(|line| line.starts_with(&format!("{address} ")))?.to_owned();
        Some(line)
    };
    assert_eq!(known(), None);
    for address in [address.into(), GUEST6.into()] {
        tap.add_neighbour(address, mac).expect("told");
        tap.add_neighbour(address, mac).expect("told again");
    }
    let line = known().expect("known");
    // Complete and permanent.
    let hex: Vec<_> = mac.0.iter().map(|b| format!("{b:02x}")).collect();
    assert!(line.contains(" 0x6 ") && line.contains(&hex.join(":")), "{line}");
    for address in [address.into(), GUEST6.into()] {
        tap.remove_neighbour(address).expect("forgotten");
    }
    assert!(known().is_none_or(|line| line.contains("00:00:00:00:00:00")));
    assert!(tap.remove_neighbour("10.213.77.99".parse().expect("an address")).is_err());
}

#[test]
fn datagrams_both_ways_over_ipv4() {
    let mut cell = Cell::new(None);
    let socket = UdpSocket::bind((HOST4, 4000)).expect("a port");
    socket.set_read_timeout(Some(PATIENCE)).expect("set");
    // The host resolves the guest's address first: the switch answers.
    socket.send_to(b"to the guest", (cell.guest.ipv4, 5000)).expect("sent");
    let bytes = cell.receive_until(|header, bytes| {
        let mut bytes = bytes.to_vec();
        assert_eq!(bytes[bytes.len() - 12..], *b"to the guest");
        // The host left the checksum to whoever needs it.
        complete_checksum(header, &mut bytes);
        Some(bytes)
    });
    assert_eq!(transport_sum4(&bytes), 0);
    let frame = cell.guest.udp(cell.host(), (5000, 4000), b"to the host");
    cell.guest.send(Header::default(), &frame, &[12, 20]);
    cell.transmit();
    let mut buffer = [0; 100];
    let (length, from) = socket.recv_from(&mut buffer).expect("received");
    assert_eq!((&buffer[..length], from), (&b"to the host"[..], (cell.guest.ipv4, 5000).into()));
    // Nobody heard a broadcast: the guest got one frame.
    assert_eq!(cell.port.counters().rx.frames(), 1);
}

#[test]
fn datagrams_both_ways_over_ipv6() {
    let mut cell = Cell::new(None);
    let socket = UdpSocket::bind((HOST6, 4000)).expect("usable at once, without duplicate detection");
    socket.set_read_timeout(Some(PATIENCE)).expect("set");
    socket.send_to(b"to the guest", (GUEST6, 5000)).expect("sent");
    let host_mac = cell.host().0;
    cell.receive_until(|_, bytes| {
        let frame = frame::parse(bytes, bytes.len()).expect("well formed");
        let Packet::Ipv6(packet) = frame.packet else { return None };
        assert_eq!((frame.source, packet.source, packet.destination), (host_mac, HOST6, GUEST6));
        bytes.ends_with(b"to the guest").then_some(())
    });
    // A checksum of the pseudo-header only, left to the host.
    let payload = b"to the host";
    let length = u16::try_from(8 + payload.len()).expect("small");
    let mut pseudo = GUEST6.octets().to_vec();
    pseudo.extend(HOST6.octets());
    pseudo.extend([0, 17]);
    pseudo.extend(length.to_be_bytes());
    let mut bytes = host_mac.0.to_vec();
    bytes.extend(cell.guest.mac.0);
    bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    bytes.extend(length.to_be_bytes());
    bytes.extend([17, 64]);
    bytes.extend(GUEST6.octets());
    bytes.extend(HOST6.octets());
    bytes.extend(5000_u16.to_be_bytes());
    bytes.extend(4000_u16.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes.extend((!checksum(&pseudo)).to_be_bytes());
    bytes.extend_from_slice(payload);
    let header = Header { flags: NEEDS_CSUM, csum_start: 54, csum_offset: 6, ..Header::default() };
    cell.guest.send(header, &bytes, &[]);
    cell.transmit();
    let mut buffer = [0; 100];
    let (length, from) = socket.recv_from(&mut buffer).expect("received");
    assert_eq!((&buffer[..length], from.ip()), (&payload[..], GUEST6.into()));
}

#[test]
fn the_host_answers_an_echo_request() {
    let mut cell = Cell::new(None);
    let mut request = vec![8, 0, 0, 0, 0x12, 0x34, 0, 1];
    request.extend([0xab; 56]);
    let sum = checksum(&request);
    request[2..4].copy_from_slice(&sum.to_be_bytes());
    let frame = ipv4(cell.own(), cell.host(), 1, &request);
    cell.guest.send(Header::default(), &frame, &[]);
    cell.transmit();
    cell.receive_until(|_, bytes| (bytes.len() == frame.len() && bytes[34..36] == [0, 0]).then_some(()));
}

/// A segment of many MTUs passes whole, with its offload header, in both directions.
#[test]
fn large_segments_pass_whole() {
    let mut cell = Cell::new(None);
    let socket = PacketSocket::open(cell.uplink.link().name());
    let header = Header {
        flags: NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: 54,
        gso_size: 1446,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 0,
    };
    let mut tcp = vec![0; 20];
    tcp[..4].copy_from_slice(&[0x13, 0x88, 0x0f, 0xa0]);
    tcp[12] = 0x50;
    tcp.extend((0..60_000_u32).map(|i| (i % 253) as u8));
    let down = ipv4(cell.host(), cell.own(), 6, &tcp);
    socket.send(header, &down).expect("sent");
    let received =
        cell.receive_until(|got, bytes| (bytes.len() == down.len()).then(|| (*got, bytes.to_vec())));
    assert_eq!(Header { num_buffers: 0, ..received.0 }, header);
    assert_eq!(received.0.num_buffers, 30);
    assert!(received.1 == down);

    let up = ipv4(cell.own(), cell.host(), 6, &tcp);
    cell.guest.send(header, &up, &[12, 54]);
    cell.transmit();
    let end = Instant::now() + PATIENCE;
    let (got, bytes) = loop {
        assert!(Instant::now() < end, "the segment did not come out");
        if let Some((got, bytes)) = socket.receive()
            && bytes.get(6..12) == Some(&cell.guest.mac.0)
        {
            break (got, bytes);
        }
    };
    assert!(bytes == up);
    assert_eq!((got.gso_type, got.gso_size, got.flags), (GSO_TCPV4, 1446, NEEDS_CSUM));
}

#[test]
fn a_capture_holds_what_passed() {
    let path = std::env::temp_dir().join(format!("foraker-net-{}.pcap", std::process::id()));
    let _remove = Remove(path.clone());
    let mut cell = Cell::new(Some(Pcap::create(&path, 100).expect("a file")));
    let frame = cell.guest.udp(cell.host(), (1, 2), &[0x5a; 400]);
    cell.guest.send(Header::default(), &frame, &[12, 30]);
    cell.transmit();
    cell.uplink.pcap().expect("capturing").flush();
    let bytes = std::fs::read(&path).expect("a file");
    let word = |at: usize| u32::from_le_bytes(*bytes[at..].first_chunk().expect("a word"));
    assert_eq!((word(0), word(16), word(20)), (0xa1b2_3c4d, 100, 1));
    // The last record: ours (the host may have sent something of its own before).
    let mut at = 24;
    let mut found = false;
    while at < bytes.len() {
        let (stored, length) = (word(at + 8) as usize, word(at + 12) as usize);
        let data = &bytes[at + 16..at + 16 + stored];
        found |= length == frame.len() && data == &frame[..100];
        assert!(stored == length.min(100) && word(at + 4) < 1_000_000_000);
        at += 16 + stored;
    }
    assert!(found && at == bytes.len());
}

struct Remove(PathBuf);

impl Drop for Remove {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn devices_vanish_and_errors_say_what_to_do() {
    namespace::enter();
    let first = Tap::create(None).expect("a TAP device");
    let second = Tap::create(None).expect("another");
    assert_eq!((first.name(), second.name()), ("fk0", "fk1"));
    let error = |result: Result<Tap, TapError>| result.expect_err("must fail").to_string();
    assert!(matches!(Tap::create(Some("fk0")), Err(TapError::NameTaken(_))));
    assert!(matches!(Tap::open_existing("fk0"), Err(TapError::Busy(_))));
    assert!(matches!(Tap::open_existing("fk7"), Err(TapError::NotFound(_))));
    assert!(matches!(Tap::open_existing("lo"), Err(TapError::NotTap(_))));
    for name in ["", "a/b", "with blank", "sixteen-letters-", "fk%d", "."] {
        assert!(matches!(Tap::create(Some(name)), Err(TapError::InvalidName(_))), "{name:?}");
    }
    assert!(error(Tap::open_existing("fk7")).contains("ip tuntap add fk7 mode tap"));
    assert!(matches!(first.set_mtu(100), Err(TapError::InvalidMtu(100))));
    first.set_mtu(9000).expect("an MTU");
    assert_eq!(first.mtu().expect("readable"), 9000);
    let mac = Mac([2, 0, 0, 1, 2, 3]);
    first.set_mac(mac).expect("set");
    assert_eq!(first.mac().expect("readable"), mac);
    assert_eq!(first.ipv4().expect("readable"), None);
    first.add_ipv4(HOST4, 24).expect("an address");
    assert!(matches!(first.add_ipv4(HOST4, 24), Err(TapError::AddressTaken(_))));
    // Off, it neither gives nor takes.
    let read = second.read(&mut [0; 100]);
    assert!(matches!(read, Ok(None)) || read.is_err_and(|e| e.kind() != ErrorKind::WouldBlock));
    drop(first);
    assert_eq!(Tap::create(Some("fk0")).expect("the name is free again").name(), "fk0");
}

#[test]
fn without_the_right_the_error_says_so() {
    namespace::enter();
    // SAFETY: drops the calling thread's capability to administer networks, effective and permitted.
    let dropped = unsafe { drop_capability(12) };
    assert!(dropped, "capset failed");
    let error = Tap::create(None).expect_err("must fail");
    assert!(matches!(error, TapError::NotPermitted), "{error}");
    assert!(error.to_string().contains("CAP_NET_ADMIN"));
}

/// Drops a capability of the calling thread.
///
/// # Safety
/// What the thread does afterwards must not need it.
unsafe fn drop_capability(number: u32) -> bool {
    #[repr(C)]
    struct Data([u32; 6]);
    let header = [0x2008_0522_u32, 0];
    let mut data = Data([0; 6]);
    // SAFETY: header and data of version 3.
    if unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), &raw mut data) } != 0 {
        return false;
    }
    data.0[0] &= !(1 << number);
    data.0[1] &= !(1 << number);
    // SAFETY: as above.
    unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), &raw const data) == 0 }
}
