//! Frames: what the parser says depends on the packet alone, and the switch passes nothing on under a forged source, to
//! a stranger's network or of the messages by which hosts find each other.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use foraker_abi::net::{GSO_NONE, HEADER_SIZE, Header, MAX_FRAME, NEEDS_CSUM};
use foraker_net::frame::{
    self, Discovery, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Frame, MAX_HEADERS, PROTOCOL_ICMPV6,
    PROTOCOL_TCP, PROTOCOL_UDP, Packet, Transport,
};
use foraker_net::offload::{self, MAX_SEGMENTS};
use foraker_net::reply::Reply;
use foraker_net::{DropReason, Gateway, Limits, Mac, Port, PortConfig, Route, Switch};

use crate::program::Program;
use crate::rings::driver::{self, Guest};

/// The host's side.
pub const GATEWAY: Gateway = Gateway {
    mac: Mac([2, 0xf0, 0, 0, 0, 1]),
    ipv4: Ipv4Addr::new(10, 213, 77, 1),
    ipv6: Some(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1)),
};

/// A switch with guests 2, 3 and 4.
struct Lab {
    switch: Switch,
    ports: [Arc<Port>; 3],
}

impl Lab {
    /// Guest 4 is in a network of its own if it is `divided`.
    fn new(divided: bool) -> Self {
        let switch = Switch::new(GATEWAY);
        let ports = [2, 3, 4].map(|number| {
            let ipv6 = Some(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number.into()));
            let network = u32::from(divided && number == 4);
            let config = PortConfig { ipv6, ..Guest::new(number).port(network, Limits::default()) };
            switch.add(config).expect("room")
        });
        Lab { switch, ports }
    }

    fn by_ipv6(&self, address: Ipv6Addr) -> Option<&Arc<Port>> {
        self.ports.iter().find(|port| port.link_local() == address || port.ipv6() == Some(address))
    }
}

thread_local! {
    static LABS: [Lab; 2] = [Lab::new(false), Lab::new(true)];
}

/// The first byte chooses switch (bit 0), sender (bits 1, 2) and how much longer than `data` the frame is (bits 4
/// to 7, in units of 4 KiB of zeros); an offload header and the frame follow.
pub fn run(data: &[u8]) {
    let mut program = Program(data);
    let Some(mode) = program.u8() else { return };
    let Some(header) = program.bytes(HEADER_SIZE).first_chunk().map(|bytes| Header::from_bytes(*bytes))
    else {
        return;
    };
    let mut whole = program.0.to_vec();
    whole.resize((whole.len() + usize::from(mode >> 4) * 4096).min(MAX_FRAME), 0);
    LABS.with(|labs| {
        let lab = &labs[usize::from(mode & 1)];
        let port = &lab.ports[usize::from(mode >> 1 & 3).min(2)];
        if let Some(frame) = parse(&whole) {
            check_offload(&header, &frame, whole.len());
            check_guest(lab, port, &frame, &whole);
        }
        check_uplink(lab, &whole);
    });
}

/// Parses as the transmit path does, and checks what comes of it.
fn parse(whole: &[u8]) -> Option<Frame> {
    let length = whole.len();
    let of_all = frame::parse(whole, length);
    let of_prefix = frame::parse(&whole[..length.min(MAX_HEADERS)], length);
    if of_prefix.is_ok() {
        assert_eq!(of_prefix, of_all, "what lies behind the headers matters");
    }
    let frame = of_all.ok()?;
    assert_eq!(whole[..6], frame.destination.0);
    assert_eq!(whole[6..12], frame.source.0);
    let end = packet_end(whole);
    assert_eq!(frame::parse(&whole[..end], end), of_all, "padding matters");
    let (transport, least) = match frame.packet {
        Packet::Ipv4(packet) => (packet.transport, 34),
        Packet::Ipv6(packet) => (packet.transport, 54),
        _ => return Some(frame),
    };
    if let Some(Transport { protocol, offset, payload, .. }) = transport {
        assert!(offset >= least && offset <= payload && payload <= end);
        let header = payload - offset;
        match protocol {
            PROTOCOL_TCP => assert!((20..=60).contains(&header)),
            PROTOCOL_UDP => assert_eq!(header, 8),
            _ => assert_eq!(header, 0),
        }
    }
    Some(frame)
}

fn u16_at(bytes: &[u8], at: usize) -> usize {
    bytes.get(at..at + 2).map_or(0, |two| usize::from(u16::from_be_bytes([two[0], two[1]])))
}

