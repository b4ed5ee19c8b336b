//! The cell's TAP device and subnet: made here, or given.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};

use foraker_net::{Elsewhere, Tap, TapError};

use crate::network::NetworkError;

/// Bytes of an IP packet on the wire.
pub(crate) const MTU: u16 = 1500;
/// What the host's TCP sends to guests with. A sender that estimates the bandwidth of its path and paces itself (BBR) does so with a timer for
/// each segment, and takes the steps in which guests are served for a slow path; here is no path to be shared with others, and nothing is lost.
const CONGESTION_CONTROL: &str = "cubic";
/// First 32 bits of every guest's IPv6 address: unique local, with 24 bits of "FK" and zeros where a site would put a random number, because these
/// addresses do not leave the host.
pub(crate) const IPV6_SITE: u32 = 0xfd46_4b00;
/// Bits of a cell's IPv6 prefix.
pub(crate) const IPV6_PREFIX: u8 = 64;
/// Where launches and the cells of supervisors have their subnets unless they are told otherwise.
const CELLS: (Ipv4Addr, Ipv4Addr) = (Ipv4Addr::new(10, 99, 0, 0), Ipv4Addr::new(10, 109, 255, 255));
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

    /// The IPv6 address that goes with an IPv4 address of the subnet. The subnet has one /64 of unique local addresses (RFC 4193): [`IPV6_SITE`], then
    /// the subnet's own IPv4 address, so that two subnets never have the same; the interface's part is the host part of the IPv4 address.
    pub(crate) fn ipv6_of(&self, address: Ipv4Addr) -> Ipv6Addr {
        let network = u128::from(self.network().to_bits());
        let host = u128::from(address.to_bits() & self.broadcast_part());
        Ipv6Addr::from_bits(u128::from(IPV6_SITE) << 96 | network << 64 | host)
    }

    /// Where other cells of the host have guests: in the usual places, and in these.
    pub(crate) fn elsewhere(&self, others: Option<(Ipv4Addr, Ipv4Addr)>) -> Elsewhere {
        let own6 = (self.ipv6_of(self.gateway), IPV6_PREFIX);
        let site = Ipv6Addr::from_bits(u128::from(IPV6_SITE) << 96);
        let usual = Elsewhere::none_but_own((self.gateway, self.prefix), own6)
            .and(CELLS.0, CELLS.1)
            .and_ipv6(site, 32);
        match others {
            Some((first, last)) => usual.and(first, last),
            None => usual,
        }
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
    // Two interfaces with one subnet: the host would send what is for the one to the other.
    if let Some((network, prefix)) = wanted.filter(|(network, prefix)| host_has_address_in(*network, *prefix))
    {
        return Err(NetworkError::SubnetInUse(network, prefix));
    }
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
        let subnet = Subnet::new(Ipv4Addr::from_bits(subnet.0.to_bits() + 1), subnet.1);
        tap.set_mtu(MTU)?;
        tap.set_queue_length(QUEUE)?;
        give_addresses(&tap, subnet)?;
        tap.up()?;
        if let Err(e) = tap.set_congestion_control(subnet.gateway(), subnet.prefix(), CONGESTION_CONTROL) {
            log::info!("{e}");
        }
        return Ok((tap, subnet));
    }
    Err(NetworkError::NoSubnet)
}

pub(crate) fn existing(name: &str, wanted: Option<(Ipv4Addr, u8)>) -> Result<(Tap, Subnet), NetworkError> {
    let tap = Tap::open_existing(name)?;
    let subnet = match (tap.ipv4()?, wanted) {
        // Whoever prepared the device chose its addresses.
        (Some((gateway, prefix)), _) => Subnet::new(gateway, prefix),
        (None, Some((network, prefix))) => {
            let subnet = Subnet::new(Ipv4Addr::from_bits(network.to_bits() + 1), prefix);
            give_addresses(&tap, subnet)?;
            subnet
        }
        (None, None) => return Err(NetworkError::NoSubnet),
    };
    tap.up()?;
    Ok((tap, subnet))
}

/// The host's addresses in the subnet.
fn give_addresses(tap: &Tap, subnet: Subnet) -> Result<(), NetworkError> {
    tap.add_ipv4(subnet.gateway(), subnet.prefix())?;
    // A host without IPv6 serves IPv4 all the same.
    if let Err(e) = tap.add_ipv6(subnet.ipv6_of(subnet.gateway()), IPV6_PREFIX) {
        log::info!("no IPv6: {e}");
    }
    Ok(())
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
///
/// A cell may read the file that was there when it began ([`foraker_confine`]). Where another one has been put in its place, the answer stays what it was.
pub(crate) fn name_server() -> Option<Ipv4Addr> {
    static LAST: Mutex<Option<Ipv4Addr>> = Mutex::new(None);
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if let Ok(text) = std::fs::read_to_string("/etc/resolv.conf") {
        *last = first_server(&text);
    }
    *last
}

fn first_server(text: &str) -> Option<Ipv4Addr> {
    text.lines()
        .filter_map(|l| l.strip_prefix("nameserver"))
        .filter_map(|a| a.trim().parse::<Ipv4Addr>().ok())
        .find(|a| !a.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_guest_of_a_subnet_has_an_ipv6_address_in_its_64_bits() {
        let subnet = Subnet::new(Ipv4Addr::new(10, 99, 0, 1), 16);
        let of = |address: [u8; 4]| subnet.ipv6_of(address.into()).to_string();
        assert_eq!(of([10, 99, 0, 1]), "fd46:4b00:a63::1");
        assert_eq!(of([10, 99, 3, 7]), "fd46:4b00:a63::307");
        assert_eq!(of([10, 99, 255, 254]), "fd46:4b00:a63::fffe");
        let next = Subnet::new(Ipv4Addr::new(10, 99, 4, 1), 24);
        assert_eq!(next.ipv6_of(Ipv4Addr::new(10, 99, 4, 200)).to_string(), "fd46:4b00:a63:400::c8");
        let wide = Subnet::new(Ipv4Addr::new(10, 0, 0, 1), 8);
        assert_eq!(wide.ipv6_of(Ipv4Addr::new(10, 99, 3, 7)).to_string(), "fd46:4b00:a00::63:307");
    }

    #[test]
    fn hosts_are_between_the_network_and_everybody() {
        let subnet = Subnet::new(Ipv4Addr::new(10, 20, 30, 65), 26);
        assert_eq!((subnet.network(), subnet.broadcast_part()), (Ipv4Addr::new(10, 20, 30, 64), 63));
        let part = |last| subnet.host_part(Ipv4Addr::new(10, 20, 30, last));
        assert_eq!([64, 65, 126, 127, 128].map(part), [None, Some(1), Some(62), None, None]);
    }
}
