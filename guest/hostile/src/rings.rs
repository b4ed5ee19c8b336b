//! Guests that corrupt a ring field, or send what nobody may send.
//!
//! A ring that means nothing ends the guest. A frame that may not be sent, or that is none, is refused and counted:
//! such a case has an honest frame answered before and after.

use core::sync::atomic::Ordering;

use foraker_abi::layout;
use foraker_abi::net::{GSO_NONE, GSO_TCPV4, GSO_TCPV6, HEADER_SIZE, Header, MAX_CHAIN, NEEDS_CSUM};
use foraker_abi::ring::{DESC_NEXT, DESC_WRITE, QUEUE_SIZE};
use guest_libos::{println, registers};

use crate::case::{Case, Verdict, all, case, check};
use crate::frame::{self, BROADCAST, Frame, own};
use crate::guest::{self, call};
use crate::raw_ring::{BUFFER, IN, OUT, RX, TX, serve};

const WILD: u64 = 0x3000_0000_0000;
/// Indirect descriptors, which are not offered.
const DESC_INDIRECT: u16 = 4;
/// The descriptor that honest frames use; the deeds use those below.
const HONEST: u16 = QUEUE_SIZE - 1;
/// An honest header and ARP request.
const ARP_BUFFER: u32 = (HEADER_SIZE + frame::ARP) as u32;

