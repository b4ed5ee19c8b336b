//! A guest's port: its addresses, its two rings, its limits and its counters.
//!
//! **Locks.** The halves have a lock each, so that one thread can serve the transmit ring while another fills the
//! receive ring. Order: transmit half, then receive half (of any port), so that guests that send to each other at
//! the same time cannot deadlock. Nothing else is locked while a receive half is.
//!
//! **End.** Closing a port empties both halves under their locks: when [`Port::close`] has returned, no thread
//! reaches the guest's memory any more. A half whose ring the guest broke is emptied at once, and the fault reported
//! once.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foraker_abi::{interrupt, layout};
use foraker_policy::token_bucket::TokenBucket;

use crate::backlog::{Backlog, Room};
use crate::counters::{Counters, DropReason};
use crate::frame::Mac;
use crate::memory::{DeviceMemory, MemoryError};
use crate::notices::Notices;
use crate::parts::{Parts, Places, Whole};
use crate::receive::{Delivery, FRONT, ReceiveQueue, Slots};
use crate::ring::RingFault;
use crate::trace::{self, Point, Tracer};
use crate::transmit::TransmitQueue;

/// Frames after which a batch shows the guest what it has done so far, so that the guest works in parallel.
pub(crate) const PUBLISH_FRAMES: u32 = 8;
/// Bytes after which it does so.
pub(crate) const PUBLISH_BYTES: usize = 32 << 10;

/// What happens to frames that a guest sends above its limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OverLimit {
    /// They are dropped and counted.
    #[default]
    Drop,
    /// They wait in the ring; [`crate::Served::Throttled`] says until when.
    Wait,
}

/// A guest's limits; none means unlimited.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Bytes per second towards the guest. What exceeds it is dropped.
    pub rx_bandwidth: Option<u64>,
    /// Bytes per second from the guest.
    pub tx_bandwidth: Option<u64>,
    /// Packets per second from the guest. A frame that the host cuts into segments counts as that many.
    pub tx_packets: Option<u64>,
    /// What happens to frames above `tx_*`.
    pub over_limit: OverLimit,
}

/// How many buffers of each ring were completed, modulo 2^16: what a ring's state is, besides the guest's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingState {
    /// Of the receive ring.
    pub rx: u16,
    /// Of the transmit ring.
    pub tx: u16,
}

/// What a port is made from.
#[derive(Debug)]
pub struct PortConfig {
    /// The guest's identity, as the caller knows it.
    pub id: u64,
    /// Ports of different networks cannot reach each other; only [`crate::elsewhere::SHARED`] reaches those of other switches.
    pub network: u32,
    /// Ethernet address.
    pub mac: Mac,
    /// IPv4 address.
    pub ipv4: Ipv4Addr,
    /// IPv6 address. The link-local address derived from `mac` is always there besides.
    pub ipv6: Option<Ipv6Addr>,
    /// Most bytes of an IP packet on the wire.
    pub mtu: u16,
    /// Limits.
    pub limits: Limits,
    /// The guest's memory.
    pub memory: DeviceMemory,
    /// Zeros for a new guest; what [`Port::close`] returned for one that goes on.
    pub rings: RingState,
}

/// A guest's port of the switch.
#[derive(Debug)]
pub struct Port {
    id: u64,
    network: u32,
    mac: Mac,
    ipv4: Ipv4Addr,
    ipv6: Option<Ipv6Addr>,
    mtu: u16,
    counters: Counters,
    rx: Mutex<Option<ReceiveHalf>>,
    /// Frames wait for buffers.
    waited_for: AtomicBool,
    /// Frames that come and go are recorded here.
    tracer: Tracer,
    tx: Mutex<Option<TransmitHalf>>,
}

#[derive(Debug)]
pub(crate) struct ReceiveHalf {
    queue: ReceiveQueue,
    bytes: Option<TokenBucket>,
    backlog: Backlog,
    /// How many buffers the guest had given when it was told last that they are too few.
    told: Option<u16>,
}

#[derive(Debug)]
pub(crate) struct TransmitHalf {
    pub(crate) queue: TransmitQueue,
    bytes: Option<TokenBucket>,
    packets: Option<TokenBucket>,
    over_limit: OverLimit,
}

