//! A hostile driver: a program that writes anything to its rings and buffers, also while the VMM is at them, between calls that
//! serve it. It harms nobody: the VMM writes to the guest's own windows only, what reaches host and
//! neighbour is sent under its own addresses, work is bounded, and a neighbour goes on to send and receive.

use std::net::Ipv4Addr;
use std::sync::Arc;

use foraker_abi::layout::{BLOCK, DATA_BASE, NET_RX, NET_TX};
use foraker_abi::net::{GSO_TCPV4, Header, MAX_FRAME, NEEDS_CSUM};
use foraker_net::frame::{self, Frame, Packet};
use foraker_net::{Limits, Mac, Notices, OverLimit, Port, RingState, Served, Switch, Uplink, Work, offload};

use crate::program::Program;

#[path = "../../../vmm/net/tests/driver/mod.rs"]
pub(crate) mod driver;
mod hostile;
#[path = "../../../vmm/net/tests/driver/wire.rs"]
mod wire;

use driver::{Guest, RX_BUFFERS, TX_BUFFERS};
use hostile::{Hostile, Meddler, addresses};
use wire::{GATEWAY, who_has};

pub use hostile::PLACES;

/// Most operations of a program.
const STEPS: usize = 300;
/// Identity and last part of the addresses of the hostile guest.
const BAD: u8 = 2;
/// The same of its neighbour.
const GOOD: u8 = 3;
/// A neighbour's receive buffers.
const GOOD_BUFFERS: u16 = 128;

/// Operations.
pub mod op {
    /// Set a descriptor: ring (1), index (1), place (1), distance (4), length (4), flags (2), next (2).
    pub const DESCRIPTOR: u8 = 0;
    /// Set an available entry: ring, slot (1), head (2).
    pub const ENTRY: u8 = 1;
    /// Set the available index: ring, index (2).
    pub const INDEX: u8 = 2;
    /// Make more buffers available: ring, how many (1).
    pub const ADVANCE: u8 = 3;
    /// Write anywhere in the rings: offset (2), value (2).
    pub const POKE: u8 = 4;
    /// Write anywhere in the rings at the VMM's next read from or write to the link: offset (2), value (2).
    pub const MEDDLE: u8 = 5;
    /// Write to data: distance from its start (4), length (1), the bytes.
    pub const DATA: u8 = 6;
    /// Give receive buffers as a good driver does: size (2), how many (1).
    pub const GIVE: u8 = 7;
    /// Send as a good driver does: kind (1), bytes of payload (2), bytes in each descriptor (2).
    pub const SEND: u8 = 8;
    /// The host sends: kind (1), bytes of payload (2).
    pub const HOST: u8 = 9;
    /// The neighbour sends: bytes of payload (2).
    pub const NEIGHBOUR: u8 = 10;
    /// The VMM serves the transmit ring: budget (1).
    pub const TRANSMIT: u8 = 11;
    /// The VMM serves the link: budget (1).
    pub const RECEIVE: u8 = 12;
    /// Time passes: microseconds (2).
    pub const WAIT: u8 = 13;
    /// Somebody begins or ceases to look at the transmit ring: which (1).
    pub const LOOK: u8 = 14;
    /// The port is removed, and added again where its rings stood.
    pub const AGAIN: u8 = 15;
    /// How many there are.
    pub const COUNT: u8 = 16;
}

/// Bits of a program's first byte.
pub mod mode {
    /// The neighbour comes last: until then the hostile guest is alone, and large frames are read into its buffers.
    pub const ALONE: u8 = 1;
    /// The neighbour is of another network.
    pub const DIVIDED: u8 = 2;
    /// The hostile guest has limits, above which its frames are dropped.
    pub const LIMITED: u8 = 4;
    /// They wait instead.
    pub const PATIENT: u8 = 8;
}

/// A cell with a hostile guest and a neighbour.
struct Cell<'a> {
    hostile: &'a Hostile,
    switch: Arc<Switch>,
    uplink: Uplink<Meddler<'a>>,
    port: Arc<Port>,
    limits: Limits,
    neighbour: Option<(Guest, Arc<Port>)>,
    network: u32,
    notices: Notices,
    now_ns: u64,
    /// Frames that were taken from the port's transmit ring.
    taken: u64,
    /// Faults of the port.
    faults: usize,
}

