//! Frames as the switch sees them: a parser over byte slices that never panics and never reads outside.
//!
//! It is given the first bytes of a frame (at least [`MAX_HEADERS`] of them, or all) and the frame's full length, and
//! finds what decisions need: addresses, the fields of ARP and neighbour discovery (RFC 826, RFC 4861), and where the
//! transport header starts. Checksums are not verified: whoever ends a connection does that.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Bytes from a frame's start that suffice for every frame that the switch passes on.
pub const MAX_HEADERS: usize = 256;

/// `ethertype` of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// `ethertype` of ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// `ethertype` of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

/// IP protocol number of TCP.
pub const PROTOCOL_TCP: u8 = 6;
/// IP protocol number of UDP.
pub const PROTOCOL_UDP: u8 = 17;
/// IP protocol number of ICMPv6.
pub const PROTOCOL_ICMPV6: u8 = 58;

const ETHERNET: usize = foraker_abi::net::ETHERNET_HEADER;
const IPV6_HEADER: usize = 40;
/// Extension headers that are walked before a packet is called malformed; few real packets have more than two.
const MAX_EXTENSION_HEADERS: usize = 8;

/// An ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Everybody.
    pub const BROADCAST: Mac = Mac([0xff; 6]);

    /// Whether this addresses a group (broadcast included).
    #[must_use]
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// The link-local IPv6 address that is derived from this address (RFC 4291, appendix A).
    #[must_use]
    pub const fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        Ipv6Addr::from_octets([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
    }

    /// The ethernet address that a link-local IPv6 address is derived from; None if it is no such address.
    #[must_use]
    pub const fn of_link_local(address: Ipv6Addr) -> Option<Mac> {
        match address.octets() {
            [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a, b, c, 0xff, 0xfe, d, e, f] => Some(Mac([a ^ 2, b, c, d, e, f])),
            _ => None,
        }
    }

    pub(crate) const fn key(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(out, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

/// The frame is no well-formed frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It ends within a header, or is shorter than its IP header says.
    #[error("truncated")]
    Truncated,
    /// A version, a length or an operation that its protocol does not know.
    #[error("bad field")]
    BadField,
}

/// A parsed frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// To whom.
    pub destination: Mac,
    /// From whom.
    pub source: Mac,
    /// What.
    pub packet: Packet,
}

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet {
    /// Address resolution for IPv4.
    Arp(Arp),
    /// IPv4.
    Ipv4(Ipv4),
    /// IPv6.
    Ipv6(Ipv6),
    /// Something else, by its ethertype (below 1536: IEEE 802.3 with a length).
    Other(u16),
}

/// An ARP packet for IPv4 over ethernet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// A request; otherwise a reply.
    pub request: bool,
    /// Sender's ethernet address.
    pub sender_mac: Mac,
    /// Sender's IPv4 address.
    pub sender: Ipv4Addr,
    /// The IPv4 address that is asked for.
    pub target: Ipv4Addr,
}

/// An IPv4 packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4 {
    /// From whom.
    pub source: Ipv4Addr,
    /// To whom.
    pub destination: Ipv4Addr,
    /// The transport header; none in fragments other than the first.
    pub transport: Option<Transport>,
}

/// An IPv6 packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv6 {
    /// From whom.
    pub source: Ipv6Addr,
    /// To whom.
    pub destination: Ipv6Addr,
    /// The transport header; none in fragments other than the first.
    pub transport: Option<Transport>,
    /// Neighbour discovery, if it is that.
    pub discovery: Option<Discovery>,
}

/// Where a packet's transport header is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    /// IP protocol number.
    pub protocol: u8,
    /// Offset from the start of the frame.
    pub offset: usize,
    /// Offset of what follows a TCP or UDP header; the same as `offset` for other protocols.
    pub payload: usize,
    /// Whether the packet is the first of several fragments.
    pub fragment: bool,
}

/// A message of neighbour discovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discovery {
    /// Who has `target`?
    Solicitation {
        /// The address asked for.
        target: Ipv6Addr,
    },
    /// I have `target`.
    Advertisement {
        /// The address claimed.
        target: Ipv6Addr,
    },
    /// Is there a router?
    RouterSolicitation,
    /// A router's messages: advertisement and redirect.
    Router,
}

/// Reads `N` bytes at `offset`.
fn array<const N: usize>(bytes: &[u8], offset: usize) -> Result<[u8; N], Malformed> {
    bytes.get(offset..).and_then(|rest| rest.first_chunk::<N>()).copied().ok_or(Malformed::Truncated)
}

fn u16_at(bytes: &[u8], offset: usize) -> Result<u16, Malformed> {
    array(bytes, offset).map(u16::from_be_bytes)
}