/// Locks, also if a thread panicked in between: queues are consistent between any two steps.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A bucket for bytes: a tenth of a second's worth of burst, and at least two of the largest frames.
fn byte_bucket(rate: u64) -> TokenBucket {
    TokenBucket::new(rate, (rate / 10).max(2 << 16), 0)
}

/// A bucket for packets: a tenth of a second's worth of burst, and at least 64.
fn packet_bucket(rate: u64) -> TokenBucket {
    TokenBucket::new(rate, (rate / 10).max(64), 0)
}

impl Port {
    /// Touches none of the guest's memory.
    pub(crate) fn new(config: PortConfig) -> Result<Self, MemoryError> {
        let PortConfig { id, network, mac, ipv4, ipv6, mtu, limits, memory, rings } = config;
        let (rx_ring, tx_ring) = (memory.ring(layout::NET_RX)?, memory.ring(layout::NET_TX)?);
        let (readable, writable) = memory.into_halves();
        let rx = ReceiveQueue::new(writable, rx_ring, rings.rx);
        let tx = TransmitQueue::new(readable, tx_ring, rings.tx);
        Ok(Port {
            id,
            network,
            mac,
            ipv4,
            ipv6,
            mtu,
            counters: Counters::default(),
            rx: Mutex::new(Some(ReceiveHalf {
                queue: rx,
                bytes: limits.rx_bandwidth.map(byte_bucket),
                backlog: Backlog::default(),
                told: None,
            })),
            waited_for: AtomicBool::new(false),
            tracer: Tracer::default(),
            tx: Mutex::new(Some(TransmitHalf {
                queue: tx,
                bytes: limits.tx_bandwidth.map(byte_bucket),
                packets: limits.tx_packets.map(packet_bucket),
                over_limit: limits.over_limit,
            })),
        })
    }

    /// The guest's identity.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The network it belongs to.
    #[must_use]
    pub fn network(&self) -> u32 {
        self.network
    }

    /// Ethernet address.
    #[must_use]
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// IPv4 address.
    #[must_use]
    pub fn ipv4(&self) -> Ipv4Addr {
        self.ipv4
    }

    /// IPv6 address.
    #[must_use]
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        self.ipv6
    }

    /// The IPv6 address on the link that is derived from the ethernet address.
    #[must_use]
    pub fn link_local(&self) -> Ipv6Addr {
        self.mac.link_local()
    }

    /// Most bytes of an IP packet on the wire.
    #[must_use]
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// Counters since the port was made.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Where its frames are recorded if somebody wants that.
    #[must_use]
    pub fn tracer(&self) -> &Tracer {
        &self.tracer
    }

    /// Tells the guest whether somebody looks at its transmit ring, so that it need not ring the doorbell. After
    /// saying that nobody does any longer, looks once more: true means that frames wait, perhaps unannounced, and
    /// [`crate::Uplink::transmit`] must be called.
    pub fn set_looking(&self, looking: bool) -> bool {
        lock(&self.tx).as_mut().is_some_and(|half| half.queue.set_looking(looking))
    }

    /// Whether frames wait in the transmit ring.
    #[must_use]
    pub fn transmit_pending(&self) -> bool {
        lock(&self.tx).as_mut().is_some_and(|half| half.queue.pending())
    }

    /// Whether frames wait for the guest to give buffers: [`crate::Uplink::flush`] is to be called when it may have.
    #[inline]
    #[must_use]
    pub fn is_waited_for(&self) -> bool {
        self.waited_for.load(Ordering::SeqCst)
    }

    /// Has both rings stand still while `look` is called with where they are: no frame comes or goes meanwhile, so that what the guest's
    /// memory says of them is the same. None if one of them is closed or broken.
    pub fn hold<R>(&self, look: impl FnOnce(RingState) -> R) -> Option<R> {
        let (tx, rx) = (lock(&self.tx), lock(&self.rx));
        let (of_tx, of_rx) = (tx.as_ref()?, rx.as_ref()?);
        Some(look(RingState { rx: of_rx.queue.completed(), tx: of_tx.queue.completed() }))
    }

    /// Ends the device: when this returns, nobody reaches the guest's memory any more. Returns where the rings stand,
    /// with 0 for a ring that was closed or broken before.
    pub fn close(&self) -> RingState {
        let tx = lock(&self.tx).take().map_or(0, |half| half.queue.completed());
        let rx = lock(&self.rx).take().map_or(0, |half| half.queue.completed());
        RingState { rx, tx }
    }

    pub(crate) fn lock_transmit(&self) -> MutexGuard<'_, Option<TransmitHalf>> {
        lock(&self.tx)
    }
}

