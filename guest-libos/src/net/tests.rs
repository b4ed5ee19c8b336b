//! The whole stack against a peer: smoltcp on the other side of the rings, on a wire that can lose frames.

use super::*;
use crate::testing::{self, GATEWAY_MAC, MAC};
use crate::{spawn, task};
use alloc::rc::Rc;
use core::cell::Cell;
use core::sync::atomic::Ordering;
use foraker_abi::net::{DATA_VALID, NEEDS_CSUM};
use smoltcp::iface::{Config as PeerConfig, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, DeviceCapabilities, Medium};
use smoltcp::socket::{icmp, tcp as peer_tcp, udp as peer_udp};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpEndpoint};
use std::collections::VecDeque;

const GUEST: [u8; 4] = [10, 99, 0, 2];
const PEER: [u8; 4] = [10, 99, 0, 1];

/// The peer's end of the wire.
#[derive(Default)]
struct Wire {
    incoming: VecDeque<Vec<u8>>,
    outgoing: Vec<Vec<u8>>,
}

struct Token<'a>(&'a mut Vec<Vec<u8>>);

impl smoltcp::phy::TxToken for Token<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut packet = vec![0; length];
        let result = f(&mut packet);
        self.0.push(packet);
        result
    }
}

struct Packet(Vec<u8>);