/// Destination, source and ethertype.
///
/// # Errors
/// Fewer than 14 bytes.
#[inline]
pub fn ethernet(bytes: &[u8]) -> Result<(Mac, Mac, u16), Malformed> {
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = array::<ETHERNET>(bytes, 0)?;
    Ok((Mac([d0, d1, d2, d3, d4, d5]), Mac([s0, s1, s2, s3, s4, s5]), u16::from_be_bytes([t0, t1])))
}

/// Whether an IPv6 packet is surely no neighbour discovery: TCP or UDP right behind its header.
#[inline]
pub(crate) fn no_discovery(bytes: &[u8]) -> bool {
    matches!(bytes.get(ETHERNET + 6), Some(&(PROTOCOL_TCP | PROTOCOL_UDP)))
}

/// What [`foraker_abi::control::awaited`] says of a TCP segment that acknowledges and does nothing else; None for every other frame. The checksum is not looked at.
#[inline]
#[must_use]
pub fn bare_acknowledgement(bytes: &[u8]) -> Option<u64> {
    const ACK: u8 = 0x10;
    // Longer ones have data, or more headers than anybody sends.
    if bytes.len() > ETHERNET + IPV6_HEADER + 60 {
        return None;
    }
    let (transport, end) = match ethernet(bytes).ok()?.2 {
        ETHERTYPE_IPV4 => {
            let header = array::<20>(bytes, ETHERNET).ok()?;
            let [version_ihl, _, l0, l1, _, _, f0, f1, _, PROTOCOL_TCP, ..] = header else { return None };
            let whole = u16::from_be_bytes([f0, f1]) & 0x3fff == 0;
            if version_ihl >> 4 != 4 || !whole {
                return None;
            }
            (
                ETHERNET + usize::from(version_ihl & 0xf) * 4,
                ETHERNET + usize::from(u16::from_be_bytes([l0, l1])),
            )
        }
        ETHERTYPE_IPV6 => {
            let [_, _, _, _, l0, l1, PROTOCOL_TCP] = array::<7>(bytes, ETHERNET).ok()? else { return None };
            let transport = ETHERNET + IPV6_HEADER;
            (transport, transport + usize::from(u16::from_be_bytes([l0, l1])))
        }
        _ => return None,
    };
    let [s0, s1, d0, d1, _, _, _, _, a0, a1, a2, a3, offset, ACK] = array::<14>(bytes, transport).ok()?
    else {
        return None;
    };
    let empty = transport + usize::from(offset >> 4) * 4 == end && end <= bytes.len();
    let (remote, local) = (u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1]));
    empty.then(|| foraker_abi::control::awaited(remote, local, u32::from_be_bytes([a0, a1, a2, a3])))
}

/// Parses a frame of `length` bytes, of which `bytes` are the first: all of them, or at least [`MAX_HEADERS`].
///
/// # Errors
/// The frame is malformed, or its headers take more than [`MAX_HEADERS`] bytes.
pub fn parse(bytes: &[u8], length: usize) -> Result<Frame, Malformed> {
    let (destination, source, ethertype) = ethernet(bytes)?;
    let packet = match ethertype {
        ETHERTYPE_IPV4 => Packet::Ipv4(ipv4(bytes, length)?),
        ETHERTYPE_IPV6 => Packet::Ipv6(ipv6(bytes, length)?),
        ETHERTYPE_ARP => Packet::Arp(arp(bytes)?),
        other => Packet::Other(other),
    };
    Ok(Frame { destination, source, packet })
}

/// The bytes of a packet that ends at `end`, as far as they are there. What follows is no header of it.
fn without_padding(bytes: &[u8], end: usize) -> &[u8] {
    bytes.get(..end).unwrap_or(bytes)
}

fn arp(bytes: &[u8]) -> Result<Arp, Malformed> {
    // Ethernet, IPv4, addresses of 6 and 4 bytes.
    if array::<6>(bytes, ETHERNET)? != [0, 1, 0x08, 0x00, 6, 4] {
        return Err(Malformed::BadField);
    }
    let request = match u16_at(bytes, ETHERNET + 6)? {
        1 => true,
        2 => false,
        _ => return Err(Malformed::BadField),
    };
    Ok(Arp {
        request,
        sender_mac: Mac(array(bytes, ETHERNET + 8)?),
        sender: Ipv4Addr::from_octets(array(bytes, ETHERNET + 14)?),
        target: Ipv4Addr::from_octets(array(bytes, ETHERNET + 24)?),
    })
}

