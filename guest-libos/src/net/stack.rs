//! The stack: smoltcp's protocols behind a demultiplexer that finds a connection by its 4-tuple.
//!
//! smoltcp looks at every socket of a set for every packet. So every connection has a set of its own, made when its
//! SYN arrives; a hash of the 4-tuple finds it, and smoltcp is given just that set. Only sets in which something
//! happened are polled for sending, and each connection's next deadline stands in a heap of timers. The cost of a
//! packet does not depend on the number of connections.

use super::checksum;
use super::device::{Counters, Device};
use super::error::Error;
use super::frame::{self, FlowKey, Kind, Mac, Parsed};
use super::neighbors::{Addresses, Folding, Neighbors};
use super::ring::{Receiver, Transmitter};
use crate::task::timers::{Key, Timers};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::hash::Hasher;
use core::net::{IpAddr, Ipv6Addr};
use core::task::Waker;
use foraker_abi::net::{DATA_VALID, NEEDS_CSUM};
use hashbrown::{HashMap, HashTable};
use slab::Slab;
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};

/// Frames received before tasks run.
const BATCH: usize = 64;
/// Bytes received before tasks run: a full frame, so that bulk data is acknowledged as evenly as it comes. A sender that estimates
/// bandwidth from acknowledgements (BBR) takes bursts of them for a slow path.
const BATCH_BYTES: usize = 64 << 10;
/// Segments that one connection sends before others have their turn.
const BURST: usize = 32;
/// How long an attempt to connect, in either direction, may take.
const HANDSHAKE: Duration = Duration::from_secs(15);
/// How long a connection that the program gave up may wait for the other side.
const LINGER: Duration = Duration::from_secs(30);
/// Most connections kept in TIME-WAIT. The oldest go first: what comes late for them is answered by a reset. None is kept whose other side is on
/// the link, which is the host or a neighbour: nothing comes late from there.
const TIME_WAIT: usize = 512;
/// How long a guest rests at most, nanoseconds, with the acknowledgement of a beginning or an end of a connection in its ring.
const SOON: u64 = 1_000_000_000;
/// Connections that are gone whose memory is kept for others. The one that went last is the next one's, so that a quiet server touches the same few
/// pages for each.
const KEPT_FLOWS: usize = 16;
/// Largest buffers, bytes, that are kept in this way.
const KEPT_BUFFERS: usize = 64 << 10;

/// A connection.
pub(crate) struct Flow {
    pub(crate) sockets: SocketSet<'static>,
    pub(crate) handle: SocketHandle,
    key: FlowKey,
    mac: Mac,
    timer: Key,
    /// In the list of those that may have something to send.
    dirty: bool,
    /// In the index.
    indexed: bool,
    /// The program dropped it; it goes when its protocol is done.
    orphan: bool,
    /// The port of the listener that has not accepted it yet.
    listener: Option<u16>,
    /// Established and in the listener's queue.
    queued: bool,
    time_wait: bool,
    /// A task waits for room, or for what it wrote to arrive.
    waits: bool,
}

impl Flow {
    /// Nobody's connection so far.
    fn new(buffers: Buffers) -> Flow {
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(new_socket(buffers));
        Flow {
            sockets,
            handle,
            key: FlowKey::default(),
            mac: Mac::default(),
            timer: Key::default(),
            dirty: false,
            indexed: false,
            orphan: false,
            listener: None,
            queued: false,
            time_wait: false,
            waits: false,
        }
    }

    /// Nobody's again: what else there is of its connection goes when the socket opens.
    fn clear(&mut self) {
        (self.dirty, self.orphan, self.queued, self.time_wait, self.waits) =
            (false, false, false, false, false);
        self.listener = None;
        let socket = self.socket();
        socket.abort();
        as_new(socket);
    }

    #[inline]
    pub(crate) fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// A task waits until the other side has taken something: the acknowledgement wakes it.
    pub(crate) fn wait_for_acknowledgement(&mut self, waker: &Waker) {
        self.waits = true;
        self.socket().register_send_waker(waker);
    }
}

