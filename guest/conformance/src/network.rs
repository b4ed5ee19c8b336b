//! The virtual ethernet, through the rings themselves: ARP and ICMP with the gateway.

use core::sync::atomic::{AtomicU16, Ordering, fence};

use foraker_abi::hypercall::{DEVICE_NET, DOORBELL, IDLE, NOP};
use foraker_abi::interrupt;
use foraker_abi::layout::{NET_RX, NET_TX};
use foraker_abi::net::HEADER_SIZE;
use foraker_abi::ring::{AVAIL_OFFSET, DESC_WRITE, Descriptor, QUEUE_SIZE, USED_OFFSET, UsedElement};
use guest_libos::registers::control;
use guest_libos::{now, registers};

use crate::calls::call;
use crate::report::Report;

/// Bytes of one receive buffer: small, so that a full packet needs several.
const BUFFER: usize = 512;
/// Receive buffers, adjacent.
const BUFFERS: usize = 64;
/// How long to wait for an answer.
const PATIENCE_NS: u64 = 5_000_000_000;
/// Bytes of an ICMP echo's headers: ethernet, IPv4, ICMP.
const ECHO: usize = 14 + 20 + 8;

#[repr(C, align(4096))]
struct Area<const N: usize>(core::cell::UnsafeCell<[u8; N]>);
// SAFETY: one core uses it; the VMM is the other side, and accesses are volatile.
unsafe impl<const N: usize> Sync for Area<N> {}

static RECEIVE: Area<{ BUFFER * BUFFERS }> = Area(core::cell::UnsafeCell::new([0; BUFFER * BUFFERS]));
static TRANSMIT: Area<4096> = Area(core::cell::UnsafeCell::new([0; 4096]));

fn word(address: u64) -> &'static AtomicU16 {
    // SAFETY: callers name 16-bit words of the rings, which are mapped for the guest's whole life.
    unsafe { &*(address as *const AtomicU16) }
}

fn describe(ring: u64, index: usize, descriptor: Descriptor) {
    // SAFETY: callers' indices are below `QUEUE_SIZE`.
    unsafe { ((ring + index as u64 * 16) as *mut Descriptor).write_volatile(descriptor) };
}

fn publish(ring: u64, head: u16) {
    let index = word(ring + AVAIL_OFFSET + 2).load(Ordering::Relaxed);
    word(ring + AVAIL_OFFSET + 4 + u64::from(index % QUEUE_SIZE) * 2).store(head, Ordering::Relaxed);
    fence(Ordering::Release);
    word(ring + AVAIL_OFFSET + 2).store(index.wrapping_add(1), Ordering::Release);
}

fn used_index(ring: u64) -> u16 {
    word(ring + USED_OFFSET + 2).load(Ordering::Acquire)
}

fn used(ring: u64, index: u16) -> UsedElement {
    let place = ring + USED_OFFSET + 4 + u64::from(index % QUEUE_SIZE) * 8;
    // SAFETY: within the used ring.
    unsafe { (place as *const UsedElement).read_volatile() }
}

/// What the rings hold at the first instruction.
pub(crate) fn initial(report: &mut Report) {
    for (name, ring) in [("ring.rx_initial", NET_RX), ("ring.tx_initial", NET_TX)] {
        let avail = word(ring + AVAIL_OFFSET + 2).load(Ordering::SeqCst);
        report.equal(name, (avail, used_index(ring)), (0, 0));
        // SAFETY: within the descriptor table.
        let empty = (0..u64::from(QUEUE_SIZE) * 2)
            .all(|i| unsafe { ((ring + i * 8) as *const u64).read_volatile() } == 0);
        report.check(name, empty, format_args!("descriptors are not empty"));
    }
}

pub(crate) fn run(report: &mut Report) {
    if registers().net.present == 0 {
        return;
    }
    let mut link = Link { received: 0, given: 0 };
    link.give(BUFFERS as u16);
    let gateway = registers().net.gateway4;
    arp(report, &mut link, gateway);
    echo(report, &mut link, gateway, 56);
    echo(report, &mut link, gateway, usize::from(registers().net.mtu) - 28);
    in_order(report, &mut link);
    if let Some(address) = peer() {
        arp(report, &mut link, address);
        echo(report, &mut link, address, 1000);
    }
    counters(report);
}

