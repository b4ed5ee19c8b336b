//! The hostile guest's memory, with canaries around and within it, and the link through which it also writes at the
//! worst moments.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;

use foraker_abi::layout::{
    BOOT, BOOT_SIZE, CONTROL, DATA_BASE, FAULT_STACK, IMAGE_BASE, NET_RX, NET_TX, PAGE_SIZE, REGISTERS,
};
use foraker_abi::net::Header;
use foraker_abi::ring::{AVAIL_OFFSET, DESC_NEXT, DESC_WRITE, QUEUE_SIZE, RING_SIZE, USED_OFFSET};
use foraker_net::{DeviceMemory, Limits, Link, Mac, Parts, Places, PortConfig, RingState};
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion, VolatileMemory, VolatileSlice};

use super::wire::Wire;
use crate::program::Program;

/// Bytes of data: receive buffers in the first half, transmit buffers in the second.
const DATA: u64 = 512 << 10;
/// End of the guest's memory.
const END: u64 = DATA_BASE + DATA;
/// Bytes of text, which the guest can send from.
const TEXT: u64 = 8 << 10;
/// Bytes that belong to others, on each side of a mapping.
const FENCE: u64 = 64 << 10;
/// What memory holds that the guest can read and not write.
const READ_ONLY: u8 = 0xa5;
/// What memory holds that is not the guest's at all: a sequence in which each byte tells the next (a linear
/// congruential generator of full period), so that a piece of it is known wherever it turns up.
static SECRET: [u8; 512] = {
    let mut bytes = [0; 512];
    let mut i = 1;
    while i < bytes.len() {
        bytes[i] = next(bytes[i - 1]);
        i += 1;
    }
    bytes
};
/// Bytes of the sequence that are not there by chance.
const TELLING: usize = 32;

const fn next(byte: u8) -> u8 {
    byte.wrapping_mul(5).wrapping_add(3)
}

/// Whether some of what is not the guest's is in `bytes`; finds every piece of two times [`TELLING`] bytes.
pub(super) fn betrays_secret(bytes: &[u8]) -> bool {
    bytes.chunks_exact(TELLING).any(|piece| {
        let start = SECRET.iter().position(|&byte| byte == piece[0]).expect("full period");
        *piece == SECRET[start..start + TELLING]
    })
}

fn secret(size: u64) -> Vec<u8> {
    SECRET[..256].repeat(size.div_ceil(256) as usize)
}
/// Most descriptors that [`Hostile::send`] makes: more than the contract allows.
const MOST_PIECES: usize = 24;
/// Bytes for a frame to be sent, and how many there are.
const SLOT: u64 = 68 << 10;
const SLOTS: u16 = 3;

/// Addresses that a program's addresses are relative to.
pub const PLACES: [u64; 10] =
    [0, DATA_BASE, END, NET_RX, NET_TX, CONTROL, BOOT, FAULT_STACK, IMAGE_BASE, IMAGE_BASE + TEXT];

/// Addresses of a guest by its number, as [`super::driver::Guest::new`] has them.
pub(super) fn addresses(number: u8) -> (Mac, Ipv4Addr) {
    (Mac([2, 0xf0, 0, 0, 0, number]), Ipv4Addr::new(10, 213, 77, number))
}

/// The hostile guest.
pub(super) struct Hostile {
    private: MmapRegion,
    text: MmapRegion,
    next_descriptor: Cell<u16>,
}

thread_local! {
    static HOSTILE: Hostile = Hostile {
        private: MmapRegion::new((END - REGISTERS + 2 * FENCE) as usize).expect("memory"),
        text: MmapRegion::new((TEXT + 2 * FENCE) as usize).expect("memory"),
        next_descriptor: Cell::new(0),
    };
}

/// Runs with the guest's memory as new.
pub(super) fn with(run: impl FnOnce(&Hostile)) {
    HOSTILE.with(|hostile| {
        hostile.slice(REGISTERS, END).copy_from(&vec![0_u8; (END - REGISTERS) as usize]);
        for (place, content) in hostile.canaries() {
            place.copy_from(&content);
        }
        run(hostile);
    });
}