/// Sizes of a connection's buffers, bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buffers {
    pub(crate) receive: usize,
    pub(crate) send: usize,
}

/// Who takes connections at a port.
pub(crate) struct Listener {
    buffers: Buffers,
    backlog: usize,
    client_speaks_first: bool,
    /// Connections that are not accepted yet, established or not.
    pending: usize,
    ready: VecDeque<usize>,
    waker: Option<Waker>,
}

/// The stack of this guest.
pub(crate) struct Stack {
    pub(crate) interface: Interface,
    pub(crate) device: Device,
    receiver: Receiver,
    flows: Slab<Box<Flow>>,
    /// Without a place in `flows`, for what comes next.
    #[expect(clippy::vec_box, reason = "they stay where they are when they go to `flows` and back")]
    kept: Vec<Box<Flow>>,
    index: HashTable<u32>,
    seed: u64,
    dirty: Vec<u32>,
    spare: Vec<u32>,
    timers: Timers<u32>,
    listeners: HashMap<u16, Listener, super::neighbors::Seed>,
    time_wait: VecDeque<u32>,
    pub(crate) udp: HashMap<u16, SocketSet<'static>, super::neighbors::Seed>,
    /// Sockets that are not found by a port: those of pings and of the DNS client.
    pub(crate) others: SocketSet<'static>,
    /// How many of them there are.
    pub(crate) others_used: usize,
    pub(crate) dns: Option<SocketHandle>,
    pub(crate) others_dirty: bool,
    pub(crate) udp_dirty: Vec<u16>,
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

/// An acknowledgement for which the guest need not be woken.
#[derive(Clone, Copy)]
struct Awaited {
    /// The connection.
    id: usize,
    segment: frame::Segment,
    state: tcp::State,
    /// When the connection wants to be looked at, though it has come.
    until: u64,
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
pub(crate) fn mapped(address: IpAddr) -> [u8; 16] {
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
    pub(crate) receiver: Receiver,
    pub(crate) transmitter: Transmitter,
    pub(crate) addresses: Addresses,
    pub(crate) mtu: u16,
    pub(crate) features: u32,
    pub(crate) with_large: bool,
    pub(crate) seed: u64,
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
        let seed = super::neighbors::Seed(parts.seed);
        Stack {
            interface,
            device,
            receiver: parts.receiver,
            flows: Slab::new(),
            kept: Vec::new(),
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
        let hasher = super::neighbors::Seed(seed);
        let listeners = core::mem::replace(&mut self.listeners, HashMap::with_hasher(hasher));
        self.listeners.extend(listeners);
        let udp = core::mem::replace(&mut self.udp, HashMap::with_hasher(hasher));
        self.udp.extend(udp);
        self.index.clear();
        let flows: Vec<usize> = self.flows.iter().map(|(id, _)| id).collect();
        for id in flows {
            if self.flows[id].indexed {
                let (flows, key) = (&self.flows, self.flows[id].key);
                self.index
                    .insert_unique(hash(seed, &key), id as u32, |&id| hash(seed, &flows[id as usize].key));
            }
            self.flows[id].socket().abort();
            self.mark(id);
        }
    }

    pub(crate) fn counters(&self) -> Counters {
        Counters { connections: self.index.len() as u64, ..self.device.counters }
    }

    // ---- receiving

    #[inline]
    fn hash(&self, key: &FlowKey) -> u64 {
        hash(self.seed, key)
    }

    #[inline]
    fn find(&self, key: &FlowKey) -> Option<usize> {
        let flows = &self.flows;
        self.index.find(self.hash(key), |&id| flows[id as usize].key == *key).map(|&id| id as usize)
    }

    /// See [`Receiver::look_for_starved`].
    pub(crate) fn look_for_starved(&mut self, least: u16) {
        self.receiver.look_for_starved(least);
    }

    /// Whether frames wait to be received.
    #[inline]
    pub(crate) fn has_frames(&self) -> bool {
        self.receiver.is_waiting()
    }

    /// Processes received frames, [`BATCH`] and [`BATCH_BYTES`] at most; true if more wait.
    pub(crate) fn receive(&mut self, now: u64) -> bool {
        self.now = instant(now);
        self.device.transmitter.reclaim();
        let mut taken = 0;
        for _ in 0..BATCH {
            if !self.receiver.is_waiting() || taken >= BATCH_BYTES {
                break;
            }
            // An answer (a reset, an echo) needs room; the tasks' own packets wait in their sockets.
            if !self.device.transmitter.has_room(self.device.with_large) && !self.make_room() {
                return false;
            }
            let Some(frame) = self.receiver.next() else { break };
            let bytes = frame.bytes();
            self.device.counters.rx_frames += 1;
            self.device.counters.rx_bytes += bytes.len() as u64;
            taken += bytes.len();
            match frame::parse(bytes) {
                Some(parsed) => self.dispatch(parsed, frame.header.flags & (NEEDS_CSUM | DATA_VALID) != 0),
                None => self.device.counters.rx_ignored += 1,
            }
            self.receiver.release(frame);
        }
        if self.receiver.publish() {
            crate::hypercall::doorbell_async();
        }
        self.receiver.is_waiting()
    }

    #[inline]
    fn dispatch(&mut self, packet: Parsed<'_>, verified: bool) {
        match packet.kind {
            Kind::Tcp { key, flags } => {
                if !verified && !checksum::is_valid(packet.ip, packet.transport, frame::TCP) {
                    self.device.counters.rx_checksum += 1;
                } else {
                    self.tcp(&packet, &key, flags);
                }
            }
            Kind::Udp { source_port, destination_port } => {
                if !verified && !checksum::is_valid(packet.ip, packet.transport, frame::UDP) {
                    self.device.counters.rx_checksum += 1;
                } else {
                    self.udp(&packet, source_port, destination_port);
                }
            }
            Kind::OtherIp => {
                self.device.destination = Some(packet.source);
                let device = &mut self.device.receiving(packet.ip);
                self.interface.poll_ingress_single(self.now, device, &mut self.others);
            }
            Kind::Arp { operation, sender_mac, sender, target } => {
                if operation == 2 {
                    self.device.neighbors.learn(IpAddr::from(sender), sender_mac);
                } else if let Some(answer) =
                    self.device.neighbors.answer(operation, sender_mac, sender, target)
                {
                    self.device.send_frame(&answer);
                }
            }
            Kind::NeighborAdvertisement { target, mac } => {
                self.device.neighbors.learn(IpAddr::from(target), mac)
            }
        }
    }

    #[inline]
    fn tcp(&mut self, packet: &Parsed<'_>, key: &FlowKey, flags: u8) {
        let opening = flags & (frame::SYN | frame::ACK | frame::RST) == frame::SYN;
        let mut found = self.find(key);
        if opening
            && let Some(id) = found
            && self.flows[id].time_wait
        {
            // The other side uses the port again.
            self.remove(id);
            found = None;
        }
        self.device.destination = Some(packet.source);
        let id = match found {
            Some(id) => id,
            None => match self.open(packet, key, opening) {
                Ok(id) => id,
                Err(Refusal::Silently) => return,
                Err(Refusal::Reset) => {
                    let device = &mut self.device.receiving(packet.ip);
                    self.interface.poll_ingress_single(self.now, device, &mut self.nobody);
                    return;
                }
            },
        };
        let flow = &mut *self.flows[id];
        flow.mac = packet.source;
        flow.waits = false;
        let device = &mut self.device.receiving(packet.ip);
        self.interface.poll_ingress_single(self.now, device, &mut flow.sockets);
        if flow.listener.is_some() || flow.orphan {
            self.settle(id);
        }
        self.mark(id);
    }

    /// Makes the connection that a SYN asks for, if somebody listens.
    fn open(&mut self, packet: &Parsed<'_>, key: &FlowKey, opening: bool) -> Result<usize, Refusal> {
        if !opening {
            return Err(Refusal::Reset);
        }
        let Some(listener) = self.listeners.get_mut(&key.local_port) else {
            self.device.counters.refused += 1;
            return Err(Refusal::Reset);
        };
        if listener.pending >= listener.backlog {
            // The other side tries again: by then there may be room.
            self.device.counters.backlog_full += 1;
            return Err(Refusal::Silently);
        }
        if !self.interface.has_ip_addr(IpAddress::from(unmapped(key.local))) {
            return Err(Refusal::Silently);
        }
        let buffers = listener.buffers;
        listener.pending += 1;
        let mut flow = self.take_flow(buffers);
        flow.listener = Some(key.local_port);
        let socket = flow.socket();
        socket.set_timeout(Some(HANDSHAKE));
        // Cannot fail: the port is not 0, and the socket is closed.
        let _ = socket.listen(key.local_port);
        Ok(self.insert(flow, *key, packet.source))
    }

    /// A connection without a partner: one that is kept, or a new one.
    fn take_flow(&mut self, buffers: Buffers) -> Box<Flow> {
        let suits = |flow: &mut Box<Flow>| {
            let socket = flow.socket();
            socket.recv_capacity() == buffers.receive && socket.send_capacity() == buffers.send
        };
        let kept = self.kept.iter_mut().rposition(suits).map(|at| self.kept.remove(at));
        kept.unwrap_or_else(|| Box::new(Flow::new(buffers)))
    }

    /// Keeps the memory of a connection that is gone, instead of one that went long ago.
    fn keep_flow(&mut self, mut flow: Box<Flow>) {
        let socket = flow.socket();
        if socket.recv_capacity() + socket.send_capacity() > KEPT_BUFFERS {
            return;
        }
        if self.kept.len() >= KEPT_FLOWS {
            self.kept.remove(0);
        }
        flow.clear();
        self.kept.push(flow);
    }

    /// Puts a connection into the tables.
    fn insert(&mut self, mut flow: Box<Flow>, key: FlowKey, mac: Mac) -> usize {
        if !self.is_on_link(&key) {
            // Beyond the link there are others who want their share. On it, the switch loses nothing.
            flow.socket().set_congestion_control(tcp::CongestionControl::Reno);
        }
        let timer = self.timers.insert(0);
        (flow.key, flow.mac, flow.timer, flow.indexed) = (key, mac, timer, true);
        let id = self.flows.insert(flow);
        *self.timers.value_mut(timer) = id as u32;
        let (flows, seed) = (&self.flows, self.seed);
        let hash = hash(seed, &key);
        self.index
            .insert_unique(hash, id as u32, |&id| crate::net::stack::hash(seed, &flows[id as usize].key));
        self.device.counters.connections_total += 1;
        id
    }

    /// After a change: hands an established connection to its listener, and lets one go that nobody needs.
    fn settle(&mut self, id: usize) {
        let flow = &mut *self.flows[id];
        let state = flow.socket().state();
        if let Some(port) = flow.listener {
            match state {
                tcp::State::Established | tcp::State::CloseWait if !flow.queued => {
                    flow.queued = true;
                    flow.socket().set_timeout(None);
                    if let Some(listener) = self.listeners.get_mut(&port) {
                        listener.ready.push_back(id);
                        if let Some(waker) = listener.waker.take() {
                            waker.wake();
                        }
                    }
                }
                // Reset, or given up, before it was established: a socket that listens would go on to do so.
                tcp::State::Listen | tcp::State::Closed if !flow.queued => self.remove(id),
                _ => {}
            }
            return;
        }
        if flow.orphan {
            let socket = flow.socket();
            // Nobody reads what still comes.
            while matches!(socket.recv(|bytes| (bytes.len(), bytes.len())), Ok(1..)) {}
            match state {
                tcp::State::Closed if socket.remote_endpoint().is_none() => self.remove(id),
                tcp::State::TimeWait if !flow.time_wait => {
                    flow.time_wait = true;
                    // The protocol's own timer ends it.
                    flow.socket().set_timeout(None);
                    self.time_wait.push_back(id as u32);
                    if self.time_wait.len() > TIME_WAIT
                        && let Some(oldest) = self.time_wait.pop_front()
                        && let Some(flow) = self.flows.get_mut(oldest as usize)
                        && core::mem::replace(&mut flow.time_wait, false)
                    {
                        self.remove(oldest as usize);
                    }
                }
                _ => {}
            }
        }
    }

    /// Whether the other side is on the link.
    fn is_on_link(&self, key: &FlowKey) -> bool {
        self.device.neighbors.addresses().is_on_link(unmapped(key.remote))
    }

    /// Forgets a connection.
    fn remove(&mut self, id: usize) {
        self.unindex(id);
        let flow = self.flows.remove(id);
        self.timers.remove(flow.timer);
        if let Some(listener) = flow.listener.and_then(|port| self.listeners.get_mut(&port)) {
            listener.pending -= 1;
            listener.ready.retain(|&ready| ready != id);
        }
        if flow.time_wait {
            self.time_wait.retain(|&waiting| waiting as usize != id);
        }
        self.keep_flow(flow);
    }

    /// Takes a connection out of the index: what comes for its addresses is for a new one.
    fn unindex(&mut self, id: usize) {
        let flow = &mut *self.flows[id];
        if core::mem::replace(&mut flow.indexed, false) {
            let hash = hash(self.seed, &flow.key);
            if let Ok(entry) = self.index.find_entry(hash, |&other| other as usize == id) {
                entry.remove();
            }
        }
    }

    fn udp(&mut self, packet: &Parsed<'_>, source_port: u16, port: u16) {
        self.device.destination = Some(packet.source);
        let sockets = match self.udp.get_mut(&port) {
            Some(sockets) => sockets,
            // Only the DNS client hears of port 53 at ports that are not bound.
            None if source_port == 53 => &mut self.others,
            None => &mut self.nobody,
        };
        if let Some(source) = source_address(packet.ip) {
            self.device.neighbors.learn_from_traffic(source, packet.source);
        }
        let device = &mut self.device.receiving(packet.ip);
        self.interface.poll_ingress_single(self.now, device, sockets);
        self.others_dirty |= source_port == 53;
    }

    // ---- sending

    /// Notes that a connection may have something to send, or another deadline.
    #[inline]
    pub(crate) fn mark(&mut self, id: usize) {
        if let Some(flow) = self.flows.get_mut(id)
            && !core::mem::replace(&mut flow.dirty, true)
        {
            self.dirty.push(id as u32);
        }
    }

    /// Sends what connections have to send, and what is due.
    pub(crate) fn transmit(&mut self, now: u64) {
        self.now = instant(now);
        while let Some(key) = self.timers.pop(now) {
            match *self.timers.value_mut(key) {
                OTHERS => self.others_dirty = true,
                id => self.mark(id as usize),
            }
        }
        if self.others_dirty || !self.udp_dirty.is_empty() {
            self.transmit_others();
        }
        let mut list = core::mem::replace(&mut self.dirty, core::mem::take(&mut self.spare));
        let mut at = 0;
        while let Some(&id) = list.get(at) {
            if self.device.exhausted && !self.make_room() {
                break;
            }
            at += 1;
            self.transmit_flow(id as usize);
        }
        // What found no room comes again first.
        for &id in &list[at..] {
            self.dirty.push(id);
        }
        list.clear();
        self.spare = list;
        self.device.transmitter.publish();
    }

    #[inline]
    fn transmit_flow(&mut self, id: usize) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        let flow = &mut **flow;
        if !core::mem::replace(&mut flow.dirty, false) {
            return;
        }
        self.device.destination = Some(flow.mac);
        self.device.last = None;
        let mut idle_polls = 0;
        for _ in 0..BURST {
            match self.interface.poll_at(self.now, &flow.sockets) {
                Some(at) if at <= self.now => {
                    if self.interface.poll_egress(self.now, &mut self.device, &mut flow.sockets)
                        == PollResult::None
                    {
                        idle_polls += 1;
                        if self.device.exhausted || idle_polls == 3 {
                            break;
                        }
                    }
                }
                Some(at) => {
                    self.timers.set(flow.timer, nanos(at));
                    self.finish_flow(id);
                    // Its last acknowledgement is sent.
                    if let Some(flow) = self.flows.get(id)
                        && flow.time_wait
                        && self.is_on_link(&flow.key)
                    {
                        self.remove(id);
                    }
                    return;
                }
                None => {
                    self.timers.set(flow.timer, u64::MAX);
                    self.finish_flow(id);
                    return;
                }
            }
        }
        // It has more to send, another time.
        self.mark(id);
        self.finish_flow(id);
    }