/// The address of another guest, which answers ICMP echoes, in the variable `PEER`.
fn peer() -> Option<[u8; 4]> {
    let mut bytes = guest_libos::env("PEER")?.split('.').map(str::parse);
    let mut next = || bytes.next()?.ok();
    Some([next()?, next()?, next()?, next()?])
}

/// The receiving side: which used elements were looked at, and how many buffers were given.
struct Link {
    received: u16,
    given: u16,
}

impl Link {
    /// Gives the next buffers in the order of their addresses.
    fn give(&mut self, count: u16) {
        for _ in 0..count {
            let index = usize::from(self.given) % BUFFERS;
            let address = RECEIVE.0.get() as u64 + (index * BUFFER) as u64;
            describe(
                NET_RX,
                index,
                Descriptor { address, length: BUFFER as u32, flags: DESC_WRITE, next: 0 },
            );
            publish(NET_RX, index as u16);
            self.given = self.given.wrapping_add(1);
        }
    }

    /// Sends a frame behind an empty header, and waits until its buffer came back.
    fn send(&self, frame: &[u8]) -> bool {
        let place = TRANSMIT.0.get().cast::<u8>();
        for (at, byte) in [0u8; HEADER_SIZE].iter().chain(frame).enumerate().take(4096) {
            // SAFETY: within the area.
            unsafe { place.add(at).write_volatile(*byte) };
        }
        let length = (HEADER_SIZE + frame.len()) as u32;
        // The descriptor after the last one, so that all of them get used.
        let index = word(NET_TX + AVAIL_OFFSET + 2).load(Ordering::Relaxed);
        let head = index % QUEUE_SIZE;
        describe(NET_TX, usize::from(head), Descriptor { address: place as u64, length, flags: 0, next: 0 });
        publish(NET_TX, head);
        let end = now() + PATIENCE_NS;
        while now() < end {
            call(DOORBELL, [DEVICE_NET, 0, 0, 0, 0]);
            if used_index(NET_TX) == index.wrapping_add(1) {
                return used(NET_TX, index).id == u32::from(head);
            }
        }
        false
    }

    /// The next frame: its bytes in `out`, its length, and how many buffers it filled.
    fn receive(&mut self, out: &mut [u8]) -> Option<(usize, u16)> {
        let end = now() + PATIENCE_NS;
        while used_index(NET_RX) == self.received {
            if now() > end {
                return None;
            }
            control().pending.fetch_and(!interrupt::NET_RX, Ordering::SeqCst);
            if used_index(NET_RX) == self.received {
                call(IDLE, [now() + 10_000_000, 0, 0, 0, 0]);
            }
        }
        let first = usize::from(self.received) % BUFFERS;
        let count = u16::from_le_bytes([self.byte(first, 10), self.byte(first, 11)]);
        let (mut length, mut skipped) = (0, 0);
        for _ in 0..count {
            let element = used(NET_RX, self.received);
            for at in 0..element.length as usize {
                if skipped < HEADER_SIZE {
                    skipped += 1;
                } else if let Some(place) = out.get_mut(length) {
                    *place = self.byte(element.id as usize % BUFFERS, at);
                    length += 1;
                }
            }
            self.received = self.received.wrapping_add(1);
        }
        self.give(count);
        Some((length, count))
    }

    fn byte(&self, buffer: usize, at: usize) -> u8 {
        let place = RECEIVE.0.get().cast::<u8>();
        // SAFETY: `buffer` is below `BUFFERS`, `at` below `BUFFER` for honest used elements, and is cut here.
        unsafe { place.add(buffer * BUFFER + at % BUFFER).read_volatile() }
    }
}

/// Asks for a neighbour's ethernet address.
fn arp(report: &mut Report, link: &mut Link, target: [u8; 4]) {
    let net = &registers().net;
    let mut frame = [0u8; 42];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&net.mac);
    frame[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame[22..28].copy_from_slice(&net.mac);
    frame[28..32].copy_from_slice(&net.ipv4);
    frame[38..42].copy_from_slice(&target);
    report.check("net.transmit", link.send(&frame), format_args!("the buffer did not come back"));
    let mut answer = [0u8; 64];
    let got = link.receive(&mut answer);
    let is_reply = got.is_some() && answer[12..14] == [8, 6] && answer[20..22] == [0, 2];
    report.check("net.arp_answered", is_reply, format_args!("{got:?} {answer:x?}"));
    report.equal("net.arp_target", &answer[28..32], &target[..]);
    report.equal("net.arp_to_me", &answer[32..42], &frame[22..32]);
    TARGET.iter().zip(&answer[22..28]).for_each(|(to, from)| to.store((*from).into(), Ordering::SeqCst));
}

