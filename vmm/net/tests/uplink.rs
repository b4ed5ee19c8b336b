//! Frames through a cell: link, switch and rings together, without a TAP device.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use foraker_abi::interrupt;
use foraker_abi::layout::{NET_RX, NET_TX};
use foraker_abi::net::{DATA_VALID, GSO_TCPV4, Header, MAX_FRAME, NEEDS_CSUM};
use foraker_net::{
    DeficitRoundRobin, DropReason, Limits, Mac, Notices, OverLimit, Port, PortConfig, RingState, Served,
    Switch, Uplink,
};

mod driver;
#[path = "driver/wire.rs"]
mod wire;
use driver::{Guest, ipv4, udp};
use wire::{GATEWAY, Wire, raised};

const HOST: (Mac, Ipv4Addr) = (GATEWAY.mac, GATEWAY.ipv4);
const MS: u64 = 1_000_000;

struct Cell {
    switch: Arc<Switch>,
    uplink: Uplink<Wire>,
    guests: Vec<Guest>,
    ports: Vec<Arc<Port>>,
    notices: Notices,
}

impl Cell {
    fn new(limits: &[Limits]) -> Self {
        let switch = Arc::new(Switch::new(GATEWAY));
        let uplink = Wire::uplink(&switch);
        let guests: Vec<_> = (2..).take(limits.len()).map(Guest::new).collect();
        let ports =
            guests.iter().zip(limits).map(|(g, l)| switch.add(g.port(0, *l)).expect("room")).collect();
        Cell { switch, uplink, guests, ports, notices: Notices::new() }
    }

    fn host_sends(&self, to: usize, payload: &[u8]) -> Vec<u8> {
        let frame = udp(HOST, (self.guests[to].mac, self.guests[to].ipv4), (1, 2), payload);
        self.uplink.link().host_sends(Header::default(), &frame);
        frame
    }

    fn receive(&mut self, now_ns: u64) -> Served {
        self.uplink.receive(1000, now_ns, &mut self.notices).expect("a link").served
    }

    fn transmit(&mut self, from: usize, now_ns: u64) -> (usize, Served) {
        let work = self.uplink.transmit(&self.ports[from], 1000, usize::MAX, now_ns, &mut self.notices);
        (work.frames, work.served)
    }
}

/// A TCP segment of many MTUs, and the header that asks for its segmentation.
fn large(from: (Mac, Ipv4Addr), to: (Mac, Ipv4Addr), payload: usize) -> (Header, Vec<u8>) {
    let mut tcp = vec![0_u8; 20];
    tcp[12] = 0x50;
    tcp.extend((0..payload).map(|i| (i % 251) as u8));
    let header = Header {
        flags: NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: 54,
        gso_size: 1446,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 0,
    };
    (header, ipv4(from, to, 6, &tcp))
}

#[test]
fn frames_of_every_size_arrive_whole() {
    let mut cell = Cell::new(&[Limits::default()]);
    for size in [256, 300, 1500, 2048, 16384] {
        cell.guests[0] = Guest::new(2);
        cell.switch.remove(&cell.ports[0]);
        cell.ports[0] = cell.switch.add(cell.guests[0].port(0, Limits::default())).expect("room");
        cell.guests[0].give(256, size);
        // Around the edges of one, two and many buffers.
        let edge = size as usize;
        for length in [1, edge - 55, edge - 54, edge - 53, 2 * edge - 54, 2 * edge - 53, 20_000, 65_490] {
            let (header, frame) = large(HOST, (cell.guests[0].mac, cell.guests[0].ipv4), length);
            cell.uplink.link().host_sends(header, &frame);
            let fits = frame.len() + 12 <= 256 * edge;
            assert_eq!(cell.receive(0), Served::Drained);
            assert_eq!(raised(&mut cell.notices), if fits { vec![(2, interrupt::NET_RX)] } else { vec![] });
            if fits {
                let (got, bytes) = cell.guests[0].receive().expect("a frame");
                assert_eq!(usize::from(got.num_buffers), (frame.len() + 12).div_ceil(edge));
                assert_eq!(Header { num_buffers: 0, ..got }, header);
                assert!(bytes == frame, "{length} bytes in buffers of {size}");
                cell.guests[0].give_back(got.num_buffers);
            }
            assert!(cell.guests[0].receive().is_none());
        }
        let too_large = u64::from(size == 256);
        assert_eq!(cell.ports[0].counters().rx.drops.get(DropReason::TooLarge), too_large);
    }
}