    #[inline]
    fn finish_flow(&mut self, id: usize) {
        if let Some(segment) = self.device.last.take() {
            self.awaited = self.await_acknowledgement(id, segment);
        }
        let flow = &mut *self.flows[id];
        let closed = flow.socket().state() == tcp::State::Closed && flow.socket().remote_endpoint().is_none();
        if closed {
            self.unindex(id);
        }
        let flow = &*self.flows[id];
        if flow.orphan || (flow.listener.is_some() && !flow.queued) {
            self.settle(id);
        }
    }

    /// Says what to expect after a connection has sent this segment last, if its acknowledgement wakes nobody.
    fn await_acknowledgement(&mut self, id: usize, segment: frame::Segment) -> Option<Awaited> {
        let later = nanos(self.now) + SOON;
        let flow = &mut *self.flows[id];
        let socket = flow.socket();
        let (state, timeout) = (socket.state(), socket.timeout().is_some() || socket.keep_alive().is_some());
        let until = match state {
            // The other side has begun, and is heard when it goes on.
            tcp::State::SynReceived => {
                let listener = self.listeners.get(&flow.listener?)?;
                listener.client_speaks_first.then_some(later)?
            }
            tcp::State::Established if !timeout => u64::MAX,
            // All that is left to do is to forget it.
            tcp::State::LastAck => later,
            _ => return None,
        };
        Some(Awaited { id, segment, state, until })
    }

