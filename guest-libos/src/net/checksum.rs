//! The Internet checksum (RFC 1071), and what offloading leaves of it. Pure.

use super::frame::{TCP, UDP};
use foraker_abi::net::{self, Header};

/// The ones' complement sum of `bytes` as 16-bit words, added to `start`; not folded.
#[inline]
fn sum(bytes: &[u8], start: u64) -> u64 {
    let mut total = start;
    let mut chunks = bytes.chunks_exact(4);
    for chunk in &mut chunks {
        // Two words at a time: a carry out of the lower one lands where folding adds it anyway.
        total += u64::from(u32::from_be_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]));
    }
    let rest = chunks.remainder();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    total + u64::from(u32::from_be_bytes(last))
}

#[inline]
fn fold(mut total: u64) -> u16 {
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// Sum of the pseudo-header of `ip` for a transport part of `length` bytes.
#[inline]
fn pseudo_header(ip: &[u8], protocol: u8, length: usize) -> u64 {
    let addresses = if ip[0] >> 4 == 4 { &ip[12..20] } else { &ip[8..40] };
    sum(addresses, u64::from(protocol) + length as u64)
}

/// The folded sum over pseudo-header and transport part: 0xffff when its checksum is right.
pub(crate) fn transport_sum(ip: &[u8], at: usize, protocol: u8, length: usize) -> u16 {
    fold(sum(&ip[at..at + length], pseudo_header(ip, protocol, length)))
}

/// Whether TCP's or UDP's checksum in a received packet is right.
pub(crate) fn is_valid(ip: &[u8], at: usize, protocol: u8) -> bool {
    let Some(part) = ip.get(at..) else { return false };
    let sent = if protocol == UDP { part.get(6..8) } else { part.get(16..18) };
    // UDP over IPv4 may come without one.
    let none = protocol == UDP && ip[0] >> 4 == 4 && sent == Some(&[0, 0]);
    none || transport_sum(ip, at, protocol, part.len()) == 0xffff
}

/// Prepares a packet for sending: leaves the checksum to the host if it offers that, else computes it; says into
/// what segments a large one is to be cut. `ip` is a valid packet of this guest's own.
#[inline]
pub(crate) fn finish(ip: &mut [u8], features: u32, segment: u16) -> Header {
    let (at, protocol) = if ip[0] >> 4 == 4 { (usize::from(ip[0] & 0xf) * 4, ip[9]) } else { (40, ip[6]) };
    let field = match protocol {
        TCP => 16,
        UDP => 6,
        _ => return Header::default(),
    };
    let length = ip.len() - at;
    let mut header = Header::default();
    let pseudo = pseudo_header(ip, protocol, length);
    let value = if features & net::FEATURE_CSUM != 0 {
        header.flags = net::NEEDS_CSUM;
        header.csum_start = (net::ETHERNET_HEADER + at) as u16;
        header.csum_offset = field as u16;
        fold(pseudo)
    } else {
        let value = !fold(sum(&ip[at..], pseudo));
        // Zero would say that there is none.
        if protocol == UDP && value == 0 { 0xffff } else { value }
    };
    ip[at + field..at + field + 2].copy_from_slice(&value.to_be_bytes());
    if segment != 0 {
        header.gso_type = net::GSO_TCPV4;
        header.gso_size = segment;
        header.hdr_len = (net::ETHERNET_HEADER + at + usize::from(ip[at + 12] >> 4) * 4) as u16;
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(protocol: u8, transport: &[u8]) -> Vec<u8> {
        let total = 20 + transport.len();
        let mut ip = vec![0x45, 0, (total >> 8) as u8, total as u8, 0, 0, 0x40, 0, 64, protocol, 0, 0];
        ip.extend([10, 0, 0, 9, 10, 0, 0, 1]);
        ip.extend(transport);
        ip
    }

    /// The definition, word by word.
    fn slow_sum(bytes: &[u8]) -> u16 {
        let mut total = 0u32;
        for pair in bytes.chunks(2) {
            total += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            total = (total & 0xffff) + (total >> 16);
        }
        total as u16
    }

    #[test]
    fn agrees_with_the_definition() {
        for n in 0..200 {
            let bytes: Vec<u8> = (0..n).map(|i| (i * 37 + 11) as u8 | 0x80).collect();
            assert_eq!(fold(sum(&bytes, 0)), slow_sum(&bytes), "{n}");
        }
    }

    #[test]
    fn what_was_computed_is_valid_and_a_flipped_bit_is_not() {
        for protocol in [TCP, UDP] {
            for n in [20, 21, 99, 1460] {
                let transport: Vec<u8> = (0..n).map(|i| i as u8).collect();
                let mut ip = packet(protocol, &transport);
                let field = 20 + if protocol == TCP { 16 } else { 6 };
                ip[field..field + 2].fill(0);
                assert_eq!(finish(&mut ip, 0, 0), Header::default());
                assert!(is_valid(&ip, 20, protocol));
                ip[25] ^= 4;
                assert!(!is_valid(&ip, 20, protocol));
            }
        }
    }

    #[test]
    fn completing_an_offloaded_checksum_makes_it_valid() {
        let transport: Vec<u8> =
            (0..75).map(|i| if (16..18).contains(&i) { 0 } else { i as u8 | 0x50 }).collect();
        let mut ip = packet(TCP, &transport);
        let header = finish(&mut ip, net::FEATURE_CSUM, 1000);
        assert_eq!((header.flags, header.csum_start, header.csum_offset), (net::NEEDS_CSUM, 34, 16));
        assert_eq!((header.gso_type, header.gso_size), (net::GSO_TCPV4, 1000));
        let value = !slow_sum(&ip[20..]);
        ip[36..38].copy_from_slice(&value.to_be_bytes());
        assert!(is_valid(&ip, 20, TCP));
    }

    #[test]
    fn udp_over_ipv4_may_have_none() {
        let ip = packet(UDP, &[0, 1, 0, 2, 0, 9, 0, 0, 77]);
        assert!(is_valid(&ip, 20, UDP));
        assert!(!is_valid(&ip[..20], 20, TCP));
    }
}