impl smoltcp::phy::RxToken for Packet {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl smoltcp::phy::Device for Wire {
    type RxToken<'a> = Packet;
    type TxToken<'a> = Token<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Packet, Token<'_>)> {
        Some((Packet(self.incoming.pop_front()?), Token(&mut self.outgoing)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Token<'_>> {
        Some(Token(&mut self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = 1500;
        // Checksums are tested apart; large frames arrive with partial ones.
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities.checksum.udp = Checksum::Tx;
        capabilities
    }
}

struct Peer {
    interface: Interface,
    wire: Wire,
    sockets: SocketSet<'static>,
    /// One frame in so many is lost, each way; 0 for none.
    loss: u64,
    random: u64,
    arp_requests: usize,
    largest: usize,
    /// Flags of frames to the guest: 0 has it verify checksums.
    flags: u8,
    /// Frames that wait for room in the receive ring.
    waiting: VecDeque<Vec<u8>>,
}

impl Peer {
    fn new() -> Self {
        let mut wire = Wire::default();
        let mut interface = Interface::new(PeerConfig::new(HardwareAddress::Ip), &mut wire, Instant::ZERO);
        interface.update_ip_addrs(|list| {
            list.push(IpCidr::new(IpAddress::from(IpAddr::from(PEER)), 24)).unwrap();
        });
        Peer {
            interface,
            wire,
            sockets: SocketSet::new(Vec::new()),
            loss: 0,
            random: 42,
            arp_requests: 0,
            largest: 0,
            flags: 0,
            waiting: VecDeque::new(),
        }
    }

    fn connect(&mut self, port: u16, local: u16, buffer: usize) -> SocketHandle {
        let mut socket = peer_tcp::Socket::new(
            peer_tcp::SocketBuffer::new(vec![0; buffer]),
            peer_tcp::SocketBuffer::new(vec![0; buffer]),
        );
        let remote = (IpAddress::from(IpAddr::from(GUEST)), port);
        socket.connect(self.interface.context(), remote, local).unwrap();
        self.sockets.add(socket)
    }

    fn tcp(&mut self, handle: SocketHandle) -> &mut peer_tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    fn lost(&mut self) -> bool {
        self.random = self.random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.loss != 0 && (self.random >> 33).is_multiple_of(self.loss)
    }

    /// One exchange: the guest runs a round, its frames reach the peer, and the peer's reach the guest.
    fn turn(&mut self) {
        testing::advance(50_000);
        task::round();
        for (header, frame) in testing::sent() {
            assert!(header.gso_size != 0 || frame.len() <= 1514);
            self.largest = self.largest.max(frame.len());
            if frame[12..14] == [8, 6] {
                self.arp_requests += 1;
                let mut answer = frame.clone();
                answer[..6].copy_from_slice(&MAC);
                answer[6..12].copy_from_slice(&GATEWAY_MAC);
                answer[21] = 2;
                answer[22..28].copy_from_slice(&GATEWAY_MAC);
                answer[28..32].copy_from_slice(&frame[38..42]);
                answer[32..38].copy_from_slice(&MAC);
                answer[38..42].copy_from_slice(&GUEST);
                assert!(testing::deliver(0, &answer));
                continue;
            }
            assert_eq!(frame[6..12], MAC);
            assert_eq!(frame[..6], GATEWAY_MAC);
            if !self.lost() {
                self.wire.incoming.push_back(frame[14..].to_vec());
            }
        }
        let now = Instant::from_micros((testing::now() / 1000) as i64);
        self.interface.poll(now, &mut self.wire, &mut self.sockets);
        for packet in core::mem::take(&mut self.wire.outgoing) {
            if !self.lost() {
                let kind = if packet[0] >> 4 == 4 { [0x08, 0x00] } else { [0x86, 0xdd] };
                let mut frame = [&MAC[..], &GATEWAY_MAC, &kind].concat();
                frame.extend(packet);
                self.waiting.push_back(frame);
            }
        }
        while self.waiting.front().is_some_and(|frame| testing::deliver(self.flags, frame)) {
            self.waiting.pop_front();
        }
    }

    fn turn_until(&mut self, turns: usize, mut done: impl FnMut(&mut Self) -> bool) {
        for _ in 0..turns {
            if done(self) {
                return;
            }
            self.turn();
        }
        panic!("not done after {turns} turns");
    }
}

fn echo_server(port: u16, config: Config) {
    let listener = TcpListener::bind(port, config).unwrap();
    spawn(async move {
        loop {
            let mut stream = listener.accept().await;
            spawn(async move {
                let mut buffer = [0; 1000];
                while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                    stream.write_all(&buffer[..n]).await.unwrap();
                }
            });
        }
    });
}

fn pattern(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect()
}

/// Sends `data` and collects what comes back.
fn echo_through(peer: &mut Peer, handle: SocketHandle, data: &[u8], turns: usize) {
    let (mut sent, mut back) = (0, Vec::new());
    peer.turn_until(turns, |peer| {
        let socket = peer.tcp(handle);
        if socket.can_send() && sent < data.len() {
            sent += socket.send_slice(&data[sent..]).unwrap();
        }
        while socket.can_recv() {
            socket.recv(|bytes| (bytes.len(), back.extend_from_slice(bytes))).unwrap();
        }
        back.len() >= data.len()
    });
    assert_eq!(back, data);
}

#[test]
fn echoes_over_a_connection_and_closes_in_order() {
    echo_server(7, Config::DEFAULT);
    let mut peer = Peer::new();
    let handle = peer.connect(7, 50000, 65536);
    echo_through(&mut peer, handle, &pattern(100_000), 2000);
    peer.tcp(handle).close();
    peer.turn_until(500, |peer| {
        testing::advance(100_000_000);
        matches!(peer.tcp(handle).state(), peer_tcp::State::Closed | peer_tcp::State::TimeWait)
    });
    for _ in 0..10 {
        testing::advance(1_000_000_000);
        peer.turn();
    }
    let counters = counters();
    assert_eq!((counters.connections, counters.connections_total, counters.rx_checksum), (0, 1, 0));
}

#[test]
fn content_survives_loss_in_both_directions() {
    for (seed, loss) in [(1, 50), (2, 10)] {
        echo_server(
            7 + seed,
            Config { receive_buffer: 20_000, send_buffer: 70_000, backlog: 1, ..Config::DEFAULT },
        );
        let mut peer = Peer::new();
        peer.loss = loss;
        peer.random = u64::from(seed);
        let handle = peer.connect(7 + seed, 50000, 65536);
        let data = pattern(200_000);
        let (mut sent, mut back) = (0, Vec::new());
        peer.turn_until(200_000, |peer| {
            testing::advance(20_000_000);
            let socket = peer.tcp(handle);
            if socket.can_send() && sent < data.len() {
                sent += socket.send_slice(&data[sent..]).unwrap();
            }
            while socket.can_recv() {
                socket.recv(|bytes| (bytes.len(), back.extend_from_slice(bytes))).unwrap();
            }
            back.len() >= data.len()
        });
        assert!(back == data);
    }
}

#[test]
fn large_frames_are_sent_for_segmentation_and_received_merged() {
    echo_server(7, Config::BULK);
    let mut peer = Peer::new();
    let handle = peer.connect(7, 50000, 1 << 20);
    echo_through(&mut peer, handle, &pattern(3_000_000), 20_000);
    assert!(peer.largest > 30_000, "{}", peer.largest);
}

#[test]
fn a_frame_in_many_buffers_arrives_whole_wherever_it_starts() {
    // An echo request longer than several buffers, again and again, so that it runs past the last buffer too.
    echo_server(7, Config::BULK);
    let mut peer = Peer::new();
    let handle = peer.connect(7, 50000, 65536);
    peer.turn_until(100, |peer| peer.tcp(handle).may_send());
    let (mut seq, ack) = {
        // What the peer sends next, seen on the wire.
        peer.tcp(handle).send_slice(b"x").unwrap();
        let now = Instant::from_micros((testing::now() / 1000) as i64);
        peer.interface.poll(now, &mut peer.wire, &mut peer.sockets);
        let packet = peer.wire.outgoing.pop().unwrap();
        let word = |at: usize| u32::from_be_bytes(packet[at..at + 4].try_into().unwrap());
        (word(24), word(28))
    };
    let mut expected = 0u64;
    for round in 0..120 {
        let length = 9_000 + 500 * (round % 11);
        let payload: Vec<u8> = (0..length).map(|i| (i + round) as u8).collect();
        let total = 40 + length;
        let mut frame = [&MAC[..], &GATEWAY_MAC, &[8, 0]].concat();
        frame.extend([0x45, 0, (total >> 8) as u8, total as u8, 0, 0, 0x40, 0, 64, 6, 0, 0]);
        frame.extend([PEER, GUEST].concat());
        let sum = {
            let words = frame[14..34].chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum::<u32>();
            !((words & 0xffff) + (words >> 16)) as u16
        };
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame.extend(50000u16.to_be_bytes());
        frame.extend(7u16.to_be_bytes());
        frame.extend(seq.to_be_bytes());
        frame.extend(ack.to_be_bytes());
        frame.extend([0x50, 0x18, 0xff, 0xff, 0, 0, 0, 0]);
        frame.extend(&payload);
        let flags = if round % 2 == 0 { NEEDS_CSUM } else { DATA_VALID };
        if !testing::deliver(flags, &frame) {
            // The first one finds too few buffers, and the guest is told: again, as the first time it takes what came before for the reason.
            assert_eq!(round, 0);
            for _ in 0..2 {
                testing::control().pending.fetch_or(crate::interrupt::NET_RX, Ordering::Relaxed);
                task::round();
            }
            assert!(testing::deliver(flags, &frame));
        }
        seq = seq.wrapping_add(length as u32);
        testing::advance(1_000);
        task::round();
        expected += length as u64;
        testing::sent();
    }
    let received = counters();
    assert!(received.rx_bytes > expected && received.rx_ignored == 0, "{received:?}");
}

#[test]
fn connects_after_asking_for_the_ethernet_address() {
    let mut peer = Peer::new();
    let mut socket = peer_tcp::Socket::new(
        peer_tcp::SocketBuffer::new(vec![0; 4096]),
        peer_tcp::SocketBuffer::new(vec![0; 4096]),
    );
    socket.listen(80).unwrap();
    let handle = peer.sockets.add(socket);
    let done = Rc::new(Cell::new(None));
    let result = done.clone();
    spawn(async move {
        let mut stream = TcpStream::connect(IpAddr::from(PEER), 80).await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        stream.shutdown();
        let mut buffer = [0; 16];
        let n = stream.read(&mut buffer).await.unwrap();
        let end = stream.read(&mut buffer).await.unwrap();
        result.set(Some((n, end)));
    });
    let mut greeted = false;
    peer.turn_until(200, |peer| {
        let socket = peer.tcp(handle);
        if !greeted && socket.recv_queue() == 5 {
            greeted = true;
            socket.send_slice(b"bye").unwrap();
            socket.close();
        }
        done.get().is_some()
    });
    assert_eq!(done.get(), Some((3, 0)));
    assert_eq!(peer.arp_requests, 1);
}

#[test]
fn what_cannot_be_reached_says_so() {
    let mut peer = Peer::new();
    let results = Rc::new(std::cell::RefCell::new(Vec::new()));
    let seen = results.clone();
    spawn(async move {
        let closed = TcpStream::connect(IpAddr::from(PEER), 81).await.err();
        let own = TcpStream::connect(IpAddr::from(GUEST), 80).await.err();
        let zero = TcpStream::connect(IpAddr::from(PEER), 0).await.err();
        let v6 = TcpStream::connect("2001:db8::1".parse().unwrap(), 80).await.err();
        seen.borrow_mut().extend([closed, own, zero, v6]);
    });
    peer.turn_until(1000, |_| results.borrow().len() == 4);
    let expected = [Error::Refused, Error::Unreachable, Error::Invalid, Error::Unreachable].map(Some);
    assert_eq!(*results.borrow(), expected);
}

#[test]
fn nobody_listening_means_reset_and_a_full_backlog_means_silence() {
    let mut peer = Peer::new();
    let nobody = peer.connect(1234, 40000, 1000);
    with(|_| ()).unwrap();
    peer.turn_until(100, |peer| peer.tcp(nobody).state() == peer_tcp::State::Closed);
    assert_eq!(counters().refused, 1);

    // Accepted by nobody: two fit, the third stays in SYN-SENT.
    let listener = TcpListener::bind(80, Config { backlog: 2, ..Config::DEFAULT }).unwrap();
    assert_eq!(TcpListener::bind(80, Config::DEFAULT).err(), Some(Error::InUse));
    let handles: Vec<_> = (0..3).map(|n| peer.connect(80, 41000 + n, 1000)).collect();
    for _ in 0..20 {
        peer.turn();
    }
    let states: Vec<_> = handles.iter().map(|&handle| peer.tcp(handle).state()).collect();
    assert_eq!(states[..2], [peer_tcp::State::Established; 2]);
    assert_eq!(states[2], peer_tcp::State::SynSent);
    assert!(counters().backlog_full >= 1);
    drop(listener);
    peer.turn_until(100, |peer| peer.tcp(handles[0]).state() == peer_tcp::State::Closed);
    peer.turn();
    assert_eq!(counters().connections, 0);
}

#[test]
fn half_open_connections_are_given_up() {
    let _listener = TcpListener::bind(80, Config { backlog: 8, ..Config::DEFAULT }).unwrap();
    let mut peer = Peer::new();
    for n in 0..20 {
        peer.connect(80, 42000 + n, 1000);
    }
    peer.turn();
    // The peer is gone.
    peer.sockets = SocketSet::new(Vec::new());
    peer.loss = 1;
    // Its frames come a few at a time, as there are few buffers at first.
    peer.turn_until(20, |peer| peer.waiting.is_empty());
    task::round();
    assert_eq!(counters().connections, 8);
    for _ in 0..40 {
        testing::advance(1_000_000_000);
        peer.turn();
    }
    assert_eq!(counters().connections, 0);
}

#[test]
fn a_wrong_checksum_is_noticed_unless_the_host_vouches() {
    echo_server(7, Config::DEFAULT);
    let mut peer = Peer::new();
    let mut syn = {
        peer.connect(7, 50000, 1000);
        peer.interface.poll(Instant::from_millis(1), &mut peer.wire, &mut peer.sockets);
        let packet = peer.wire.outgoing.pop().unwrap();
        [&MAC[..], &GATEWAY_MAC, &[8, 0], &packet].concat()
    };
    syn[50] ^= 1;
    testing::deliver(0, &syn);
    task::round();
    assert_eq!((counters().rx_checksum, counters().connections_total), (1, 0));
    testing::deliver(DATA_VALID, &syn);
    task::round();
    assert_eq!((counters().rx_checksum, counters().connections_total), (1, 1));
}

#[test]
fn echoes_datagrams_and_pings() {
    let socket = UdpSocket::bind(7).unwrap();
    assert_eq!(UdpSocket::bind(7).err(), Some(Error::InUse));
    spawn(async move {
        let mut buffer = [0; 2000];
        loop {
            let (n, from) = socket.receive_from(&mut buffer).await.unwrap();
            socket.send_to(&buffer[..n], from).await.unwrap();
        }
    });
    let mut peer = Peer::new();
    let buffer = || peer_udp::PacketBuffer::new(vec![peer_udp::PacketMetadata::EMPTY; 8], vec![0; 8192]);
    let mut udp = peer_udp::Socket::new(buffer(), buffer());
    udp.bind(5000).unwrap();
    let to = IpEndpoint::new(IpAddress::from(IpAddr::from(GUEST)), 7);
    for n in [1usize, 8, 500, 1472] {
        udp.send_slice(&pattern(n), to).unwrap();
    }
    let handle = peer.sockets.add(udp);
    let mut back = Vec::new();
    peer.turn_until(100, |peer| {
        while let Ok((data, _)) = peer.sockets.get_mut::<peer_udp::Socket<'_>>(handle).recv() {
            back.push(data.to_vec());
        }
        back.len() == 4
    });
    assert_eq!(back, [1usize, 8, 500, 1472].map(pattern));
    assert_eq!(peer.arp_requests, 0, "the peer's address was seen in its datagrams");

    // The guest pings; the peer's stack answers by itself. And the other way round.
    let answer = Rc::new(Cell::new(None));
    let result = answer.clone();
    spawn(async move { result.set(Some(ping(IpAddr::from(PEER), Duration::from_secs(1)).await)) });
    peer.turn_until(100, |_| answer.get().is_some());
    assert!(answer.get().unwrap().unwrap() < Duration::from_millis(10));

    let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 4], vec![0; 1024]);
    let mut pinger = icmp::Socket::new(buffer(), buffer());
    pinger.bind(icmp::Endpoint::Ident(5)).unwrap();
    let repr = smoltcp::wire::Icmpv4Repr::EchoRequest { ident: 5, seq_no: 1, data: b"knock" };
    let room = pinger.send(repr.buffer_len(), IpAddress::from(IpAddr::from(GUEST))).unwrap();
    repr.emit(&mut smoltcp::wire::Icmpv4Packet::new_unchecked(room), &Default::default());
    let pinger = peer.sockets.add(pinger);
    peer.turn_until(100, |peer| peer.sockets.get_mut::<icmp::Socket<'_>>(pinger).can_recv());
}

#[test]
fn resolves_names() {
    let mut peer = Peer::new();
    let buffer = || peer_udp::PacketBuffer::new(vec![peer_udp::PacketMetadata::EMPTY; 8], vec![0; 8192]);
    let mut server = peer_udp::Socket::new(buffer(), buffer());
    server.bind(53).unwrap();
    let handle = peer.sockets.add(server);
    let results = Rc::new(std::cell::RefCell::new(Vec::new()));
    let seen = results.clone();
    spawn(async move {
        let literal = resolve("192.0.2.9", Family::V4).await;
        let found = resolve("web.example", Family::V4).await;
        let missing = resolve("no.example", Family::V4).await;
        seen.borrow_mut().extend([literal, found, missing]);
    });
    peer.turn_until(500, |peer| {
        let socket = peer.sockets.get_mut::<peer_udp::Socket<'_>>(handle);
        if let Ok((question, from)) = socket.recv() {
            let mut answer = question.to_vec();
            let known = answer.windows(3).any(|w| w == b"web");
            answer[2] = 0x81;
            answer[3] = if known { 0x80 } else { 0x83 };
            if known {
                answer[7] = 1;
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 203, 0, 113, 5]);
            }
            socket.send_slice(&answer, from.endpoint).unwrap();
        }
        results.borrow().len() == 3
    });
    let address = |text: &str| Ok(text.parse().unwrap());
    assert_eq!(*results.borrow(), [address("192.0.2.9"), address("203.0.113.5"), Err(Error::NoSuchName)]);
}

