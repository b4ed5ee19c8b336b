//! The switch with as many ports as a subnet of 16 bits has guests.

use std::collections::HashSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use foraker_net::frame;
use foraker_net::{DropReason, Gateway, Mac, Port, Route, Switch};

mod driver;
#[path = "driver/many.rs"]
mod many;
#[path = "driver/wire.rs"]
mod wire;
use driver::{Guest, udp};
use many::{HOST, MOST, address, config};

const HOST6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);

fn full() -> (Switch, Vec<Arc<Port>>) {
    let memory = Guest::new(2).memory();
    let switch = Switch::new(Gateway { mac: HOST.0, ipv4: HOST.1, ipv6: Some(HOST6) });
    let ports = (0..MOST).map(|number| switch.add(config(number, &memory)).expect("room")).collect();
    (switch, ports)
}

fn to(switch: &Switch, mac: Mac, ipv4: Ipv4Addr) -> Route {
    let frame = udp(HOST, (mac, ipv4), (1, 2), b"");
    switch.route_uplink(&frame, frame.len())
}

/// The ethernet address in the switch's answer to an ARP request of the host.
fn resolved(switch: &Switch, ipv4: Ipv4Addr) -> Option<Mac> {
    let question = wire::who_has(ipv4);
    match switch.route_uplink(&question, question.len()) {
        Route::Reply(reply) => {
            // Behind the offload header and the ethernet header, the sender's address is at offset 8 of ARP.
            let frame = &reply.bytes()[foraker_abi::net::HEADER_SIZE..];
            let frame = frame::parse(frame, frame.len()).expect("well formed");
            let frame::Packet::Arp(arp) = frame.packet else { panic!("{frame:?}") };
            assert_eq!((arp.request, arp.sender), (false, ipv4));
            Some(arp.sender_mac)
        }
        Route::Drop(DropReason::UnknownDestination) => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_of_65_000_ports_is_found_by_each_of_its_addresses() {
    let (switch, ports) = full();
    assert_eq!(switch.ports(), MOST as usize);
    let distinct: HashSet<_> = ports.iter().map(|port| port.mac()).collect();
    assert_eq!(distinct.len(), MOST as usize);
    for (number, port) in (0..).zip(&ports) {
        let (mac, ipv4, ipv6) = address(number);
        assert!(matches!(to(&switch, mac, ipv4), Route::Port(found) if Arc::ptr_eq(&found, port)));
        assert_eq!(resolved(&switch, ipv4), Some(mac));
        assert_eq!((port.ipv6(), port.link_local()), (Some(ipv6), mac.link_local()));
        // Its neighbour, from guest to guest.
        let (next, at, _) = address((number + 1) % MOST);
        let frame = udp((mac, ipv4), (next, at), (1, 2), b"");
        let frame = frame::parse(&frame, frame.len()).expect("well formed");
        assert!(matches!(switch.route_guest(port, &frame), Route::Port(found) if found.mac() == next));
    }
    let (mac, ipv4, _) = address(MOST);
    assert!(matches!(to(&switch, mac, ipv4), Route::Drop(DropReason::UnknownDestination)));
    assert_eq!(resolved(&switch, ipv4), None);
}

#[test]
fn ports_come_and_go_among_65_000() {
    let (switch, ports) = full();
    let memory = Guest::new(2).memory();
    for (number, port) in (0..).zip(&ports).filter(|(number, _)| number % 3 == 0) {
        switch.remove(port);
        assert_eq!(resolved(&switch, address(number).1), None);
    }
    assert_eq!(switch.ports(), ports.iter().skip(1).filter(|p| p.id() % 3 != 0).count());
    for number in (0..MOST).step_by(3) {
        switch.add(config(number, &memory)).expect("its addresses are free again");
    }
    assert_eq!(switch.ports(), MOST as usize);
}