    /// The acknowledgement for which this guest need not be woken, and until when it may rest once that has come: as
    /// [`foraker_abi::control::CoreControl`] wants them.
    pub(crate) fn awaited(&mut self) -> Option<(u64, u64)> {
        let Awaited { id, segment, state, until } = self.awaited?;
        if !self.dirty.is_empty() || !self.udp_dirty.is_empty() {
            return None;
        }
        let flow = self.flows.get_mut(id).filter(|flow| {
            (flow.key.local_port, flow.key.remote_port) == (segment.local_port, segment.remote_port)
                && !flow.waits
        });
        let timer = flow.and_then(|flow| {
            let (timer, socket) = (flow.timer, flow.socket());
            // In the last state of a connection there is its end besides.
            let unacknowledged = state != tcp::State::Established || socket.send_queue() == segment.data;
            (socket.state() == state && unacknowledged).then_some(timer)
        });
        let Some(timer) = timer else {
            self.awaited = None;
            return None;
        };
        let until = self.timers.next_without(timer).unwrap_or(u64::MAX).min(until);
        Some((foraker_abi::control::awaited(segment.remote_port, segment.local_port, segment.end), until))
    }

    fn transmit_others(&mut self) {
        self.device.destination = None;
        if core::mem::take(&mut self.others_dirty) {
            loop {
                let result = self.interface.poll_egress(self.now, &mut self.device, &mut self.others);
                if result == PollResult::None || self.device.exhausted {
                    break;
                }
            }
            match self.interface.poll_at(self.now, &self.others) {
                Some(at) => self.timers.set(self.others_timer, nanos(at).max(nanos(self.now) + 1_000_000)),
                None => self.timers.set(self.others_timer, u64::MAX),
            }
        }
        for port in core::mem::take(&mut self.udp_dirty) {
            let Some(sockets) = self.udp.get_mut(&port) else { continue };
            while self.interface.poll_egress(self.now, &mut self.device, sockets) != PollResult::None {}
            if self.device.exhausted {
                self.udp_dirty.push(port);
            }
        }
    }

