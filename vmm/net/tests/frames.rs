//! The parser and the switch's decisions.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use foraker_abi::net::{GSO_TCPV4, Header, NEEDS_CSUM};
use foraker_net::frame::{self, Discovery, Frame, MAX_HEADERS, Malformed, Packet};
use foraker_net::{
    AddError, DropReason, Elsewhere, Gateway, Limits, Mac, Port, PortConfig, Route, Switch, offload,
};
use proptest::prelude::*;

mod driver;
use driver::{Guest, ipv4, udp};

const HOST4: Ipv4Addr = Ipv4Addr::new(10, 213, 77, 1);
const HOST6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
const HOST_MAC: Mac = Mac([2, 0xf0, 0, 0, 0, 1]);
const HOST: (Mac, Ipv4Addr) = (HOST_MAC, HOST4);

fn v6(number: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number)
}

struct Lab {
    switch: Switch,
    guests: Vec<(Guest, Arc<Port>)>,
}

impl Lab {
    /// Guests 2 and 3 in network 0, guest 4 in network 1 if `divided`.
    fn new(divided: bool) -> Self {
        let switch = Switch::new(Gateway { mac: HOST_MAC, ipv4: HOST4, ipv6: Some(HOST6) });
        let guests = (2..=if divided { 4 } else { 3 })
            .map(|number| {
                let guest = Guest::new(number);
                let config = PortConfig {
                    ipv6: Some(v6(number.into())),
                    ..guest.port(u32::from(number == 4), Limits::default())
                };
                let port = switch.add(config).expect("room");
                (guest, port)
            })
            .collect();
        Lab { switch, guests }
    }

    fn sent_by(&self, guest: usize, bytes: &[u8]) -> Result<Route, Malformed> {
        let frame = frame::parse(&bytes[..bytes.len().min(MAX_HEADERS)], bytes.len())?;
        Ok(self.switch.route_guest(&self.guests[guest].1, &frame))
    }

    fn address(&self, guest: usize) -> (Mac, Ipv4Addr) {
        (self.guests[guest].0.mac, self.guests[guest].0.ipv4)
    }
}

fn dropped(route: &Route) -> Option<DropReason> {
    match route {
        Route::Drop(reason) => Some(*reason),
        _ => None,
    }
}

fn arp(request: bool, from: (Mac, Ipv4Addr), to: (Mac, Ipv4Addr)) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(if request { [0xff; 6] } else { to.0.0 });
    bytes.extend(from.0.0);
    bytes.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, if request { 1 } else { 2 }]);
    bytes.extend(from.0.0);
    bytes.extend(from.1.octets());
    bytes.extend(to.0.0);
    bytes.extend(to.1.octets());
    bytes
}

fn ipv6(macs: (Mac, Mac), from: Ipv6Addr, to: Ipv6Addr, next: u8, hop_limit: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(macs.1.0);
    bytes.extend(macs.0.0);
    bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    bytes.extend(u16::try_from(body.len()).expect("a packet").to_be_bytes());
    bytes.extend([next, hop_limit]);
    bytes.extend(from.octets());
    bytes.extend(to.octets());
    bytes.extend_from_slice(body);
    bytes
}

fn solicitation(from: (Mac, Ipv6Addr), target: Ipv6Addr) -> Vec<u8> {
    discovery(135, from, target)
}

fn discovery(kind: u8, from: (Mac, Ipv6Addr), target: Ipv6Addr) -> Vec<u8> {
    let mut body = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    body.extend(target.octets());
    body.extend([1, 1]);
    body.extend(from.0.0);
    let t = target.octets();
    let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, t[13], t[14], t[15]]);
    ipv6((from.0, Mac([0x33, 0x33, 0xff, t[13], t[14], t[15]])), from.1, group, 58, 255, &body)
}

