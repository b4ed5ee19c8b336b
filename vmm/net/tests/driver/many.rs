//! As many ports as a cell has addresses, over one guest's memory: none of it is touched until frames move.
#![allow(dead_code, unreachable_pub, reason = "each user needs a part of it")]

use std::net::{Ipv4Addr, Ipv6Addr};

use foraker_net::{DeviceMemory, Limits, Mac, PortConfig, RingState};

/// Ports.
pub const MOST: u32 = 65_000;
/// The host's side.
pub const HOST: (Mac, Ipv4Addr) = (Mac([2, 0xf0, 0, 0, 0, 1]), Ipv4Addr::new(10, 77, 0, 1));

/// The addresses of the port of this number.
pub fn address(number: u32) -> (Mac, Ipv4Addr, Ipv6Addr) {
    let ipv4 = Ipv4Addr::from_bits(HOST.1.to_bits() + 1 + number);
    let [a, b, c, d] = ipv4.octets();
    let ipv6 = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    (Mac([6, 0x46, a, b, c, d]), ipv4, ipv6)
}

/// What the port of this number is made from.
pub fn config(number: u32, memory: &DeviceMemory) -> PortConfig {
    let (mac, ipv4, ipv6) = address(number);
    PortConfig {
        id: u64::from(number),
        network: 0,
        mac,
        ipv4,
        ipv6: Some(ipv6),
        mtu: 1500,
        limits: Limits::default(),
        memory: memory.clone(),
        rings: RingState::default(),
    }
}