fn ethertype(whole: &[u8]) -> u16 {
    u16_at(whole, 12) as u16
}

/// Where the packet in a well-formed frame ends; padding may follow.
fn packet_end(whole: &[u8]) -> usize {
    match ethertype(whole) {
        ETHERTYPE_IPV4 => 14 + u16_at(whole, 16),
        ETHERTYPE_IPV6 => 54 + u16_at(whole, 18),
        ETHERTYPE_ARP => 42,
        _ => whole.len(),
    }
}

/// Whether any source address in the frame, by its fixed place in it, is not the port's.
fn is_forged(port: &Port, whole: &[u8]) -> bool {
    let is = |at: usize, own: &[u8]| whole.get(at..at + own.len()) == Some(own);
    let own_ipv4 = |at| is(at, &port.ipv4().octets());
    let own_ipv6 = |at| {
        is(at, &port.link_local().octets()) || port.ipv6().is_some_and(|address| is(at, &address.octets()))
    };
    let own_source = match ethertype(whole) {
        ETHERTYPE_IPV4 => own_ipv4(26),
        ETHERTYPE_IPV6 => own_ipv6(22),
        ETHERTYPE_ARP => is(22, &port.mac().0) && (own_ipv4(28) || is(28, &[0; 4])),
        _ => true,
    };
    !(is(6, &port.mac().0) && own_source)
}

/// The type of the message of neighbour discovery that a frame holds, if any; walks all extension headers.
fn discovery(whole: &[u8]) -> Option<u8> {
    let packet = whole.get(14..packet_end(whole))?;
    if ethertype(whole) != ETHERTYPE_IPV6 {
        return None;
    }
    let (mut next, mut at) = (*packet.get(6)?, 40);
    loop {
        match next {
            0 | 43 | 60 => (next, at) = (*packet.get(at)?, at + (usize::from(*packet.get(at + 1)?) + 1) * 8),
            44 if u16_at(packet, at + 2) >> 3 == 0 => (next, at) = (*packet.get(at)?, at + 8),
            PROTOCOL_ICMPV6 => return packet.get(at).copied().filter(|kind| (133..=137).contains(kind)),
            _ => return None,
        }
    }
}

/// Whether a frame's IP address at one of two places is that of a port of another network.
fn is_stranger(lab: &Lab, network: u32, whole: &[u8], ipv4: usize, ipv6: usize) -> bool {
    let other = |port: &&Arc<Port>| match ethertype(whole) {
        ETHERTYPE_IPV4 => whole[ipv4..ipv4 + 4] == port.ipv4().octets(),
        ETHERTYPE_IPV6 => {
            let address = &whole[ipv6..ipv6 + 16];
            address == port.link_local().octets()
                || port.ipv6().is_some_and(|there| address == there.octets())
        }
        _ => false,
    };
    lab.ports.iter().find(other).is_some_and(|port| port.network() != network)
}

/// A guest sends the frame.
fn check_guest(lab: &Lab, port: &Arc<Port>, frame: &Frame, whole: &[u8]) {
    let route = lab.switch.route_guest(port, frame);
    if is_forged(port, whole) {
        let fits = |reason| {
            matches!(
                reason,
                DropReason::ForgedSource | DropReason::NotForwarded | DropReason::UnsupportedProtocol
            )
        };
        assert!(matches!(route, Route::Drop(reason) if fits(reason)), "forged, but {route:?}");
        return;
    }
    let passed_on = matches!(route, Route::Uplink | Route::Port(_));
    if passed_on {
        assert!(matches!(ethertype(whole), ETHERTYPE_IPV4 | ETHERTYPE_IPV6));
        assert_eq!(discovery(whole), None, "neighbour discovery is passed on");
        assert!(!frame.destination.is_multicast());
        let strange = is_stranger(lab, port.network(), whole, 30, 38);
        assert!(!strange || frame.destination != GATEWAY.mac, "through the host into another network");
    }
    match route {
        Route::Uplink => assert_eq!(frame.destination, GATEWAY.mac),
        Route::Port(to) => {
            assert_eq!((to.mac(), to.network()), (frame.destination, port.network()));
            assert_ne!(to.id(), port.id());
        }
        Route::Reply(reply) => check_reply(lab, &reply, frame, Some(port.network())),
        Route::Drop(_) => {}
    }
}