/// The sum over the pseudo-header and an ICMPv6 message is 0 when its checksum is right.
fn icmpv6_sum(frame: &[u8]) -> u16 {
    let mut pseudo = frame[22..54].to_vec();
    pseudo.extend([0, 0, frame[18], frame[19], 0, 0, 0, 58]);
    pseudo.extend_from_slice(&frame[54..]);
    driver::checksum(&pseudo)
}

#[test]
fn udp_to_the_host_and_to_another_guest() {
    for divided in [false, true] {
        let lab = Lab::new(divided);
        let out = udp(lab.address(0), HOST, (1, 2), b"x");
        assert!(matches!(lab.sent_by(0, &out), Ok(Route::Uplink)));
        let across = udp(lab.address(0), lab.address(1), (1, 2), b"x");
        assert!(matches!(lab.sent_by(0, &across), Ok(Route::Port(port)) if port.id() == 3));
        let back = udp(HOST, lab.address(1), (1, 2), b"x");
        assert!(matches!(lab.switch.route_uplink(&back, back.len()), Route::Port(port) if port.id() == 3));
    }
}

#[test]
fn forged_sources_are_refused() {
    let lab = Lab::new(false);
    let (own, other) = (lab.address(0), lab.address(1));
    let own6 = (own.0, v6(2));
    let forged = [
        udp((other.0, own.1), HOST, (1, 2), b""),
        udp((own.0, other.1), HOST, (1, 2), b""),
        udp((own.0, HOST4), other, (1, 2), b""),
        udp((own.0, Ipv4Addr::UNSPECIFIED), HOST, (1, 2), b""),
        udp((HOST_MAC, own.1), other, (1, 2), b""),
        arp(true, (own.0, other.1), HOST),
        arp(false, (own.0, HOST4), other),
        {
            let mut bytes = arp(true, own, HOST);
            bytes[22..28].copy_from_slice(&other.0.0);
            bytes
        },
        ipv6((own.0, HOST_MAC), v6(3), HOST6, 17, 64, &[0; 8]),
        ipv6((own.0, HOST_MAC), other.0.link_local(), HOST6, 17, 64, &[0; 8]),
        ipv6((own.0, HOST_MAC), Ipv6Addr::UNSPECIFIED, HOST6, 17, 64, &[0; 8]),
        // Claims another's address, or to be a router.
        discovery(136, own6, v6(3)),
        discovery(136, own6, HOST6),
        discovery(134, own6, v6(2)),
        discovery(137, own6, v6(2)),
    ];
    for bytes in &forged {
        let route = lab.sent_by(0, bytes).expect("well formed");
        assert_eq!(dropped(&route), Some(DropReason::ForgedSource), "{bytes:02x?}");
    }
}

#[test]
fn networks_are_apart_also_through_the_host() {
    let lab = Lab::new(true);
    let (two, four) = (lab.address(0), lab.address(2));
    for bytes in [
        udp(two, four, (1, 2), b""),
        // By way of the host's routing.
        udp(two, (HOST_MAC, four.1), (1, 2), b""),
        arp(true, two, (Mac::default(), four.1)),
        ipv6((two.0, HOST_MAC), v6(2), v6(4), 17, 64, &[0; 8]),
        ipv6((two.0, HOST_MAC), two.0.link_local(), four.0.link_local(), 17, 64, &[0; 8]),
        solicitation((two.0, v6(2)), v6(4)),
    ] {
        let route = lab.sent_by(0, &bytes).expect("well formed");
        assert_eq!(dropped(&route), Some(DropReason::Isolated), "{bytes:02x?}");
    }
    let routed = udp((HOST_MAC, two.1), four, (1, 2), b"");
    assert_eq!(dropped(&lab.switch.route_uplink(&routed, routed.len())), Some(DropReason::Isolated));
    let own = udp(HOST, four, (1, 2), b"");
    assert!(matches!(lab.switch.route_uplink(&own, own.len()), Route::Port(_)));
}