#[test]
fn a_full_transmit_ring_delays_and_loses_nothing() {
    let listener = TcpListener::bind(19, Config::BULK).unwrap();
    let data = pattern(6_000_000);
    let copy = data.clone();
    spawn(async move {
        let mut stream = listener.accept().await;
        stream.write_all(&copy).await.unwrap();
        stream.close().await;
    });
    let mut peer = Peer::new();
    let handle = peer.connect(19, 50000, 1 << 20);
    let mut back = Vec::new();
    let mut turn = 0;
    peer.turn_until(50_000, |peer| {
        turn += 1;
        // For a while nobody takes what the guest sends.
        testing::set_stuck(turn % 40 > 20);
        let socket = peer.tcp(handle);
        while socket.can_recv() {
            socket.recv(|bytes| (bytes.len(), back.extend_from_slice(bytes))).unwrap();
        }
        back.len() >= data.len()
    });
    assert!(back == data);
}

#[test]
fn many_connections_come_and_go() {
    echo_server(7, Config::DEFAULT);
    let mut peer = Peer::new();
    for round in 0..5u16 {
        let handles: Vec<_> = (0..200).map(|n| peer.connect(7, 20000 + round * 200 + n, 600)).collect();
        for (n, &handle) in handles.iter().enumerate() {
            peer.turn_until(100, |peer| peer.tcp(handle).may_send());
            peer.tcp(handle).send_slice(&pattern(n + 1)).unwrap();
        }
        for (n, &handle) in handles.iter().enumerate() {
            peer.turn_until(100, |peer| peer.tcp(handle).recv_queue() == n + 1);
            peer.tcp(handle).close();
        }
        for _ in 0..60 {
            peer.turn();
        }
        peer.sockets = SocketSet::new(Vec::new());
        assert_eq!(counters().connections, 0);
    }
    assert_eq!(counters().connections_total, 1000);
}