/// The first byte chooses the [`mode`], two more where the rings stand; a program of [`op`] follows.
pub fn run(data: &[u8]) {
    let mut program = Program(data);
    let (Some(mode), Some(started)) = (program.u8(), program.u16()) else { return };
    hostile::with(|hostile| {
        let mut cell = Cell::new(hostile, mode, started);
        for _ in 0..STEPS {
            if cell.step(&mut program).is_none() {
                break;
            }
        }
        cell.end();
        hostile.check_canaries();
    });
}

impl<'a> Cell<'a> {
    fn new(hostile: &'a Hostile, mode: u8, started: u16) -> Self {
        let is = |bit| mode & bit != 0;
        let over_limit = if is(mode::PATIENT) { OverLimit::Wait } else { OverLimit::Drop };
        let limits = if is(mode::LIMITED) {
            let rate = Some(1_000_000);
            Limits { rx_bandwidth: rate, tx_bandwidth: rate, tx_packets: Some(1000), over_limit }
        } else {
            Limits::default()
        };
        hostile.start_at(started);
        let switch = Arc::new(Switch::new(GATEWAY));
        let rings = RingState { rx: started, tx: started };
        let port = switch.add(hostile.port(BAD, limits, rings)).expect("room");
        let uplink = Uplink::new(Meddler::new(hostile), Arc::clone(&switch), None);
        let mut cell = Cell {
            hostile,
            switch,
            uplink,
            port,
            limits,
            neighbour: None,
            network: u32::from(is(mode::DIVIDED)),
            notices: Notices::new(),
            now_ns: 0,
            taken: 0,
            faults: 0,
        };
        if !is(mode::ALONE) {
            cell.add_neighbour();
        }
        cell
    }

    fn add_neighbour(&mut self) {
        let mut guest = Guest::new(GOOD);
        guest.give(GOOD_BUFFERS, 2048);
        for canary in NEIGHBOUR_CANARIES {
            guest.write(canary, &[0x99; 4096]);
        }
        let port = self.switch.add(guest.port(self.network, Limits::default())).expect("room");
        self.neighbour = Some((guest, port));
    }

    /// Runs one operation. None at the program's end.
    fn step(&mut self, program: &mut Program<'_>) -> Option<()> {
        let hostile = self.hostile;
        match program.u8()? % op::COUNT {
            op::DESCRIPTOR => {
                let (ring, index) = (ring(program)?, program.u8()?);
                let to = (hostile.address(program)?, program.u32()?);
                hostile.set_descriptor(ring, index.into(), to, program.u16()?, program.u16()?);
            }
            op::ENTRY => hostile.set_available(ring(program)?, program.u8()?.into(), program.u16()?),
            op::INDEX => hostile.set_available_index(ring(program)?, program.u16()?),
            op::ADVANCE => {
                let (ring, count) = (ring(program)?, program.u8()?);
                let index = hostile.available_index(ring).wrapping_add(count.into());
                hostile.set_available_index(ring, index);
            }
            op::POKE => hostile.poke(program.u16()?, program.u16()?),
            op::MEDDLE => self.uplink.link().meddle_later(program.u16()?, program.u16()?),
            op::DATA => {
                let (distance, length) = (program.u32()?, program.u8()?);
                hostile.write(DATA_BASE + u64::from(distance), program.bytes(length.into()));
            }
            op::GIVE => hostile.give(program.u16()?, program.u8()?),
            op::SEND => {
                let (kind, size, piece) = (program.u8()?, program.u16()?, program.u16()?);
                let to = if kind & 4 == 0 { HOST } else { addresses(GOOD) };
                let (header, frame) = match kind % 4 {
                    0 => datagram(addresses(BAD), to, size),
                    1 => segments(addresses(BAD), to, size),
                    2 => (Header::default(), question(addresses(BAD), to.1)),
                    _ => (Header::default(), vec![kind; size.into()]),
                };
                hostile.send(header, &frame, piece.into());
            }
            op::HOST => {
                let (kind, size) = (program.u8()?, program.u16()?);
                let (header, frame) = match kind % 5 {
                    0 => datagram(HOST, addresses(BAD), size),
                    1 => segments(HOST, addresses(BAD), size),
                    2 => datagram(HOST, addresses(GOOD), size.min(1400)),
                    3 => datagram(HOST, (Mac::BROADCAST, addresses(BAD).1), size),
                    _ => (Header::default(), who_has(addresses(BAD).1)),
                };
                self.uplink.link().wire.host_sends(header, &frame);
            }
            op::NEIGHBOUR => {
                let size = program.u16()? % 1400;
                let Some((guest, port)) = &mut self.neighbour else { return Some(()) };
                let frame = guest.udp((self.port.mac(), self.port.ipv4()), (1, 2), &vec![1; size.into()]);
                guest.send(Header::default(), &frame, &[]);
                let work = self.uplink.transmit(port, 300, usize::MAX, self.now_ns, &mut self.notices);
                assert_eq!((work.frames, work.served), (1, Served::Drained), "a neighbour cannot send");
            }
            op::TRANSMIT => {
                let budget = program.u8()?.into();
                self.transmit(budget);
            }
            op::RECEIVE => {
                let budget = program.u8()?.into();
                self.receive(budget);
            }
            op::WAIT => self.now_ns += u64::from(program.u16()?) * 1000,
            op::LOOK => {
                let _ = self.port.set_looking(program.u8()? & 1 != 0);
            }
            _ => {
                let rings = self.switch.remove(&self.port);
                self.check_port();
                let config = hostile.port(BAD, self.limits, rings);
                self.port = self.switch.add(config).expect("the addresses are free again");
                (self.taken, self.faults) = (0, 0);
            }
        }
        self.look_around();
        Some(())
    }