#[test]
fn a_network_of_its_own_ends_at_its_switch() {
    let elsewhere = Elsewhere::none_but_own((HOST4, 24), (HOST6, 64))
        .and(Ipv4Addr::new(10, 213, 0, 0), Ipv4Addr::new(10, 213, 255, 255))
        .and_ipv6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0), 32);
    let switch = Switch::beside(Gateway { mac: HOST_MAC, ipv4: HOST4, ipv6: Some(HOST6) }, elsewhere);
    let own6 = v6(2);
    // Alone on its switch, with a network of its own, and then in the shared one.
    for (network, apart) in [(7, true), (0, false)] {
        let guest = Guest::new(2);
        let config = PortConfig { ipv6: Some(own6), ..guest.port(network, Limits::default()) };
        let port = switch.add(config).expect("room");
        let two = (guest.mac, guest.ipv4);
        let other4 = Ipv4Addr::new(10, 213, 78, 2);
        let other6 = Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 2);
        for bytes in [
            udp(two, (HOST_MAC, other4), (1, 2), b""),
            ipv6((two.0, HOST_MAC), own6, other6, 17, 64, &[0; 8]),
        ] {
            let frame = frame::parse(&bytes, bytes.len()).expect("well formed");
            let expected = apart.then_some(DropReason::Isolated);
            assert_eq!(dropped(&switch.route_guest(&port, &frame)), expected, "{bytes:02x?}");
        }
        for bytes in [
            udp((HOST_MAC, other4), two, (1, 2), b""),
            ipv6((HOST_MAC, two.0), other6, own6, 17, 64, &[0; 8]),
        ] {
            let route = switch.route_uplink(&bytes, bytes.len());
            assert_eq!(dropped(&route), apart.then_some(DropReason::Isolated), "{bytes:02x?}");
        }
        // The host, and the world behind it, are nobody's guests.
        for bytes in [
            udp(HOST, two, (1, 2), b""),
            udp((HOST_MAC, Ipv4Addr::new(1, 1, 1, 1)), two, (1, 2), b""),
            ipv6((HOST_MAC, two.0), HOST6, own6, 17, 64, &[0; 8]),
        ] {
            assert!(matches!(switch.route_uplink(&bytes, bytes.len()), Route::Port(_)), "{bytes:02x?}");
        }
        for to in [HOST4, Ipv4Addr::new(1, 1, 1, 1)] {
            let bytes = udp(two, (HOST_MAC, to), (1, 2), b"");
            let frame = frame::parse(&bytes, bytes.len()).expect("well formed");
            assert!(matches!(switch.route_guest(&port, &frame), Route::Uplink), "{to}");
        }
        switch.remove(&port);
    }
}

#[test]
fn arp_is_answered_by_the_switch() {
    let lab = Lab::new(false);
    let (two, three) = (lab.address(0), lab.address(1));
    let asked = |route: Route| match route {
        Route::Reply(reply) => frame::parse(reply.frame(), reply.frame().len()).expect("well formed"),
        other => panic!("{other:?}"),
    };
    let check = |answer: Frame, owner: (Mac, Ipv4Addr), asker: (Mac, Ipv4Addr)| {
        assert_eq!((answer.source, answer.destination), (owner.0, asker.0));
        let Packet::Arp(arp) = answer.packet else { panic!("{answer:?}") };
        assert_eq!((arp.request, arp.sender_mac, arp.sender, arp.target), (false, owner.0, owner.1, asker.1));
    };
    check(asked(lab.sent_by(0, &arp(true, two, (Mac::default(), HOST4))).expect("good")), HOST, two);
    check(asked(lab.sent_by(0, &arp(true, two, (Mac::default(), three.1))).expect("good")), three, two);
    let from_host = arp(true, HOST, (Mac::default(), three.1));
    check(asked(lab.switch.route_uplink(&from_host, from_host.len())), three, HOST);
    // Also when it checks a neighbour that it knows, by unicast.
    let mut unicast = from_host;
    unicast[..6].copy_from_slice(&three.0.0);
    check(asked(lab.switch.route_uplink(&unicast, unicast.len())), three, HOST);
    // Nobody there; announcements; replies that nobody asked for.
    let nobody = Ipv4Addr::new(10, 213, 77, 99);
    for (bytes, reason) in [
        (arp(true, two, (Mac::default(), nobody)), DropReason::UnknownDestination),
        (arp(true, two, two), DropReason::NotForwarded),
        (arp(false, two, three), DropReason::NotForwarded),
    ] {
        assert_eq!(dropped(&lab.sent_by(0, &bytes).expect("good")), Some(reason));
    }
}