#[test]
fn serves_ipv6_by_the_same_means() {
    echo_server(7, Config::DEFAULT);
    let mut peer = Peer::new();
    let own: Ipv6Addr = "fd00:99::1".parse().unwrap();
    let guest = Ipv6Addr::from(crate::registers().net.ipv6);
    peer.interface.update_ip_addrs(|list| {
        list.push(IpCidr::new(IpAddress::from(IpAddr::V6(own)), 64)).unwrap();
    });
    let mut socket = peer_tcp::Socket::new(
        peer_tcp::SocketBuffer::new(vec![0; 65536]),
        peer_tcp::SocketBuffer::new(vec![0; 65536]),
    );
    let remote = (IpAddress::from(IpAddr::V6(guest)), 7);
    socket.connect(peer.interface.context(), remote, 50000).unwrap();
    let handle = peer.sockets.add(socket);
    echo_through(&mut peer, handle, &pattern(100_000), 2000);
    assert!(peer.largest <= 1514, "no segmentation is asked for with IPv6");
}

/// What a request costs in the guest: the whole way from a frame in the receive ring to the answer in the transmit ring,
/// through a task that parses it. For a figure: `cargo test --release -p guest-libos -- --ignored --nocapture cost`.
#[test]
#[ignore = "a measurement"]
fn cost_of_a_request() {
    let request = b"GET /hello.txt HTTP/1.1\r\nHost: 10.99.0.2\r\n\r\n";
    let mut times: Vec<_> = (0..1000)
        .map(|_| {
            let start = std::time::Instant::now();
            for _ in 0..100 {
                std::hint::black_box(crate::http::parse(std::hint::black_box(request)).unwrap());
            }
            start.elapsed().as_nanos() as f64 / 100.0
        })
        .collect();
    println!("parsing a request's head: {:.0} ns", median(&mut times));
    for connections in [1usize, 64, 1000, 4000] {
        std::thread::spawn(move || measure_requests(connections)).join().unwrap();
    }
}