    /// Gets room in the transmit ring: takes back what was sent, or has the ring served. False if it stays full: then
    /// an interrupt says when it is worth another try.
    #[cold]
    fn make_room(&mut self) -> bool {
        let device = &mut self.device;
        device.transmitter.reclaim();
        if !device.transmitter.has_room(device.with_large) {
            device.transmitter.publish();
            crate::hypercall::doorbell(foraker_abi::hypercall::DEVICE_NET);
            device.transmitter.reclaim();
        }
        let room = device.transmitter.has_room(device.with_large);
        device.exhausted = !room;
        if self.want_tx_interrupt == room {
            self.want_tx_interrupt = !room;
            device.transmitter.want_interrupts(!room);
            // What came back before the VMM could see the wish brings no interrupt.
            device.transmitter.reclaim();
            return device.transmitter.has_room(device.with_large);
        }
        room
    }

    /// Rings the doorbell if something was sent and the VMM asks for it.
    #[inline]
    pub(crate) fn kick(&mut self) {
        if self.device.transmitter.wants_doorbell() {
            crate::hypercall::doorbell_async();
        }
    }

    /// Nothing is due before this.
    pub(crate) fn next_timer(&self) -> Option<u64> {
        // With something left to send there must be another round soon, even if no interrupt comes.
        let again =
            (!self.dirty.is_empty() || !self.udp_dirty.is_empty()).then(|| nanos(self.now) + 1_000_000);
        self.timers.next().into_iter().chain(again).min()
    }