/// A budget in bytes ends a call before the frame that would exceed it, which the next call sends; but a call always sends something.
#[test]
fn a_budget_in_bytes_holds() {
    let mut cell = Cell::new(&[Limits::default()]);
    let from = (cell.guests[0].mac, cell.guests[0].ipv4);
    let sizes = [60_000, 100, 60_000, 30_000, 100];
    let sent: Vec<_> = sizes.iter().map(|&size| large(from, HOST, size)).collect();
    for (header, frame) in &sent {
        cell.guests[0].send(*header, frame, &[12]);
    }
    let mut steps = Vec::new();
    for bytes in [61_000, 1, 50_000, 50_000] {
        let work = cell.uplink.transmit(&cell.ports[0], 1000, bytes, 0, &mut cell.notices);
        assert!(work.bytes <= bytes || work.frames == 1);
        steps.push((work.frames, work.served));
    }
    assert_eq!(steps, [(2, Served::More), (1, Served::More), (2, Served::Drained), (0, Served::Drained)]);
    for (header, frame) in sent {
        assert_eq!(cell.uplink.link().host_receives(), Some((header, frame)), "whole, and in order");
    }
}

/// Senders of large frames and of small ones share the uplink by bytes.
#[test]
fn turns_share_the_uplink_by_bytes() {
    const QUANTUM: usize = 100_000;
    const TURNS: usize = 300;
    let sizes = [60_000, 20_000, 4_000];
    let mut cell = Cell::new(&[Limits::default(); 3]);
    let mut turns = DeficitRoundRobin::new(QUANTUM, MAX_FRAME);
    let mut sent = [0; 3];
    (0..3).for_each(|sender| turns.join(sender as u64, sender));
    for _ in 0..TURNS {
        let turn = turns.begin().expect("all have frames");
        let sender = *turn.sender();
        let guest = &mut cell.guests[sender];
        let (header, frame) = large((guest.mac, guest.ipv4), HOST, sizes[sender]);
        while guest.in_flight() < 60 {
            guest.send(header, &frame, &[]);
        }
        let work = cell.uplink.transmit(&cell.ports[sender], 1000, turn.credit(), 0, &mut cell.notices);
        assert_eq!(work.served, Served::More);
        sent[sender] += work.bytes;
        assert!(sent.iter().max().unwrap() - sent.iter().min().unwrap() <= QUANTUM + MAX_FRAME, "{sent:?}");
        while cell.uplink.link().host_receives().is_some() {}
        turns.finish(turn, work.bytes, true);
    }
    assert_eq!(cell.notices.faults().count(), 0);
    assert!(sent.iter().sum::<usize>() > (TURNS - 3) * QUANTUM, "{sent:?}");
}

/// What may be another network's is not read into a guest's memory before it is decided upon, also if the guest is the only one.
#[test]
fn a_network_of_its_own_is_not_read_into_directly() {
    for (network, direct) in [(0, true), (3, false)] {
        let mut cell = Cell::new(&[Limits::default()]);
        cell.switch.remove(&cell.ports[0]);
        cell.guests[0] = Guest::new(2);
        cell.ports[0] = cell.switch.add(cell.guests[0].port(network, Limits::default())).expect("room");
        cell.guests[0].give(256, 16384);
        let (header, frame) = large(HOST, (cell.guests[0].mac, cell.guests[0].ipv4), 60_000);
        for _ in 0..4 {
            cell.uplink.link().host_sends(header, &frame);
        }
        assert_eq!(cell.receive(0), Served::Drained);
        assert_eq!(cell.uplink.link().scattered() > 0, direct, "network {network}");
        assert_eq!(cell.ports[0].counters().rx.frames(), 4);
    }
}

#[test]
fn every_split_of_a_transmit_buffer_is_the_same_frame() {
    let mut cell = Cell::new(&[Limits::default()]);
    let (_, frame) = large((cell.guests[0].mac, cell.guests[0].ipv4), HOST, 60_000);
    let header = large(HOST, HOST, 1).0;
    let pieces: [&[usize]; 7] =
        [&[], &[12], &[5, 7], &[12, 14, 20, 20], &[1; 19], &[500, 12, 1], &[511, 1, 1, 40_000]];
    for (round, pieces) in pieces.into_iter().cycle().take(700).enumerate() {
        cell.guests[0].send(header, &frame, pieces);
        assert_eq!(cell.transmit(0, 0), (1, Served::Drained));
        assert_eq!(cell.guests[0].in_flight(), 0);
        let (got, bytes) = cell.uplink.link().host_receives().expect("a frame");
        assert_eq!(got, header);
        assert!(bytes == frame, "round {round}, {pieces:?}");
    }
    assert_eq!(cell.ports[0].counters().tx.frames(), 700);
    assert_eq!(cell.uplink.counters().tx.bytes(), 700 * frame.len() as u64);
}