/// A client that knows just enough TCP to be cheap.
struct Client {
    frame: Vec<u8>,
    seq: u32,
    ack: u32,
}

impl Client {
    fn new(n: usize) -> Self {
        let mut frame = [&MAC[..], &GATEWAY_MAC, &[8, 0]].concat();
        frame.extend([0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0]);
        frame.extend([PEER, GUEST].concat());
        frame.extend((10_000 + n as u16).to_be_bytes());
        frame.extend(80u16.to_be_bytes());
        frame.extend([0; 8]);
        frame.extend([0x50, 0, 0xfa, 0xf0, 0, 0, 0, 0]);
        Client { frame, seq: 1000, ack: 0 }
    }

    fn send(&mut self, flags: u8, payload: &[u8]) -> bool {
        self.frame.truncate(54);
        self.frame.extend(payload);
        let total = (40 + payload.len()) as u16;
        self.frame[16..18].copy_from_slice(&total.to_be_bytes());
        self.frame[24..26].fill(0);
        let words = self.frame[14..34].chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum::<u32>();
        self.frame[24..26].copy_from_slice(&(!((words & 0xffff) + (words >> 16)) as u16).to_be_bytes());
        self.frame[38..42].copy_from_slice(&self.seq.to_be_bytes());
        self.frame[42..46].copy_from_slice(&self.ack.to_be_bytes());
        self.frame[47] = flags;
        if !testing::deliver(NEEDS_CSUM, &self.frame) {
            return false;
        }
        self.seq = self.seq.wrapping_add(payload.len() as u32 + u32::from(flags & 2 != 0));
        true
    }
}