impl Hostile {
    fn slice(&self, from: u64, to: u64) -> VolatileSlice<'_> {
        let offset = (from - (REGISTERS - FENCE)) as usize;
        self.private.as_volatile_slice().subslice(offset, (to - from) as usize).expect("in memory")
    }

    /// What the VMM must not write for the guest, and what it holds: all around the guest's memory, and what in it the
    /// guest can only read or not even that.
    fn canaries(&self) -> [(VolatileSlice<'_>, Vec<u8>); 9] {
        let text = |from: u64, size: u64| {
            self.text.as_volatile_slice().subslice(from as usize, size as usize).expect("in memory")
        };
        let read_only = |size: u64| vec![READ_ONLY; size as usize];
        [
            (self.slice(REGISTERS - FENCE, REGISTERS), secret(FENCE)),
            (self.slice(REGISTERS, CONTROL), read_only(CONTROL - REGISTERS)),
            (self.slice(FAULT_STACK, BOOT), secret(BOOT - FAULT_STACK)),
            (self.slice(BOOT, BOOT + BOOT_SIZE), read_only(BOOT_SIZE)),
            (self.slice(BOOT + BOOT_SIZE, DATA_BASE), secret(DATA_BASE - BOOT - BOOT_SIZE)),
            (self.slice(END, END + FENCE), secret(FENCE)),
            (text(0, FENCE), secret(FENCE)),
            (text(FENCE, TEXT), read_only(TEXT)),
            (text(FENCE + TEXT, FENCE), secret(FENCE)),
        ]
    }

    /// Nothing was written where the guest could not have written.
    pub(super) fn check_canaries(&self) {
        for (number, (place, content)) in self.canaries().into_iter().enumerate() {
            let mut bytes = vec![0; place.len()];
            place.copy_to(&mut bytes);
            // As a whole: a loop over bytes would be slow with coverage.
            assert!(bytes == content, "canary {number} was written");
        }
    }

    pub(super) fn port(&self, number: u8, limits: Limits, rings: RingState) -> PortConfig {
        let (mac, ipv4) = addresses(number);
        let private = |from: u64, to: u64| window(&self.private, REGISTERS, from, to);
        let readable = vec![
            window(&self.text, IMAGE_BASE, IMAGE_BASE, IMAGE_BASE + TEXT),
            private(REGISTERS, FAULT_STACK),
            private(BOOT, BOOT + BOOT_SIZE),
            private(DATA_BASE, END),
        ];
        let writable = vec![private(CONTROL, FAULT_STACK), private(DATA_BASE, END)];
        let collect = |regions| GuestMemoryMmap::from_regions(regions).expect("in order");
        PortConfig {
            id: number.into(),
            network: 0,
            mac,
            ipv4,
            ipv6: None,
            mtu: 1500,
            limits,
            memory: DeviceMemory::new(collect(readable), collect(writable)).expect("rings within"),
            rings,
        }
    }

    /// Makes the rings those of a guest that has used this many buffers, modulo 2^16.
    pub(super) fn start_at(&self, index: u16) {
        for ring in [NET_RX, NET_TX] {
            self.set_available_index(ring, index);
            self.set_u16(ring + USED_OFFSET + 2, index);
        }
        self.next_descriptor.set(index % QUEUE_SIZE);
    }

    /// An address: a place among [`PLACES`], and a signed distance.
    pub(super) fn address(&self, program: &mut Program<'_>) -> Option<u64> {
        let place = PLACES[usize::from(program.u8()?) % PLACES.len()];
        Some(place.wrapping_add_signed(program.u32()?.cast_signed().into()))
    }

    /// Writes to the guest's data; what lies outside is not written.
    pub(super) fn write(&self, address: u64, bytes: &[u8]) {
        let length = bytes.len() as u64;
        if (DATA_BASE..END).contains(&address) && length <= END - address {
            self.slice(address, address + length).copy_from(bytes);
        }
    }

    fn set_u16(&self, address: u64, value: u16) {
        self.slice(address, address + 2).copy_from(&value.to_le_bytes());
    }

    /// Writes a word to one of the rings.
    pub(super) fn poke(&self, offset: u16, value: u16) {
        self.set_u16(NET_RX + u64::from(offset & !1) % (NET_TX + RING_SIZE - NET_RX), value);
    }

    pub(super) fn set_descriptor(&self, ring: u64, index: u16, to: (u64, u32), flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&to.0.to_le_bytes());
        bytes[8..12].copy_from_slice(&to.1.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        let address = ring + u64::from(index % QUEUE_SIZE) * 16;
        self.slice(address, address + 16).copy_from(&bytes);
    }

    pub(super) fn set_available(&self, ring: u64, slot: u16, head: u16) {
        self.set_u16(ring + AVAIL_OFFSET + 4 + 2 * u64::from(slot % QUEUE_SIZE), head);
    }

    pub(super) fn set_available_index(&self, ring: u64, index: u16) {
        self.set_u16(ring + AVAIL_OFFSET + 2, index);
    }

    pub(super) fn available_index(&self, ring: u64) -> u16 {
        let mut bytes = [0; 2];
        let address = ring + AVAIL_OFFSET + 2;
        self.slice(address, address + 2).copy_to(&mut bytes);
        u16::from_le_bytes(bytes)
    }

    /// Gives receive buffers, one behind the other as far as there is room.
    pub(super) fn give(&self, size: u16, count: u8) {
        let room = DATA / 2 - u64::from(size);
        for i in 0..QUEUE_SIZE {
            let address = DATA_BASE + u64::from(i) * u64::from(size) % room;
            self.set_descriptor(NET_RX, i, (address, size.into()), DESC_WRITE, 0);
        }
        for _ in 0..count {
            let index = self.available_index(NET_RX);
            self.set_available(NET_RX, index, index % QUEUE_SIZE);
            self.set_available_index(NET_RX, index.wrapping_add(1));
        }
    }

    /// Sends a frame in descriptors of `piece` bytes (0: in one); the last one takes the rest.
    pub(super) fn send(&self, header: Header, frame: &[u8], piece: usize) {
        let index = self.available_index(NET_TX);
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend_from_slice(frame);
        let mut address = DATA_BASE + DATA / 2 + u64::from(index % SLOTS) * SLOT;
        self.write(address, &bytes);
        self.set_available(NET_TX, index, self.next_descriptor.get());
        let mut left = bytes.len();
        for number in 1.. {
            let last = piece == 0 || left <= piece || number == MOST_PIECES;
            let length = if last { left } else { piece };
            let descriptor = self.next_descriptor.get();
            let next = (descriptor + 1) % QUEUE_SIZE;
            self.next_descriptor.set(next);
            let flags = if last { 0 } else { DESC_NEXT };
            let length32 = u32::try_from(length).expect("small");
            self.set_descriptor(NET_TX, descriptor, (address, length32), flags, next);
            if last {
                break;
            }
            address += length as u64;
            left -= length;
        }
        self.set_available_index(NET_TX, index.wrapping_add(1));
    }
}