#[test]
fn neighbour_discovery_is_answered_by_the_switch() {
    let lab = Lab::new(false);
    let (two, three) = (lab.address(0).0, lab.address(1).0);
    let answer = |route: Route, owner: Mac, target: Ipv6Addr, router: bool| {
        let Route::Reply(reply) = route else { panic!("{route:?}") };
        let bytes = reply.frame();
        let frame = frame::parse(bytes, bytes.len()).expect("well formed");
        assert_eq!(frame.source, owner);
        let Packet::Ipv6(packet) = frame.packet else { panic!("{frame:?}") };
        assert_eq!(packet.discovery, Some(Discovery::Advertisement { target }));
        assert_eq!(bytes[58] & 0x80 != 0, router);
        assert_eq!(bytes[80..86], owner.0);
        assert_eq!(icmpv6_sum(bytes), 0);
    };
    answer(lab.sent_by(0, &solicitation((two, v6(2)), HOST6)).expect("good"), HOST_MAC, HOST6, true);
    answer(lab.sent_by(0, &solicitation((two, v6(2)), v6(3))).expect("good"), three, v6(3), false);
    let local = three.link_local();
    answer(lab.sent_by(0, &solicitation((two, two.link_local()), local)).expect("good"), three, local, false);
    let from_host = solicitation((HOST_MAC, HOST6), v6(3));
    answer(lab.switch.route_uplink(&from_host, from_host.len()), three, v6(3), false);
    // Duplicate address detection, from "::".
    let probe = solicitation((two, Ipv6Addr::UNSPECIFIED), v6(2));
    assert_eq!(dropped(&lab.sent_by(0, &probe).expect("good")), Some(DropReason::NotForwarded));
}

#[test]
fn what_nobody_needs_is_dropped() {
    let lab = Lab::new(false);
    let (two, group) = (lab.address(0), (Mac([1, 0, 0x5e, 0, 0, 0xfb]), Ipv4Addr::new(224, 0, 0, 251)));
    let mut lldp = vec![1, 0x80, 0xc2, 0, 0, 0xe];
    lldp.extend(two.0.0);
    lldp.extend([0x88, 0xcc, 0, 0]);
    for (bytes, reason) in [
        (udp(two, (Mac::BROADCAST, Ipv4Addr::BROADCAST), (68, 67), b""), DropReason::NotForwarded),
        (udp(two, group, (5353, 5353), b""), DropReason::NotForwarded),
        (udp(two, (Mac([2, 9, 9, 9, 9, 9]), HOST4), (1, 2), b""), DropReason::UnknownDestination),
        (udp(two, two, (1, 2), b""), DropReason::UnknownDestination),
        (lldp, DropReason::UnsupportedProtocol),
    ] {
        assert_eq!(dropped(&lab.sent_by(0, &bytes).expect("good")), Some(reason));
    }
    let broadcast = udp(HOST, (Mac::BROADCAST, Ipv4Addr::BROADCAST), (68, 67), b"");
    assert_eq!(
        dropped(&lab.switch.route_uplink(&broadcast, broadcast.len())),
        Some(DropReason::NotForwarded)
    );
}