/// The median, as other load on the machine makes means useless.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn measure_requests(connections: usize) {
    const REQUEST: &[u8] = b"GET /hello.txt HTTP/1.1\r\nHost: 10.99.0.2\r\n\r\n";
    static ANSWER: [u8; 200] = [b'x'; 200];
    let listener = TcpListener::bind(80, Config { backlog: 8192, ..Config::DEFAULT }).unwrap();
    spawn(async move {
        loop {
            let mut stream = listener.accept().await;
            spawn(async move {
                let mut pieces = Vec::new();
                loop {
                    let found = stream
                        .read_with(|data| {
                            if pieces.is_empty()
                                && let Ok(Some((length, request))) = crate::http::parse(data)
                            {
                                return (length, Some(request.keep_alive));
                            }
                            pieces.extend_from_slice(data);
                            let whole =
                                crate::http::parse(&pieces).unwrap().map(|(_, request)| request.keep_alive);
                            if whole.is_some() {
                                pieces.clear();
                            }
                            (data.len(), whole)
                        })
                        .await;
                    match found.unwrap() {
                        Some(true) => stream.write_all(&ANSWER).await.unwrap(),
                        Some(false) => return,
                        None => {}
                    }
                }
            });
        }
    });
    // Frames stay in the ring until `absorb` takes them.
    testing::set_stuck(true);
    let mut clients: Vec<_> = (0..connections).map(Client::new).collect();
    // Takes the guest's frames into account: the acknowledgement that the client sends next.
    let absorb = |clients: &mut Vec<Client>| {
        let mut answers = 0;
        testing::visit_sent(|frame| {
            let port = usize::from(u16::from_be_bytes([frame[36], frame[37]])) - 10_000;
            let seq = u32::from_be_bytes(frame[38..42].try_into().unwrap());
            let payload = frame.len() - 34 - usize::from(frame[46] >> 4) * 4;
            clients[port].ack = seq.wrapping_add(payload as u32 + u32::from(frame[47] & 2 != 0));
            answers += usize::from(payload > 0);
        });
        answers
    };
    for n in 0..connections {
        assert!(clients[n].send(2, &[]));
        task::round();
        absorb(&mut clients);
        assert!(clients[n].send(16, &[]));
        task::round();
        absorb(&mut clients);
    }
    let requests = 400_000;
    let (mut answered, mut next, mut times) = (0, 0, Vec::new());
    // As many requests at a time as a ring holds comfortably.
    let batch = connections.min(120);
    while answered < requests {
        for _ in 0..batch {
            while !clients[next].send(24, REQUEST) {
                task::round();
            }
            next = (next + 1) % connections;
        }
        testing::advance(100_000);
        let start = std::time::Instant::now();
        task::round();
        task::round();
        times.push(start.elapsed().as_nanos() as f64 / batch as f64);
        let now = absorb(&mut clients);
        assert!(now > 0, "the guest does not answer: {answered} {:?}", counters());
        answered += now;
    }
    let executor = task::statistics();
    println!(
        "{connections:5} connections: {:4.0} ns per request (median); {} rounds, {} polls",
        median(&mut times),
        executor.rounds,
        executor.polls
    );
}