/// The cases.
pub(crate) const CASES: &[Case] = &[
    case("tx-index-jump", || {
        breaks(|| {
            TX.avail_index().fetch_add(QUEUE_SIZE + 44, Ordering::SeqCst);
        })
    }),
    case("tx-index-back", || {
        breaks(|| {
            TX.avail_index().fetch_sub(1, Ordering::SeqCst);
        })
    }),
    case("tx-head-first", || breaks(|| TX.publish(QUEUE_SIZE))),
    case("tx-head-last", || breaks(|| TX.publish(u16::MAX))),
    case("tx-next-first", || breaks(|| header_then_next(QUEUE_SIZE))),
    case("tx-next-last", || breaks(|| header_then_next(u16::MAX))),
    case("tx-chain-self", || breaks(|| header_then_next(0))),
    case("tx-chain-loop", || {
        breaks(|| {
            arp();
            TX.describe(0, OUT.address(), 12, DESC_NEXT, 1);
            TX.describe(1, OUT.address(), 16, DESC_NEXT, 2);
            TX.describe(2, OUT.address(), 16, DESC_NEXT, 1);
            TX.publish(0);
        })
    }),
    case("tx-chain-longest", tx_chain_longest),
    case("tx-chain-long", || breaks(|| chain(MAX_CHAIN as u16 + 1, 3))),
    case("tx-chain-all", || breaks(|| chain(QUEUE_SIZE - 2, 1))),
    case("tx-address-null", || breaks(|| payload_at(0))),
    case("tx-address-wild", || breaks(|| payload_at(WILD))),
    case("tx-address-wrap", || breaks(|| payload_at(u64::MAX - 15))),
    case("tx-address-supervisor", || breaks(|| payload_at(layout::SUPERVISOR_BASE))),
    case("tx-address-fault-stack", || breaks(|| payload_at(layout::FAULT_STACK))),
    case("tx-address-page-tables", || breaks(|| payload_at(registers().memory_end))),
    case("tx-address-behind", || breaks(|| payload_at(registers().memory_start + registers().memory_size))),
    case("tx-address-straddle", || breaks(|| payload_at(registers().memory_end - 8))),
    case("tx-zero-length", || breaks(|| one(0))),
    case("tx-header-truncated", || breaks(|| one(HEADER_SIZE as u32 - 1))),
    case("tx-header-only", || refused(|| one(HEADER_SIZE as u32))),
    case("tx-runt", || refused(|| one(HEADER_SIZE as u32 + 13))),
    case("tx-huge-length", || breaks(|| one(u32::MAX))),
    case("tx-huge-sum", || breaks(huge_sum)),
    case("tx-wrong-direction", || {
        breaks(|| {
            let length = arp();
            TX.describe(0, OUT.address(), length, DESC_WRITE, 0);
            TX.publish(0);
        })
    }),
    case("tx-indirect", || {
        breaks(|| {
            let length = arp();
            TX.describe(0, OUT.address(), length, DESC_INDIRECT, 0);
            TX.publish(0);
        })
    }),
    case("tx-too-long", || {
        refused(|| {
            let segment = frame::tcp::<3054>(BROADCAST, own(), frame::gateway(), 3000);
            post(segment.bytes());
        })
    }),
    case("tx-same-head-often", tx_same_head_often),
    case("tx-used-scribble", || scribble_used(0xff)),
    case("tx-used-zero", || scribble_used(0)),
    case("tx-ring-ones", || breaks(|| TX.scribble(|| 0xff))),
    case("rx-ring-ones", || {
        breaks(|| {
            RX.scribble(|| 0xff);
            honest_send();
        })
    }),
    case("rings-random", || breaks(rings_random)),
    case("offload-flags", || breaks(|| segment(GSO_TCPV4, |h| h.flags = 0x81))),
    case("offload-buffers", || breaks(|| segment(GSO_TCPV4, |h| h.num_buffers = 1))),
    case("offload-gso-without-csum", || breaks(|| segment(GSO_TCPV4, |h| h.flags = 0))),
    case("offload-gso-unknown", || breaks(|| segment(9, |_| ()))),
    case("offload-gso-ecn", || breaks(|| segment(GSO_TCPV4 | 0x80, |_| ()))),
    case("offload-gso-size-zero", || breaks(|| segment(GSO_TCPV4, |h| h.gso_size = 0))),
    case("offload-header-length", || breaks(|| segment(GSO_TCPV4, |h| h.hdr_len = 3055))),
    case("offload-csum-start", || breaks(|| segment(GSO_TCPV4, |h| h.csum_start = 3054))),
    case("offload-csum-offset", || breaks(|| segment(GSO_TCPV4, |h| h.csum_offset = u16::MAX))),
    case("offload-csum-elsewhere", || refused(|| segment(GSO_TCPV4, |h| h.csum_start = 20))),
    case("offload-gso-wrong-family", || refused(|| segment(GSO_TCPV6, |_| ()))),
    case("offload-gso-tiny", || refused(|| segment(GSO_TCPV4, |h| h.gso_size = 1))),
    case("offload-gso-udp", || refused(segment_udp)),
    case("offload-gso-arp", || {
        refused(|| {
            honest_with(Header {
                flags: NEEDS_CSUM,
                gso_type: GSO_TCPV4,
                hdr_len: 42,
                gso_size: 1000,
                ..ZERO
            })
        })
    }),
    case("forged-mac", || {
        refused(|| {
            let mut from = own();
            from.mac[5] ^= 0x55;
            post(frame::udp::<64>(BROADCAST, from, frame::gateway(), 16).bytes());
        })
    }),
    case("forged-mac-group", || {
        refused(|| {
            let mut from = own();
            from.mac = BROADCAST;
            post(frame::udp::<64>(BROADCAST, from, frame::gateway(), 16).bytes());
        })
    }),
    case("forged-ipv4", || {
        refused(|| {
            let mut from = own();
            from.ipv4[3] ^= 0x40;
            post(frame::udp::<64>(BROADCAST, from, frame::gateway(), 16).bytes());
        })
    }),
    case("forged-gateway", || {
        refused(|| {
            let mut from = own();
            from.ipv4 = frame::gateway();
            post(frame::udp::<64>(BROADCAST, from, own().ipv4, 16).bytes());
        })
    }),
    case("forged-arp-mac", || {
        refused(|| {
            let own = own();
            let mut other = own.mac;
            other[5] ^= 0x55;
            post(frame::arp_request(own.mac, (other, own.ipv4), frame::gateway()).bytes());
        })
    }),
    case("forged-arp-ipv4", || {
        refused(|| {
            let own = own();
            post(frame::arp_request(own.mac, (own.mac, frame::gateway()), own.ipv4).bytes());
        })
    }),
    case("forged-arp-reply", || {
        refused(|| {
            let own = own();
            let mut reply = frame::arp_request(own.mac, (own.mac, frame::gateway()), own.ipv4);
            reply.set(21, 2);
            post(reply.bytes());
        })
    }),
    case("forged-ipv6", || {
        refused(|| {
            let own = own();
            let mut source = own.ipv6;
            source[0] = 0xfe;
            source[1] = 0x80;
            source[15] ^= 0x55;
            let all_nodes = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
            post(frame::ipv6::<64>([0x33, 0x33, 0, 0, 0, 1], own.mac, source, all_nodes).bytes());
        })
    }),
    case("forged-vlan", || {
        refused(|| {
            let mut tagged = Frame::<64>::new(BROADCAST, own().mac, 0x8100);
            tagged.put(&[0, 5, 8, 0, 0x45]);
            tagged.pad(40);
            post(tagged.bytes());
        })
    }),
    case("apart-arp", || {
        refused(|| {
            let own = own();
            post(frame::arp_request(own.mac, (own.mac, own.ipv4), frame::neighbour().1).bytes());
        })
    }),
    case("apart-direct", || {
        refused(|| {
            let (mac, ipv4) = frame::neighbour();
            post(frame::udp::<64>(mac, own(), ipv4, 16).bytes());
        })
    }),
    // The host would route it back to where it came from.
    case("apart-by-gateway", || refused(|| by_gateway(frame::neighbour().1))),
    // Where another cell's guests are, or may be.
    case("apart-other-cell", || refused(|| by_gateway([10, 105, 0, 2]))),
    case("ipv4-truncated", || {
        refused(|| {
            let mut short = Frame::<64>::new(BROADCAST, own().mac, 0x0800);
            short.put(&[0x45, 0, 0]);
            post(short.bytes());
        })
    }),
    case("rx-index-jump", || {
        rx_breaks(|| {
            RX.avail_index().fetch_add(QUEUE_SIZE + 44, Ordering::SeqCst);
        })
    }),
    case("rx-head-last", || rx_breaks(|| RX.publish(u16::MAX))),
    case("rx-chain", || rx_breaks(|| rx_chain(1))),
    case("rx-chain-self", || rx_breaks(|| rx_chain(0))),
    case("rx-wrong-direction", || rx_breaks(|| rx_at(IN[0].address(), 2048, 0))),
    case("rx-indirect", || rx_breaks(|| rx_at(IN[0].address(), 2048, DESC_INDIRECT | DESC_WRITE))),
    case("rx-address-null", || rx_breaks(|| rx_at(0, 2048, DESC_WRITE))),
    case("rx-address-wild", || rx_breaks(|| rx_at(WILD, 2048, DESC_WRITE))),
    case("rx-address-wrap", || rx_breaks(|| rx_at(u64::MAX - 1023, 2048, DESC_WRITE))),
    case("rx-address-supervisor", || rx_breaks(|| rx_at(layout::SUPERVISOR_BASE, 2048, DESC_WRITE))),
    case("rx-address-fault-stack", || rx_breaks(|| rx_at(layout::FAULT_STACK, 2048, DESC_WRITE))),
    case("rx-address-page-tables", || rx_breaks(|| rx_at(registers().memory_end, 2048, DESC_WRITE))),
    case("rx-address-straddle", || rx_breaks(|| rx_at(registers().memory_end - 1024, 2048, DESC_WRITE))),
    case("rx-address-text", || {
        rx_breaks(|| rx_at(crate::instruction::ud2 as *const () as u64, 2048, DESC_WRITE))
    }),
    case("rx-address-rodata", || rx_breaks(|| rx_at(CONSTANT.as_ptr() as u64, 2048, DESC_WRITE))),
    case("rx-address-registers", || rx_breaks(|| rx_at(layout::REGISTERS, 2048, DESC_WRITE))),
    case("rx-address-boot", || rx_breaks(|| rx_at(layout::BOOT, 2048, DESC_WRITE))),
    case("rx-zero-length", || rx_breaks(|| rx_at(IN[0].address(), 0, DESC_WRITE))),
    case("rx-short", || rx_breaks(|| rx_at(IN[0].address(), 255, DESC_WRITE))),
    case("rx-huge-length", || rx_breaks(|| rx_at(IN[0].address(), u32::MAX, DESC_WRITE))),
    case("rx-no-buffers", rx_no_buffers),
    case("rx-used-scribble", || {
        let verdict = probe();
        RX.scribble_used(0xff);
        // The VMM keeps its own index, and puts right what stands here.
        all([verdict, probe()])
    }),
];

