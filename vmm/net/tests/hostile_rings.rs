//! What a guest may do to its rings, and what comes of it: the fault is exact, and a neighbour never notices.

use std::sync::Arc;

use foraker_abi::layout::{IMAGE_BASE, NET_RX, NET_TX, REGISTERS, SUPERVISOR_BASE};
use foraker_abi::net::{GSO_TCPV4, HEADER_SIZE, Header, MAX_CHAIN, MAX_FRAME, NEEDS_CSUM};
use foraker_abi::ring::{DESC_NEXT, DESC_WRITE, QUEUE_SIZE};
use foraker_net::offload::BadOffload;
use foraker_net::{FaultKind, Limits, Notices, Port, Queue, RingFault, Served, Switch, Uplink};
use proptest::prelude::*;

mod driver;
#[path = "driver/wire.rs"]
mod wire;
use driver::{END, Guest, RX_BUFFERS, TX_BUFFERS};
use wire::{GATEWAY, Wire, raised};

struct Cell {
    switch: Arc<Switch>,
    uplink: Uplink<Wire>,
    bad: Guest,
    bad_port: Arc<Port>,
    good: Guest,
    good_port: Arc<Port>,
    notices: Notices,
}

impl Cell {
    fn new() -> Self {
        let switch = Arc::new(Switch::new(GATEWAY));
        let uplink = Wire::uplink(&switch);
        let (mut bad, mut good) = (Guest::new(2), Guest::new(3));
        let bad_port = switch.add(bad.port(0, Limits::default())).expect("room");
        let good_port = switch.add(good.port(0, Limits::default())).expect("room");
        bad.give(128, 2048);
        good.give(128, 2048);
        Cell { switch, uplink, bad, bad_port, good, good_port, notices: Notices::new() }
    }

    /// The fault that serving the bad guest's transmit ring ends in.
    fn transmit_fault(&mut self) -> FaultKind {
        self.uplink.transmit(&self.bad_port, 1000, usize::MAX, 0, &mut self.notices);
        self.fault(Queue::Transmit)
    }

    /// The fault that a frame for the bad guest ends in.
    fn receive_fault(&mut self) -> FaultKind {
        let frame =
            driver::udp((GATEWAY.mac, GATEWAY.ipv4), (self.bad.mac, self.bad.ipv4), (1, 2), &[7; 1400]);
        self.uplink.link().host_sends(Header::default(), &frame);
        self.uplink.receive(1000, 0, &mut self.notices).expect("a link");
        self.fault(Queue::Receive)
    }

    fn fault(&mut self, on: Queue) -> FaultKind {
        let faults: Vec<_> = self.notices.faults().collect();
        let [(port, RingFault { queue, kind })] = faults.as_slice() else { panic!("one fault: {faults:?}") };
        assert_eq!((port.id(), *queue), (2, on));
        let kind = *kind;
        // It is reported once; the ring is dead from then on.
        self.uplink.transmit(&self.bad_port, 1000, usize::MAX, 0, &mut self.notices);
        assert_eq!(self.notices.faults().count(), 0);
        self.switch.remove(&self.bad_port);
        self.neighbour_is_served();
        kind
    }

    /// The good guest sends and receives.
    fn neighbour_is_served(&mut self) {
        while self.uplink.link().host_receives().is_some() {}
        for _ in self.notices.interrupts() {}
        let out = self.good.udp((GATEWAY.mac, GATEWAY.ipv4), (7, 8), b"from the neighbour");
        self.good.send(Header::default(), &out, &[]);
        let work = self.uplink.transmit(&self.good_port, 10, usize::MAX, 0, &mut self.notices);
        assert_eq!((work.frames, work.served), (1, Served::Drained));
        assert_eq!(self.uplink.link().host_receives().expect("a frame").1, out);
        let back = driver::udp(
            (GATEWAY.mac, GATEWAY.ipv4),
            (self.good.mac, self.good.ipv4),
            (8, 7),
            b"to the neighbour",
        );
        self.uplink.link().host_sends(Header::default(), &back);
        self.uplink.receive(10, 0, &mut self.notices).expect("a link");
        assert_eq!(self.good.receive().expect("a frame").1, back);
        assert!(raised(&mut self.notices).iter().all(|&(guest, _)| guest == 3));
        assert_eq!(
            self.good_port.counters().rx.drops.total() + self.good_port.counters().tx.drops.total(),
            0
        );
    }

    /// Makes one transmit buffer available that starts at descriptor 0.
    fn offer(&self) {
        self.bad.set_available(NET_TX, 0, 0);
        self.bad.set_available_index(NET_TX, 1);
    }
}

