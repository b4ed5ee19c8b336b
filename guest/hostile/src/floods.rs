//! Guests that take as much as they get: console, network, memory.

extern crate alloc;

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use foraker_abi::hypercall as hc;
use foraker_abi::layout::PAGE_SIZE;
use foraker_abi::net::Header;
use foraker_abi::ring::{DESC_WRITE, QUEUE_SIZE};
use guest_libos::{println, registers};

use crate::case::{Case, Verdict, case, check};
use crate::frame::{self, BROADCAST, own};
use crate::guest::{self, call};
use crate::raw_ring::{IN, OUT, RX, TX, serve};

/// The cases.
pub(crate) const CASES: &[Case] = &[
    case("console-flood", console_flood),
    case("flood-broadcast", || flood(frame::udp::<1514>(BROADCAST, own(), [255; 4], 1472).bytes())),
    case("flood-arp", || flood(frame::honest_arp().bytes())),
    case("flood-gateway", || {
        let Some(mac) = gateway_mac() else { return check(false, "the gateway answers") };
        flood(frame::udp::<64>(mac, own(), registers().net.gateway4, 16).bytes())
    }),
    case("flood-neighbour", || {
        let (mac, neighbour) = frame::neighbour();
        flood(frame::udp::<1514>(mac, own(), neighbour, 1472).bytes())
    }),
    case("flood-forged", || {
        let mut from = own();
        from.ipv4[3] ^= 0x40;
        flood(frame::udp::<64>(BROADCAST, from, [255; 4], 16).bytes())
    }),
    case("touch-memory", touch_memory),
    case("touch-memory-forever", || {
        println!("expect");
        loop {
            touch();
        }
    }),
    case("exhaust-memory", exhaust_memory),
    case("panic", || {
        println!("expect");
        panic!("as asked")
    }),
];

/// The gateway's ethernet address, as an answer says it.
fn gateway_mac() -> Option<[u8; 6]> {
    const SENDER: usize = 22;
    RX.describe(0, IN[0].address(), 4096, DESC_WRITE, 0);
    RX.publish(0);
    TX.describe(0, OUT.address(), OUT.fill(Header::default(), frame::honest_arp().bytes()), 0, 0);
    TX.publish(0);
    let end = guest_libos::now() + 2_000_000_000;
    while RX.used_index().load(Ordering::Acquire) == 0 {
        serve();
        if guest_libos::now() > end {
            return None;
        }
    }
    let mut answer = [0; SENDER + 6];
    IN[0].frame(&mut answer);
    answer.last_chunk().copied()
}

/// Writes lines until the VMM ends the guest.
fn console_flood() -> Verdict {
    println!("expect");
    let text = [b'x'; 4096];
    loop {
        call(hc::CONSOLE, [text.as_ptr() as u64, text.len() as u64, 0, 0, 0]);
    }
}

/// Sends the same frame from every descriptor, as fast as the ring takes it.
fn flood(bytes: &[u8]) -> Verdict {
    println!("expect");
    let length = OUT.fill(Header::default(), bytes);
    let mut sent = TX.avail_index().load(Ordering::Relaxed);
    for i in 0..QUEUE_SIZE {
        TX.describe(i, OUT.address(), length, 0, 0);
    }
    loop {
        let free = QUEUE_SIZE - sent.wrapping_sub(TX.used_index().load(Ordering::Acquire));
        for _ in 0..free {
            TX.publish(sent % QUEUE_SIZE);
            sent = sent.wrapping_add(1);
        }
        serve();
    }
}

/// Writes to each page of the heap, last page first.
fn touch() -> u64 {
    let (start, end) = (registers().heap_start, registers().memory_end);
    let pages = (end - start) / PAGE_SIZE;
    for page in (0..pages).rev() {
        guest::poke(start + page * PAGE_SIZE + 7, page as u8);
    }
    pages
}

fn touch_memory() -> Verdict {
    let pages = touch();
    let start = registers().heap_start;
    let kept = (0..pages).all(|page| guest::peek(start + page * PAGE_SIZE + 7) == page as u8);
    println!("touched {pages} pages");
    check(kept, "every page kept its byte")
}

/// Allocates until the allocator refuses, and needs to live on.
fn exhaust_memory() -> Verdict {
    let mut blocks: Vec<Vec<u8>> = Vec::new();
    let mut total = 0;
    let mut size = 1 << 20;
    while size >= 64 {
        let mut block = Vec::new();
        if blocks.try_reserve(1).is_err() || block.try_reserve_exact(size).is_err() {
            size /= 2;
            continue;
        }
        block.resize(size, 0xa5);
        total += size;
        blocks.push(block);
    }
    println!("allocated {} KiB", total >> 10);
    drop(blocks);
    let again = Vec::<u8>::with_capacity(64 << 10);
    check(total > 64 << 10 && again.capacity() >= 64 << 10, "memory is usable behind the exhaustion")
}
