//! The cell's TAP device and subnet: made here, or given.

use std::net::{Ipv4Addr, Ipv6Addr};

use foraker_net::{Tap, TapError};

use crate::network::NetworkError;

/// Bytes of an IP packet on the wire.
pub(crate) const MTU: u16 = 1500;
/// What the host's TCP sends to guests with. A sender that estimates the bandwidth of its path and paces itself (BBR) does so with a timer for
/// each segment, and takes the steps in which guests are served for a slow path; here is no path to be shared with others, and nothing is lost.
const CONGESTION_CONTROL: &str = "cubic";
/// Frames that wait in the TAP device for a guest.
const QUEUE: u32 = 4096;

/// The addresses of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Subnet {
    gateway: Ipv4Addr,
    prefix: u8,
}

impl Subnet {
    /// The subnet of so many bits in which the host has this address.
    pub(crate) fn new(gateway: Ipv4Addr, prefix: u8) -> Subnet {
        Subnet { gateway, prefix: prefix.min(32) }
    }

    /// The host's address.
    pub(crate) fn gateway(&self) -> Ipv4Addr {
        self.gateway
    }

    /// Bits of the network's part.
    pub(crate) fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The host part that addresses everybody.
    pub(crate) fn broadcast_part(&self) -> u32 {
        u32::MAX.checked_shr(self.prefix.into()).unwrap_or(0)
    }

    /// The first address, which names the subnet.
    pub(crate) fn network(&self) -> Ipv4Addr {
        self.address(0)
    }

    /// The address with this host part.
    pub(crate) fn address(&self, host: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.gateway.to_bits() & !self.broadcast_part() | host & self.broadcast_part())
    }

    /// The host part of an address; None if no host of this subnet can have it.
    pub(crate) fn host_part(&self, address: Ipv4Addr) -> Option<u32> {
        let host = address.to_bits() & self.broadcast_part();
        let inside = self.address(host) == address;
        (inside && (1..self.broadcast_part()).contains(&host)).then_some(host)
    }
}

/// Makes a TAP device with the first free subnet, or with the wanted one.
pub(crate) fn create(wanted: Option<(Ipv4Addr, u8)>) -> Result<(Tap, Subnet), NetworkError> {
    for n in 0..=255u8 {
        let subnet = wanted.unwrap_or((Ipv4Addr::new(10, 99, n, 0), 24));
        if wanted.is_none() && host_has_address_in(subnet.0, subnet.1) {
            continue;
        }
        // The name is what keeps two cells from taking the same number.
        let tap = match Tap::create(Some(&format!("fk{n}"))) {
            Ok(tap) => tap,
            Err(TapError::NameTaken(_) | TapError::Busy(_)) => continue,
            Err(e) => return Err(e.into()),
        };
        let gateway = Ipv4Addr::from_bits(subnet.0.to_bits() + 1);
        tap.set_mtu(MTU)?;
        tap.set_queue_length(QUEUE)?;
        tap.add_ipv4(gateway, subnet.1)?;
        // A host without IPv6 serves IPv4 all the same.
        if let Err(e) = tap.add_ipv6(ipv6_of(gateway), 64) {
            log::info!("no IPv6: {e}");
        }
        tap.up()?;
        if let Err(e) = tap.set_congestion_control(gateway, subnet.1, CONGESTION_CONTROL) {
            log::info!("{e}");
        }
        return Ok((tap, Subnet::new(gateway, subnet.1)));
    }
    Err(NetworkError::NoSubnet)
}

pub(crate) fn existing(name: &str, wanted: Option<(Ipv4Addr, u8)>) -> Result<(Tap, Subnet), NetworkError> {
    let tap = Tap::open_existing(name)?;
    let (gateway, prefix) = match (tap.ipv4()?, wanted) {
        (Some(own), _) => own,
        (None, Some((network, prefix))) => {
            let gateway = Ipv4Addr::from_bits(network.to_bits() + 1);
            tap.add_ipv4(gateway, prefix)?;
            (gateway, prefix)
        }
        (None, None) => return Err(NetworkError::NoSubnet),
    };
    tap.up()?;
    Ok((tap, Subnet::new(gateway, prefix)))
}

/// The IPv6 address that goes with an IPv4 address: unique-local, with the IPv4 address at the end.
pub(crate) fn ipv6_of(address: Ipv4Addr) -> Ipv6Addr {
    let [a, b, c, d] = address.octets().map(u16::from);
    Ipv6Addr::new(0xfd46, 0x4b00, a << 8 | b, c, 0, 0, 0, d)
}

/// Whether an interface of the host has an address in the subnet.
fn host_has_address_in(network: Ipv4Addr, prefix: u8) -> bool {
    let mut list: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: a valid place for the list's head, which is freed below.
    if unsafe { libc::getifaddrs(&raw mut list) } != 0 {
        return false;
    }
    let mut found = false;
    let mut at = list;
    // SAFETY: the list's entries stay valid until it is freed.
    while let Some(entry) = unsafe { at.as_ref() } {
        // SAFETY: null or a valid address, whose family says what it is.
        if let Some(address) = unsafe { entry.ifa_addr.as_ref() }
            && i32::from(address.sa_family) == libc::AF_INET
        {
            // SAFETY: the family is AF_INET, so the address is a `sockaddr_in`.
            let v4 = unsafe { &*entry.ifa_addr.cast::<libc::sockaddr_in>() };
            let bits = u32::from_be(v4.sin_addr.s_addr);
            found |= (bits ^ network.to_bits()) >> (32 - u32::from(prefix)) == 0;
        }
        at = entry.ifa_next;
    }
    // SAFETY: the list came from `getifaddrs`.
    unsafe { libc::freeifaddrs(list) };
    found
}

/// The host's first IPv4 name server that a guest could reach.
pub(crate) fn name_server() -> Option<Ipv4Addr> {
    let text = std::fs::read_to_string("/etc/resolv.conf").ok()?;
    text.lines()
        .filter_map(|l| l.strip_prefix("nameserver"))
        .filter_map(|a| a.trim().parse::<Ipv4Addr>().ok())
        .find(|a| !a.is_loopback())
}