#[test]
fn guests_talk_to_each_other() {
    let mut cell = Cell::new(&[Limits::default(); 2]);
    cell.guests[1].give(200, 2048);
    let to = (cell.guests[1].mac, cell.guests[1].ipv4);
    let (header, frame) = large((cell.guests[0].mac, cell.guests[0].ipv4), to, 30_000);
    cell.guests[0].send(header, &frame, &[12, 700]);
    assert_eq!(cell.transmit(0, 0).0, 1);
    let (got, bytes) = cell.guests[1].receive().expect("a frame");
    assert_eq!(Header { num_buffers: 0, ..got }, header);
    assert!(bytes == frame);
    let mut interrupts = raised(&mut cell.notices);
    interrupts.sort_unstable();
    assert_eq!(interrupts, [(2, interrupt::NET_TX), (3, interrupt::NET_RX)]);
    assert!(cell.uplink.link().host_receives().is_none());
}

#[test]
fn a_guest_asks_for_the_gateway() {
    let mut cell = Cell::new(&[Limits::default()]);
    cell.guests[0].give(4, 2048);
    let mut arp = vec![0xff; 6];
    arp.extend(cell.guests[0].mac.0);
    arp.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    arp.extend(cell.guests[0].mac.0);
    arp.extend(cell.guests[0].ipv4.octets());
    arp.extend([0; 6]);
    arp.extend(HOST.1.octets());
    cell.guests[0].send(Header::default(), &arp, &[]);
    cell.transmit(0, 0);
    let (_, answer) = cell.guests[0].receive().expect("an answer");
    assert_eq!(answer[..6], cell.guests[0].mac.0);
    assert_eq!(answer[22..28], HOST.0.0);
    assert!(cell.uplink.link().host_receives().is_none(), "nobody else hears of it");
}

#[test]
fn interrupts_are_raised_once_and_only_if_wanted() {
    let mut cell = Cell::new(&[Limits::default()]);
    cell.guests[0].give(256, 2048);
    for _ in 0..20 {
        cell.host_sends(0, b"x");
    }
    cell.receive(0);
    assert_eq!(raised(&mut cell.notices), [(2, interrupt::NET_RX)]);
    for ring in [NET_RX, NET_TX] {
        cell.guests[0].want_interrupt(ring, false);
    }
    cell.host_sends(0, b"x");
    cell.receive(0);
    let frame = cell.guests[0].udp(HOST, (1, 2), b"x");
    cell.guests[0].send(Header::default(), &frame, &[]);
    cell.transmit(0, 0);
    assert_eq!(raised(&mut cell.notices), []);
}

#[test]
fn looking_saves_the_doorbell() {
    let mut cell = Cell::new(&[Limits::default()]);
    assert!(cell.guests[0].doorbell_wanted());
    assert!(!cell.ports[0].set_looking(true));
    assert!(!cell.guests[0].doorbell_wanted());
    let frame = cell.guests[0].udp(HOST, (1, 2), b"x");
    cell.guests[0].send(Header::default(), &frame, &[]);
    assert!(cell.ports[0].transmit_pending());
    assert!(cell.ports[0].set_looking(false), "the frame came while nobody was told");
    cell.transmit(0, 0);
    assert!(!cell.ports[0].set_looking(false));
    assert!(cell.guests[0].doorbell_wanted());
}

#[test]
fn frames_wait_for_a_full_ring_and_lose_nothing() {
    let mut cell = Cell::new(&[Limits::default()]);
    cell.guests[0].give(4, 2048);
    let sent: Vec<_> = (0..50).map(|i| cell.host_sends(0, &[i; 100])).collect();
    assert_eq!(cell.receive(5 * MS), Served::Drained);
    let mut got = Vec::new();
    while cell.ports[0].is_waited_for() {
        assert_eq!(cell.guests[0].word(NET_RX + 0x1400).load(Ordering::Relaxed), 0, "it is asked to ring");
        let before = got.len();
        while let Some((_, frame)) = cell.guests[0].receive() {
            got.push(frame);
            cell.guests[0].give_back(1);
        }
        assert!(got.len() > before);
        cell.uplink.flush(&cell.ports[0], 6 * MS, &mut cell.notices);
    }
    got.extend(std::iter::from_fn(|| cell.guests[0].receive()).map(|(_, frame)| frame));
    assert_eq!(got, sent);
    assert_eq!(cell.ports[0].counters().rx.drops.total(), 0);
}

#[test]
fn a_guest_that_takes_nothing_holds_nobody_up() {
    let mut cell = Cell::new(&[Limits::default(); 2]);
    cell.guests[1].give(256, 2048);
    // 19 of 20 frames are for the guest that gives no buffers.
    let (mut now, mut sent) = (0, 0);
    while now < 50 * MS {
        for i in 0..20_u8 {
            cell.host_sends(usize::from(i == 19), &[i; 64]);
        }
        sent += 1;
        assert_eq!(cell.receive(now), Served::Drained);
        assert_eq!(cell.guests[1].recycle(), 1);
        now += 50_000;
    }
    assert_eq!(cell.ports[1].counters().rx.frames(), sent);
    assert_eq!(cell.ports[1].counters().rx.drops.total(), 0);
    // The first of its frames wait for it all the same, a bounded number.
    assert_eq!(cell.ports[0].counters().rx.drops.get(DropReason::RingFull), 19 * sent - 256);
    assert_eq!(raised(&mut cell.notices).first(), Some(&(2, interrupt::NET_RX)));
}

