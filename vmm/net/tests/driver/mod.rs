//! The guest's side of the rings, over anonymous memory: what tests and measurements play a guest with.
#![allow(dead_code, unreachable_pub, reason = "each user needs a part of it")]

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use foraker_abi::layout::{DATA_BASE, NET_RX, NET_TX, REGISTERS};
use foraker_abi::net::{HEADER_SIZE, Header};
use foraker_abi::ring::{
    AVAIL_OFFSET, DESC_NEXT, DESC_WRITE, NO_INTERRUPT, NO_NOTIFY, QUEUE_SIZE, USED_OFFSET,
};
use foraker_net::{DeviceMemory, Limits, Mac, PortConfig, RingState};
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion, VolatileMemory, VolatileSlice};

/// Bytes of a guest's memory.
pub const MEMORY: usize = 16 << 20;
/// Where receive buffers lie.
pub const RX_BUFFERS: u64 = DATA_BASE;
/// Where transmit buffers lie.
pub const TX_BUFFERS: u64 = DATA_BASE + (8 << 20);
/// End of the guest's memory.
pub const END: u64 = REGISTERS + MEMORY as u64;

/// One guest.
pub struct Guest {
    region: Arc<MmapRegion>,
    pub mac: Mac,
    pub ipv4: Ipv4Addr,
    rx_size: u32,
    rx_stride: u64,
    rx_available: u16,
    rx_used: u16,
    tx_available: u16,
    tx_next_descriptor: u16,
}

impl Guest {
    /// A guest whose addresses end in `number`.
    pub fn new(number: u8) -> Self {
        Guest {
            region: Arc::new(MmapRegion::new(MEMORY).expect("anonymous memory")),
            mac: Mac([2, 0xf0, 0, 0, 0, number]),
            ipv4: Ipv4Addr::new(10, 213, 77, number),
            rx_size: 0,
            rx_stride: 0,
            rx_available: 0,
            rx_used: 0,
            tx_available: 0,
            tx_next_descriptor: 0,
        }
    }

    /// A guest whose rings have seen this many buffers, modulo 2^16.
    pub fn started_at(number: u8, index: u16) -> Self {
        let guest = Guest { rx_available: index, rx_used: index, tx_available: index, ..Guest::new(number) };
        let guest = Guest { tx_next_descriptor: index % QUEUE_SIZE, ..guest };
        for ring in [NET_RX, NET_TX] {
            guest.set_available_index(ring, index);
            guest.word(ring + USED_OFFSET + 2).store(index, Ordering::Relaxed);
        }
        guest
    }

    fn windows(&self) -> GuestMemoryMmap {
        let region = GuestRegionMmap::with_arc(Arc::clone(&self.region), GuestAddress(REGISTERS));
        GuestMemoryMmap::from_regions(vec![region.expect("no overflow")]).expect("one region")
    }

    /// What its device reaches.
    pub fn memory(&self) -> DeviceMemory {
        DeviceMemory::new(self.windows(), self.windows()).expect("rings within")
    }

    /// Its memory, for other device models.
    pub fn guest_memory(&self) -> GuestMemoryMmap {
        self.windows()
    }

    pub fn port(&self, network: u32, limits: Limits) -> PortConfig {
        PortConfig {
            id: u64::from(self.mac.0[5]),
            network,
            mac: self.mac,
            ipv4: self.ipv4,
            ipv6: None,
            mtu: 1500,
            limits,
            memory: self.memory(),
            rings: RingState::default(),
        }
    }