/// The ethernet address that ARP gave last.
static TARGET: [AtomicU16; 6] = [const { AtomicU16::new(0) }; 6];

fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| low.into())).sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Builds an ICMP echo request of `payload` bytes; returns its length.
fn build_echo(frame: &mut [u8], target: [u8; 4], payload: usize, sequence: u16) -> usize {
    let net = &registers().net;
    for (to, from) in frame.iter_mut().zip(&TARGET) {
        *to = from.load(Ordering::SeqCst) as u8;
    }
    frame[6..12].copy_from_slice(&net.mac);
    frame[12..14].copy_from_slice(&[8, 0]);
    frame[14..34].fill(0);
    frame[14] = 0x45;
    frame[16..18].copy_from_slice(&((28 + payload) as u16).to_be_bytes());
    frame[22] = 64;
    frame[23] = 1;
    frame[26..30].copy_from_slice(&net.ipv4);
    frame[30..34].copy_from_slice(&target);
    let sum = checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    let end = ECHO + payload;
    frame[34..42].copy_from_slice(&[8, 0, 0, 0, 0x46, 0x6f, 0, 0]);
    frame[40..42].copy_from_slice(&sequence.to_be_bytes());
    for (at, byte) in (0u32..).zip(&mut frame[ECHO..end]) {
        *byte = (at.wrapping_mul(7) >> 1) as u8;
    }
    let sum = checksum(&frame[34..end]);
    frame[36..38].copy_from_slice(&sum.to_be_bytes());
    end
}

/// An ICMP echo by a neighbour's network stack: the host's, or another guest's.
fn echo(report: &mut Report, link: &mut Link, target: [u8; 4], payload: usize) {
    let name = "net.echo";
    let mut frame = [0u8; 2048];
    let length = build_echo(&mut frame, target, payload.min(2048 - ECHO), 1);
    report.check(
        name,
        link.send(&frame[..length]),
        format_args!("{payload} bytes: the buffer did not come back"),
    );
    let mut answer = [0u8; 2048];
    let mut got = None;
    // Other traffic of the host (neighbour discovery, say) may come first.
    for _ in 0..16 {
        got = link.receive(&mut answer);
        if got.is_none() || (answer[12..14] == [8, 0] && answer[23] == 1 && answer[34] == 0) {
            break;
        }
    }
    let same = got.is_some() && answer[ECHO..length] == frame[ECHO..length];
    report.check(name, same, format_args!("{payload} bytes: {got:?}"));
    let needed = (HEADER_SIZE + length).div_ceil(BUFFER) as u16;
    report.equal("net.merged_buffers", got.map(|(_, count)| count), Some(needed));
}

/// Many frames, so that both rings go around more than once; buffers come back in order.
fn in_order(report: &mut Report, link: &mut Link) {
    let mut frame = [0u8; 128];
    let mut answer = [0u8; 2048];
    let rounds = u32::from(QUEUE_SIZE) + 50;
    let (mut answered, mut ordered) = (0u32, true);
    for round in 0..rounds {
        let length = build_echo(&mut frame, registers().net.gateway4, 20, round as u16);
        let first = link.received;
        if !link.send(&frame[..length]) || link.receive(&mut answer).is_none() {
            break;
        }
        ordered &= used(NET_RX, first).id as usize == usize::from(first) % BUFFERS;
        answered += 1;
    }
    report.equal("net.rings_go_around", answered, rounds);
    report.check("net.used_in_order", ordered, format_args!("a used element out of order"));
}

fn counters(report: &mut Report) {
    call(NOP, [0; 5]);
    let counters = &registers().counters;
    let sent = counters.tx_frames.load(Ordering::SeqCst);
    let expected = u64::from(word(NET_TX + AVAIL_OFFSET + 2).load(Ordering::SeqCst));
    report.equal("net.tx_frames", sent, expected);
    let bytes = counters.tx_bytes.load(Ordering::SeqCst);
    report.check("net.tx_bytes", bytes >= sent * 42, format_args!("{bytes} bytes of {sent} frames"));
    let received = counters.rx_frames.load(Ordering::SeqCst);
    report.check("net.rx_frames", received >= u64::from(QUEUE_SIZE), format_args!("{received}"));
    report.equal("net.tx_dropped", counters.tx_dropped.load(Ordering::SeqCst), 0);
}