/// Read-only data as long as a receive buffer.
static CONSTANT: [u8; 2048] = [0x77; 2048];
/// No offload.
const ZERO: Header =
    Header { flags: 0, gso_type: 0, hdr_len: 0, gso_size: 0, csum_start: 0, csum_offset: 0, num_buffers: 0 };

/// Frames sent and refused, as the virtual registers count them.
fn counted() -> (u64, u64) {
    let counters = &registers().counters;
    (counters.tx_frames.load(Ordering::SeqCst), counters.tx_dropped.load(Ordering::SeqCst))
}

/// Puts an honest ARP request into the buffer; returns its length, header included.
fn arp() -> u32 {
    OUT.fill(ZERO, frame::honest_arp().bytes())
}

/// Sends whatever the buffer holds, as one descriptor of `length` bytes.
fn one(length: u32) {
    arp();
    TX.describe(0, OUT.address(), length, 0, 0);
    TX.publish(0);
}

/// Sends a frame with a header that asks for nothing.
fn post(bytes: &[u8]) {
    let length = OUT.fill(ZERO, bytes);
    TX.describe(0, OUT.address(), length, 0, 0);
    TX.publish(0);
}

/// Sends an honest frame behind any header.
fn honest_with(header: Header) {
    let length = OUT.fill(header, frame::honest_arp().bytes());
    TX.describe(0, OUT.address(), length, 0, 0);
    TX.publish(0);
}

