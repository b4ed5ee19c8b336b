//! What a frame costs between the TAP device and the rings, in nanoseconds, and how much of it the kernel's part is;
//! and what the rings alone cost, beside rust-vmm's `virtio-queue`.
//!
//! Works in a network namespace of its own; needs root. `cargo run --release -p foraker-net --example net_cost`

use std::error::Error;
use std::io::IoSlice;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::time::Instant;

use foraker_abi::layout::NET_TX;
use foraker_abi::net::{GSO_TCPV4, HEADER_SIZE, Header, NEEDS_CSUM};
use foraker_abi::ring::{AVAIL_OFFSET, QUEUE_SIZE, USED_OFFSET};
use foraker_net::ring::SplitQueue;
use foraker_net::{Gateway, Limits, Mac, Notices, Port, Switch, Tap, Uplink, tap};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

#[path = "../tests/driver/mod.rs"]
mod driver;
#[path = "../tests/driver/namespace.rs"]
mod namespace;
use driver::Guest;
use namespace::PacketSocket;

const HOST: Ipv4Addr = Ipv4Addr::new(10, 213, 77, 1);
/// A range that the host never routes: the kernel drops packets to it early.
const NOWHERE: Ipv4Addr = Ipv4Addr::new(240, 0, 0, 1);
const ROUNDS: usize = 1000;
const BATCH: u16 = 64;

/// Nanoseconds per item: median, smallest and largest of the rounds.
struct Figure(Vec<f64>);

impl Figure {
    fn of(mut round: impl FnMut() -> (f64, usize)) -> Self {
        let mut figures: Vec<f64> = (0..ROUNDS)
            .map(|_| {
                let (ns, items) = round();
                ns / items.max(1) as f64
            })
            .collect();
        figures.sort_by(f64::total_cmp);
        Figure(figures)
    }

    fn median(&self) -> f64 {
        self.0[self.0.len() / 2]
    }

    fn spread(&self) -> String {
        format!("{:.0}..{:.0}", self.0[self.0.len() / 20], self.0[self.0.len() * 19 / 20])
    }
}

fn timed(work: impl FnOnce() -> usize) -> (f64, usize) {
    let start = Instant::now();
    let items = work();
    (start.elapsed().as_nanos() as f64, items)
}

struct Bench {
    uplink: Uplink,
    guest: Guest,
    port: Arc<Port>,
    notices: Notices,
}

impl Bench {
    fn receive(&mut self) -> usize {
        let work = self.uplink.receive(1000, 0, &mut self.notices).expect("the device is up");
        work.frames
    }

    fn transmit(&mut self) -> usize {
        self.uplink.transmit(&self.port, 1000, usize::MAX, 0, &mut self.notices).frames
    }

    fn clear(&mut self) {
        for _ in self.notices.interrupts() {}
        assert_eq!(self.notices.faults().count(), 0);
        self.guest.recycle();
    }

    /// Empties the device without us.
    fn drain_bare(&self, buffer: &mut [u8]) -> usize {
        std::iter::from_fn(|| self.uplink.link().read(buffer).expect("the device is up")).count()
    }
}

fn report(what: &str, ours: &Figure, bare: &Figure, bytes: usize) {
    println!(
        "{what:28} {:6.0} ns ({}), of which the kernel {:6.0} ({}), ours {:5.0}; {:.1} Gbit/s",
        ours.median(),
        ours.spread(),
        bare.median(),
        bare.spread(),
        ours.median() - bare.median(),
        bytes as f64 * 8.0 / ours.median(),
    );
}

fn main() -> Result<(), Box<dyn Error>> {
    namespace::enter();
    rings()?;
    let tap = Tap::create(None)?;
    tap.set_queue_length(tap::QUEUE_LENGTH)?;
    tap.add_ipv4(HOST, 24)?;
    tap.up()?;
    let host_mac = tap.mac()?;
    let switch = Arc::new(Switch::new(Gateway { mac: host_mac, ipv4: HOST, ipv6: None }));
    let uplink = Uplink::new(tap, Arc::clone(&switch), None);
    let mut guest = Guest::new(2);
    let port = switch.add(guest.port(0, Limits::default()))?;
    guest.give(256, 2048);
    guest.want_interrupt(NET_TX, false);
    let mut bench = Bench { uplink, guest, port, notices: Notices::new() };
    small_frames_in(&mut bench)?;
    large_frames_in(&mut bench, host_mac)?;
    for size in [64, 1400] {
        let frame = bench.guest.udp((host_mac, NOWHERE), (9, 9), &vec![0; size]);
        frames_out(&mut bench, &format!("transmit {size} B"), Header::default(), &frame)?;
    }
    let frame = driver::ipv4((bench.guest.mac, bench.guest.ipv4), (host_mac, NOWHERE), 6, &segment(64_000));
    frames_out(&mut bench, "transmit 64 KB segment", segmented(), &frame)?;
    let counters = bench.port.counters();
    let drops: Vec<_> = counters.tx.drops.iter().chain(counters.rx.drops.iter()).collect();
    println!("drops: {drops:?}");
    Ok(())
}

fn segment(payload: usize) -> Vec<u8> {
    let mut tcp = vec![0_u8; 20];
    tcp[12] = 0x50;
    tcp.resize(20 + payload, 0);
    tcp
}

fn segmented() -> Header {
    Header {
        flags: NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: 54,
        gso_size: 1446,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 0,
    }
}