#[test]
fn transmit_index_jumps() {
    for index in [QUEUE_SIZE + 1, 0x8000, 0xffff] {
        let mut cell = Cell::new();
        cell.bad.set_available_index(NET_TX, index);
        assert_eq!(cell.transmit_fault(), FaultKind::IndexJump { index, completed: 0 });
    }
}

#[test]
fn receive_index_jumps() {
    let mut cell = Cell::new();
    cell.bad.set_available_index(NET_RX, 40_000);
    assert_eq!(cell.receive_fault(), FaultKind::IndexJump { index: 40_000, completed: 0 });
}

#[test]
fn descriptors_that_do_not_exist() {
    for index in [QUEUE_SIZE, 0xffff] {
        let mut cell = Cell::new();
        cell.bad.set_available(NET_TX, 0, index);
        cell.bad.set_available_index(NET_TX, 1);
        assert_eq!(cell.transmit_fault(), FaultKind::NoSuchDescriptor(index));

        let mut cell = Cell::new();
        cell.bad.set_descriptor(NET_TX, 0, TX_BUFFERS, 100, DESC_NEXT, index);
        cell.offer();
        assert_eq!(cell.transmit_fault(), FaultKind::NoSuchDescriptor(index));

        let mut cell = Cell::new();
        cell.bad.set_available(NET_RX, 0, index);
        assert_eq!(cell.receive_fault(), FaultKind::NoSuchDescriptor(index));
    }
}

#[test]
fn chains_that_loop() {
    for next in [0, 1] {
        let mut cell = Cell::new();
        cell.bad.set_descriptor(NET_TX, 0, TX_BUFFERS, 1, DESC_NEXT, next);
        cell.bad.set_descriptor(NET_TX, 1, TX_BUFFERS, 1, DESC_NEXT, 0);
        cell.offer();
        assert_eq!(cell.transmit_fault(), FaultKind::LongChain(MAX_CHAIN));
    }
    let mut cell = Cell::new();
    cell.bad.set_descriptor(NET_RX, 0, RX_BUFFERS, 2048, DESC_WRITE | DESC_NEXT, 0);
    assert_eq!(cell.receive_fault(), FaultKind::LongChain(1));
}

#[test]
fn the_longest_chain_passes_and_one_more_does_not() {
    let mut cell = Cell::new();
    let frame = cell.bad.udp((GATEWAY.mac, GATEWAY.ipv4), (1, 2), &[5; 600]);
    cell.bad.send(Header::default(), &frame, &[7; MAX_CHAIN - 1]);
    cell.uplink.transmit(&cell.bad_port, 1, usize::MAX, 0, &mut cell.notices);
    assert_eq!(cell.uplink.link().host_receives().expect("a frame").1, frame);
    cell.bad.send(Header::default(), &frame, &[7; MAX_CHAIN]);
    assert_eq!(cell.transmit_fault(), FaultKind::LongChain(MAX_CHAIN));
}

#[test]
fn flags_directions_and_lengths() {
    let inside = (TX_BUFFERS, 200_u32);
    let cases = [
        (inside, DESC_WRITE, FaultKind::WrongDirection),
        (inside, 4, FaultKind::DescriptorFlags(4)),
        (inside, 0x8000, FaultKind::DescriptorFlags(0x8000)),
        ((TX_BUFFERS, 0), 0, FaultKind::ZeroLength),
        ((TX_BUFFERS, 11), 0, FaultKind::ShortBuffer(11)),
        ((TX_BUFFERS, 70_000), 0, FaultKind::LongBuffer(HEADER_SIZE + MAX_FRAME)),
        ((TX_BUFFERS, u32::MAX), 0, FaultKind::OutsideMemory { address: TX_BUFFERS, length: u32::MAX }),
    ];
    for ((address, length), flags, kind) in cases {
        let mut cell = Cell::new();
        cell.bad.set_descriptor(NET_TX, 0, address, length, flags, 0);
        cell.offer();
        assert_eq!(cell.transmit_fault(), kind);
    }
    let inside = (RX_BUFFERS, 2048_u32);
    let cases = [
        (inside, 0, FaultKind::WrongDirection),
        (inside, DESC_WRITE | 4, FaultKind::DescriptorFlags(DESC_WRITE | 4)),
        ((RX_BUFFERS, 0), DESC_WRITE, FaultKind::ZeroLength),
        ((RX_BUFFERS, 255), DESC_WRITE, FaultKind::SmallBuffer(255)),
        (
            (RX_BUFFERS, u32::MAX),
            DESC_WRITE,
            FaultKind::OutsideMemory { address: RX_BUFFERS, length: u32::MAX },
        ),
    ];
    for ((address, length), flags, kind) in cases {
        let mut cell = Cell::new();
        cell.bad.set_descriptor(NET_RX, 0, address, length, flags, 0);
        assert_eq!(cell.receive_fault(), kind);
    }
}