fn ipv4(bytes: &[u8], length: usize) -> Result<Ipv4, Malformed> {
    let header = array::<20>(bytes, ETHERNET)?;
    let [version_ihl, _, l0, l1, _, _, f0, f1, _, protocol, ..] = header;
    let ihl = usize::from(version_ihl & 0xf) * 4;
    if version_ihl >> 4 != 4 || ihl < 20 {
        return Err(Malformed::BadField);
    }
    let total = usize::from(u16::from_be_bytes([l0, l1]));
    if total < ihl {
        return Err(Malformed::BadField);
    }
    if ETHERNET + total > length {
        return Err(Malformed::Truncated);
    }
    let bytes = without_padding(bytes, ETHERNET + total);
    let fragmentation = u16::from_be_bytes([f0, f1]);
    let (offset, more) = (fragmentation & 0x1fff, fragmentation & 0x2000 != 0);
    let transport = if offset == 0 {
        Some(transport(bytes, ETHERNET + total, protocol, ETHERNET + ihl, more)?)
    } else {
        None
    };
    Ok(Ipv4 {
        source: Ipv4Addr::from_octets(array(bytes, ETHERNET + 12)?),
        destination: Ipv4Addr::from_octets(array(bytes, ETHERNET + 16)?),
        transport,
    })
}

fn ipv6(bytes: &[u8], length: usize) -> Result<Ipv6, Malformed> {
    let header = array::<8>(bytes, ETHERNET)?;
    let [version, _, _, _, l0, l1, next, hop_limit] = header;
    if version >> 4 != 6 {
        return Err(Malformed::BadField);
    }
    let end = ETHERNET + IPV6_HEADER + usize::from(u16::from_be_bytes([l0, l1]));
    if end > length {
        return Err(Malformed::Truncated);
    }
    let bytes = without_padding(bytes, end);
    let (source, destination) = (
        Ipv6Addr::from_octets(array(bytes, ETHERNET + 8)?),
        Ipv6Addr::from_octets(array(bytes, ETHERNET + 24)?),
    );
    let mut packet = Ipv6 { source, destination, transport: None, discovery: None };
    let (mut next, mut offset, mut fragment) = (next, ETHERNET + IPV6_HEADER, false);
    for _ in 0..MAX_EXTENSION_HEADERS {
        match next {
            // Hop-by-hop options, routing, destination options: length in units of 8 bytes beyond the first.
            0 | 43 | 60 => {
                let [following, units] = array(bytes, offset)?;
                next = following;
                offset += (usize::from(units) + 1) * 8;
            }
            44 => {
                let [following, _, f0, f1] = array(bytes, offset)?;
                let field = u16::from_be_bytes([f0, f1]);
                if field >> 3 != 0 {
                    return Ok(packet);
                }
                fragment = field & 1 != 0;
                next = following;
                offset += 8;
            }
            // No next header.
            59 => return Ok(packet),
            protocol => {
                if offset > end {
                    return Err(Malformed::Truncated);
                }
                packet.transport = Some(transport(bytes, end, protocol, offset, fragment)?);
                if protocol == PROTOCOL_ICMPV6 {
                    packet.discovery = discovery(bytes, offset, end, hop_limit, fragment)?;
                }
                return Ok(packet);
            }
        }
    }
    Err(Malformed::BadField)
}

/// The transport header at `offset` of a packet that ends at `end`.
fn transport(
    bytes: &[u8],
    end: usize,
    protocol: u8,
    offset: usize,
    fragment: bool,
) -> Result<Transport, Malformed> {
    let payload = match protocol {
        PROTOCOL_TCP => {
            let [words] = array(bytes, offset + 12)?;
            let header = usize::from(words >> 4) * 4;
            if header < 20 {
                return Err(Malformed::BadField);
            }
            offset + header
        }
        PROTOCOL_UDP => offset + 8,
        _ => offset,
    };
    if payload > end {
        return Err(Malformed::Truncated);
    }
    Ok(Transport { protocol, offset, payload, fragment })
}

fn discovery(
    bytes: &[u8],
    offset: usize,
    end: usize,
    hop_limit: u8,
    fragment: bool,
) -> Result<Option<Discovery>, Malformed> {
    let [kind, code] = array(bytes, offset)?;
    if !(133..=137).contains(&kind) {
        return Ok(None);
    }
    // RFC 4861: never from beyond the link. RFC 6980: never in fragments.
    if hop_limit != 255 || code != 0 || fragment {
        return Err(Malformed::BadField);
    }
    let target = || {
        if offset + 24 > end {
            return Err(Malformed::Truncated);
        }
        array(bytes, offset + 8).map(Ipv6Addr::from_octets)
    };
    Ok(Some(match kind {
        133 => Discovery::RouterSolicitation,
        135 => Discovery::Solicitation { target: target()? },
        136 => Discovery::Advertisement { target: target()? },
        _ => Discovery::Router,
    }))
}
