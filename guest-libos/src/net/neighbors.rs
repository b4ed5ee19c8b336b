//! Who on the link has which ethernet address, and how to ask. Pure.
//!
//! The VMM's switch answers for every guest and for the gateway, at once.

use super::frame::{ICMPV6, Mac};
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::task::Waker;
use hashbrown::HashMap;

/// Most neighbours known at a time.
const MOST: usize = 1024;
/// Time between two questions, nanoseconds.
pub(crate) const ASK_AGAIN: u64 = 200_000_000;
/// Questions asked in vain before a neighbour counts as unreachable.
pub(crate) const ATTEMPTS: u32 = 5;

/// Builds hashes of addresses with the guest's own seed.
#[derive(Clone, Copy)]
pub(crate) struct Seed(pub(crate) u64);

impl core::hash::BuildHasher for Seed {
    type Hasher = Folding;

    fn build_hasher(&self) -> Folding {
        Folding(self.0)
    }
}

/// A multiply-and-fold hash: a few cycles, and not to be predicted without the seed.
pub(crate) struct Folding(u64);

impl Folding {
    #[inline(always)]
    pub(crate) fn new(seed: u64) -> Self {
        Folding(seed)
    }

    #[inline(always)]
    pub(crate) fn fold(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        self.0 = (product as u64) ^ ((product >> 64) as u64);
    }
}

impl core::hash::Hasher for Folding {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.fold(u64::from_le_bytes(word) ^ chunk.len() as u64);
        }
    }
}

/// The table, and who waits for an entry.
pub(crate) struct Neighbors {
    known: HashMap<IpAddr, Mac, Seed>,
    waiting: Vec<Waker>,
    addresses: Addresses,
}

/// This guest's own addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    pub(crate) mac: Mac,
    pub(crate) v4: Ipv4Addr,
    pub(crate) prefix4: u8,
    pub(crate) gateway4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
    pub(crate) prefix6: u8,
    pub(crate) gateway6: Ipv6Addr,
}

impl Addresses {
    /// Whether `address` is on this guest's link.
    pub(crate) fn is_on_link(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix4.min(32))).unwrap_or(0);
                self.v4.to_bits() & mask == address.to_bits() & mask
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix6.min(128))).unwrap_or(0);
                let local = address.segments()[0] & 0xffc0 == 0xfe80;
                local || self.v6.to_bits() & mask == address.to_bits() & mask
            }
        }
    }

    /// Whom on the link to hand a packet for `address` to; `None` if there is no way.
    pub(crate) fn next_hop(&self, address: IpAddr) -> Option<IpAddr> {
        let own = match address {
            IpAddr::V4(_) => IpAddr::V4(self.v4),
            IpAddr::V6(_) => IpAddr::V6(self.v6),
        };
        if own.is_unspecified() || address.is_unspecified() || address == own || address.is_loopback() {
            return None;
        }
        if address.is_multicast() || self.is_on_link(address) {
            return Some(address);
        }
        let gateway = match address {
            IpAddr::V4(_) => IpAddr::V4(self.gateway4),
            IpAddr::V6(_) => IpAddr::V6(self.gateway6),
        };
        (!gateway.is_unspecified()).then_some(gateway)
    }
}

impl Neighbors {
    pub(crate) fn new(addresses: Addresses, seed: u64) -> Self {
        Neighbors { known: HashMap::with_hasher(Seed(seed)), waiting: Vec::new(), addresses }
    }

    pub(crate) fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// The ethernet address to which a packet for `address` goes, if it is known.
    pub(crate) fn lookup(&self, address: IpAddr) -> Option<Mac> {
        match address {
            IpAddr::V4(v4) if v4.is_broadcast() => return Some([0xff; 6]),
            IpAddr::V4(v4) if v4.is_multicast() => {
                let [_, b, c, d] = v4.octets();
                return Some([0x01, 0x00, 0x5e, b & 0x7f, c, d]);
            }
            IpAddr::V6(v6) if v6.is_multicast() => {
                let o = v6.octets();
                return Some([0x33, 0x33, o[12], o[13], o[14], o[15]]);
            }
            _ => {}
        }
        self.known.get(&self.addresses.next_hop(address)?).copied()
    }

    /// Takes note of a neighbour that said so itself; those who waited look again.
    pub(crate) fn learn(&mut self, address: IpAddr, mac: Mac) {
        if mac[0] & 1 != 0 || !self.addresses.is_on_link(address) {
            return;
        }
        self.insert(address, mac);
        self.waiting.drain(..).for_each(Waker::wake);
    }

    /// Takes note of whom a frame from `address` came from, unless something is known.
    #[inline]
    pub(crate) fn learn_from_traffic(&mut self, address: IpAddr, mac: Mac) {
        if mac[0] & 1 == 0
            && let Some(hop) = self.addresses.next_hop(address)
            && !self.known.contains_key(&hop)
        {
            self.insert(hop, mac);
        }
    }

    fn insert(&mut self, address: IpAddr, mac: Mac) {
        if self.known.len() >= MOST && !self.known.contains_key(&address) {
            // Rare, and everything in it can be asked for again.
            self.known.clear();
        }
        self.known.insert(address, mac);
    }

    /// Has `waker` woken at the next answer.
    pub(crate) fn wait(&mut self, waker: &Waker) {
        if !self.waiting.iter().any(|known| known.will_wake(waker)) {
            self.waiting.push(waker.clone());
        }
    }

    /// The frame that asks who has `hop`.
    pub(crate) fn question(&self, hop: IpAddr) -> Vec<u8> {
        match hop {
            IpAddr::V4(hop) => {
                let own = self.addresses.v4.octets();
                arp(&self.addresses.mac, &[0xff; 6], 1, own, &[0; 6], hop.octets())
            }
            IpAddr::V6(hop) => solicitation(&self.addresses, hop),
        }
    }

