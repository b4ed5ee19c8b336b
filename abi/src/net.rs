//! Virtual ethernet: a receive and a transmit ring ([`crate::ring`]) of frames, each behind a [`Header`].
//!
//! **Transmit.** A buffer is a chain of readable descriptors: the header, then the frame, split as the guest likes, at
//! most [`MAX_CHAIN`] descriptors and [`MAX_FRAME`] bytes of frame.
//!
//! **Receive.** A buffer is one writable descriptor of [`MIN_RX_BUFFER`] bytes or more. A frame that does not fit continues in
//! the following buffers (virtio's mergeable receive buffers): the header, in the first alone, tells how many.
//! As buffers are used in the order in which they were given, a guest that gives adjacent buffers finds each frame in one piece.
//!
//! **Offloads.** A guest may leave the checksum of TCP and UDP to the host, send TCP segments larger than the MTU (`gso_*`), and
//! receives both forms. The MTU and what is offered stand in the virtual registers.

/// What precedes each frame: `virtio_net_hdr_v1` (OASIS VIRTIO 1.2, section 5.1.6), little-endian.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// [`NEEDS_CSUM`], [`DATA_VALID`].
    pub flags: u8,
    /// [`GSO_NONE`], [`GSO_TCPV4`], [`GSO_TCPV6`].
    pub gso_type: u8,
    /// Bytes of ethernet, IP and TCP headers of a frame to be segmented.
    pub hdr_len: u16,
    /// Payload bytes of each segment.
    pub gso_size: u16,
    /// Where checksumming starts, from the start of the frame.
    pub csum_start: u16,
    /// Where the checksum goes, from `csum_start`.
    pub csum_offset: u16,
    /// Receive: buffers that this frame fills. Transmit: 0.
    pub num_buffers: u16,
}

impl Header {
    /// The header as it stands in memory.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; HEADER_SIZE] {
        let (h, g) = (self.hdr_len.to_le_bytes(), self.gso_size.to_le_bytes());
        let (s, o) = (self.csum_start.to_le_bytes(), self.csum_offset.to_le_bytes());
        let n = self.num_buffers.to_le_bytes();
        [self.flags, self.gso_type, h[0], h[1], g[0], g[1], s[0], s[1], o[0], o[1], n[0], n[1]]
    }

    /// Reads a header as it stands in memory.
    #[must_use]
    pub const fn from_bytes(b: [u8; HEADER_SIZE]) -> Self {
        Header {
            flags: b[0],
            gso_type: b[1],
            hdr_len: u16::from_le_bytes([b[2], b[3]]),
            gso_size: u16::from_le_bytes([b[4], b[5]]),
            csum_start: u16::from_le_bytes([b[6], b[7]]),
            csum_offset: u16::from_le_bytes([b[8], b[9]]),
            num_buffers: u16::from_le_bytes([b[10], b[11]]),
        }
    }
}

/// Bytes of a [`Header`].
pub const HEADER_SIZE: usize = 12;
/// `flags`: the checksum field holds the sum of the pseudo-header only; whoever sends the frame on completes it.
pub const NEEDS_CSUM: u8 = 1;
/// `flags`: the checksum was verified.
pub const DATA_VALID: u8 = 2;
/// `gso_type`: one frame.
pub const GSO_NONE: u8 = 0;
/// `gso_type`: to be segmented as TCP over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// `gso_type`: to be segmented as TCP over IPv6.
pub const GSO_TCPV6: u8 = 4;

/// Bytes of an ethernet header.
pub const ETHERNET_HEADER: usize = 14;
/// Most bytes of a frame: an ethernet header and a full IP packet.
pub const MAX_FRAME: usize = ETHERNET_HEADER + 65535;
/// Fewest bytes of a receive buffer.
pub const MIN_RX_BUFFER: u32 = 256;
/// Most descriptors of a transmit buffer.
pub const MAX_CHAIN: usize = 20;

/// Feature bit in the virtual registers: checksums may be left to the host ([`NEEDS_CSUM`]).
pub const FEATURE_CSUM: u32 = 1 << 0;
/// Feature bit: TCP segmentation over IPv4 and IPv6 ([`GSO_TCPV4`], [`GSO_TCPV6`]).
pub const FEATURE_TSO: u32 = 1 << 1;

const _: () = assert!(size_of::<Header>() == HEADER_SIZE);