#[test]
fn a_burst_waits_for_buffers_and_nobody_waits_behind_it() {
    let mut cell = Cell::new(&[Limits::default(); 2]);
    cell.guests[0].give(8, 2048);
    cell.guests[1].give(8, 2048);
    let sent: Vec<_> = (0..40).map(|i| cell.host_sends(0, &[i; 100])).collect();
    cell.host_sends(1, b"behind");
    assert_eq!(cell.receive(0), Served::Drained);
    assert!(cell.guests[1].receive().is_some());
    assert!(cell.ports[0].is_waited_for() && !cell.ports[1].is_waited_for());
    assert_eq!(cell.guests[0].word(NET_RX + 0x1400).load(Ordering::Relaxed), 0, "it is asked to ring");
    let _ = raised(&mut cell.notices);
    // It exits without having given any.
    cell.uplink.flush(&cell.ports[0], 0, &mut cell.notices);
    assert_eq!(raised(&mut cell.notices), [], "it was told once, and may rest");
    let mut got = Vec::new();
    let mut rounds = 0;
    while cell.ports[0].is_waited_for() {
        while let Some((_, frame)) = cell.guests[0].receive() {
            got.push(frame);
            cell.guests[0].give_back(1);
        }
        // What comes now comes behind.
        cell.uplink.flush(&cell.ports[0], 0, &mut cell.notices);
        assert!(raised(&mut cell.notices).contains(&(2, interrupt::NET_RX)));
        rounds += 1;
        assert!(rounds < 10, "{} of 40", got.len());
    }
    while let Some((_, frame)) = cell.guests[0].receive() {
        got.push(frame);
    }
    assert_eq!(got, sent);
    assert_eq!(cell.ports[0].counters().rx.drops.total(), 0);
    assert_eq!(cell.ports[0].counters().rx.frames(), 40);
}

#[test]
fn who_gives_too_few_buffers_again_is_told_again() {
    let mut cell = Cell::new(&[Limits::default(); 2]);
    cell.guests[0].give(4, 2048);
    cell.guests[1].give(4, 2048);
    let small = cell.host_sends(0, b"small");
    let large = cell.host_sends(0, &[7; 12_000]);
    assert_eq!(cell.receive(0), Served::Drained);
    assert!(raised(&mut cell.notices).contains(&(2, interrupt::NET_RX)));
    // It takes what is there for what it was called for, and gives back that one buffer: four are too few all the same.
    assert_eq!(cell.guests[0].receive().map(|(_, frame)| frame), Some(small));
    cell.guests[0].give_back(1);
    cell.uplink.flush(&cell.ports[0], 0, &mut cell.notices);
    assert_eq!(raised(&mut cell.notices), [(2, interrupt::NET_RX)]);
    cell.uplink.flush(&cell.ports[0], 0, &mut cell.notices);
    assert_eq!(raised(&mut cell.notices), [], "it was told, and has given nothing since");
    cell.guests[0].give(4, 2048);
    cell.uplink.flush(&cell.ports[0], 0, &mut cell.notices);
    assert!(!cell.ports[0].is_waited_for());
    assert_eq!(cell.guests[0].receive().map(|(_, frame)| frame), Some(large));
}

#[test]
fn a_neighbours_flood_leaves_room_for_the_host() {
    let mut cell = Cell::new(&[Limits::default(); 2]);
    let (victim, flooder) = (0, 1);
    cell.guests[victim].give(128, 2048);
    let to = (cell.guests[victim].mac, cell.guests[victim].ipv4);
    let flood = cell.guests[flooder].udp(to, (1, 2), &[7; 64]);
    for _ in 0..4 {
        for _ in 0..100 {
            cell.guests[flooder].send(Header::default(), &flood, &[]);
        }
        assert_eq!(cell.transmit(flooder, 0), (100, Served::Drained));
        cell.guests[flooder].recycle();
    }
    let dropped = |cell: &Cell| cell.ports[victim].counters().rx.drops.get(DropReason::RingFull);
    assert_eq!((cell.ports[victim].counters().rx.frames(), dropped(&cell)), (96, 304));
    for i in 0..32 {
        cell.host_sends(victim, &[i; 64]);
    }
    assert_eq!(cell.receive(0), Served::Drained);
    assert_eq!((cell.ports[victim].counters().rx.frames(), dropped(&cell)), (128, 304));
}