/// An honest header, then a descriptor that does not exist or was there before.
fn header_then_next(next: u16) {
    arp();
    TX.describe(0, OUT.address(), HEADER_SIZE as u32, DESC_NEXT, next);
    TX.publish(0);
}

/// An honest header, then a payload at an address that is not the guest's.
fn payload_at(address: u64) {
    arp();
    TX.describe(0, OUT.address(), HEADER_SIZE as u32, DESC_NEXT, 1);
    TX.describe(1, address, frame::ARP as u32, 0, 0);
    TX.publish(0);
}

/// An honest frame in `count` descriptors, `bytes` in each but the last.
fn chain(count: u16, bytes: u32) {
    let length = arp();
    for i in 0..count {
        let offset = u64::from(u32::from(i) * bytes % length);
        let last = i == count - 1;
        let flags = if last { 0 } else { DESC_NEXT };
        TX.describe(i, OUT.address() + offset, bytes, flags, if last { 0 } else { i + 1 });
    }
    TX.publish(0);
}

/// Descriptors that are all the guest's own, and together longer than any frame.
fn huge_sum() {
    arp();
    let heap = registers().heap_start;
    TX.describe(0, OUT.address(), ARP_BUFFER, DESC_NEXT, 1);
    for i in 1..5 {
        TX.describe(i, heap, 60_000, if i == 4 { 0 } else { DESC_NEXT }, i + 1);
    }
    TX.publish(0);
}

/// Sends a TCP segment of 3,000 payload bytes to be segmented, with one thing wrong.
fn segment(gso_type: u8, spoil: impl Fn(&mut Header)) {
    let mut header = Header {
        flags: NEEDS_CSUM,
        gso_type,
        hdr_len: 54,
        gso_size: if gso_type == GSO_NONE { 0 } else { 1400 },
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 0,
    };
    spoil(&mut header);
    let segment = frame::tcp::<3054>(BROADCAST, own(), frame::gateway(), 3000);
    let length = OUT.fill(header, segment.bytes());
    TX.describe(0, OUT.address(), length, 0, 0);
    TX.publish(0);
}

/// Asks for the TCP segmentation of a UDP packet.
fn segment_udp() {
    let header = Header {
        flags: NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: 42,
        gso_size: 1000,
        csum_start: 34,
        csum_offset: 6,
        num_buffers: 0,
    };
    let packet = frame::udp::<3042>(BROADCAST, own(), frame::gateway(), 3000);
    let length = OUT.fill(header, packet.bytes());
    TX.describe(0, OUT.address(), length, 0, 0);
    TX.publish(0);
}