/// Whether a frame is within a guest's limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Allowance {
    Granted,
    Refused,
    WaitUntil(u64),
}

impl TransmitHalf {
    /// Takes what a frame costs from the buckets.
    #[inline]
    pub(crate) fn charge(&mut self, bytes: usize, segments: u32, now_ns: u64) -> Allowance {
        if self.bytes.is_none() && self.packets.is_none() {
            return Allowance::Granted;
        }
        let (bytes, packets) = (u64::try_from(bytes).unwrap_or(u64::MAX), u64::from(segments));
        let ready = |bucket: &mut Option<TokenBucket>, amount| {
            bucket.as_mut().map_or(now_ns, |bucket| bucket.ready_at(now_ns, amount))
        };
        let when = ready(&mut self.bytes, bytes).max(ready(&mut self.packets, packets));
        if when > now_ns {
            return match self.over_limit {
                OverLimit::Drop => Allowance::Refused,
                OverLimit::Wait => Allowance::WaitUntil(when),
            };
        }
        for (bucket, amount) in [(&mut self.bytes, bytes), (&mut self.packets, packets)] {
            if let Some(bucket) = bucket {
                let _ = bucket.take(now_ns, amount);
            }
        }
        Allowance::Granted
    }
}

/// What became of a frame for a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Delivered,
    /// The ring is full; nothing is counted yet.
    Full,
    /// It waits for buffers; nothing is counted yet.
    Kept,
    /// Dropped, and counted.
    Dropped,
}

/// A run of deliveries to one port, under one lock. What is delivered is shown to the guest now and then, and at the
/// latest by [`Self::finish`].
#[must_use]
pub(crate) struct Batch<'a> {
    port: &'a Arc<Port>,
    half: MutexGuard<'a, Option<ReceiveHalf>>,
    frames: u64,
    bytes: u64,
    unpublished_frames: u32,
    unpublished_bytes: usize,
    published: bool,
    /// A frame did not find enough buffers.
    starved: bool,
    news: News,
    fault: Option<RingFault>,
}

/// Whether what was delivered is a reason to wake the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    /// Nothing was.
    None,
    /// One acknowledgement, nothing else: perhaps none.
    Acknowledgement(u64),
    /// Anything else.
    Some,
}

impl<'a> Batch<'a> {
    pub(crate) fn begin(port: &'a Arc<Port>) -> Self {
        Batch {
            port,
            half: lock(&port.rx),
            frames: 0,
            bytes: 0,
            unpublished_frames: 0,
            unpublished_bytes: 0,
            published: false,
            starved: false,
            news: News::None,
            fault: None,
        }
    }