    /// Whether the VMM has taken everything that was sent, and nothing waits.
    pub(crate) fn is_flushed(&self) -> bool {
        self.device.transmitter.is_empty() && self.dirty.is_empty()
    }

    // ---- for sockets

    pub(crate) fn listen(
        &mut self,
        port: u16,
        backlog: usize,
        client_speaks_first: bool,
        buffers: Buffers,
    ) -> Result<(), Error> {
        if port == 0 || backlog == 0 || buffers.receive == 0 || buffers.send == 0 || buffers.receive > 1 << 30
        {
            return Err(Error::Invalid);
        }
        if self.listeners.contains_key(&port) {
            return Err(Error::InUse);
        }
        let listener = Listener {
            buffers,
            backlog,
            client_speaks_first,
            pending: 0,
            ready: VecDeque::new(),
            waker: None,
        };
        self.listeners.insert(port, listener);
        Ok(())
    }

    /// The next connection at `port`; if there is none, `waker` is woken when there is.
    pub(crate) fn accept(&mut self, port: u16, waker: &Waker) -> Option<usize> {
        let listener = self.listeners.get_mut(&port)?;
        let Some(id) = listener.ready.pop_front() else {
            if !listener.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
                listener.waker = Some(waker.clone());
            }
            return None;
        };
        listener.pending -= 1;
        self.flows[id].listener = None;
        Some(id)
    }