#[test]
fn what_a_neighbour_sends_waits_for_a_guest_that_rests() {
    let mut cell = Cell::new(&[Limits::default(); 2]);
    let (resting, sender) = (0, 1);
    cell.guests[resting].give(4, 2048);
    let to = (cell.guests[resting].mac, cell.guests[resting].ipv4);
    let frame = cell.guests[sender].udp(to, (1, 2), &[7; 64]);
    for _ in 0..100 {
        cell.guests[sender].send(Header::default(), &frame, &[]);
    }
    assert_eq!(cell.transmit(sender, 0), (100, Served::Drained));
    // Four are in its buffers, a quarter of what may wait does, and the rest is lost.
    let (rx, lost) = (cell.ports[resting].counters().rx.frames(), 100 - 4 - 64);
    assert_eq!((rx, cell.ports[resting].counters().rx.drops.get(DropReason::RingFull)), (4, lost));
    assert!(cell.ports[resting].is_waited_for());
    assert!(raised(&mut cell.notices).contains(&(2, interrupt::NET_RX)));
    // The host's frames come behind those, and none of them is lost.
    let sent: Vec<_> = (0..40).map(|i| cell.host_sends(resting, &[i; 100])).collect();
    assert_eq!(cell.receive(0), Served::Drained);
    let mut got = Vec::new();
    for _ in 0..100 {
        while let Some((_, frame)) = cell.guests[resting].receive() {
            got.push(frame);
            cell.guests[resting].give_back(1);
        }
        cell.uplink.flush(&cell.ports[resting], 0, &mut cell.notices);
    }
    assert_eq!(got.len(), 68 + 40);
    assert_eq!(got[68..], sent);
    assert!(!cell.ports[resting].is_waited_for());
}

#[test]
fn limits_drop_or_hold_back() {
    let packets = Limits { tx_packets: Some(100), ..Limits::default() };
    let mut cell = Cell::new(&[
        packets,
        Limits { over_limit: OverLimit::Wait, ..packets },
        Limits { rx_bandwidth: Some(1000), ..Limits::default() },
    ]);
    for guest in 0..2 {
        let frame = cell.guests[guest].udp(HOST, (1, 2), b"x");
        for _ in 0..100 {
            cell.guests[guest].send(Header::default(), &frame, &[]);
        }
    }
    // The burst of 64 passes at once.
    assert_eq!(cell.transmit(0, 0), (100, Served::Drained));
    assert_eq!(cell.ports[0].counters().tx.frames(), 64);
    assert_eq!(cell.ports[0].counters().tx.drops.get(DropReason::RateLimited), 36);
    assert_eq!(cell.transmit(1, 0), (64, Served::Throttled { until_ns: 10 * MS }));
    assert_eq!(cell.guests[1].in_flight(), 36);
    assert_eq!(cell.transmit(1, 10 * MS), (1, Served::Throttled { until_ns: 20 * MS }));
    assert_eq!(cell.transmit(1, 1000 * MS), (35, Served::Drained));
    assert_eq!(cell.ports[1].counters().tx.drops.total(), 0);
    // A large segment costs as many packets as it becomes.
    let (header, frame) = large((cell.guests[1].mac, cell.guests[1].ipv4), HOST, 14_460);
    for _ in 0..10 {
        cell.guests[1].send(header, &frame, &[]);
    }
    assert_eq!(cell.transmit(1, 10_000 * MS).0, 6);
    // Towards the guest: its burst of 128 KiB, then a byte each millisecond.
    cell.guests[2].give(256, 2048);
    for _ in 0..100 {
        cell.host_sends(2, &[0; 1358]);
    }
    cell.receive(0);
    assert_eq!(cell.ports[2].counters().rx.frames(), 93);
    assert_eq!(cell.ports[2].counters().rx.drops.get(DropReason::RateLimited), 7);
}

#[test]
fn bad_frames_are_counted_by_reason_and_end_nobody() {
    let mut cell = Cell::new(&[Limits::default()]);
    let own = (cell.guests[0].mac, cell.guests[0].ipv4);
    let other = (Mac([2, 0xf0, 0, 0, 0, 9]), Ipv4Addr::new(10, 213, 77, 9));
    let (gso, large) = large(own, HOST, 10_000);
    for (header, frame, reason) in [
        (Header::default(), vec![], DropReason::Malformed),
        (Header::default(), vec![1; 13], DropReason::Malformed),
        (Header::default(), udp(own, HOST, (1, 2), b"cut")[..30].to_vec(), DropReason::Malformed),
        (Header::default(), udp(other, HOST, (1, 2), b""), DropReason::ForgedSource),
        (Header::default(), udp(own, other, (1, 2), b""), DropReason::UnknownDestination),
        (Header::default(), udp(own, HOST, (1, 2), &[0; 1473]), DropReason::TooLarge),
        (Header::default(), large.clone(), DropReason::TooLarge),
        (Header { gso_size: 1461, ..gso }, large.clone(), DropReason::TooLarge),
        (Header { gso_size: 10, ..gso }, large.clone(), DropReason::BadOffload),
    ] {
        let before = cell.ports[0].counters().tx.drops.get(reason);
        cell.guests[0].send(header, &frame, &[]);
        assert_eq!(cell.transmit(0, 0), (1, Served::Drained));
        assert_eq!(cell.ports[0].counters().tx.drops.get(reason), before + 1, "{reason:?}");
        assert!(cell.uplink.link().host_receives().is_none());
        assert_eq!(cell.guests[0].in_flight(), 0, "the buffer comes back");
    }
    assert_eq!(cell.notices.faults().count(), 0);
    cell.guests[0].send(Header::default(), &udp(own, HOST, (1, 2), &[0; 1472]), &[]);
    cell.transmit(0, 0);
    assert!(cell.uplink.link().host_receives().is_some(), "the largest packet passes");
}