    pub(crate) fn port(&self) -> &'a Arc<Port> {
        self.port
    }

    /// Delivers an offload header and a frame that may be a bare acknowledgement.
    #[inline]
    pub(crate) fn deliver_from_host(&mut self, frame: Parts<'_>, bare: Option<u64>, now_ns: u64) -> Outcome {
        if self.half.as_ref().is_some_and(|half| !half.backlog.is_empty()) && !self.flush(now_ns) {
            return Outcome::Full;
        }
        let before = self.news;
        let outcome = self.deliver(frame, now_ns);
        if outcome == Outcome::Delivered
            && let Some(number) = bare
        {
            let same = before == News::None || before == News::Acknowledgement(number);
            self.news = if same { News::Acknowledgement(number) } else { News::Some };
        }
        outcome
    }

    /// Delivers what waits for buffers, as far as there are any. False if some of it still waits.
    #[inline]
    pub(crate) fn flush(&mut self, now_ns: u64) -> bool {
        while let Some(frame) = self.half.as_mut().and_then(|half| half.backlog.pop()) {
            if self.deliver(Whole::new(&frame).parts(), now_ns) == Outcome::Full {
                if let Some(half) = self.half.as_mut() {
                    half.backlog.unpop(frame);
                }
                return false;
            }
        }
        if self.port.is_waited_for() {
            self.port.waited_for.store(false, Ordering::SeqCst);
        }
        true
    }

    /// Has a frame, for which there are no buffers, wait for some. It is dropped if too many wait already.
    pub(crate) fn keep(&mut self, frame: &[u8], room: &Room, now_ns: u64) -> Outcome {
        let kept = self.half.as_mut().is_some_and(|half| half.backlog.push(frame, room));
        if !kept {
            return self.drop_frame(DropReason::RingFull);
        }
        self.port.waited_for.store(true, Ordering::SeqCst);
        // Buffers that came while the guest was asked to ring make it worth another try.
        if self.want_doorbell(true) && self.flush(now_ns) {
            let _ = self.want_doorbell(false);
        }
        Outcome::Kept
    }

    /// A guest that has given no buffers since it was told that they are too few knows already: told at each of its exits, it would never rest. One that
    /// has given some that are still too few hears of it again; it may have seen other frames and thought that those were meant.
    pub(crate) fn remind_only_if_it_gave_some(&mut self) {
        if self.half.as_ref().is_some_and(|half| half.told == Some(half.queue.given())) {
            self.starved = false;
        }
    }

    /// Delivers an offload header and a frame.
    #[inline]
    pub(crate) fn deliver(&mut self, frame: Parts<'_>, now_ns: u64) -> Outcome {
        let Some(half) = self.half.as_mut() else { return self.drop_frame(DropReason::Closed) };
        let length = frame.total().saturating_sub(foraker_abi::net::HEADER_SIZE);
        if let Some(bucket) = &mut half.bytes {
            let cost = u64::try_from(length).unwrap_or(u64::MAX);
            if bucket.ready_at(now_ns, cost) > now_ns {
                return self.drop_frame(DropReason::RateLimited);
            }
        }
        match half.queue.deliver(frame) {
            Ok(Delivery::Done) => {}
            Ok(Delivery::Full) => {
                self.starved = true;
                return Outcome::Full;
            }
            Ok(Delivery::TooLarge) => return self.drop_frame(DropReason::TooLarge),
            Err(fault) => {
                self.fault = Some(fault);
                *self.half = None;
                return self.drop_frame(DropReason::Closed);
            }
        }
        if let Some(bucket) = &mut half.bytes {
            let _ = bucket.take(now_ns, u64::try_from(length).unwrap_or(u64::MAX));
        }
        self.count(length);
        Outcome::Delivered
    }

    /// Delivers a frame from inside the cell, if the guest has more buffers than are kept for what comes from the host. For one that has given few buffers so
    /// far, because it rests, frames wait as those from the host do, but not as many.
    pub(crate) fn deliver_from_neighbour(&mut self, frame: Parts<'_>, room: &Room, now_ns: u64) {
        let few = self.half.as_mut().is_some_and(|half| half.queue.has_given_few());
        let may = if few {
            self.half.as_ref().is_some_and(|half| half.backlog.is_empty()) || self.flush(now_ns)
        } else {
            self.half.as_mut().is_none_or(|half| half.queue.has_room_for_neighbours())
        };
        let outcome = if may { self.deliver(frame, now_ns) } else { Outcome::Full };
        if outcome == Outcome::Full {
            if few
                && self
                    .half
                    .as_ref()
                    .is_some_and(|half| half.backlog.has_room_for_neighbours(frame.total(), room))
            {
                let mut copy = vec![0; frame.total()];
                frame.copy_to(&mut copy);
                let _ = self.keep(&copy, room, now_ns);
                return;
            }
            let _ = self.drop_frame(DropReason::RingFull);
        }
        if self.starved || outcome == Outcome::Delivered {
            // The next one of its kind may find more.
            let _ = self.want_doorbell(self.starved);
        }
    }

    /// Lists the guest's next buffers, so that a frame can be read straight into them. False if there are not enough,
    /// or the guest has a limit that each frame must pass first.
    pub(crate) fn offer(&mut self, slots: &mut Slots) -> bool {
        let Some(half) = self.half.as_mut() else { return false };
        if half.bytes.is_some() {
            return false;
        }
        match half.queue.offer(slots) {
            Ok(offered) => offered,
            Err(fault) => {
                self.fault = Some(fault);
                *self.half = None;
                false
            }
        }
    }

    /// The places of what was offered, behind `front`.
    pub(crate) fn places<'b>(&'b mut self, slots: &'b mut Slots, front: &'b mut [u8; FRONT]) -> Places<'b> {
        // SAFETY: `offer` listed writable memory of the guest, which stays mapped while the half is locked and open;
        // `self` has the lock and is borrowed for as long. Only the lock's holder writes there.
        unsafe { Places::new(slots.parts(front)) }
    }

    /// What was read into the places behind the front: `total` bytes, the front's included.
    pub(crate) fn rest<'b>(&'b self, slots: &'b Slots, total: usize) -> Parts<'b> {
        // SAFETY: as in `places`.
        unsafe { Parts::new(slots.rest(), total.saturating_sub(FRONT)) }
    }

    /// Delivers the frame that was read into the places, `total` bytes in all.
    pub(crate) fn accept(&mut self, slots: &Slots, front: &[u8; FRONT], total: usize) {
        let Some(half) = self.half.as_mut() else { return };
        half.queue.accept(slots, front, total);
        self.count(total.saturating_sub(foraker_abi::net::HEADER_SIZE));
    }

    /// Counts a delivered frame, and shows the guest what there is if that is enough.
    #[inline]
    fn count(&mut self, length: usize) {
        self.port.tracer.pass(Point::Delivered, length);
        self.news = News::Some;
        self.frames += 1;
        self.bytes += u64::try_from(length).unwrap_or(0);
        self.unpublished_frames += 1;
        self.unpublished_bytes += length;
        if self.unpublished_frames >= PUBLISH_FRAMES || self.unpublished_bytes >= PUBLISH_BYTES {
            self.publish();
        }
    }

    /// Counts a frame for this port as dropped.
    pub(crate) fn drop_frame(&mut self, reason: DropReason) -> Outcome {
        self.port.counters.rx.drops.count(reason);
        Outcome::Dropped
    }

    /// See [`ReceiveQueue::want_doorbell`].
    #[inline]
    pub(crate) fn want_doorbell(&mut self, wanted: bool) -> bool {
        self.half.as_mut().is_some_and(|half| half.queue.want_doorbell(wanted))
    }

    fn publish(&mut self) {
        if self.half.as_mut().is_some_and(|half| half.queue.publish()) {
            self.published = true;
            trace::pass(Point::Published, self.unpublished_bytes);
        }
        self.unpublished_frames = 0;
        self.unpublished_bytes = 0;
    }

    /// Shows the guest everything, and notes what is to be raised.
    pub(crate) fn finish(mut self, notices: &mut Notices) {
        self.publish();
        // A guest that rests with few buffers hears that they are too few: `NO_NOTIFY` is clear then.
        let heard = self.published || self.starved;
        let wanted = heard && self.half.as_ref().is_some_and(|half| half.queue.interrupt_wanted());
        if self.starved
            && wanted
            && let Some(half) = self.half.as_mut()
        {
            half.told = Some(half.queue.given());
        }
        if self.frames > 0 {
            self.port.counters.rx.add(self.frames, self.bytes);
        }
        let (port, fault, news, starved) = (self.port, self.fault, self.news, self.starved);
        drop(self);
        match news {
            News::Acknowledgement(number) if wanted && !starved => notices.acknowledge(port, number),
            _ if wanted => notices.raise(port, interrupt::NET_RX),
            _ => {}
        }
        if let Some(fault) = fault {
            notices.fault(port, fault);
        }
    }
}