/// Sends the honest question.
fn honest_send() -> Verdict {
    let length = arp();
    TX.describe(HONEST, OUT.address(), length, 0, 0);
    TX.publish(HONEST);
    check(serve() == 0, "the doorbell returns 0")
}

/// Gives all receive buffers.
fn give_buffers() {
    for (i, buffer) in (0u16..).zip(&IN) {
        RX.describe(i, buffer.address(), BUFFER as u32, DESC_WRITE, 0);
        RX.publish(i);
    }
}

/// Asks for the gateway by ARP until it answers, three times at most.
fn probe() -> Verdict {
    check((0..3).any(|_| answered()), "the gateway answers an honest question")
}

/// Asks once, and looks for the answer in every receive buffer.
fn answered() -> bool {
    for buffer in &IN {
        buffer.fill(ZERO, &[0; frame::ARP]);
    }
    give_buffers();
    if honest_send() != Verdict::Held {
        return false;
    }
    let end = guest_libos::now() + 200_000_000;
    while guest_libos::now() < end {
        guest::control(0).pending.swap(0, Ordering::SeqCst);
        if IN.iter().any(is_answer) {
            return true;
        }
        call(foraker_abi::hypercall::IDLE, [guest_libos::now() + 5_000_000, 0, 0, 0, 0]);
    }
    false
}

/// Whether a buffer holds an ARP reply of the gateway.
fn is_answer(buffer: &crate::raw_ring::Buffer) -> bool {
    let mut bytes = [0; frame::ARP];
    buffer.frame(&mut bytes);
    bytes[12..14] == [8, 6] && bytes[20..22] == [0, 2] && bytes[28..32] == frame::gateway()
}

/// Sends a packet for somebody else to the gateway, whose answer is still where it was received.
fn by_gateway(target: [u8; 4]) {
    let mut answer = [0; frame::ARP];
    if let Some(buffer) = IN.iter().find(|buffer| is_answer(buffer)) {
        buffer.frame(&mut answer);
    }
    let mac = answer[6..].first_chunk().copied().unwrap_or_default();
    post(frame::udp::<64>(mac, own(), target, 16).bytes());
}

/// A deed that concerns one frame: it is refused and counted, its buffer comes back, and the ring goes on.
fn refused(deed: impl Fn()) -> Verdict {
    let before = probe();
    let (sent, dropped) = counted();
    let used = TX.used_index().load(Ordering::SeqCst);
    deed();
    settle();
    let (sent_now, dropped_now) = counted();
    let used_now = TX.used_index().load(Ordering::SeqCst);
    let holds = sent_now == sent && dropped_now == dropped + 1 && used_now == used.wrapping_add(1);
    if !holds {
        println!(
            "FAIL sent +{}, refused +{}, buffers back +{}",
            sent_now.wrapping_sub(sent),
            dropped_now.wrapping_sub(dropped),
            used_now.wrapping_sub(used)
        );
    }
    all([before, check(holds, "refused, counted, and given back"), probe()])
}

/// Has the rings served, whoever serves them, until nothing waits in the transmit ring.
fn settle() {
    let end = guest_libos::now() + 100_000_000;
    loop {
        serve();
        if TX.used_index().load(Ordering::SeqCst) == TX.avail_index().load(Ordering::SeqCst) {
            break;
        }
        if guest_libos::now() > end {
            break;
        }
    }
    // Counters are brought up to date when rings are served and at exits.
    call(foraker_abi::hypercall::NOP, [0; 5]);
}

/// A deed behind which the ring means nothing: it ends the guest.
fn breaks(deed: impl Fn()) -> Verdict {
    let verdict = probe();
    if verdict != Verdict::Held {
        return verdict;
    }
    println!("expect");
    deed();
    wait_for_the_end()
}

/// The same for the receive ring: the answer to an honest question finds the bad buffer, and no other.
fn rx_breaks(deed: impl Fn()) -> Verdict {
    println!("expect");
    deed();
    honest_send();
    wait_for_the_end()
}