    fn transmit(&mut self, budget: usize) -> Work {
        let work = self.uplink.transmit(&self.port, budget, usize::MAX, self.now_ns, &mut self.notices);
        assert!(work.frames <= budget && work.bytes <= work.frames * MAX_FRAME, "{work:?} of {budget}");
        if let Served::Throttled { until_ns } = work.served {
            assert!(until_ns > self.now_ns);
        }
        self.taken += work.frames as u64;
        work
    }

    fn receive(&mut self, budget: usize) -> Served {
        let work = self.uplink.receive(budget, self.now_ns, &mut self.notices).expect("a link");
        assert!(work.frames <= budget.max(1), "{work:?} of {budget}");
        assert!(work.served != Served::Busy);
        work.served
    }

    /// What everybody else saw of the last operation.
    fn look_around(&mut self) {
        while let Some((header, bytes)) = self.uplink.link().wire.host_receives() {
            check_offload(&header, bytes.len());
            let frame = frame::parse(&bytes, bytes.len()).expect("a well-formed frame");
            self.check_source(&frame);
            assert_eq!(frame.destination, GATEWAY.mac);
            assert!(!hostile::betrays_secret(&bytes), "memory of others is sent");
        }
        for (port, _) in self.notices.interrupts() {
            assert!(port.id() == u64::from(BAD) || port.id() == u64::from(GOOD));
        }
        let bad = u64::from(BAD);
        self.faults += self.notices.faults().inspect(|(port, _)| assert_eq!(port.id(), bad)).count();
        assert!(self.faults <= 2, "a fault of each ring");
        self.drain_neighbour();
    }

    /// The sender is who it says, and one of the guests here (or the host, at a guest's side).
    fn check_source(&self, frame: &Frame) {
        let known = [BAD, GOOD].map(addresses).into_iter().chain([HOST]);
        let sender = known.into_iter().find(|(mac, _)| *mac == frame.source).expect("somebody's address");
        let ipv4 = match frame.packet {
            Packet::Ipv4(packet) => packet.source,
            Packet::Arp(arp) => arp.sender,
            Packet::Ipv6(packet) => {
                let own = packet.source == frame.source.link_local();
                assert!(own, "{frame:?}");
                return;
            }
            Packet::Other(_) => panic!("{frame:?}"),
        };
        assert_eq!(ipv4, sender.1, "{frame:?}");
    }

    /// The neighbour takes what came and gives its buffers back.
    fn drain_neighbour(&mut self) {
        let Some((mut guest, port)) = self.neighbour.take() else { return };
        while let Some((header, bytes)) = guest.receive() {
            guest.give_back(header.num_buffers);
            check_offload(&Header { num_buffers: 0, ..header }, bytes.len());
            let frame = frame::parse(&bytes, bytes.len()).expect("a well-formed frame");
            self.check_source(&frame);
            assert_eq!(frame.destination, guest.mac);
            assert!(!hostile::betrays_secret(&bytes), "memory of others is sent");
            assert!(frame.source != self.port.mac() || self.network == 0, "from another network");
        }
        self.neighbour = Some((guest, port));
    }

