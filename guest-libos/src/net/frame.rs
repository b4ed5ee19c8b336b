//! What a received frame is: enough of its headers to find whom it concerns. Pure; any bytes may come.

/// Bytes of an ethernet address.
pub(crate) type Mac = [u8; 6];

/// The addresses of a TCP connection as this guest sees them. IPv4 addresses stand in their IPv6-mapped form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FlowKey {
    pub(crate) remote: [u8; 16],
    pub(crate) local: [u8; 16],
    pub(crate) remote_port: u16,
    pub(crate) local_port: u16,
}

/// What kind of frame it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A TCP segment; `flags` as in the header.
    Tcp { key: FlowKey, flags: u8 },
    /// A UDP datagram.
    Udp { source_port: u16, destination_port: u16 },
    /// Other IP: ICMP, fragments, unknown protocols.
    OtherIp,
    /// An ARP packet for IPv4 over ethernet.
    Arp { operation: u16, sender_mac: Mac, sender: [u8; 4], target: [u8; 4] },
    /// A neighbour advertisement for `target`.
    NeighborAdvertisement { target: [u8; 16], mac: Mac },
}

/// TCP flag.
pub(crate) const SYN: u8 = 2;
/// TCP flag.
pub(crate) const FIN: u8 = 1;
/// TCP flag.
pub(crate) const RST: u8 = 4;
/// TCP flag.
pub(crate) const ACK: u8 = 16;

/// A frame, taken apart.
#[derive(Debug)]
pub(crate) struct Parsed<'a> {
    pub(crate) source: Mac,
    /// The IP packet, without what an ethernet driver may have padded; empty for ARP.
    pub(crate) ip: &'a [u8],
    /// Offset of TCP's or UDP's header in `ip`.
    pub(crate) transport: usize,
    pub(crate) kind: Kind,
}

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMPV6: u8 = 58;

#[inline(always)]
fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

#[inline(always)]
fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

/// The mapped form of an IPv4 address.
#[inline(always)]
pub(crate) fn mapped(v4: [u8; 4]) -> [u8; 16] {
    let mut address = [0; 16];
    address[10] = 0xff;
    address[11] = 0xff;
    address[12..].copy_from_slice(&v4);
    address
}

/// Takes a frame apart; `None` for one that no part of the stack would want.
#[inline]
pub(crate) fn parse(frame: &[u8]) -> Option<Parsed<'_>> {
    let source = array(frame, 6)?;
    let payload = frame.get(14..)?;
    match u16_at(frame, 12)? {
        ETHERTYPE_IPV4 => parse_v4(source, payload),
        ETHERTYPE_IPV6 => parse_v6(source, payload),
        ETHERTYPE_ARP => parse_arp(source, payload),
        _ => None,
    }
}

#[inline]
fn parse_v4(source: Mac, payload: &[u8]) -> Option<Parsed<'_>> {
    let head: [u8; 20] = array(payload, 0)?;
    let header = usize::from(head[0] & 0xf) * 4;
    let total = usize::from(u16::from_be_bytes([head[2], head[3]]));
    if head[0] >> 4 != 4 || header < 20 || total < header {
        return None;
    }
    let ip = payload.get(..total)?;
    // More fragments to come, or not the first one.
    let fragment = u16::from_be_bytes([head[6], head[7]]) & 0x3fff != 0;
    let kind = if fragment {
        Kind::OtherIp
    } else {
        let remote = || mapped([head[12], head[13], head[14], head[15]]);
        let local = || mapped([head[16], head[17], head[18], head[19]]);
        transport(ip, header, head[9], remote, local)
    };
    Some(Parsed { source, ip, transport: header, kind })
}

#[inline]
fn parse_v6(source: Mac, payload: &[u8]) -> Option<Parsed<'_>> {
    let head: [u8; 40] = array(payload, 0)?;
    let total = 40 + usize::from(u16::from_be_bytes([head[4], head[5]]));
    if head[0] >> 4 != 6 {
        return None;
    }
    let ip = payload.get(..total)?;
    let protocol = head[6];
    let kind = match (protocol, ip.get(40)) {
        (ICMPV6, Some(136)) => advertisement(ip).unwrap_or(Kind::OtherIp),
        _ => {
            let address = |at: usize| array(&head, at).unwrap_or_default();
            transport(ip, 40, protocol, || address(8), || address(24))
        }
    };
    Some(Parsed { source, ip, transport: 40, kind })
}

/// A neighbour advertisement (RFC 4861, section 4.4) with the target's link-layer address as its first option. Only
/// such with a hop limit of 255 come from the link itself.
fn advertisement(ip: &[u8]) -> Option<Kind> {
    let target = array(ip, 48)?;
    let option: [u8; 8] = array(ip, 64)?;
    let from_link = ip[7] == 255;
    let sum = super::checksum::transport_sum(ip, 40, ICMPV6, ip.len() - 40);
    (from_link && option[0] == 2 && option[1] == 1 && sum == 0xffff).then(|| Kind::NeighborAdvertisement {
        target,
        mac: [option[2], option[3], option[4], option[5], option[6], option[7]],
    })
}