#[test]
fn addresses_are_taken_once() {
    let lab = Lab::new(false);
    let fresh = || Guest::new(9).port(0, Limits::default());
    let (two, three) = (lab.address(0), lab.address(1));
    let add = |config| lab.switch.add(config).map(drop);
    assert_eq!(add(PortConfig { mac: two.0, ..fresh() }), Err(AddError::Mac(two.0)));
    assert_eq!(add(PortConfig { mac: HOST_MAC, ..fresh() }), Err(AddError::Mac(HOST_MAC)));
    assert_eq!(add(PortConfig { mac: Mac::BROADCAST, ..fresh() }), Err(AddError::Mac(Mac::BROADCAST)));
    assert_eq!(add(PortConfig { ipv4: three.1, ..fresh() }), Err(AddError::Ipv4(three.1)));
    assert_eq!(add(PortConfig { ipv4: HOST4, ..fresh() }), Err(AddError::Ipv4(HOST4)));
    assert_eq!(add(PortConfig { ipv6: Some(v6(3)), ..fresh() }), Err(AddError::Ipv6(v6(3))));
    assert_eq!(add(PortConfig { ipv6: Some(HOST6), ..fresh() }), Err(AddError::Ipv6(HOST6)));
    // What a removed port had is free again; removing twice is harmless.
    let port = &lab.guests[0].1;
    lab.switch.remove(port);
    assert_eq!(lab.switch.ports(), 1);
    let again =
        lab.switch.add(PortConfig { mac: two.0, ipv4: two.1, ipv6: Some(v6(2)), ..fresh() }).expect("free");
    lab.switch.remove(port);
    assert!(lab.switch.port_by_ipv4(two.1).is_some_and(|there| Arc::ptr_eq(&there, &again)));
    assert_eq!(lab.switch.ports(), 2);
}

#[test]
fn offload_headers_must_match_their_packet() {
    let lab = Lab::new(false);
    let mut tcp = vec![0_u8; 20 + 5000];
    tcp[12] = 0x50;
    let bytes = ipv4(lab.address(0), HOST, 6, &tcp);
    let parsed = |bytes: &[u8]| frame::parse(bytes, bytes.len()).expect("well formed");
    let good = Header {
        flags: NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: 0,
        gso_size: 1000,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 0,
    };
    let checked = offload::matches(&good, &parsed(&bytes), bytes.len()).expect("matches");
    assert_eq!((checked.segments, checked.header), (5, Header { hdr_len: 54, ..good }));
    for bad in [
        Header { csum_start: 30, ..good },
        Header { csum_offset: 6, ..good },
        Header { gso_type: 4, ..good },
        Header { gso_size: 19, ..good },
    ] {
        assert_eq!(offload::matches(&bad, &parsed(&bytes), bytes.len()), None, "{bad:?}");
    }
    // Segmentation of a fragment, and of what is not TCP.
    let mut fragment = bytes.clone();
    fragment[20] |= 0x20;
    assert_eq!(offload::matches(&good, &parsed(&fragment), fragment.len()), None);
    let datagram = udp(lab.address(0), HOST, (1, 2), &[0; 2000]);
    assert_eq!(
        offload::matches(&Header { csum_offset: 6, ..good }, &parsed(&datagram), datagram.len()),
        None
    );
    let checksum_only = Header { csum_offset: 6, gso_type: 0, gso_size: 0, ..good };
    assert!(offload::matches(&checksum_only, &parsed(&datagram), datagram.len()).is_some());
}

