//! Frames in: each is taken apart and given to the sockets that it is for, or answered.

use super::flow::HANDSHAKE;
use super::{Stack, instant, unmapped};
use crate::net::checksum;
use crate::net::frame::{self, FlowKey, Kind, Parsed};
use core::net::IpAddr;
use foraker_abi::net::{DATA_VALID, NEEDS_CSUM};
use smoltcp::wire::IpAddress;

/// Frames received before tasks run.
const BATCH: usize = 64;
/// Bytes received before tasks run: a full frame, so that bulk data is acknowledged as evenly as it comes. A sender that estimates
/// bandwidth from acknowledgements (BBR) takes bursts of them for a slow path.
const BATCH_BYTES: usize = 64 << 10;

/// What becomes of a packet that opens no connection.
enum Refusal {
    Reset,
    Silently,
}

impl Stack {
    /// See [`crate::net::ring::Receiver::look_for_starved`].
    pub(crate) fn look_for_starved(&mut self, least: u16) {
        self.receiver.look_for_starved(least);
    }

    /// Whether frames wait to be received.
    #[inline]
    pub(crate) fn has_frames(&self) -> bool {
        self.receiver.is_waiting()
    }

    /// Processes received frames, [`BATCH`] and [`BATCH_BYTES`] at most; true if more wait.
    pub(crate) fn receive(&mut self, now: u64) -> bool {
        self.now = instant(now);
        self.device.transmitter.reclaim();
        let mut taken = 0;
        for _ in 0..BATCH {
            if !self.receiver.is_waiting() || taken >= BATCH_BYTES {
                break;
            }
            // An answer (a reset, an echo) needs room; the tasks' own packets wait in their sockets.
            if !self.device.transmitter.has_room(self.device.with_large) && !self.make_room() {
                return false;
            }
            let Some(frame) = self.receiver.next() else { break };
            let bytes = frame.bytes();
            self.device.counters.rx_frames += 1;
            self.device.counters.rx_bytes += bytes.len() as u64;
            taken += bytes.len();
            match frame::parse(bytes) {
                Some(parsed) => self.dispatch(parsed, frame.header.flags & (NEEDS_CSUM | DATA_VALID) != 0),
                None => self.device.counters.rx_ignored += 1,
            }
            self.receiver.release(frame);
        }
        if self.receiver.publish() {
            crate::hypercall::doorbell_async();
        }
        self.receiver.is_waiting()
    }

    #[inline]
    fn dispatch(&mut self, packet: Parsed<'_>, verified: bool) {
        match packet.kind {
            Kind::Tcp { key, flags } => {
                if !verified && !checksum::is_valid(packet.ip, packet.transport, frame::TCP) {
                    self.device.counters.rx_checksum += 1;
                } else {
                    self.tcp(&packet, &key, flags);
                }
            }
            Kind::Udp { source_port, destination_port } => {
                if !verified && !checksum::is_valid(packet.ip, packet.transport, frame::UDP) {
                    self.device.counters.rx_checksum += 1;
                } else {
                    self.udp(&packet, source_port, destination_port);
                }
            }
            Kind::OtherIp => {
                self.device.destination = Some(packet.source);
                let device = &mut self.device.receiving(packet.ip);
                self.interface.poll_ingress_single(self.now, device, &mut self.others);
            }
            Kind::Arp { operation, sender_mac, sender, target } => {
                if operation == 2 {
                    self.device.neighbors.learn(IpAddr::from(sender), sender_mac);
                } else if let Some(answer) =
                    self.device.neighbors.answer(operation, sender_mac, sender, target)
                {
                    self.device.send_frame(&answer);
                }
            }
            Kind::NeighborAdvertisement { target, mac } => {
                self.device.neighbors.learn(IpAddr::from(target), mac)
            }
        }
    }

    #[inline]
    fn tcp(&mut self, packet: &Parsed<'_>, key: &FlowKey, flags: u8) {
        let opening = flags & (frame::SYN | frame::ACK | frame::RST) == frame::SYN;
        let mut found = self.find(key);
        if opening
            && let Some(id) = found
            && self.flows[id].time_wait
        {
            // The other side uses the port again.
            self.remove(id);
            found = None;
        }
        self.device.destination = Some(packet.source);
        let id = match found {
            Some(id) => id,
            None => match self.open(packet, key, opening) {
                Ok(id) => id,
                Err(Refusal::Silently) => return,
                Err(Refusal::Reset) => {
                    let device = &mut self.device.receiving(packet.ip);
                    self.interface.poll_ingress_single(self.now, device, &mut self.nobody);
                    return;
                }
            },
        };
        let flow = &mut *self.flows[id];
        flow.mac = packet.source;
        flow.waits = false;
        let device = &mut self.device.receiving(packet.ip);
        self.interface.poll_ingress_single(self.now, device, &mut flow.sockets);
        if flow.listener.is_some() || flow.orphan {
            self.settle(id);
        }
        self.mark(id);
    }

    /// Makes the connection that a SYN asks for, if somebody listens.
    fn open(&mut self, packet: &Parsed<'_>, key: &FlowKey, opening: bool) -> Result<usize, Refusal> {
        if !opening {
            return Err(Refusal::Reset);
        }
        let Some(listener) = self.listeners.get_mut(&key.local_port) else {
            self.device.counters.refused += 1;
            return Err(Refusal::Reset);
        };
        if listener.pending >= listener.backlog {
            // The other side tries again: by then there may be room.
            self.device.counters.backlog_full += 1;
            return Err(Refusal::Silently);
        }
        if !self.interface.has_ip_addr(IpAddress::from(unmapped(key.local))) {
            return Err(Refusal::Silently);
        }
        let buffers = listener.buffers;
        listener.pending += 1;
        let mut flow = self.kept.take(buffers);
        flow.listener = Some(key.local_port);
        let socket = flow.socket();
        socket.set_timeout(Some(HANDSHAKE));
        // Cannot fail: the port is not 0, and the socket is closed.
        let _ = socket.listen(key.local_port);
        Ok(self.insert(flow, *key, packet.source))
    }

    fn udp(&mut self, packet: &Parsed<'_>, source_port: u16, port: u16) {
        self.device.destination = Some(packet.source);
        let sockets = match self.udp.get_mut(&port) {
            Some(sockets) => sockets,
            // Only the DNS client hears of port 53 at ports that are not bound.
            None if source_port == 53 => &mut self.others,
            None => &mut self.nobody,
        };
        if let Some(source) = source_address(packet.ip) {
            self.device.neighbors.learn_from_traffic(source, packet.source);
        }
        let device = &mut self.device.receiving(packet.ip);
        self.interface.poll_ingress_single(self.now, device, sockets);
        self.others_dirty |= source_port == 53;
    }
}

fn source_address(ip: &[u8]) -> Option<IpAddr> {
    if ip[0] >> 4 == 4 {
        Some(IpAddr::from(<[u8; 4]>::try_from(ip.get(12..16)?).ok()?))
    } else {
        Some(IpAddr::from(<[u8; 16]>::try_from(ip.get(8..24)?).ok()?))
    }
}
