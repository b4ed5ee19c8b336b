//! Where guests of other switches on this host have their addresses.
//!
//! The host's kernel may route between the subnets of two cells, and neither cell knows the other's guests. So what is not the shared network
//! ([`SHARED`]) ends at its own switch: its guests neither send to these addresses nor receive from them. As a guest cannot forge its source address,
//! it is enough that each side looks at its own guests.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

/// The network of those who asked for none: its guests reach guests of other cells, if the host forwards.
pub const SHARED: u32 = 0;

/// Ranges of addresses.
#[derive(Clone, Debug, Default)]
pub struct Elsewhere {
    /// IPv4 as IPv4-mapped IPv6: one comparison for both.
    ranges: Vec<RangeInclusive<u128>>,
    /// What of them is this switch's own.
    own: Vec<RangeInclusive<u128>>,
}

fn key(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The addresses that share the first `prefix` bits with this one.
fn subnet(address: IpAddr, prefix: u8) -> RangeInclusive<u128> {
    let prefix = u32::from(prefix) + if address.is_ipv4() { 96 } else { 0 };
    let hosts = u128::MAX.checked_shr(prefix).unwrap_or(0);
    key(address) & !hosts..=key(address) | hosts
}

impl Elsewhere {
    /// No other guests, in a switch with these subnets (any address of each, and the bits of its network's part).
    #[must_use]
    pub fn none_but_own(own4: (Ipv4Addr, u8), own6: (Ipv6Addr, u8)) -> Self {
        let own = vec![subnet(own4.0.into(), own4.1), subnet(own6.0.into(), own6.1)];
        Elsewhere { ranges: Vec::new(), own }
    }

    /// And guests from `first` to `last`.
    #[must_use]
    pub fn and(mut self, first: Ipv4Addr, last: Ipv4Addr) -> Self {
        self.ranges.push(key(first.into())..=key(last.into()));
        self
    }

    /// And guests with these first bits.
    #[must_use]
    pub fn and_ipv6(mut self, address: Ipv6Addr, prefix: u8) -> Self {
        self.ranges.push(subnet(address.into(), prefix));
        self
    }

    /// Whether the address is that of another switch's guest, or may be.
    #[must_use]
    pub fn holds(&self, address: IpAddr) -> bool {
        let key = key(address);
        let within = |ranges: &[RangeInclusive<u128>]| ranges.iter().any(|range| range.contains(&key));
        within(&self.ranges) && !within(&self.own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_addresses_are_not_elsewhere() {
        let own6 = "fd46:4b00:a64::1".parse().unwrap();
        let elsewhere = Elsewhere::none_but_own((Ipv4Addr::new(10, 100, 0, 1), 16), (own6, 64))
            .and(Ipv4Addr::new(10, 99, 0, 0), Ipv4Addr::new(10, 109, 255, 255))
            .and_ipv6("fd46:4b00::".parse().unwrap(), 32);
        let holds = |address: &str| elsewhere.holds(address.parse().unwrap());
        for theirs in ["10.99.0.2", "10.101.0.1", "10.109.255.255", "fd46:4b00:a65::2", "fd46:4b00:ffff::1"] {
            assert!(holds(theirs), "{theirs}");
        }
        for other in
            ["10.100.0.1", "10.100.255.255", "10.98.0.1", "10.110.0.0", "1.1.1.1", "fd46:4b00:a64::2"]
        {
            assert!(!holds(other), "{other}");
        }
        for other in ["fd46:4b01::1", "::ffff:0:0", "fe80::1", "::", "0.0.0.0", "255.255.255.255"] {
            assert!(!holds(other), "{other}");
        }
        assert!(!Elsewhere::default().holds(Ipv4Addr::new(10, 99, 0, 2).into()));
    }
}