    /// Closes a listener; connections that it has not accepted are reset.
    pub(crate) fn unlisten(&mut self, port: u16) {
        let Some(mut listener) = self.listeners.remove(&port) else { return };
        if listener.pending == 0 {
            return;
        }
        listener.ready.clear();
        let pending: Vec<usize> =
            self.flows.iter().filter(|(_, flow)| flow.listener == Some(port)).map(|(id, _)| id).collect();
        for id in pending {
            let flow = &mut *self.flows[id];
            flow.listener = None;
            flow.orphan = true;
            flow.socket().abort();
            self.mark(id);
        }
    }

    /// Starts a connection to `remote`, whose next hop is at `mac`.
    pub(crate) fn connect(
        &mut self,
        remote: IpAddr,
        port: u16,
        mac: Mac,
        buffers: Buffers,
    ) -> Result<usize, Error> {
        if port == 0 {
            return Err(Error::Invalid);
        }
        let own = self.device.neighbors.addresses();
        let local = match remote {
            IpAddr::V4(_) => IpAddr::V4(own.v4),
            IpAddr::V6(_) => IpAddr::V6(own.v6),
        };
        let mut key =
            FlowKey { remote: mapped(remote), local: mapped(local), remote_port: port, local_port: 0 };
        key.local_port = self.free_port(|stack, port| {
            let key = FlowKey { local_port: port, ..key };
            stack.find(&key).is_none() && !stack.listeners.contains_key(&port)
        })?;
        let mut flow = self.take_flow(buffers);
        let socket = flow.socket();
        socket.set_timeout(Some(HANDSHAKE));
        let endpoint = (IpAddress::from(remote), port);
        let local_endpoint = (IpAddress::from(local), key.local_port);
        socket.connect(self.interface.context(), endpoint, local_endpoint).map_err(|_| Error::Unreachable)?;
        let id = self.insert(flow, key, mac);
        self.mark(id);
        Ok(id)
    }

