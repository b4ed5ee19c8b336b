//! Frames built by hand: ARP, IPv4 and IPv6, with any source address.

use guest_libos::registers;

/// Bytes of ethernet and ARP.
pub(crate) const ARP: usize = 42;
/// All stations.
pub(crate) const BROADCAST: [u8; 6] = [0xff; 6];

/// The guest's own addresses, and the gateway's.
#[derive(Clone, Copy)]
pub(crate) struct Addresses {
    /// Ethernet source.
    pub mac: [u8; 6],
    /// IPv4 source.
    pub ipv4: [u8; 4],
    /// IPv6 source.
    pub ipv6: [u8; 16],
}

/// What the VMM gave to this guest.
pub(crate) fn own() -> Addresses {
    let net = &registers().net;
    Addresses { mac: net.mac, ipv4: net.ipv4, ipv6: net.ipv6 }
}

/// The IPv4 address of the gateway.
pub(crate) fn gateway() -> [u8; 4] {
    registers().net.gateway4
}

/// The first guest of the launch, as its addresses are made.
pub(crate) fn neighbour() -> ([u8; 6], [u8; 4]) {
    let (mut mac, mut ipv4) = (own().mac, gateway());
    ipv4[3] = 2;
    mac[2..].copy_from_slice(&ipv4);
    (mac, ipv4)
}

/// A frame under construction: at most `N` bytes.
pub(crate) struct Frame<const N: usize> {
    bytes: [u8; N],
    length: usize,
}

impl<const N: usize> Frame<N> {
    /// An ethernet header.
    pub(crate) fn new(to: [u8; 6], from: [u8; 6], ethertype: u16) -> Self {
        let mut frame = Frame { bytes: [0; N], length: 0 };
        frame.put(&to);
        frame.put(&from);
        frame.put(&ethertype.to_be_bytes());
        frame
    }

    /// Appends; what does not fit is left out.
    pub(crate) fn put(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if let Some(place) = self.bytes.get_mut(self.length) {
                *place = byte;
                self.length += 1;
            }
        }
    }

    /// Appends zeros.
    pub(crate) fn pad(&mut self, count: usize) {
        self.length = (self.length + count).min(N);
    }

    /// The frame.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// Changes a byte.
    pub(crate) fn set(&mut self, at: usize, byte: u8) {
        self.bytes[at] = byte;
    }
}

/// "Who has `target`?", said by `from` in the ethernet header and by `sender` inside.
pub(crate) fn arp_request(from: [u8; 6], sender: ([u8; 6], [u8; 4]), target: [u8; 4]) -> Frame<ARP> {
    let mut frame = Frame::new(BROADCAST, from, 0x0806);
    frame.put(&[0, 1, 8, 0, 6, 4, 0, 1]);
    frame.put(&sender.0);
    frame.put(&sender.1);
    frame.put(&[0; 6]);
    frame.put(&target);
    frame
}

/// The question after the gateway that a well-behaved guest asks.
pub(crate) fn honest_arp() -> Frame<ARP> {
    let own = own();
    arp_request(own.mac, (own.mac, own.ipv4), gateway())
}

/// An IPv4 packet of a protocol, with `payload` zeros as its payload.
pub(crate) fn ipv4<const N: usize>(
    to: [u8; 6],
    from: Addresses,
    target: [u8; 4],
    protocol: u8,
    payload: usize,
) -> Frame<N> {
    let mut frame = Frame::new(to, from.mac, 0x0800);
    let mut header = [0u8; 20];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&((20 + payload) as u16).to_be_bytes());
    header[8] = 64;
    header[9] = protocol;
    header[12..16].copy_from_slice(&from.ipv4);
    header[16..20].copy_from_slice(&target);
    let mut sum: u32 = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    header[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    frame.put(&header);
    frame.pad(payload);
    frame
}

/// A UDP packet to the discard port.
pub(crate) fn udp<const N: usize>(to: [u8; 6], from: Addresses, target: [u8; 4], payload: usize) -> Frame<N> {
    let mut frame = ipv4(to, from, target, 17, 8 + payload);
    for (at, byte) in [0x9c, 0x40, 0, 9].into_iter().chain((8 + payload as u16).to_be_bytes()).enumerate() {
        frame.set(34 + at, byte);
    }
    frame
}

/// A TCP segment that no connection knows.
pub(crate) fn tcp<const N: usize>(to: [u8; 6], from: Addresses, target: [u8; 4], payload: usize) -> Frame<N> {
    let mut frame = ipv4(to, from, target, 6, 20 + payload);
    // Ports 40000 and 9, data offset 5 words, ACK, window 0x1000.
    for (at, byte) in [0x9c, 0x40, 0, 9].into_iter().enumerate() {
        frame.set(34 + at, byte);
    }
    frame.set(46, 0x50);
    frame.set(47, 0x10);
    frame.set(48, 0x10);
    frame
}

/// An IPv6 packet without payload.
pub(crate) fn ipv6<const N: usize>(
    to: [u8; 6],
    mac: [u8; 6],
    source: [u8; 16],
    target: [u8; 16],
) -> Frame<N> {
    let mut frame = Frame::new(to, mac, 0x86dd);
    frame.put(&[0x60, 0, 0, 0, 0, 0, 59, 64]);
    frame.put(&source);
    frame.put(&target);
    frame
}
