//! What a frame costs between the TAP device and the rings, in nanoseconds, and how much of it the kernel's part is.
//!
//! Needs the right to create a TAP device. `cargo run --release -p foraker-net --example net_cost`
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::time::Instant;

use foraker_abi::net::{GSO_TCPV4, Header, NEEDS_CSUM};
use foraker_net::{Gateway, Limits, Notices, Switch, Tap, Uplink, tap};

#[path = "../tests/driver/mod.rs"]
mod driver;
use driver::Guest;

const HOST: Ipv4Addr = Ipv4Addr::new(10, 213, 77, 1);
const ROUNDS: usize = 4000;
const BATCH: u16 = 64;

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let tap = Tap::create(None)?;
    tap.set_queue_length(tap::QUEUE_LENGTH)?;
    tap.add_ipv4(HOST, 24)?;
    tap.up()?;
    let host_mac = tap.mac()?;
    let switch = Arc::new(Switch::new(Gateway { mac: host_mac, ipv4: HOST, ipv6: None }));
    let uplink = Uplink::new(tap, Arc::clone(&switch), None);
    let mut guest = Guest::new(2);
    let port = switch.add(guest.port(0, Limits::default()))?;
    let mut notices = Notices::new();
    let clear = |notices: &mut Notices| {
        for _ in notices.interrupts() {}
        assert_eq!(notices.faults().count(), 0);
    };
    guest.give(256, 2048);
    guest.want_interrupt(foraker_abi::layout::NET_TX, false);

    // Receive: a host socket fills the TAP device's queue, then the queue is emptied into the ring.
    let socket = UdpSocket::bind((HOST, 0))?;
    socket.connect((guest.ipv4, 9))?;
    socket.set_nonblocking(true)?;
    for size in [64, 1400] {
        let payload = vec![0_u8; size];
        let (mut ours, mut bare) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            for _ in 0..BATCH {
                let _ = socket.send(&payload);
                if round == 0 {
                    uplink.receive(8, 0, &mut notices)?;
                }
            }
            if round % 2 == 0 {
                let start = Instant::now();
                let work = uplink.receive(2 * usize::from(BATCH), 0, &mut notices)?;
                let time = start.elapsed();
                if work.frames >= usize::from(BATCH) {
                    ours.push(time.as_nanos() as f64 / work.frames as f64);
                }
                guest.recycle();
                clear(&mut notices);
            } else {
                let (mut buffer, mut frames) = (vec![0; 70_000], 0);
                let start = Instant::now();
                while uplink.link().read(&mut buffer)?.is_some() {
                    frames += 1;
                }
                bare.push(start.elapsed().as_nanos() as f64 / f64::from(frames.max(1)));
            }
        }
        let (ours, bare) = (median(ours), median(bare));
        println!(
            "receive {size:5} B: {ours:6.0} ns/frame, of which read(2) {bare:6.0}, ours {:5.0}",
            ours - bare
        );
    }

    // Transmit, to a port that nobody listens on in a range the host does not have: the kernel drops it early.
    let nowhere = (host_mac, Ipv4Addr::new(240, 0, 0, 1));
    for size in [64, 1400] {
        let frame = guest.udp(nowhere, (9, 9), &vec![0; size]);
        for _ in 0..256 {
            guest.send(Header::default(), &frame, &[]);
            uplink.transmit(&port, 8, 0, &mut notices);
        }
        let (mut ours, mut bare) = (Vec::new(), Vec::new());
        let mut raw = Header::default().to_bytes().to_vec();
        raw.extend_from_slice(&frame);
        for _ in 0..ROUNDS / 2 {
            guest.send_again(BATCH);
            let start = Instant::now();
            let work = uplink.transmit(&port, 2 * usize::from(BATCH), 0, &mut notices);
            ours.push(start.elapsed().as_nanos() as f64 / work.frames as f64);
            assert_eq!(work.frames, usize::from(BATCH));
            let start = Instant::now();
            for _ in 0..BATCH {
                uplink.link().write_vectored(&[std::io::IoSlice::new(&raw)])?;
            }
            bare.push(start.elapsed().as_nanos() as f64 / f64::from(BATCH));
        }
        let (ours, bare) = (median(ours), median(bare));
        println!(
            "transmit {size:4} B: {ours:6.0} ns/frame, of which write(2) {bare:5.0}, ours {:5.0}",
            ours - bare
        );
    }

    // Transmit of large TCP segments.
    let mut tcp = vec![0_u8; 20];
    tcp[12] = 0x50;
    tcp.resize(20 + 64_000, 0);
    let frame = driver::ipv4((guest.mac, guest.ipv4), nowhere, 6, &tcp);
    let header = Header {
        flags: NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: 54,
        gso_size: 1448,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 0,
    };
    for _ in 0..256 {
        guest.send(header, &frame, &[]);
        uplink.transmit(&port, 8, 0, &mut notices);
    }
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    let mut raw = header.to_bytes().to_vec();
    raw.extend_from_slice(&frame);
    for _ in 0..200 {
        guest.send_again(BATCH);
        let start = Instant::now();
        let work = uplink.transmit(&port, 2 * usize::from(BATCH), 0, &mut notices);
        ours.push(start.elapsed().as_nanos() as f64 / work.frames as f64);
        let start = Instant::now();
        for _ in 0..BATCH {
            uplink.link().write_vectored(&[std::io::IoSlice::new(&raw)])?;
        }
        bare.push(start.elapsed().as_nanos() as f64 / f64::from(BATCH));
    }
    let (ours, bare) = (median(ours), median(bare));
    println!(
        "transmit 64 KB GSO: {ours:6.0} ns/frame ({:.0} Gbit/s), of which writev(2) {bare:5.0}, ours {:5.0}",
        64_054.0 * 8.0 / ours,
        ours - bare
    );
    let drops: Vec<_> = port.counters().tx.drops.iter().chain(port.counters().rx.drops.iter()).collect();
    println!("drops: {drops:?}; uplink {:?}", uplink.counters().rx.drops.iter().collect::<Vec<_>>());
    Ok(())
}
