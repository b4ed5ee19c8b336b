//! Answers that the switch gives by itself, so that a broadcast wakes nobody: ARP replies and neighbour advertisements.

use std::net::Ipv6Addr;

use foraker_abi::net::HEADER_SIZE;

use crate::frame::{Arp, Mac};

const ARP_REPLY: usize = 14 + 28;
const ADVERTISEMENT: usize = 14 + 40 + 32;

/// A frame made by the switch, behind an offload header of zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    bytes: [u8; HEADER_SIZE + ADVERTISEMENT],
    length: usize,
}

impl Reply {
    /// "`owner` has the address that `request` asks for."
    pub(crate) fn arp(request: &Arp, owner: Mac) -> Self {
        let mut reply = Writer::new();
        reply.put(&request.sender_mac.0);
        reply.put(&owner.0);
        reply.put(&[0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4, 0, 2]);
        reply.put(&owner.0);
        reply.put(&request.target.octets());
        reply.put(&request.sender_mac.0);
        reply.put(&request.sender.octets());
        reply.finish(ARP_REPLY)
    }

    /// "`owner` has `target`", to whoever asked from `asker` and `asker_mac`. A `router` says so.
    pub(crate) fn advertisement(
        target: Ipv6Addr,
        owner: Mac,
        router: bool,
        asker: Ipv6Addr,
        asker_mac: Mac,
    ) -> Self {
        // Type 136, the flags router, solicited and override, the target, the option "target link-layer address".
        let mut body = Writer::new();
        body.put(&[136, 0, 0, 0, if router { 0xe0 } else { 0x60 }, 0, 0, 0]);
        body.put(&target.octets());
        body.put(&[2, 1]);
        body.put(&owner.0);
        let body = body.finish(32);
        let sum = checksum_icmpv6(target, asker, body.frame());

        let mut reply = Writer::new();
        reply.put(&asker_mac.0);
        reply.put(&owner.0);
        reply.put(&[0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, crate::frame::PROTOCOL_ICMPV6, 255]);
        reply.put(&target.octets());
        reply.put(&asker.octets());
        reply.put(body.frame());
        let mut reply = reply.finish(ADVERTISEMENT);
        if let Some(field) = reply.bytes.get_mut(HEADER_SIZE + 56..HEADER_SIZE + 58) {
            field.copy_from_slice(&sum.to_be_bytes());
        }
        reply
    }

    /// The offload header and the frame.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..HEADER_SIZE + self.length).unwrap_or_default()
    }

    /// The frame.
    #[must_use]
    pub fn frame(&self) -> &[u8] {
        self.bytes().get(HEADER_SIZE..).unwrap_or_default()
    }
}

/// Appends to a reply of fixed size.
struct Writer {
    bytes: [u8; HEADER_SIZE + ADVERTISEMENT],
    end: usize,
}

impl Writer {
    fn new() -> Self {
        Writer { bytes: [0; HEADER_SIZE + ADVERTISEMENT], end: HEADER_SIZE }
    }

    fn put(&mut self, part: &[u8]) {
        let end = self.end + part.len();
        if let Some(place) = self.bytes.get_mut(self.end..end) {
            place.copy_from_slice(part);
        }
        self.end = end;
    }

    fn finish(self, length: usize) -> Reply {
        debug_assert_eq!(self.end, HEADER_SIZE + length);
        Reply { bytes: self.bytes, length }
    }
}

fn checksum_icmpv6(source: Ipv6Addr, destination: Ipv6Addr, body: &[u8]) -> u16 {
    let length = u32::try_from(body.len()).unwrap_or(0).to_be_bytes();
    let pseudo = [
        &source.octets()[..],
        &destination.octets(),
        &length,
        &[0, 0, 0, crate::frame::PROTOCOL_ICMPV6],
        body,
    ];
    let mut sum: u32 = 0;
    for part in pseudo {
        for pair in part.chunks(2) {
            let word = [pair.first().copied().unwrap_or(0), pair.get(1).copied().unwrap_or(0)];
            sum += u32::from(u16::from_be_bytes(word));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}