    /// A port of the dynamic range that `is_free`.
    pub(crate) fn free_port(&mut self, is_free: impl Fn(&Stack, u16) -> bool) -> Result<u16, Error> {
        for _ in 0..16384 {
            self.next_port = if self.next_port == u16::MAX { 49152 } else { self.next_port + 1 };
            if is_free(self, self.next_port) {
                return Ok(self.next_port);
            }
        }
        Err(Error::Exhausted)
    }

    #[inline]
    pub(crate) fn flow(&mut self, id: usize) -> &mut Flow {
        &mut self.flows[id]
    }

    /// The program no longer uses the connection: it is closed in order, or reset if `abort`.
    pub(crate) fn release(&mut self, id: usize, abort: bool) {
        let flow = &mut *self.flows[id];
        flow.orphan = true;
        let socket = flow.socket();
        if abort {
            socket.abort();
        } else {
            socket.close();
            socket.set_timeout(Some(LINGER));
        }
        self.settle(id);
        self.mark(id);
    }

    /// Asks who has the next hop to `address`.
    pub(crate) fn ask(&mut self, hop: IpAddr) {
        let question = self.device.neighbors.question(hop);
        self.device.send_frame(&question);
        self.device.transmitter.publish();
    }
}

enum Refusal {
    Reset,
    Silently,
}

#[inline]
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

fn hash(seed: u64, key: &FlowKey) -> u64 {
    let mut hasher = Folding::new(seed);
    let remote = u128::from_ne_bytes(key.remote);
    hasher.fold(remote as u64 ^ u64::from(key.local[15]).rotate_left(20));
    hasher.fold((remote >> 64) as u64 ^ u64::from(key.remote_port) ^ u64::from(key.local_port) << 16);
    hasher.finish()
}

fn new_socket(buffers: Buffers) -> tcp::Socket<'static> {
    let receive = tcp::SocketBuffer::new(crate::heap::buffer(buffers.receive));
    let send = tcp::SocketBuffer::new(crate::heap::buffer(buffers.send));
    let mut socket = tcp::Socket::new(receive, send);
    as_new(&mut socket);
    socket
}

/// Sets all that a program may have set otherwise.
fn as_new(socket: &mut tcp::Socket<'static>) {
    // What tasks write in one round leaves together anyway.
    socket.set_nagle_enabled(false);
    // Likewise acknowledgements: they wait for the end of the round, and ride on what the task answered. A timer on top
    // would hold up a sender whose window is small still.
    socket.set_ack_delay(None);
    socket.set_keep_alive(None);
    socket.set_timeout(None);
    socket.set_congestion_control(tcp::CongestionControl::None);
}

fn source_address(ip: &[u8]) -> Option<IpAddr> {
    if ip[0] >> 4 == 4 {
        Some(IpAddr::from(<[u8; 4]>::try_from(ip.get(12..16)?).ok()?))
    } else {
        Some(IpAddr::from(<[u8; 16]>::try_from(ip.get(8..24)?).ok()?))
    }
}