#[test]
fn the_host_may_have_verified_a_checksum() {
    let mut cell = Cell::new(&[Limits::default()]);
    cell.guests[0].give(4, 2048);
    let frame = udp(HOST, (cell.guests[0].mac, cell.guests[0].ipv4), (1, 2), b"x");
    cell.uplink.link().host_sends(Header { flags: DATA_VALID, ..Header::default() }, &frame);
    cell.receive(0);
    assert_eq!(cell.guests[0].receive().expect("a frame").0.flags, DATA_VALID);
}

#[test]
fn a_port_that_is_removed_is_left_alone_and_can_go_on() {
    let mut cell = Cell::new(&[Limits::default()]);
    cell.guests[0].give(100, 2048);
    for _ in 0..3 {
        cell.host_sends(0, b"before");
    }
    let frame = cell.guests[0].udp(HOST, (1, 2), b"before");
    for _ in 0..5 {
        cell.guests[0].send(Header::default(), &frame, &[]);
    }
    cell.receive(0);
    cell.transmit(0, 0);
    let rings = cell.switch.remove(&cell.ports[0]);
    assert_eq!(rings, RingState { rx: 3, tx: 5 });
    // What comes now is for nobody.
    cell.host_sends(0, b"meanwhile");
    cell.guests[0].send(Header::default(), &frame, &[]);
    cell.receive(0);
    assert_eq!(cell.transmit(0, 0), (0, Served::Drained));
    assert_eq!(cell.uplink.counters().rx.drops.get(DropReason::UnknownDestination), 1);
    assert_eq!(cell.guests[0].in_flight(), 1);
    // The same guest, later.
    cell.ports[0] =
        cell.switch.add(PortConfig { rings, ..cell.guests[0].port(0, Limits::default()) }).expect("room");
    cell.host_sends(0, b"after");
    cell.receive(0);
    assert_eq!(cell.transmit(0, 0).0, 1);
    assert_eq!(std::iter::from_fn(|| cell.guests[0].receive()).count(), 4);
}

#[test]
fn a_frame_that_waits_for_a_removed_port_is_dropped() {
    let mut cell = Cell::new(&[Limits::default()]);
    cell.host_sends(0, b"waits");
    assert_eq!(cell.receive(0), Served::Drained);
    assert!(cell.ports[0].is_waited_for());
    cell.switch.remove(&cell.ports[0]);
    // The frame went with its port; one that comes later is for nobody.
    cell.guests[0].give(4, 2048);
    cell.uplink.flush(&cell.ports[0], 1, &mut cell.notices);
    assert!(cell.guests[0].receive().is_none());
    cell.host_sends(0, b"later");
    assert_eq!(cell.receive(1), Served::Drained);
    assert_eq!(cell.uplink.counters().rx.drops.get(DropReason::UnknownDestination), 1);
}

#[test]
fn indices_wrap() {
    let mut cell = Cell::new(&[Limits::default()]);
    cell.switch.remove(&cell.ports[0]);
    cell.guests[0] = Guest::started_at(2, 65_000);
    let rings = RingState { rx: 65_000, tx: 65_000 };
    let config = PortConfig { rings, ..cell.guests[0].port(0, Limits::default()) };
    cell.ports[0] = cell.switch.add(config).expect("room");
    cell.guests[0].give(256, 512);
    let frame = cell.guests[0].udp(HOST, (1, 2), b"x");
    for i in 0..2000_u32 {
        let sent = cell.host_sends(0, &i.to_le_bytes());
        cell.receive(0);
        assert_eq!(cell.guests[0].receive().expect("a frame").1, sent);
        cell.guests[0].give_back(1);
        cell.guests[0].send(Header::default(), &frame, &[]);
        cell.transmit(0, 0);
        assert!(cell.uplink.link().host_receives().is_some());
        for _ in cell.notices.interrupts() {}
    }
    assert_eq!(cell.notices.faults().count(), 0);
}

