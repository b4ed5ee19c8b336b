//! A link in memory, in place of a TAP device.
#![allow(dead_code, unreachable_pub, reason = "each user needs a part of it")]

use std::collections::VecDeque;
use std::io;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use foraker_abi::net::{HEADER_SIZE, Header};
use foraker_net::{Gateway, Link, Mac, Notices, Parts, Places, Switch, Uplink};

/// The host's side of test networks.
pub const GATEWAY: Gateway =
    Gateway { mac: Mac([2, 0xf0, 0, 0, 0, 1]), ipv4: Ipv4Addr::new(10, 213, 77, 1), ipv6: None };

/// Frames in both directions.
#[derive(Debug, Default)]
pub struct Wire {
    to_cell: Mutex<VecDeque<Vec<u8>>>,
    to_host: Mutex<VecDeque<Vec<u8>>>,
    scattered: AtomicUsize,
}

impl Wire {
    /// An uplink over a new wire.
    pub fn uplink(switch: &Arc<Switch>) -> Uplink<Wire> {
        Uplink::new(Wire::default(), Arc::clone(switch), None)
    }

    /// The host sends a frame.
    pub fn host_sends(&self, header: Header, frame: &[u8]) {
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend_from_slice(frame);
        self.to_cell.lock().expect("no panic").push_back(bytes);
    }

    /// The next frame that the host got.
    pub fn host_receives(&self) -> Option<(Header, Vec<u8>)> {
        let mut bytes = self.to_host.lock().expect("no panic").pop_front()?;
        let header = Header::from_bytes(*bytes.first_chunk().expect("a header"));
        Some((header, bytes.split_off(HEADER_SIZE)))
    }

    /// Frames that were read straight into a guest's buffers.
    pub fn scattered(&self) -> usize {
        self.scattered.load(Ordering::Relaxed)
    }

    /// Frames that the cell has not read yet.
    pub fn queued(&self) -> usize {
        self.to_cell.lock().expect("no panic").len()
    }
}

impl Link for Wire {
    fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let Some(frame) = self.to_cell.lock().expect("no panic").pop_front() else { return Ok(None) };
        let length = frame.len().min(buffer.len());
        buffer[..length].copy_from_slice(&frame[..length]);
        Ok(Some(length))
    }

    fn receive_scattered(&self, mut places: Places<'_>) -> io::Result<Option<usize>> {
        let Some(frame) = self.to_cell.lock().expect("no panic").pop_front() else { return Ok(None) };
        self.scattered.fetch_add(1, Ordering::Relaxed);
        Ok(Some(places.copy_from(&frame)))
    }

    fn send(&self, frame: Parts<'_>) -> io::Result<()> {
        let mut bytes = vec![0; frame.total()];
        assert_eq!(frame.copy_to(&mut bytes), bytes.len());
        self.to_host.lock().expect("no panic").push_back(bytes);
        Ok(())
    }
}

/// The host's ARP request for an address.
pub fn who_has(address: Ipv4Addr) -> Vec<u8> {
    let mut bytes = vec![0xff; 6];
    bytes.extend(GATEWAY.mac.0);
    bytes.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    bytes.extend(GATEWAY.mac.0);
    bytes.extend(GATEWAY.ipv4.octets());
    bytes.extend([0; 6]);
    bytes.extend(address.octets());
    bytes
}

/// `(guest, interrupts)` of what is to be raised.
pub fn raised(notices: &mut Notices) -> Vec<(u64, u64)> {
    notices.interrupts().map(|(port, bits)| (port.id(), bits)).collect()
}
