//! What a decision of the switch costs with few ports and with all that it can have, in nanoseconds, and how much memory a port takes.
//!
//! Each size visits its ports in a scattered order, so that what grows with their number is what no cache holds any more: the "once more" column asks
//! for the same port again and again, and shows the decision alone. Needs no rights. `cargo run --release -p foraker-net --example switch_scale`

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::net::Ipv6Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use foraker_net::frame::{self, Packet};
use foraker_net::{DeviceMemory, Gateway, Mac, Port, PortConfig, Route, Switch};
use vm_memory::GuestMemoryMmap;

#[path = "../tests/driver/mod.rs"]
mod driver;
#[path = "../tests/driver/many.rs"]
mod many;
#[path = "../tests/driver/wire.rs"]
mod wire;
use driver::{Guest, udp};
use many::{HOST, address, config};

const SIZES: [u32; 3] = [10, 1000, many::MOST];
/// Decisions of a round.
const DECISIONS: u32 = 100_000;
const ROUNDS: usize = 15;

/// Counts the bytes that are allocated.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(place, layout) };
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Median of the rounds, nanoseconds for one decision.
fn figure(mut decide: impl FnMut(u32) -> Route) -> f64 {
    let mut figures: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            for i in 0..DECISIONS {
                black_box(decide(i));
            }
            start.elapsed().as_nanos() as f64 / f64::from(DECISIONS)
        })
        .collect();
    figures.sort_by(f64::total_cmp);
    figures[ROUNDS / 2]
}

fn main() {
    let guest = Guest::new(2);
    // What a cell keeps for a guest anyhow is not the port's.
    let windows: GuestMemoryMmap = guest.guest_memory();
    let memory = || DeviceMemory::new(windows.clone(), windows.clone()).expect("rings within");
    println!(
        "{:>8} {:>14} {:>14} {:>14} {:>14}",
        "ports", "from the host", "once more", "guest to guest", "ARP reply"
    );
    for divided in [false, true] {
        for size in SIZES {
            let before = ALLOCATED.load(Ordering::Relaxed);
            let gateway =
                Gateway { mac: HOST.0, ipv4: HOST.1, ipv6: Some(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1)) };
            let switch = Switch::new(gateway);
            // Guests of a network stand side by side, and nearly all reach the next one.
            let network = |number: u32| if divided { 1 + number / 1000 } else { 0 };
            let mut ports: Vec<_> = Vec::with_capacity(size as usize);
            for number in 0..size {
                let config = PortConfig { network: network(number), ..config(number, &memory()) };
                ports.push(switch.add(config).expect("room"));
            }
            let list = size_of_val(ports.as_slice());
            let bytes = (ALLOCATED.load(Ordering::Relaxed) - before - list) / size as usize;
            // A prime that divides none of the sizes scatters them. Frames are made in one place, so that only the switch's own memory is far away.
            let at = |i: u32| u32::try_from(u64::from(i) * 7919 % u64::from(size)).expect("below the size");
            let (_, first, _) = address(0);
            let mut frame = udp(HOST, (Mac::default(), first), (1, 2), b"");
            let mut from_host = |number: u32| {
                let (mac, ipv4, _) = address(number);
                frame[..6].copy_from_slice(&mac.0);
                frame[30..34].copy_from_slice(&ipv4.octets());
                switch.route_uplink(&frame, frame.len())
            };
            let inn = figure(|i| from_host(at(i)));
            let again = figure(|_| from_host(0));
            let frame = udp((Mac::default(), first), (Mac::default(), first), (1, 2), b"");
            let mut frame = frame::parse(&frame, frame.len()).expect("well formed");
            let across = figure(|i| {
                let (from, to) = (address(at(i)), address((at(i) + 1) % size));
                (frame.source, frame.destination) = (from.0, to.0);
                if let Packet::Ipv4(packet) = &mut frame.packet {
                    (packet.source, packet.destination) = (from.1, to.1);
                }
                switch.route_guest(&ports[at(i) as usize], &frame)
            });
            let mut question = wire::who_has(first);
            let arp = figure(|i| {
                question[38..42].copy_from_slice(&address(at(i)).1.octets());
                switch.route_uplink(&question, question.len())
            });
            let apart = if divided { ", networks apart" } else { "" };
            println!(
                "{size:>8} {inn:>14.1} {again:>14.1} {across:>14.1} {arp:>14.1}   {bytes} bytes a port{apart}"
            );
        }
    }
    println!("of which {} bytes are the port itself", size_of::<Port>());
}