    pub fn slice(&self) -> VolatileSlice<'_> {
        self.region.as_volatile_slice()
    }

    fn offset(address: u64) -> usize {
        usize::try_from(address - REGISTERS).expect("in memory")
    }

    pub fn word(&self, address: u64) -> &AtomicU16 {
        self.region.get_atomic_ref(Self::offset(address)).expect("in memory")
    }

    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.slice().subslice(Self::offset(address), bytes.len()).expect("in memory").copy_from(bytes);
    }

    pub fn read(&self, address: u64, to: &mut [u8]) {
        self.slice().subslice(Self::offset(address), to.len()).expect("in memory").copy_to(to);
    }

    pub fn set_descriptor(&self, ring: u64, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.write(ring + u64::from(index) * 16, &bytes);
    }

    pub fn set_available(&self, ring: u64, slot: u16, head: u16) {
        let address = ring + AVAIL_OFFSET + 4 + 2 * u64::from(slot % QUEUE_SIZE);
        self.word(address).store(head, Ordering::Relaxed);
    }

    pub fn set_available_index(&self, ring: u64, index: u16) {
        self.word(ring + AVAIL_OFFSET + 2).store(index, Ordering::Release);
    }

    pub fn used_index(&self, ring: u64) -> u16 {
        self.word(ring + USED_OFFSET + 2).load(Ordering::Acquire)
    }

    /// `(id, length)` of a used element.
    pub fn used_element(&self, ring: u64, slot: u16) -> (u32, u32) {
        let mut bytes = [0; 8];
        self.read(ring + USED_OFFSET + 4 + 8 * u64::from(slot % QUEUE_SIZE), &mut bytes);
        let [a, b, c, d, e, f, g, h] = bytes;
        (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
    }

    /// Whether the transmit ring wants the doorbell.
    pub fn doorbell_wanted(&self) -> bool {
        fence(Ordering::SeqCst);
        self.word(NET_TX + USED_OFFSET).load(Ordering::Relaxed) & NO_NOTIFY == 0
    }

    pub fn want_interrupt(&self, ring: u64, wanted: bool) {
        self.word(ring + AVAIL_OFFSET).store(if wanted { 0 } else { NO_INTERRUPT }, Ordering::Relaxed);
    }

    /// Gives `count` receive buffers of `size` bytes, the first of the ring's.
    pub fn give(&mut self, count: u16, size: u32) {
        self.give_apart(count, size, 0);
    }

    /// The same with gaps between buffers.
    pub fn give_apart(&mut self, count: u16, size: u32, gap: u32) {
        self.rx_size = size;
        self.rx_stride = u64::from(size + gap);
        for i in 0..QUEUE_SIZE {
            let address = RX_BUFFERS + u64::from(i) * self.rx_stride;
            self.set_descriptor(NET_RX, i, address, size, DESC_WRITE, 0);
        }
        self.give_back(count);
    }

    /// Gives `count` more.
    pub fn give_back(&mut self, count: u16) {
        for _ in 0..count {
            self.set_available(NET_RX, self.rx_available, self.rx_available % QUEUE_SIZE);
            self.rx_available = self.rx_available.wrapping_add(1);
        }
        self.set_available_index(NET_RX, self.rx_available);
    }

    /// The next received frame with its header; its buffers are not given back.
    pub fn receive(&mut self) -> Option<(Header, Vec<u8>)> {
        let index = self.used_index(NET_RX);
        if index == self.rx_used {
            return None;
        }
        let mut bytes = self.take_buffer();
        let header = Header::from_bytes(*bytes.first_chunk().expect("a header"));
        assert!(header.num_buffers >= 1 && index.wrapping_sub(self.rx_used) + 1 >= header.num_buffers);
        for _ in 1..header.num_buffers {
            bytes.extend(self.take_buffer());
        }
        Some((header, bytes.split_off(HEADER_SIZE)))
    }

    fn take_buffer(&mut self) -> Vec<u8> {
        let (id, length) = self.used_element(NET_RX, self.rx_used);
        assert_eq!(id, u32::from(self.rx_used % QUEUE_SIZE), "in order");
        assert!(length <= self.rx_size);
        self.rx_used = self.rx_used.wrapping_add(1);
        let mut bytes = vec![0; length as usize];
        self.read(RX_BUFFERS + u64::from(id) * self.rx_stride, &mut bytes);
        bytes
    }

    /// Throws away what was received and gives the buffers back, without looking at them. Returns how many.
    pub fn recycle(&mut self) -> u16 {
        let count = self.used_index(NET_RX).wrapping_sub(self.rx_used);
        self.rx_used = self.rx_used.wrapping_add(count);
        self.give_back(count);
        count
    }

    /// Sends a frame, in pieces of the given sizes (the last one takes the rest), each in a descriptor of its own.
    pub fn send(&mut self, header: Header, frame: &[u8], pieces: &[usize]) {
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend_from_slice(frame);
        self.send_bytes(&bytes, pieces);
    }

    /// The same without a header of its own.
    pub fn send_bytes(&mut self, bytes: &[u8], pieces: &[usize]) {
        let slot = self.tx_available % QUEUE_SIZE;
        let address = TX_BUFFERS + u64::from(slot % 64) * (68 << 10);
        self.write(address, bytes);
        let (mut done, head) = (0, self.tx_next_descriptor);
        for &piece in pieces.iter().chain([&usize::MAX]) {
            let length = piece.min(bytes.len() - done);
            let last = done + length == bytes.len();
            let index = self.tx_next_descriptor;
            self.tx_next_descriptor = (index + 1) % QUEUE_SIZE;
            let flags = if last { 0 } else { DESC_NEXT };
            let length32 = u32::try_from(length).expect("small");
            self.set_descriptor(
                NET_TX,
                index,
                address + done as u64,
                length32,
                flags,
                self.tx_next_descriptor,
            );
            done += length;
            if last {
                break;
            }
        }
        self.set_available(NET_TX, slot, head);
        self.tx_available = self.tx_available.wrapping_add(1);
        self.set_available_index(NET_TX, self.tx_available);
    }

    /// Sends what stands in the transmit descriptors already, `count` times from descriptor 0 on.
    pub fn send_again(&mut self, count: u16) {
        for _ in 0..count {
            self.set_available(NET_TX, self.tx_available, self.tx_available % QUEUE_SIZE);
            self.tx_available = self.tx_available.wrapping_add(1);
        }
        self.set_available_index(NET_TX, self.tx_available);
    }

    /// Transmit buffers not yet back.
    pub fn in_flight(&self) -> u16 {
        self.tx_available.wrapping_sub(self.used_index(NET_TX))
    }

    /// A UDP packet in a frame, without a UDP checksum.
    pub fn udp(&self, to: (Mac, Ipv4Addr), ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
        udp((self.mac, self.ipv4), to, ports, payload)
    }
}

/// A UDP packet over IPv4 in a frame, without a UDP checksum.
pub fn udp(from: (Mac, Ipv4Addr), to: (Mac, Ipv4Addr), ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).expect("a packet");
    let mut body = Vec::new();
    body.extend(ports.0.to_be_bytes());
    body.extend(ports.1.to_be_bytes());
    body.extend(length.to_be_bytes());
    body.extend([0, 0]);
    body.extend_from_slice(payload);
    ipv4(from, to, 17, &body)
}

/// An IPv4 packet in a frame.
pub fn ipv4(from: (Mac, Ipv4Addr), to: (Mac, Ipv4Addr), protocol: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(34 + body.len());
    frame.extend(to.0.0);
    frame.extend(from.0.0);
    frame.extend([0x08, 0x00]);
    let total = u16::try_from(20 + body.len()).expect("a packet");
    let mut header = [0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    header[2..4].copy_from_slice(&total.to_be_bytes());
    header[12..16].copy_from_slice(&from.1.octets());
    header[16..20].copy_from_slice(&to.1.octets());
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend(header);
    frame.extend_from_slice(body);
    frame
}

/// The Internet checksum.
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded")
}
