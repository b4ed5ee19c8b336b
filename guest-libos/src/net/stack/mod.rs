//! The stack: smoltcp's protocols behind a demultiplexer that finds a connection by its 4-tuple.
//!
//! smoltcp looks at every socket of a set for every packet. So every connection has a set of its own, made when its
//! SYN arrives; a hash of the 4-tuple finds it, and smoltcp is given just that set. Only sets in which something
//! happened are polled for sending, and each connection's next deadline stands in a heap of timers. The cost of a
//! packet does not depend on the number of connections.
//!
//! Each round of the executor takes frames in ([`receive`]), has tasks run, with what they ask of the stack ([`sockets`]),
//! and sends what they wrote ([`transmit`]). Which connections there are stands in [`table`].

mod awaited;
mod flow;
mod receive;
mod sockets;
mod table;
mod transmit;

pub(crate) use flow::{Buffers, Flow};

use super::device::{Counters, Device};
use super::frame;
use super::neighbors::{Addresses, Neighbors, Seed};
use super::ring::{Receiver, Transmitter};
use crate::task::timers::{Key, Timers};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use awaited::Awaited;
use core::net::{IpAddr, Ipv6Addr};
use flow::Kept;
use hashbrown::{HashMap, HashTable};
use slab::Slab;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};
use sockets::Listener;

/// The stack of this guest.
pub(crate) struct Stack {
    pub(super) interface: Interface,
    pub(super) device: Device,
    receiver: Receiver,
    flows: Slab<Box<Flow>>,
    /// Without a place in `flows`, for what comes next.
    kept: Kept,
    index: HashTable<u32>,
    seed: u64,
    dirty: Vec<u32>,
    spare: Vec<u32>,
    timers: Timers<u32>,
    listeners: HashMap<u16, Listener, Seed>,
    time_wait: VecDeque<u32>,
    pub(super) udp: HashMap<u16, SocketSet<'static>, Seed>,
    /// Sockets that are not found by a port: those of pings and of the DNS client.
    pub(super) others: SocketSet<'static>,
    /// How many of them there are.
    pub(super) others_used: usize,
    pub(super) dns: Option<SocketHandle>,
    pub(super) others_dirty: bool,
    pub(super) udp_dirty: Vec<u16>,
    /// Timer of the UDP sockets and others.
    others_timer: Key,
    /// For packets that concern no socket.
    nobody: SocketSet<'static>,
    next_port: u16,
    now: Instant,
    want_tx_interrupt: bool,
    /// The last segment that was sent, if its acknowledgement is of no interest to anybody.
    awaited: Option<Awaited>,
}

/// `timers` value of what is not a flow.
const OTHERS: u32 = u32::MAX;

fn instant(ns: u64) -> Instant {
    Instant::from_micros((ns / 1000).cast_signed())
}

/// The time at which smoltcp's `instant` has come, nanoseconds.
fn nanos(instant: Instant) -> u64 {
    instant.total_micros().cast_unsigned().saturating_mul(1000)
}

/// The address in smoltcp's form and this module's.
fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => frame::mapped(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn unmapped(address: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(address).to_canonical()
}

/// What the stack is made of.
pub(crate) struct Parts {
    pub(super) receiver: Receiver,
    pub(super) transmitter: Transmitter,
    pub(super) addresses: Addresses,
    pub(super) mtu: u16,
    pub(super) features: u32,
    pub(super) with_large: bool,
    pub(super) seed: u64,
}

impl Stack {
    pub(crate) fn new(parts: Parts, now: u64) -> Self {
        let addresses = parts.addresses;
        let mut device = Device {
            transmitter: parts.transmitter,
            neighbors: Neighbors::new(addresses, parts.seed),
            destination: None,
            mtu: parts.mtu,
            features: parts.features,
            with_large: parts.with_large,
            exhausted: false,
            last: None,
            counters: Counters::default(),
        };
        let interface = interface(&addresses, parts.seed, &mut device, instant(now));
        let mut timers = Timers::new();
        let others_timer = timers.insert(OTHERS);
        let seed = Seed(parts.seed);
        Stack {
            interface,
            device,
            receiver: parts.receiver,
            flows: Slab::new(),
            kept: Kept::new(),
            index: HashTable::new(),
            seed: parts.seed,
            dirty: Vec::new(),
            spare: Vec::new(),
            timers,
            listeners: HashMap::with_hasher(seed),
            time_wait: VecDeque::new(),
            udp: HashMap::with_hasher(seed),
            others: SocketSet::new(Vec::new()),
            others_used: 0,
            dns: None,
            others_dirty: false,
            udp_dirty: Vec::new(),
            others_timer,
            nobody: SocketSet::new(Vec::new()),
            next_port: first_port(parts.seed),
            now: instant(now),
            want_tx_interrupt: false,
            awaited: None,
        }
    }

    /// Goes on as another guest, with its addresses and its own randomness. Listeners and sockets stay; connections were the other's, and are
    /// aborted.
    pub(crate) fn take_identity(&mut self, addresses: Addresses, mtu: u16, seed: u64, now: u64) {
        self.device.neighbors = Neighbors::new(addresses, seed);
        self.device.destination = None;
        self.device.mtu = mtu;
        self.now = instant(now);
        self.interface = interface(&addresses, seed, &mut self.device, self.now);
        self.awaited = None;
        self.seed = seed;
        self.next_port = first_port(seed);
        let hasher = Seed(seed);
        let listeners = core::mem::replace(&mut self.listeners, HashMap::with_hasher(hasher));
        self.listeners.extend(listeners);
        let udp = core::mem::replace(&mut self.udp, HashMap::with_hasher(hasher));
        self.udp.extend(udp);
        self.index.clear();
        let flows: Vec<usize> = self.flows.iter().map(|(id, _)| id).collect();
        for id in flows {
            if self.flows[id].indexed {
                self.enter(id);
            }
            self.flows[id].socket().abort();
            self.mark(id);
        }
    }

    pub(crate) fn counters(&self) -> Counters {
        Counters { connections: self.index.len() as u64, ..self.device.counters }
    }

    /// Nothing is due before this.
    pub(crate) fn next_timer(&self) -> Option<u64> {
        // With something left to send there must be another round soon, even if no interrupt comes.
        let again =
            (!self.dirty.is_empty() || !self.udp_dirty.is_empty()).then(|| nanos(self.now) + 1_000_000);
        self.timers.next().into_iter().chain(again).min()
    }
}

/// smoltcp's interface with these addresses.
fn interface(addresses: &Addresses, seed: u64, device: &mut Device, now: Instant) -> Interface {
    let mut config = Config::new(HardwareAddress::Ip);
    config.random_seed = seed.rotate_left(17);
    let mut interface = Interface::new(config, device, now);
    interface.update_ip_addrs(|list| {
        let mut add = |address: IpAddr, prefix: u8| {
            if !address.is_unspecified() {
                // There is room for one address of each kind.
                let _ = list.push(IpCidr::new(IpAddress::from(address), prefix));
            }
        };
        add(addresses.v4.into(), addresses.prefix4.min(32));
        add(addresses.v6.into(), addresses.prefix6.min(128));
    });
    interface
}

/// Where the ports of connections that this guest opens begin.
fn first_port(seed: u64) -> u16 {
    49152 + (seed >> 40) as u16 % 16384
}