/// Frames that parse, to be mutated.
fn valid() -> impl Strategy<Value = Vec<u8>> {
    let two = (Mac([2, 0xf0, 0, 0, 0, 2]), Ipv4Addr::new(10, 213, 77, 2));
    let mut tcp = vec![0_u8; 40];
    tcp[12] = 0x80;
    // Hop-by-hop options, a first fragment, UDP.
    let mut extended = vec![44, 0, 1, 4, 0, 0, 0, 0, 17, 0, 0, 1, 0, 0, 0, 1];
    extended.extend([0; 8]);
    prop::sample::select(vec![
        udp(two, HOST, (1, 2), b"hello"),
        ipv4(two, HOST, 6, &tcp),
        arp(true, two, HOST),
        ipv6((two.0, HOST_MAC), v6(2), HOST6, 6, 64, &tcp),
        ipv6((two.0, HOST_MAC), v6(2), HOST6, 0, 64, &extended),
        solicitation((two.0, v6(2)), HOST6),
    ])
}

/// A parsed frame's offsets lie within the frame, in order.
fn offsets_within(frame: &Frame, length: usize) -> bool {
    let transport = match frame.packet {
        Packet::Ipv4(packet) => packet.transport,
        Packet::Ipv6(packet) => packet.transport,
        _ => None,
    };
    transport.is_none_or(|t| 34 <= t.offset && t.offset <= t.payload && t.payload <= length)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_parsed_or_refused(
        bytes in proptest::collection::vec(any::<u8>(), 0..MAX_HEADERS),
        beyond in 0_usize..70_000,
    ) {
        let length = bytes.len() + beyond;
        if let Ok(frame) = frame::parse(&bytes, length) {
            prop_assert!(offsets_within(&frame, length));
        }
    }

    #[test]
    fn mutated_frames_are_parsed_or_refused(
        mut bytes in valid(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
    ) {
        prop_assert!(frame::parse(&bytes, bytes.len()).is_ok());
        for (index, value) in changes {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(frame) = frame::parse(&bytes, bytes.len()) {
            prop_assert!(offsets_within(&frame, bytes.len()));
        }
        let short = &bytes[..cut.index(bytes.len())];
        if let Ok(frame) = frame::parse(short, short.len()) {
            prop_assert!(offsets_within(&frame, short.len()));
        }
    }

    /// Whatever a guest sends, it leaves the switch only with the guest's own source addresses, and never reaches
    /// another network.
    #[test]
    fn nothing_forged_leaves(
        mut bytes in valid(),
        changes in proptest::collection::vec((0_usize..54, prop::sample::select(vec![0_u8, 1, 2, 3, 4, 6, 17, 58, 77, 213, 0xf0, 0xff])), 0..5),
    ) {
        let lab = Lab::new(true);
        for (at, value) in changes {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        let (own, port) = &lab.guests[0];
        let Ok(frame) = frame::parse(&bytes, bytes.len()) else { return Ok(()) };
        let route = lab.switch.route_guest(port, &frame);
        if let Route::Uplink | Route::Port(_) = &route {
            prop_assert_eq!(frame.source, own.mac);
            match frame.packet {
                Packet::Ipv4(packet) => {
                    prop_assert_eq!(packet.source, own.ipv4);
                    // A neighbour is told apart by its ethernet address: what else the packet says is its own to judge.
                    if matches!(route, Route::Uplink) {
                        prop_assert_ne!(packet.destination, lab.guests[2].0.ipv4);
                    }
                }
                Packet::Ipv6(packet) => {
                    prop_assert!(packet.source == v6(2) || packet.source == own.mac.link_local());
                    prop_assert!(packet.discovery.is_none());
                }
                other => prop_assert!(false, "{:?} left", other),
            }
        }
        if let Route::Port(to) = &route {
            prop_assert_eq!(to.network(), 0);
        }
    }
}

/// Behind a packet may come padding, whose bytes nobody sees as part of it.
#[test]
fn padding_is_no_part_of_a_packet() {
    let addresses = (v6(2), v6(3));
    let macs = (Mac([2, 0xf0, 0, 0, 0, 2]), Mac([2, 0xf0, 0, 0, 0, 3]));
    let padding = [59, 0, 0, 8, 0, 0, 0, 0, 0x50, 0, 0, 0, 0x50, 0, 0, 0, 0x50, 0, 0, 0];
    for next in [0, 6, 17, 43, 44, 58, 60] {
        let short = ipv6(macs, addresses.0, addresses.1, next, 255, &[]);
        let padded = [short.as_slice(), &padding].concat();
        assert_eq!(frame::parse(&short, short.len()), Err(Malformed::Truncated), "{next}");
        assert_eq!(frame::parse(&padded, padded.len()), Err(Malformed::Truncated), "{next}");
    }
    for protocol in [6, 17] {
        let short = ipv4((macs.0, HOST4), (macs.1, HOST4), protocol, &[]);
        let padded = [short.as_slice(), &padding].concat();
        assert_eq!(frame::parse(&padded, padded.len()), Err(Malformed::Truncated), "{protocol}");
    }
}

/// A TCP segment from port 50000 to port 80 that acknowledges 0x01020304.
fn segment(flags: u8, options: usize, data: &[u8]) -> Vec<u8> {
    let mut tcp =
        vec![0xc3, 0x50, 0, 80, 9, 9, 9, 9, 1, 2, 3, 4, (5 + options as u8) << 4, flags, 0, 63, 0, 0, 0, 0];
    tcp.extend(vec![1; 4 * options]);
    tcp.extend(data);
    tcp
}

#[test]
fn a_bare_acknowledgement_is_nothing_else() {
    const ACK: u8 = 0x10;
    let guest = (Mac([6, 0, 0, 0, 0, 2]), Ipv4Addr::new(10, 213, 77, 2));
    let number = Some(foraker_abi::control::awaited(50000, 80, 0x0102_0304));
    let over4 = |tcp: &[u8]| ipv4(HOST, guest, 6, tcp);
    let over6 = |tcp: &[u8]| ipv6((HOST_MAC, guest.0), HOST6, v6(2), 6, 64, tcp);
    for options in [0, 3, 10] {
        let bare = segment(ACK, options, &[]);
        assert_eq!(frame::bare_acknowledgement(&over4(&bare)), number);
        assert_eq!(frame::bare_acknowledgement(&over6(&bare)), number);
        // As ethernet fills up short frames.
        assert_eq!(frame::bare_acknowledgement(&[over4(&bare), vec![0; 6]].concat()), number);
        let mut others = vec![segment(ACK, options, b"x"), segment(0, options, &[])];
        others.extend([1, 2, 4, 8, 0x20, 0x40, 0x80].map(|flag| segment(ACK | flag, options, &[])));
        for other in others {
            assert_eq!(frame::bare_acknowledgement(&over4(&other)), None, "{other:x?}");
            assert_eq!(frame::bare_acknowledgement(&over6(&other)), None, "{other:x?}");
        }
    }
    let bare = segment(ACK, 0, &[]);
    assert_eq!(frame::bare_acknowledgement(&ipv4(HOST, guest, 17, &bare)), None, "UDP");
    let mut fragment = over4(&bare);
    fragment[20] = 0x20;
    assert_eq!(frame::bare_acknowledgement(&fragment), None, "a fragment");
    let whole = over4(&bare);
    for length in 0..whole.len() {
        assert_eq!(frame::bare_acknowledgement(&whole[..length]), None, "{length} bytes");
    }
}

proptest! {
    #[test]
    fn what_is_no_frame_is_no_acknowledgement(bytes in proptest::collection::vec(any::<u8>(), 0..140), ethertype in 0usize..3) {
        let mut bytes = bytes;
        if bytes.len() > 14 {
            let kind = [[8, 0], [0x86, 0xdd], [8, 6]][ethertype];
            bytes[12..14].copy_from_slice(&kind);
        }
        // Whatever it says, it says it without reading outside.
        if let Some(number) = frame::bare_acknowledgement(&bytes) {
            prop_assert!(bytes.len() >= 54 && number != u64::MAX);
        }
    }
}