/// Frames of all sizes and kinds behind each other, with buffers of every layout: a guest alone gets the same as one
/// with a neighbour, whose frames are copied.
#[test]
fn reading_straight_into_buffers_changes_nothing() {
    for (size, gap) in [(256, 0), (2048, 0), (2048, 64), (16_384, 0), (16_384, 1024)] {
        for alone in [true, false] {
            let mut cell = Cell::new(&vec![Limits::default(); if alone { 1 } else { 2 }]);
            cell.guests[0].give_apart(256, size, gap);
            let to = (cell.guests[0].mac, cell.guests[0].ipv4);
            let mut wanted = Vec::new();
            for (i, payload) in
                [20_000, 60_000, 1, 60_000, 16_400, 65_000, 65_000, 90, 65_000, 30_000].iter().enumerate()
            {
                let (header, mut frame) = large(HOST, to, *payload);
                frame[40] = i as u8;
                cell.uplink.link().host_sends(header, &frame);
                wanted.push(frame);
                // For others: a broadcast, and an address that nobody has.
                if i % 3 == 1 {
                    let (_, other) = large(HOST, (Mac([2, 9, 9, 9, 9, 9]), HOST.1), 20_000);
                    cell.uplink.link().host_sends(header, &other);
                    let arp = wire::who_has(cell.guests[0].ipv4);
                    cell.uplink.link().host_sends(Header::default(), &arp);
                }
            }
            let mut got = Vec::new();
            for round in 0.. {
                let served = cell.receive(round * MS);
                cell.uplink.flush(&cell.ports[0], round * MS, &mut cell.notices);
                let waits = cell.ports[0].is_waited_for();
                while let Some((header, frame)) = cell.guests[0].receive() {
                    assert_eq!(usize::from(header.num_buffers), (frame.len() + 12).div_ceil(size as usize));
                    assert_eq!(header.gso_size, 1446);
                    cell.guests[0].give_back(header.num_buffers);
                    got.push(frame);
                }
                if served == Served::Drained && !waits {
                    break;
                }
            }
            assert!(got == wanted, "buffers of {size}, {gap} apart, alone: {alone}");
            let scattered = cell.uplink.link().scattered();
            assert_eq!(scattered > 0, alone && size > 256, "{scattered} with buffers of {size}");
            let counters = cell.ports[0].counters();
            assert_eq!((counters.rx.frames(), counters.rx.drops.total()), (10, 0));
            assert_eq!(counters.rx.bytes(), wanted.iter().map(|f| f.len() as u64).sum::<u64>());
            assert_eq!(cell.uplink.counters().rx.drops.get(DropReason::UnknownDestination), 3);
            assert_eq!(std::iter::from_fn(|| cell.uplink.link().host_receives()).count(), 3, "ARP answers");
        }
    }
}

#[test]
fn a_ring_that_breaks_behind_a_large_frame_is_reported_once() {
    let mut cell = Cell::new(&[Limits::default()]);
    cell.guests[0].give(256, 2048);
    // The first segment fills 30 buffers; the 50th is broken.
    cell.guests[0].set_available(NET_RX, 50, 0x7777);
    let (header, frame) = large(HOST, (cell.guests[0].mac, cell.guests[0].ipv4), 60_000);
    for _ in 0..3 {
        cell.uplink.link().host_sends(header, &frame);
    }
    assert_eq!(cell.receive(0), Served::Drained);
    let kinds: Vec<_> = cell.notices.faults().map(|(_, fault)| fault.kind).collect();
    assert_eq!(kinds, [foraker_net::FaultKind::NoSuchDescriptor(0x7777)]);
    assert_eq!(cell.guests[0].receive().expect("the first segment").1, frame);
    assert_eq!(cell.ports[0].counters().rx.drops.get(DropReason::Closed), 2);
}