/// The host sends the frame.
fn check_uplink(lab: &Lab, whole: &[u8]) {
    let divided = lab.ports[2].network() != 0;
    match lab.switch.route_uplink(whole, whole.len()) {
        Route::Port(to) => {
            assert_eq!(whole[..6], to.mac().0);
            assert!(ethertype(whole) != ETHERTYPE_ARP && discovery(whole).is_none());
            assert!(!divided || !is_stranger(lab, to.network(), whole, 26, 22), "from another network");
        }
        Route::Reply(reply) => {
            let frame = frame::parse(whole, whole.len()).expect("only frames are answered");
            check_reply(lab, &reply, &frame, None);
        }
        Route::Uplink => panic!("a frame of the host goes back to it"),
        Route::Drop(_) => {}
    }
}

/// The answer is well-formed, goes to whoever asked, and names the owner of the address. A guest of a `network`
/// learns only of that.
fn check_reply(lab: &Lab, reply: &Reply, asked: &Frame, network: Option<u32>) {
    let bytes = reply.frame();
    assert_eq!(reply.bytes()[..HEADER_SIZE], [0; HEADER_SIZE]);
    let answer = frame::parse(bytes, bytes.len()).expect("a well-formed answer");
    let owner = |port: Option<&Arc<Port>>, is_gateway: bool| match port {
        Some(port) => {
            assert!(network.is_none_or(|network| network == port.network()), "of another network");
            port.mac()
        }
        None => {
            assert!(is_gateway && network.is_some(), "nobody has the address");
            GATEWAY.mac
        }
    };
    match (asked.packet, answer.packet) {
        (Packet::Arp(question), Packet::Arp(arp)) => {
            assert!(question.request && !arp.request);
            let port = lab.ports.iter().find(|port| port.ipv4() == question.target);
            assert_eq!(arp.sender_mac, owner(port, question.target == GATEWAY.ipv4));
            assert_eq!((arp.sender, arp.target), (question.target, question.sender));
            assert_eq!((answer.source, answer.destination), (arp.sender_mac, question.sender_mac));
        }
        (Packet::Ipv6(question), Packet::Ipv6(packet)) => {
            let Some(Discovery::Solicitation { target }) = question.discovery else {
                panic!("an answer to {question:?}")
            };
            assert_eq!(packet.discovery, Some(Discovery::Advertisement { target }));
            let gateway = GATEWAY.ipv6 == Some(target) || GATEWAY.mac.link_local() == target;
            let mac = owner(lab.by_ipv6(target), gateway);
            assert_eq!((packet.source, packet.destination), (target, question.source));
            assert_eq!((answer.source, answer.destination), (mac, asked.source));
            assert_eq!(bytes[bytes.len() - 6..], mac.0, "the target's link-layer address");
            let mut summed = bytes[22..54].to_vec();
            summed.extend([0, 0, 0, 32, 0, 0, 0, PROTOCOL_ICMPV6]);
            summed.extend(&bytes[54..]);
            assert_eq!(driver::checksum(&summed), 0);
        }
        (question, answer) => panic!("{answer:?} to {question:?}"),
    }
}

/// What the host is handed as an offload header is consistent with the packet, bounded, and nothing else.
fn check_offload(header: &Header, frame: &Frame, length: usize) {
    if offload::check(header, length).is_err() {
        return;
    }
    let Some(checked) = offload::matches(header, frame, length) else { return };
    let Header { flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers } = checked.header;
    assert_eq!(offload::check(&checked.header, length), Ok(()));
    assert_eq!(offload::matches(&checked.header, frame, length), Some(checked));
    assert_eq!(num_buffers, 0);
    if flags == 0 {
        assert_eq!((checked.header, checked.segments), (Header::default(), 1));
        return;
    }
    assert_eq!(flags, NEEDS_CSUM);
    let transport = match frame.packet {
        Packet::Ipv4(packet) => packet.transport,
        Packet::Ipv6(packet) => packet.transport,
        _ => None,
    };
    let transport = transport.expect("a checksum belongs to a transport header");
    assert_eq!(usize::from(csum_start), transport.offset);
    assert_eq!(usize::from(hdr_len), transport.payload);
    assert!(transport.offset + usize::from(csum_offset) + 2 <= transport.payload);
    if gso_type == GSO_NONE {
        assert_eq!((gso_size, checked.segments), (0, 1));
        return;
    }
    assert!(transport.protocol == PROTOCOL_TCP && !transport.fragment && gso_size > 0);
    let segments = checked.segments as usize;
    assert!((1..=MAX_SEGMENTS).contains(&segments));
    assert!(segments * usize::from(gso_size) >= length - transport.payload);
}
