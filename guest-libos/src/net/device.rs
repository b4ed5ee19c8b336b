//! The device that smoltcp sees: IP packets, one received packet at a time, and the transmit ring behind it.

use super::checksum;
use super::frame::{self, Mac, Segment};
use super::neighbors::Neighbors;
use super::ring::Transmitter;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::num::NonZeroUsize;
use foraker_abi::net::{self as abi, ETHERNET_HEADER};
use smoltcp::phy::{self, Checksum, DeviceCapabilities, Medium, PacketMeta};
use smoltcp::time::Instant;

/// Largest IP packet handed to the host for segmentation: headers and 44 segments of an MTU of 1500.
const LARGEST_SEND: usize = 40 + 44 * 1460;

pub(crate) struct Device {
    pub(crate) transmitter: Transmitter,
    pub(crate) neighbors: Neighbors,
    /// Where the next packets go; `None` to look their destinations up.
    pub(crate) destination: Option<Mac>,
    pub(crate) mtu: u16,
    pub(crate) features: u32,
    /// Whether large packets are sent; not by a guest with little memory.
    pub(crate) with_large: bool,
    /// A packet could not be sent because the ring is full.
    pub(crate) exhausted: bool,
    /// The last TCP segment that was sent and is to be acknowledged.
    pub(crate) last: Option<Segment>,
    pub(crate) counters: Counters,
}

/// Counters of the network in the guest.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Frames received.
    pub rx_frames: u64,
    /// Bytes of them.
    pub rx_bytes: u64,
    /// Frames sent.
    pub tx_frames: u64,
    /// Bytes of them.
    pub tx_bytes: u64,
    /// Received frames of no use: malformed, or of an unknown kind.
    pub rx_ignored: u64,
    /// Received packets with a wrong checksum.
    pub rx_checksum: u64,
    /// Packets not sent because the neighbour was not known.
    pub tx_no_neighbor: u64,
    /// Connections refused because a backlog was full.
    pub backlog_full: u64,
    /// Connections to ports on which nobody listens.
    pub refused: u64,
    /// Connections in existence now.
    pub connections: u64,
    /// Connections accepted or made since start.
    pub connections_total: u64,
}

impl Device {
    /// Sends a whole ethernet frame.
    pub(crate) fn send_frame(&mut self, frame: &[u8]) -> bool {
        let sent = self.transmitter.send(frame.len(), |to| {
            to.copy_from_slice(frame);
            (abi::Header::default(), ())
        });
        if sent.is_some() {
            self.counters.tx_frames += 1;
            self.counters.tx_bytes += frame.len() as u64;
        }
        sent.is_some()
    }

    /// The device while it receives `packet`.
    pub(crate) fn receiving<'d>(&'d mut self, packet: &'d [u8]) -> Receiving<'d> {
        Receiving { device: self, packet: Some(packet) }
    }

    fn has_room(&mut self) -> bool {
        if self.transmitter.has_room(self.with_large) {
            return true;
        }
        self.transmitter.reclaim();
        if self.transmitter.has_room(self.with_large) {
            return true;
        }
        self.exhausted = true;
        false
    }
}

/// A [`Device`] with a packet to be received.
pub(crate) struct Receiving<'d> {
    device: &'d mut Device,
    packet: Option<&'d [u8]>,
}

pub(crate) struct RxToken<'a>(&'a [u8]);

impl phy::RxToken for RxToken<'_> {
    #[inline(always)]
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

pub(crate) struct TxToken<'a> {
    device: &'a mut Device,
    segment: u16,
}

/// The destination of an IP packet.
fn destination(ip: &[u8]) -> Option<IpAddr> {
    if ip[0] >> 4 == 4 {
        Some(IpAddr::V4(Ipv4Addr::from_octets(ip.get(16..20)?.try_into().ok()?)))
    } else {
        Some(IpAddr::V6(Ipv6Addr::from_octets(ip.get(24..40)?.try_into().ok()?)))
    }
}

impl phy::TxToken for TxToken<'_> {
    #[inline]
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let Device { transmitter, neighbors, destination: to, features, counters, last, .. } = self.device;
        let own = neighbors.addresses().mac;
        let mut unknown = false;
        // `f` must run, whatever becomes of the packet; a packet that cannot be sent is lost, as on any network.
        let mut f = Some(f);
        let sent = transmitter.send(ETHERNET_HEADER + length, |frame| {
            let (ethernet, ip) = frame.split_at_mut(ETHERNET_HEADER);
            let result = f.take().map(|f| f(ip));
            if let Some(segment) = frame::segment(ip) {
                *last = Some(segment);
            }
            let mac = to.or_else(|| neighbors.lookup(destination(ip)?));
            unknown = mac.is_none();
            // To nobody, if the neighbour is not known: the switch drops it.
            ethernet[..6].copy_from_slice(&mac.unwrap_or_default());
            ethernet[6..12].copy_from_slice(&own);
            ethernet[12..].copy_from_slice(if ip[0] >> 4 == 4 { &[0x08, 0x00] } else { &[0x86, 0xdd] });
            (checksum::finish(ip, *features, self.segment), result)
        });
        counters.tx_no_neighbor += u64::from(unknown);
        match (sent.flatten(), f) {
            (Some(result), _) => {
                counters.tx_frames += 1;
                counters.tx_bytes += (ETHERNET_HEADER + length) as u64;
                result
            }
            (None, Some(f)) => f(&mut alloc::vec![0; length]),
            (None, None) => unreachable!("a packet that was written was sent"),
        }
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.segment = meta.segmentation_offload_size.map_or(0, |size| size.get());
    }
}

fn capabilities(device: &Device) -> DeviceCapabilities {
    let mut capabilities = DeviceCapabilities::default();
    capabilities.medium = Medium::Ip;
    capabilities.max_transmission_unit = usize::from(device.mtu);
    // The driver verifies, and finishes what is sent.
    capabilities.checksum.tcp = Checksum::None;
    capabilities.checksum.udp = Checksum::None;
    if device.with_large && device.features & abi::FEATURE_TSO != 0 {
        capabilities.segmentation.tcpv4 = NonZeroUsize::new(LARGEST_SEND);
    }
    capabilities
}

impl phy::Device for Device {
    type RxToken<'a> = RxToken<'a>;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, _: Instant) -> Option<(RxToken<'_>, TxToken<'_>)> {
        None
    }

    #[inline]
    fn transmit(&mut self, _: Instant) -> Option<TxToken<'_>> {
        self.has_room().then_some(TxToken { device: self, segment: 0 })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        capabilities(self)
    }
}

impl<'d> phy::Device for Receiving<'d> {
    type RxToken<'a>
        = RxToken<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = TxToken<'a>
    where
        Self: 'a;

    #[inline]
    fn receive(&mut self, _: Instant) -> Option<(RxToken<'_>, TxToken<'_>)> {
        let packet = self.packet.take()?;
        Some((RxToken(packet), TxToken { device: self.device, segment: 0 }))
    }

    #[inline]
    fn transmit(&mut self, timestamp: Instant) -> Option<TxToken<'_>> {
        self.device.transmit(timestamp)
    }

    fn capabilities(&self) -> DeviceCapabilities {
        capabilities(self.device)
    }
}