    /// The answer to an ARP request, if it asks for this guest.
    pub(crate) fn answer(
        &self,
        operation: u16,
        sender_mac: Mac,
        sender: [u8; 4],
        target: [u8; 4],
    ) -> Option<Vec<u8>> {
        let own = self.addresses.v4.octets();
        (operation == 1 && target == own)
            .then(|| arp(&self.addresses.mac, &sender_mac, 2, own, &sender_mac, sender))
    }
}

/// An ARP packet (RFC 826) in its frame.
fn arp(from: &Mac, to: &Mac, operation: u8, own: [u8; 4], target_mac: &Mac, target: [u8; 4]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(42);
    frame.extend(to);
    frame.extend(from);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, operation]);
    frame.extend(from);
    frame.extend(own);
    frame.extend(target_mac);
    frame.extend(target);
    frame
}

/// A neighbour solicitation (RFC 4861, section 4.3) in its frame, to the target's solicited-node group.
fn solicitation(own: &Addresses, target: Ipv6Addr) -> Vec<u8> {
    let low = target.octets();
    let group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, low[13], low[14], low[15]];
    let mut frame = Vec::with_capacity(86);
    frame.extend([0x33, 0x33, 0xff, low[13], low[14], low[15]]);
    frame.extend(own.mac);
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, ICMPV6, 255]);
    frame.extend(own.v6.octets());
    frame.extend(group);
    frame.extend([135, 0, 0, 0, 0, 0, 0, 0]);
    frame.extend(target.octets());
    frame.extend([1, 1]);
    frame.extend(own.mac);
    let sum = !super::checksum::transport_sum(&frame[14..], 40, ICMPV6, 32);
    frame[56..58].copy_from_slice(&sum.to_be_bytes());
    frame
}

#[cfg(test)]
mod tests {
    use super::super::frame::{Kind, parse};
    use super::*;

    fn addresses() -> Addresses {
        Addresses {
            mac: [2, 0, 0, 0, 0, 2],
            v4: Ipv4Addr::new(10, 99, 0, 2),
            prefix4: 24,
            gateway4: Ipv4Addr::new(10, 99, 0, 1),
            v6: "fd00:99::2".parse().unwrap(),
            prefix6: 64,
            gateway6: "fd00:99::1".parse().unwrap(),
        }
    }

    #[test]
    fn finds_the_next_hop() {
        let own = addresses();
        let hop = |text: &str| own.next_hop(text.parse().unwrap()).map(|hop| hop.to_string());
        assert_eq!(hop("10.99.0.7").as_deref(), Some("10.99.0.7"));
        assert_eq!(hop("1.1.1.1").as_deref(), Some("10.99.0.1"));
        assert_eq!(hop("fd00:99::7").as_deref(), Some("fd00:99::7"));
        assert_eq!(hop("2001:db8::1").as_deref(), Some("fd00:99::1"));
        assert_eq!(hop("fe80::1").as_deref(), Some("fe80::1"));
        assert_eq!(hop("10.99.0.2"), None);
        assert_eq!(hop("127.0.0.1"), None);
        assert_eq!(hop("0.0.0.0"), None);
        let none = Addresses { v4: Ipv4Addr::UNSPECIFIED, gateway6: Ipv6Addr::UNSPECIFIED, ..own };
        assert_eq!(none.next_hop("1.1.1.1".parse().unwrap()), None);
        assert_eq!(none.next_hop("2001:db8::1".parse().unwrap()), None);
    }

    #[test]
    fn asks_and_answers_by_arp() {
        let mut neighbors = Neighbors::new(addresses(), 1);
        let question = neighbors.question("10.99.0.1".parse().unwrap());
        let Kind::Arp { operation: 1, sender, target, .. } = parse(&question).unwrap().kind else { panic!() };
        assert_eq!((sender, target), ([10, 99, 0, 2], [10, 99, 0, 1]));
        assert!(neighbors.answer(1, [2, 0, 0, 0, 0, 1], [10, 99, 0, 1], [10, 99, 0, 3]).is_none());
        let answer = neighbors.answer(1, [2, 0, 0, 0, 0, 1], [10, 99, 0, 1], [10, 99, 0, 2]).unwrap();
        let Kind::Arp { operation: 2, sender_mac, .. } = parse(&answer).unwrap().kind else { panic!() };
        assert_eq!(sender_mac, [2, 0, 0, 0, 0, 2]);
        assert_eq!(neighbors.lookup("8.8.8.8".parse().unwrap()), None);
        neighbors.learn("10.99.0.1".parse().unwrap(), [2, 0, 0, 0, 0, 1]);
        assert_eq!(neighbors.lookup("8.8.8.8".parse().unwrap()), Some([2, 0, 0, 0, 0, 1]));
    }

    #[test]
    fn a_solicitation_has_a_valid_checksum() {
        let neighbors = Neighbors::new(addresses(), 1);
        let frame = neighbors.question("fd00:99::1".parse().unwrap());
        assert_eq!(frame.len(), 86);
        assert_eq!(super::super::checksum::transport_sum(&frame[14..], 40, ICMPV6, 32), 0xffff);
    }

    #[test]
    fn is_bounded_and_refuses_multicast() {
        let mut neighbors = Neighbors::new(Addresses { prefix4: 8, ..addresses() }, 1);
        for n in 0..5000u32 {
            neighbors.learn(IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + n)), [2, 0, 0, 0, 0, 1]);
            assert!(neighbors.known.len() <= MOST);
        }
        neighbors.learn("10.1.1.1".parse().unwrap(), [1, 0, 0, 0, 0, 1]);
        assert_eq!(neighbors.lookup("10.1.1.1".parse().unwrap()), None);
    }
}