/// A range of guest addresses in a mapping that has `base` behind its fence.
fn window(mapping: &MmapRegion, base: u64, from: u64, to: u64) -> GuestRegionMmap {
    let place = mapping
        .as_volatile_slice()
        .subslice((from - base + FENCE) as usize, (to - from) as usize)
        .expect("in memory");
    assert!((place.len() as u64).is_multiple_of(PAGE_SIZE));
    let host = place.ptr_guard_mut().as_ptr();
    // SAFETY: a part of a mapping that lives as long as its thread; ports end before.
    let region = unsafe { MmapRegion::build_raw(host, place.len(), mapping.prot(), mapping.flags()) };
    GuestRegionMmap::with_arc(Arc::new(region.expect("page-aligned")), GuestAddress(from))
        .expect("no overflow")
}

/// A link in memory. Each read from it and write to it is a moment at which the guest may write to its rings, between
/// the VMM's checks and its use of what it checked.
pub(super) struct Meddler<'a> {
    pub(super) wire: Wire,
    hostile: &'a Hostile,
    writes: RefCell<VecDeque<(u16, u16)>>,
}

impl<'a> Meddler<'a> {
    pub(super) fn new(hostile: &'a Hostile) -> Self {
        Meddler { wire: Wire::default(), hostile, writes: RefCell::default() }
    }

    pub(super) fn meddle_later(&self, offset: u16, value: u16) {
        self.writes.borrow_mut().push_back((offset, value));
    }

    fn meddle(&self) {
        if let Some((offset, value)) = self.writes.borrow_mut().pop_front() {
            self.hostile.poke(offset, value);
        }
    }
}

impl Link for Meddler<'_> {
    fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        self.meddle();
        self.wire.receive(buffer)
    }

    fn receive_scattered(&self, places: Places<'_>) -> io::Result<Option<usize>> {
        self.meddle();
        self.wire.receive_scattered(places)
    }

    fn send(&self, frame: Parts<'_>) -> io::Result<()> {
        self.meddle();
        self.wire.send(frame)
    }
}

const _: () = assert!(DATA / 2 >= SLOTS as u64 * SLOT);