/// A host's socket fills the device's queue, then the queue is emptied into the ring.
fn small_frames_in(bench: &mut Bench) -> Result<(), Box<dyn Error>> {
    let socket = UdpSocket::bind((HOST, 0))?;
    socket.connect((bench.guest.ipv4, 9))?;
    let mut buffer = vec![0; 70_000];
    for size in [64, 1400] {
        let payload = vec![0_u8; size];
        // The host learns the address.
        socket.send(&payload)?;
        bench.receive();
        let fill = || (0..BATCH).for_each(|_| drop(socket.send(&payload)));
        let ours = Figure::of(|| {
            fill();
            let figure = timed(|| bench.receive());
            bench.clear();
            figure
        });
        let bare = Figure::of(|| {
            fill();
            timed(|| bench.drain_bare(&mut buffer))
        });
        report(&format!("receive {size} B"), &ours, &bare, size + 42);
    }
    Ok(())
}

fn large_frames_in(bench: &mut Bench, host_mac: Mac) -> Result<(), Box<dyn Error>> {
    let socket = PacketSocket::open(bench.uplink.link().name());
    let frame = driver::ipv4((host_mac, HOST), (bench.guest.mac, bench.guest.ipv4), 6, &segment(64_000));
    let mut bytes = segmented().to_bytes()[..HEADER_SIZE - 2].to_vec();
    bytes.extend_from_slice(&frame);
    for size in [2048, 16384] {
        bench.clear();
        let mut guest = Guest::new(2);
        guest.give(256, size);
        bench.uplink.switch().remove(&bench.port);
        bench.port = bench.uplink.switch().add(guest.port(0, Limits::default()))?;
        bench.guest = guest;
        let mut buffer = vec![0; 70_000];
        let ours = Figure::of(|| {
            (0..4).for_each(|_| drop(socket.send_bytes(&bytes)));
            let figure = timed(|| bench.receive());
            bench.clear();
            figure
        });
        let bare = Figure::of(|| {
            (0..4).for_each(|_| drop(socket.send_bytes(&bytes)));
            timed(|| bench.drain_bare(&mut buffer))
        });
        report(&format!("receive 64 KB, {size} B buffers"), &ours, &bare, frame.len());
    }
    Ok(())
}

fn frames_out(bench: &mut Bench, what: &str, header: Header, frame: &[u8]) -> Result<(), Box<dyn Error>> {
    for _ in 0..QUEUE_SIZE {
        bench.guest.send(header, frame, &[]);
        bench.transmit();
    }
    let ours = Figure::of(|| {
        bench.guest.send_again(BATCH);
        let figure = timed(|| bench.transmit());
        bench.clear();
        figure
    });
    // The same bytes, from as many different places.
    let mut raw = header.to_bytes().to_vec();
    raw.extend_from_slice(frame);
    let raw = vec![raw; usize::from(BATCH)];
    let bare = Figure::of(|| {
        timed(|| {
            raw.iter().filter(|raw| bench.uplink.link().write_vectored(&[IoSlice::new(raw)]).is_ok()).count()
        })
    });
    report(what, &ours, &bare, frame.len());
    Ok(())
}

/// A ring alone: take a buffer, copy its offload header, give it back.
fn rings() -> Result<(), Box<dyn Error>> {
    let mut guest = Guest::new(9);
    let frame = guest.udp((Mac::default(), NOWHERE), (1, 2), &[0; 64]);
    for _ in 0..QUEUE_SIZE {
        guest.send(Header::default(), &frame, &[]);
    }
    let memory = guest.guest_memory();

    let mut ours = SplitQueue::new(guest.memory().ring(NET_TX)?, QUEUE_SIZE);
    let device_memory = guest.guest_memory();
    let figure = Figure::of(|| {
        guest.send_again(QUEUE_SIZE);
        timed(|| {
            let mut count = 0;
            while ours.waiting() > 0 || ours.refresh().expect("sound") > 0 {
                let (head, descriptor) = ours.peek(0).expect("sound");
                let mut header = [0; HEADER_SIZE];
                device_memory.read_slice(&mut header, GuestAddress(descriptor.address)).expect("in memory");
                std::hint::black_box(header);
                ours.set_used(0, head, 0);
                ours.complete(1);
                count += 1;
                if count % 8 == 0 {
                    ours.publish();
                }
            }
            ours.publish();
            count
        })
    });
    println!("ring, ours:                  {:6.1} ns a buffer ({})", figure.median(), figure.spread());

    let mut theirs: Queue = Queue::new(QUEUE_SIZE)?;
    let parts = |a: u64| (u32::try_from(a & 0xffff_ffff).ok(), u32::try_from(a >> 32).ok());
    let ((a, b), (c, d), (e, f)) = (parts(NET_TX), parts(NET_TX + AVAIL_OFFSET), parts(NET_TX + USED_OFFSET));
    theirs.set_desc_table_address(a, b);
    theirs.set_avail_ring_address(c, d);
    theirs.set_used_ring_address(e, f);
    theirs.set_next_avail(ours.completed());
    theirs.set_next_used(ours.completed());
    theirs.set_ready(true);
    let figure = Figure::of(|| {
        guest.send_again(QUEUE_SIZE);
        timed(|| {
            let mut count = 0;
            while let Some(mut chain) = theirs.pop_descriptor_chain(&memory) {
                let head = chain.head_index();
                let descriptor = chain.next().expect("a descriptor");
                let mut header = [0; HEADER_SIZE];
                memory.read_slice(&mut header, descriptor.addr()).expect("in memory");
                std::hint::black_box(header);
                assert!(chain.next().is_none());
                theirs.add_used(&memory, head, 0).expect("in memory");
                count += 1;
            }
            count
        })
    });
    println!("ring, virtio-queue:          {:6.1} ns a buffer ({})", figure.median(), figure.spread());
    Ok(())
}