/// What bulk transfer costs in the guest, both ways.
#[test]
#[ignore = "a measurement"]
fn cost_of_bulk() {
    const FRAME: usize = 44 * 1460;
    for port in [9, 19] {
        let listener = TcpListener::bind(port, Config::BULK).unwrap();
        spawn(async move {
            let mut stream = listener.accept().await;
            if port == 9 {
                while stream.read_with(|data| (data.len(), data.len())).await != Ok(0) {}
            }
            let block = vec![7; 65536];
            loop {
                stream.write_all(&block).await.unwrap();
            }
        });
    }
    testing::set_stuck(true);
    for port in [9u16, 19] {
        let mut client = Client::new(usize::from(port));
        client.frame[36..38].copy_from_slice(&port.to_be_bytes());
        let payload = vec![5; FRAME];
        let (mut bytes, mut times, mut acknowledged) = (0usize, Vec::new(), 0);
        client.send(2, &[]);
        let mut established = false;
        while bytes < 4 << 30 {
            testing::advance(100_000);
            let start = std::time::Instant::now();
            task::round();
            times.push(start.elapsed().as_nanos() as f64);
            testing::visit_sent(|frame| {
                let seq = u32::from_be_bytes(frame[38..42].try_into().unwrap());
                let length = frame.len() - 34 - usize::from(frame[46] >> 4) * 4;
                client.ack = seq.wrapping_add(length as u32 + u32::from(frame[47] & 2 != 0));
                bytes += length;
                acknowledged = u32::from_be_bytes(frame[42..46].try_into().unwrap());
            });
            if port == 9 && established {
                assert_eq!(acknowledged, client.seq);
                bytes += if client.send(16, &payload) { FRAME } else { 0 };
            } else {
                client.send(16, &[]);
                established = true;
            }
        }
        let way = if port == 9 { "received" } else { "sent" };
        println!("bulk {way}: {:.1} Gbit/s of the guest's time", FRAME as f64 * 8.0 / median(&mut times));
    }
}