#[test]
fn buffers_outside_of_memory() {
    for address in [0, SUPERVISOR_BASE, IMAGE_BASE, REGISTERS - 1, END - 299, END, u64::MAX - 100, u64::MAX] {
        let mut cell = Cell::new();
        cell.bad.set_descriptor(NET_TX, 0, address, 300, 0, 0);
        cell.offer();
        assert_eq!(cell.transmit_fault(), FaultKind::OutsideMemory { address, length: 300 });

        let mut cell = Cell::new();
        cell.bad.set_descriptor(NET_RX, 0, address, 300, DESC_WRITE, 0);
        assert_eq!(cell.receive_fault(), FaultKind::OutsideMemory { address, length: 300 });
    }
}

#[test]
fn offload_headers_that_contradict_themselves() {
    let gso = Header {
        flags: NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: 54,
        gso_size: 1448,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 0,
    };
    let cases = [
        (Header { flags: 2, ..gso }, BadOffload::Flags(2)),
        (Header { flags: 0x81, ..gso }, BadOffload::Flags(0x81)),
        (Header { gso_type: 3, ..gso }, BadOffload::GsoType(3)),
        (Header { gso_type: 0x81, ..gso }, BadOffload::GsoType(0x81)),
        (Header { gso_size: 0, ..gso }, BadOffload::Gso),
        (Header { flags: 0, ..gso }, BadOffload::Gso),
        (Header { csum_start: 0xffff, ..gso }, BadOffload::Checksum),
        (Header { csum_offset: 0xffff, ..gso }, BadOffload::Checksum),
        (Header { hdr_len: 0xffff, ..gso }, BadOffload::HeaderLength(0xffff)),
        (Header { num_buffers: 1, ..gso }, BadOffload::NumBuffers(1)),
    ];
    for (header, bad) in cases {
        let mut cell = Cell::new();
        let frame =
            driver::ipv4((cell.bad.mac, cell.bad.ipv4), (GATEWAY.mac, GATEWAY.ipv4), 6, &[0x50; 3000]);
        cell.bad.send(header, &frame, &[12]);
        assert_eq!(cell.transmit_fault(), FaultKind::BadOffload(bad));
    }
}

#[test]
fn a_guest_that_sends_to_a_broken_ring_goes_on() {
    let mut cell = Cell::new();
    cell.bad.set_available(NET_RX, 0, 999);
    let frame = cell.good.udp((cell.bad.mac, cell.bad.ipv4), (1, 2), b"hello");
    cell.good.send(Header::default(), &frame, &[]);
    cell.uplink.transmit(&cell.good_port, 10, usize::MAX, 0, &mut cell.notices);
    assert_eq!(cell.fault(Queue::Receive), FaultKind::NoSuchDescriptor(999));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Rings full of anything: serving them ends, with or without a fault, and the neighbour is served after it.
    #[test]
    fn random_rings_harm_nobody(
        seed in proptest::collection::vec(any::<u16>(), 64),
        index in 0_u16..400,
        near in any::<bool>(),
    ) {
        let mut cell = Cell::new();
        let mut words = seed.iter().copied().cycle();
        let mut word = || words.next().expect("endless");
        for ring in [NET_TX, NET_RX] {
            for i in 0..QUEUE_SIZE {
                let (a, l, f, n, h) = (word(), word(), word(), word(), word());
                let address = if near { TX_BUFFERS + u64::from(a) } else { u64::from(a) << (l % 48) };
                let next = if near { n % QUEUE_SIZE } else { n };
                cell.bad.set_descriptor(ring, i, address, u32::from(l), if near { f % 4 } else { f }, next);
                cell.bad.set_available(ring, i, if near { h % QUEUE_SIZE } else { h });
            }
            cell.bad.set_available_index(ring, index);
        }
        for i in 0..8 {
            let frame = driver::udp(
                (GATEWAY.mac, GATEWAY.ipv4), (cell.bad.mac, cell.bad.ipv4), (1, 2), &vec![7; i * 900]);
            cell.uplink.link().host_sends(Header::default(), &frame);
            let work = cell.uplink.transmit(&cell.bad_port, 300, usize::MAX, 0, &mut cell.notices);
            prop_assert!(work.frames <= usize::from(QUEUE_SIZE));
            cell.uplink.receive(300, i as u64 * 1_000_000_000, &mut cell.notices).expect("a link");
        }
        prop_assert!(cell.notices.faults().count() <= 2);
        cell.switch.remove(&cell.bad_port);
        cell.uplink.receive(300, 9_000_000_000, &mut cell.notices).expect("a link");
        cell.neighbour_is_served();
    }
}