/// Two guests send to each other from two threads, while a third receives and ports come and go.
#[test]
fn threads_do_not_get_in_each_others_way() {
    const FRAMES: u64 = 30_000;
    let Cell { switch, uplink, mut guests, ports, .. } = Cell::new(&[Limits::default(); 2]);
    let stop = AtomicBool::new(false);
    let addresses: Vec<_> = guests.iter().map(|g| (g.mac, g.ipv4)).collect();
    for guest in &mut guests {
        guest.give(256, 512);
    }
    let mut received = [0, 0];
    std::thread::scope(|scope| {
        let workers: Vec<_> = guests
            .iter_mut()
            .enumerate()
            .map(|(me, guest)| {
                let (uplink, port, to) = (&uplink, &ports[me], addresses[1 - me]);
                scope.spawn(move || {
                    let mut notices = Notices::new();
                    let frame = guest.udp(to, (1, 2), &[0; 64]);
                    let (mut sent, mut received) = (0, 0);
                    while sent < FRAMES {
                        while guest.in_flight() < 32 && sent < FRAMES {
                            guest.send(Header::default(), &frame, &[]);
                            sent += 1;
                        }
                        uplink.transmit(port, 16, usize::MAX, 0, &mut notices);
                        received += u64::from(guest.recycle());
                        for _ in notices.interrupts() {}
                        assert_eq!(notices.faults().count(), 0);
                    }
                    while guest.in_flight() > 0 {
                        uplink.transmit(port, 16, usize::MAX, 0, &mut notices);
                    }
                    received
                })
            })
            .collect();
        scope.spawn(|| {
            let mut notices = Notices::new();
            let mut number = 0_u8;
            while !stop.load(Ordering::Relaxed) {
                number = number % 100 + 1;
                let mut extra = Guest::new(100 + number);
                extra.give(8, 512);
                let port = switch.add(extra.port(u32::from(number % 3), Limits::default())).expect("room");
                let frame = udp(HOST, (extra.mac, extra.ipv4), (1, 2), b"x");
                uplink.link().host_sends(Header::default(), &frame);
                uplink.receive(64, 0, &mut notices).expect("a link");
                switch.remove(&port);
                for _ in notices.interrupts() {}
            }
        });
        for (worker, received) in workers.into_iter().zip(&mut received) {
            *received = worker.join().expect("no panic");
        }
        stop.store(true, Ordering::Relaxed);
    });
    for (me, received) in received.into_iter().enumerate() {
        let counters = ports[me].counters();
        assert_eq!(counters.tx.frames() + counters.tx.drops.total(), FRAMES);
        assert_eq!(counters.rx.frames() + counters.rx.drops.get(DropReason::RingFull), FRAMES);
        let late = u64::from(guests[me].recycle());
        assert_eq!(received + late, counters.rx.frames());
    }
}

/// An acknowledgement is reported apart, so that its guest can say whether it wants to hear of it; with anything else, it is an interrupt.
#[test]
fn a_bare_acknowledgement_is_reported_as_one() {
    let mut cell = Cell::new(&[Limits::default()]);
    cell.guests[0].give(64, 2048);
    let to = (cell.guests[0].mac, cell.guests[0].ipv4);
    let mut tcp = [0_u8; 20];
    tcp[..14].copy_from_slice(&[0xc3, 0x50, 0, 80, 0, 0, 0, 0, 1, 2, 3, 4, 0x50, 0x10]);
    let (first, second) = (ipv4(HOST, to, 6, &tcp), {
        tcp[11] = 9;
        ipv4(HOST, to, 6, &tcp)
    });
    let number = foraker_abi::control::awaited(50000, 80, 0x0102_0304);
    let mut hear = |frames: &[&Vec<u8>]| {
        frames.iter().for_each(|frame| cell.uplink.link().host_sends(Header::default(), frame));
        assert_eq!(cell.receive(0), Served::Drained);
        for _ in frames {
            assert!(cell.guests[0].receive().is_some(), "it is in the ring all the same");
            cell.guests[0].give_back(1);
        }
        let heard: Vec<_> =
            cell.notices.acknowledgements().map(|(port, number)| (port.id(), number)).collect();
        (heard, raised(&mut cell.notices))
    };
    assert_eq!(hear(&[&first]), (vec![(2, number)], vec![]));
    assert_eq!(hear(&[&first, &first]), (vec![(2, number)], vec![]), "it was sent twice");
    let loud = (vec![], vec![(2, interrupt::NET_RX)]);
    assert_eq!(hear(&[&first, &second]), loud, "two of them");
    let data = udp(HOST, to, (1, 2), b"data");
    assert_eq!(hear(&[&first, &data]), loud);
    assert_eq!(hear(&[&data, &first]), loud);
    assert_eq!(hear(&[&second]), (vec![(2, number & !0xff | 9)], vec![]));
}

/// A guest that rests with fewer buffers than a frame needs is woken to give more.
#[test]
fn a_frame_that_needs_more_buffers_wakes_its_guest() {
    let mut cell = Cell::new(&[Limits::default()]);
    cell.guests[0].give(8, 2048);
    let (header, frame) = large(HOST, (cell.guests[0].mac, cell.guests[0].ipv4), 60_000);
    cell.uplink.link().host_sends(header, &frame);
    assert_eq!(cell.receive(0), Served::Drained);
    assert_eq!(raised(&mut cell.notices), [(2, interrupt::NET_RX)]);
    assert!(cell.guests[0].receive().is_none(), "it is not there yet");
    cell.guests[0].give(40, 2048);
    cell.uplink.flush(&cell.ports[0], 1, &mut cell.notices);
    assert_eq!(raised(&mut cell.notices), [(2, interrupt::NET_RX)]);
    assert!(cell.guests[0].receive().expect("a frame").1 == frame);
}