/// Who serves the rings need not be the core that rang: the end may come a little later.
fn wait_for_the_end() -> Verdict {
    serve();
    let end = guest_libos::now() + 2_000_000_000;
    while guest_libos::now() < end {
        guest::control(0).pending.swap(0, Ordering::SeqCst);
        call(foraker_abi::hypercall::IDLE, [guest_libos::now() + 50_000_000, 0, 0, 0, 0]);
    }
    Verdict::WentOn
}

/// As many descriptors as a frame may have are no fault.
fn tx_chain_longest() -> Verdict {
    let before = probe();
    let (sent, _) = counted();
    arp();
    for i in 0..MAX_CHAIN as u16 {
        let last = i + 1 == MAX_CHAIN as u16;
        let length = if last { ARP_BUFFER - 2 * u32::from(i) } else { 2 };
        TX.describe(i, OUT.address() + 2 * u64::from(i), length, if last { 0 } else { DESC_NEXT }, i + 1);
    }
    TX.publish(0);
    settle();
    all([before, check(counted().0 == sent + 1, "the longest chain is sent"), probe()])
}

/// One descriptor made available as often as the ring is long: strange, and harmless.
fn tx_same_head_often() -> Verdict {
    let before = probe();
    let length = arp();
    TX.describe(0, OUT.address(), length, 0, 0);
    for _ in 0..QUEUE_SIZE {
        TX.publish(0);
    }
    settle();
    all([before, probe()])
}

/// Answers that are more than may wait for buffers.
const MANY: usize = 80;

/// A guest that gives no buffers gets no frames. Some wait for it; what is more than that is counted.
fn rx_no_buffers() -> Verdict {
    let dropped = || registers().counters.rx_dropped.load(Ordering::SeqCst);
    let before = dropped();
    let send = all((0..MANY).map(|_| honest_send()));
    settle();
    all([send, check(dropped() > before, "a frame without a buffer is counted"), probe()])
}

/// The used ring belongs to the VMM, but the guest can write it: the VMM believes its own index.
fn scribble_used(byte: u8) -> Verdict {
    let before = probe();
    let (sent, _) = counted();
    TX.scribble_used(byte);
    let send = honest_send();
    call(foraker_abi::hypercall::IDLE, [guest_libos::now() + 5_000_000, 0, 0, 0, 0]);
    all([before, send, check(counted().0 == sent + 1, "the frame behind the scribble is sent")])
}

/// Writes what a simple generator gives into both rings, and has them served, many times.
fn rings_random() {
    let mut state = u64::from_le_bytes(*b"any seed") ^ guest_libos::now();
    println!("seed {state:#x}");
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..300 {
        for _ in 0..64 {
            let transmit = next() & 1 == 0;
            let ring = if transmit { TX } else { RX };
            let index = (next() % u64::from(QUEUE_SIZE)) as u16;
            let address = match next() % 4 {
                0 => next(),
                1 => registers().memory_start + next() % registers().memory_size,
                2 => layout::IMAGE_BASE + next() % 0x1_0000,
                _ => OUT.address(),
            };
            // A receive buffer that is the guest's own may be written: keep it away from this program's own state.
            let is_own = (registers().memory_start..registers().memory_end).contains(&address);
            let address = if !transmit && is_own { IN[0].address() } else { address };
            let length = if next() & 1 == 0 { next() as u32 } else { (next() % 4096) as u32 };
            let length = if transmit { length } else { length % BUFFER as u32 };
            ring.describe(index, address, length, (next() & 7) as u16, (next() & 0x1ff) as u16);
            ring.publish((next() & 0x1ff) as u16);
        }
        if round % 50 == 49 {
            TX.avail_index().store(next() as u16, Ordering::SeqCst);
            RX.avail_index().store(next() as u16, Ordering::SeqCst);
        }
        serve();
    }
}

/// Gives one receive buffer.
fn rx_at(address: u64, length: u32, flags: u16) {
    RX.describe(100, address, length, flags, 0);
    RX.publish(100);
}

/// Gives a receive buffer of more than one descriptor.
fn rx_chain(next: u16) {
    RX.describe(0, IN[0].address(), 2048, DESC_WRITE | DESC_NEXT, next);
    RX.describe(1, IN[1].address(), 2048, DESC_WRITE, 0);
    RX.publish(0);
}