#[inline(always)]
fn transport(
    ip: &[u8],
    at: usize,
    protocol: u8,
    remote: impl FnOnce() -> [u8; 16],
    local: impl FnOnce() -> [u8; 16],
) -> Kind {
    match protocol {
        TCP => {
            let Some(head) = array::<20>(ip, at) else { return Kind::OtherIp };
            Kind::Tcp {
                key: FlowKey {
                    remote: remote(),
                    local: local(),
                    remote_port: u16::from_be_bytes([head[0], head[1]]),
                    local_port: u16::from_be_bytes([head[2], head[3]]),
                },
                flags: head[13],
            }
        }
        UDP => {
            let Some(head) = array::<8>(ip, at) else { return Kind::OtherIp };
            Kind::Udp {
                source_port: u16::from_be_bytes([head[0], head[1]]),
                destination_port: u16::from_be_bytes([head[2], head[3]]),
            }
        }
        _ => Kind::OtherIp,
    }
}

/// A TCP segment that the other side will acknowledge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) local_port: u16,
    pub(crate) remote_port: u16,
    /// The acknowledgement number that covers it.
    pub(crate) end: u32,
    /// Bytes of data.
    pub(crate) data: usize,
}

/// What of an IP packet that is sent, well-formed as it is, will be acknowledged.
#[inline]
pub(crate) fn segment(ip: &[u8]) -> Option<Segment> {
    let header = match ip.first()? >> 4 {
        4 if ip.get(9) == Some(&TCP) => usize::from(ip[0] & 15) * 4,
        6 if ip.get(6) == Some(&TCP) => 40,
        _ => return None,
    };
    let tcp = ip.get(header..)?;
    let [s0, s1, d0, d1, n0, n1, n2, n3, _, _, _, _, offset, flags] = *tcp.first_chunk::<14>()?;
    let data = tcp.len().checked_sub(usize::from(offset >> 4) * 4)?;
    let numbered = data as u32 + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
    (numbered > 0).then(|| Segment {
        local_port: u16::from_be_bytes([s0, s1]),
        remote_port: u16::from_be_bytes([d0, d1]),
        end: u32::from_be_bytes([n0, n1, n2, n3]).wrapping_add(numbered),
        data,
    })
}

fn parse_arp(source: Mac, payload: &[u8]) -> Option<Parsed<'_>> {
    let arp: [u8; 28] = array(payload, 0)?;
    // Ethernet, IPv4, and their lengths.
    if arp[..6] != [0, 1, 8, 0, 6, 4] {
        return None;
    }
    let kind = Kind::Arp {
        operation: u16::from_be_bytes([arp[6], arp[7]]),
        sender_mac: array(&arp, 8)?,
        sender: array(&arp, 14)?,
        target: array(&arp, 24)?,
    };
    Some(Parsed { source, ip: &[], transport: 0, kind })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp_frame() -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9, 8, 0];
        frame.extend([0x45, 0, 0, 44, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 9, 10, 0, 0, 1]);
        frame.extend([0x12, 0x34, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 1, 0, 0, 0, 0, 0]);
        frame.extend([b'a', b'b', b'c', b'd', 0, 0, 0]);
        frame
    }

    #[test]
    fn takes_a_segment_apart_and_cuts_the_padding() {
        let frame = tcp_frame();
        let parsed = parse(&frame).unwrap();
        assert_eq!(parsed.source, [2, 0, 0, 0, 0, 9]);
        assert_eq!(parsed.ip.len(), 44);
        assert_eq!(parsed.transport, 20);
        let key = FlowKey {
            remote: mapped([10, 0, 0, 9]),
            local: mapped([10, 0, 0, 1]),
            remote_port: 0x1234,
            local_port: 80,
        };
        assert_eq!(parsed.kind, Kind::Tcp { key, flags: 0x18 });
    }

    #[test]
    fn a_fragment_concerns_no_connection() {
        let mut frame = tcp_frame();
        frame[20] = 0x20;
        assert_eq!(parse(&frame).unwrap().kind, Kind::OtherIp);
    }

    #[test]
    fn no_length_of_any_bytes_panics() {
        let mut random = 7u64;
        let mut frames = vec![tcp_frame()];
        let mut v6 = tcp_frame();
        v6[12..14].copy_from_slice(&[0x86, 0xdd]);
        v6[14] = 0x60;
        v6[20] = 58;
        frames.push(v6);
        let mut arp = tcp_frame();
        arp[12..14].copy_from_slice(&[8, 6]);
        frames.push(arp);
        for frame in frames {
            for length in 0..frame.len() {
                parse(&frame[..length]);
            }
            for _ in 0..20_000 {
                let mut frame = frame.clone();
                for _ in 0..3 {
                    random = random.wrapping_mul(6364136223846793005).wrapping_add(1);
                    let at = 12 + (random >> 33) as usize % (frame.len() - 12);
                    frame[at] = (random >> 40) as u8;
                }
                parse(&frame);
            }
        }
    }
}