    /// Every frame of the port was sent on or dropped, and counted.
    fn check_port(&self) {
        let tx = &self.port.counters().tx;
        assert_eq!(tx.frames() + tx.drops.total(), self.taken);
    }

    /// The neighbour is served beside the hostile guest, and after it.
    fn end(mut self) {
        if self.neighbour.is_none() {
            self.add_neighbour();
        }
        self.neighbour_is_served(b"beside");
        self.transmit(300);
        self.look_around();
        self.neighbour_is_served(b"still beside");
        self.check_port();
        self.switch.remove(&self.port);
        self.neighbour_is_served(b"after");
        let (guest, port) = self.neighbour.take().expect("there is one");
        let counters = port.counters();
        assert_eq!(counters.tx.drops.get(foraker_net::DropReason::Closed), 0);
        for canary in NEIGHBOUR_CANARIES {
            let mut bytes = [0; 4096];
            guest.read(canary, &mut bytes);
            assert!(bytes == [0x99; 4096], "the neighbour's memory changed at {canary:#x}");
        }
    }

    fn neighbour_is_served(&mut self, payload: &[u8]) {
        self.look_around();
        let (mut guest, port) = self.neighbour.take().expect("there is one");
        let out = guest.udp(HOST, (7, 8), payload);
        guest.send(Header::default(), &out, &[]);
        let work = self.uplink.transmit(&port, 10, usize::MAX, self.now_ns, &mut self.notices);
        assert_eq!((work.frames, work.served), (1, Served::Drained));
        assert_eq!(self.uplink.link().wire.host_receives().expect("a frame").1, out);

        // What the host sends comes behind everything that is still queued, some of it for full rings; none of that
        // holds the line up.
        let back = driver::udp(HOST, (guest.mac, guest.ipv4), (8, 7), payload);
        self.uplink.link().wire.host_sends(Header::default(), &back);
        let mut got = false;
        for _ in 0..self.uplink.link().wire.queued() + 4 {
            let served = self.receive(10);
            while let Some((header, bytes)) = guest.receive() {
                guest.give_back(header.num_buffers);
                got |= bytes == back;
            }
            if served == Served::Drained {
                break;
            }
        }
        assert!(got, "the neighbour gets nothing");
        self.neighbour = Some((guest, port));
        self.look_around();
    }
}

/// The host's addresses.
const HOST: (Mac, Ipv4Addr) = (GATEWAY.mac, GATEWAY.ipv4);

/// Pages of the neighbour that are in none of its buffers.
const NEIGHBOUR_CANARIES: [u64; 3] = [RX_BUFFERS + (1 << 20), TX_BUFFERS - 4096, BLOCK];

fn ring(program: &mut Program<'_>) -> Option<u64> {
    program.u8().map(|which| if which & 1 == 0 { NET_RX } else { NET_TX })
}

fn datagram(from: (Mac, Ipv4Addr), to: (Mac, Ipv4Addr), size: u16) -> (Header, Vec<u8>) {
    (Header::default(), driver::udp(from, to, (1, 2), &vec![7; size.min(65_000).into()]))
}

/// A TCP packet that the receiver's side cuts into segments.
fn segments(from: (Mac, Ipv4Addr), to: (Mac, Ipv4Addr), size: u16) -> (Header, Vec<u8>) {
    let mut body = vec![3; 20 + usize::from(size.min(65_000))];
    body[12] = 0x50;
    let header = Header {
        flags: NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: 54,
        gso_size: 1446,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 0,
    };
    (header, driver::ipv4(from, to, 6, &body))
}

/// A guest's ARP request for an address.
fn question(from: (Mac, Ipv4Addr), address: Ipv4Addr) -> Vec<u8> {
    let mut bytes = who_has(address);
    bytes[6..12].copy_from_slice(&from.0.0);
    bytes[22..28].copy_from_slice(&from.0.0);
    bytes[28..32].copy_from_slice(&from.1.octets());
    bytes
}

/// An offload header that a receiver can trust.
fn check_offload(header: &Header, length: usize) {
    assert_eq!(offload::check(header, length), Ok(()));
}