/// What the control page says is awaited: remote port, local port, and until when the guest rests then.
fn awaited() -> Option<(u16, u16, u64)> {
    let control = testing::control();
    let number = control.awaited.load(core::sync::atomic::Ordering::Relaxed);
    let until = control.awaited_until.load(core::sync::atomic::Ordering::Relaxed);
    (number != 0).then_some(((number >> 48) as u16, (number >> 32) as u16, until))
}

#[test]
fn the_acknowledgement_of_an_answer_need_not_wake_the_guest() {
    ask_once(true);
}

#[test]
fn a_program_that_may_speak_first_hears_of_a_connection() {
    ask_once(false);
}

fn ask_once(client_speaks_first: bool) {
    const SECOND: u64 = 1_000_000_000;
    echo_server(7, Config { client_speaks_first, ..Config::DEFAULT });
    let mut peer = Peer::new();
    let handle = peer.connect(7, 50000, 65536);
    // The SYN comes, and is answered in the next round.
    peer.turn();
    peer.turn();
    if client_speaks_first {
        let (remote, local, until) = awaited().expect("the beginning of a connection");
        assert_eq!((remote, local), (50000, 7));
        assert!(until > testing::now() && until <= testing::now() + SECOND, "not for ever");
    } else {
        assert_eq!(awaited(), None);
    }
    peer.turn_until(100, |peer| peer.tcp(handle).may_send());
    peer.tcp(handle).send_slice(b"x").unwrap();
    peer.turn();
    peer.turn();
    assert_eq!(awaited(), Some((50000, 7, u64::MAX)), "nothing else is to be done");
    peer.turn_until(100, |peer| peer.tcp(handle).can_recv());
    // The peer's acknowledgement comes, late.
    for _ in 0..4 {
        testing::advance(20_000_000);
        peer.turn();
    }
    assert_eq!(awaited(), None, "it has come");
}

#[test]
fn who_waits_for_an_acknowledgement_is_woken() {
    let listener = TcpListener::bind(7, Config { send_buffer: 1000, ..Config::DEFAULT }).unwrap();
    let done = Rc::new(Cell::new(0));
    let steps = done.clone();
    spawn(async move {
        let mut stream = listener.accept().await;
        // More than there is room for.
        stream.write_all(&[1; 1500]).await.unwrap();
        steps.set(1);
        stream.acknowledged().await.unwrap();
        steps.set(2);
        stream.write_all(&[1; 10]).await.unwrap();
        stream.set_timeout(Some(Duration::from_secs(5)));
        let _ = stream.read(&mut [0; 1]).await;
    });
    let mut peer = Peer::new();
    let handle = peer.connect(7, 50000, 65536);
    let mut received = 0;
    peer.turn_until(400, |peer| {
        assert!(awaited().is_none(), "after {} steps", done.get());
        testing::advance(20_000_000);
        let socket = peer.tcp(handle);
        while socket.can_recv() {
            received += socket.recv(|bytes| (bytes.len(), bytes.len())).unwrap();
        }
        received == 1510
    });
    assert_eq!(done.get(), 2);
}

#[test]
fn a_quiet_guest_has_few_buffers_and_more_when_a_frame_needs_them() {
    echo_server(7, Config::BULK);
    let mut peer = Peer::new();
    let handle = peer.connect(7, 50000, 65536);
    peer.turn_until(100, |peer| peer.tcp(handle).may_send());
    // Nobody takes it for a frame, which is all the same to the ring.
    let large = vec![0xee; 64_000];
    assert!(!testing::deliver(0, &large), "there is room for it at once");
    // The VMM has not said that it looks: it wants to hear of buffers. Without an interrupt that is nothing new.
    peer.turn();
    assert!(!testing::deliver(0, &large));
    testing::control().pending.fetch_or(crate::interrupt::NET_RX, Ordering::Relaxed);
    peer.turn();
    let before = counters();
    assert!(testing::deliver(0, &large));
    peer.turn();
    assert_eq!(counters().rx_bytes - before.rx_bytes, 64_000);
    // Buffers are no longer used in the order of their addresses; what comes in several is whole.
    echo_through(&mut peer, handle, &pattern(300_000), 4000);
    assert_eq!(counters().rx_checksum, 0);
}
