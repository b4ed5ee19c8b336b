//! The offload header in front of each frame that a guest sends: what is checked before the host's kernel sees it.
//!
//! Two kinds of mistakes are told apart. A header that contradicts itself or its frame's length can only come from a
//! broken driver: [`BadOffload`], which ends the guest. One that does not match the packet behind it makes a bad
//! frame, which is dropped ([`matches()`]).

use foraker_abi::net::{GSO_NONE, GSO_TCPV4, GSO_TCPV6, Header, NEEDS_CSUM};

use crate::frame::{Frame, PROTOCOL_TCP, PROTOCOL_UDP, Packet, Transport};

/// Most segments that one frame may ask the host to make: bounds the work that a guest causes with one frame.
pub const MAX_SEGMENTS: usize = 256;

/// What is wrong with an offload header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadOffload {
    /// Flags other than `NEEDS_CSUM`.
    #[error("flags {0:#x}")]
    Flags(u8),
    /// A kind of segmentation that is not offered.
    #[error("segmentation type {0}")]
    GsoType(u8),
    /// Segmentation into segments of 0 bytes, or without `NEEDS_CSUM`.
    #[error("segmentation without a size or without a checksum")]
    Gso,
    /// The checksum field is not within the frame.
    #[error("checksum field outside of the frame")]
    Checksum,
    /// `hdr_len` exceeds the frame.
    #[error("header length {0} exceeds the frame")]
    HeaderLength(u16),
    /// `num_buffers` is not 0.
    #[error("number of buffers {0} in a transmit header")]
    NumBuffers(u16),
}

/// Checks a transmit header against itself and the length of its frame.
///
/// # Errors
/// What is wrong with it.
#[inline]
pub fn check(header: &Header, length: usize) -> Result<(), BadOffload> {
    if header.flags & !NEEDS_CSUM != 0 {
        return Err(BadOffload::Flags(header.flags));
    }
    if header.num_buffers != 0 {
        return Err(BadOffload::NumBuffers(header.num_buffers));
    }
    if !matches!(header.gso_type, GSO_NONE | GSO_TCPV4 | GSO_TCPV6) {
        return Err(BadOffload::GsoType(header.gso_type));
    }
    let needs_csum = header.flags & NEEDS_CSUM != 0;
    if header.gso_type != GSO_NONE && (header.gso_size == 0 || !needs_csum) {
        return Err(BadOffload::Gso);
    }
    if needs_csum && usize::from(header.csum_start) + usize::from(header.csum_offset) + 2 > length {
        return Err(BadOffload::Checksum);
    }
    if usize::from(header.hdr_len) > length {
        return Err(BadOffload::HeaderLength(header.hdr_len));
    }
    Ok(())
}

/// The header as the host gets it, and the segments that it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checked {
    /// With fields that mean nothing set to 0, and `hdr_len` computed.
    pub header: Header,
    /// Frames on the wire.
    pub segments: u32,
}

/// Checks a header that passed [`check`] against the frame of `length` bytes behind it. None if they do not match:
/// the checksum is not that of the packet's TCP or UDP header, the segmentation is not of its protocols, or there
/// would be more than [`MAX_SEGMENTS`] segments.
#[inline]
pub fn matches(header: &Header, frame: &Frame, length: usize) -> Option<Checked> {
    if header.flags & NEEDS_CSUM == 0 {
        return Some(Checked { header: Header::default(), segments: 1 });
    }
    let transport = transport(frame)?;
    let csum_offset = match transport.protocol {
        PROTOCOL_TCP => 16,
        PROTOCOL_UDP => 6,
        _ => return None,
    };
    if usize::from(header.csum_start) != transport.offset || header.csum_offset != csum_offset {
        return None;
    }
    let mut checked = Header {
        flags: NEEDS_CSUM,
        csum_start: header.csum_start,
        csum_offset,
        hdr_len: u16::try_from(transport.payload).ok()?,
        ..Header::default()
    };
    if header.gso_type == GSO_NONE {
        return Some(Checked { header: checked, segments: 1 });
    }
    let family = match frame.packet {
        Packet::Ipv4(_) => GSO_TCPV4,
        Packet::Ipv6(_) => GSO_TCPV6,
        _ => return None,
    };
    if header.gso_type != family || transport.protocol != PROTOCOL_TCP || transport.fragment {
        return None;
    }
    let segments = length.saturating_sub(transport.payload).div_ceil(usize::from(header.gso_size)).max(1);
    if segments > MAX_SEGMENTS {
        return None;
    }
    checked.gso_type = family;
    checked.gso_size = header.gso_size;
    Some(Checked { header: checked, segments: u32::try_from(segments).ok()? })
}

fn transport(frame: &Frame) -> Option<Transport> {
    match frame.packet {
        Packet::Ipv4(packet) => packet.transport,
        Packet::Ipv6(packet) => packet.transport,
        _ => None,
    }
}
