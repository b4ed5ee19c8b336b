//! Moves frames: from the TAP device to the guests, and from a guest to the TAP device, another guest, or nowhere.
//!
//! Any thread may call [`Uplink::receive`] and [`Uplink::transmit`], also at the same time; who does, and when, is
//! the caller's policy. Locks, in order: the reader's, a transmit half, a receive half, the switch's table.
//!
//! **One guest alone.** As long as a cell has one port and its frames are large, they are read from the link
//! straight into the guest's buffers, which saves a copy. What decisions are made on, the first [`FRONT`] bytes, is
//! read into the VMM's memory even then. With more ports a frame that turns out to be for another guest would already
//! have been shown to the wrong one.
//!
//! **A full receive ring.** Frames wait for the guest's buffers in a [`crate::backlog`] of its own, and others pass them. What is too much is dropped
//! and counted.

use std::io;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, TryLockError};

use foraker_abi::interrupt;
use foraker_abi::net::{ETHERNET_HEADER, HEADER_SIZE, MAX_FRAME};

use crate::backlog::Room;
use crate::counters::{Counters, DropReason};
use crate::frame::{self, ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use crate::link::Link;
use crate::notices::Notices;
use crate::offload;
use crate::parts::{Parts, Whole};
use crate::pcap::Pcap;
use crate::port::{Allowance, Batch, Outcome, PUBLISH_BYTES, PUBLISH_FRAMES, Port, TransmitHalf};
use crate::receive::{FRONT, Slots};
use crate::ring::RingFault;
use crate::switch::{Route, Switch};
use crate::tap::Tap;
use crate::trace::{self, Point};
use crate::transmit::Outgoing;

/// Bytes of ethernet header and one VLAN-less IP packet beyond the MTU.
const BOUNCE: usize = HEADER_SIZE + MAX_FRAME + 64;

/// Frames from this size on are read straight into the guest's buffers, when the one before was as large.
const DIRECT: usize = 16 << 10;

/// How a call ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Served {
    /// Nothing is left to do.
    #[default]
    Drained,
    /// The budget is spent; call again.
    More,
    /// Receive only: another thread is at it.
    Busy,
    /// Transmit only: the guest is above its limits, and its frames wait in its ring. Call again at `until_ns`.
    Throttled {
        /// Time on the caller's clock.
        until_ns: u64,
    },
}

/// What a call did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Frames taken, dropped ones included.
    pub frames: usize,
    /// Bytes of them.
    pub bytes: usize,
    /// How it ended.
    pub served: Served,
}

/// The way between a cell's guests and the host.
#[derive(Debug)]
pub struct Uplink<L = Tap> {
    link: L,
    switch: Arc<Switch>,
    pcap: Option<Pcap>,
    counters: Counters,
    reader: Mutex<Reader>,
    /// For frames that wait for buffers.
    room: Room,
}

/// What belongs to whoever reads from the TAP device.
#[derive(Debug)]
struct Reader {
    bounce: Box<[u8; BOUNCE]>,
    slots: Box<Slots>,
}

impl Reader {
    #[inline]
    fn frame(&self, total: usize) -> &[u8] {
        self.bounce.get(HEADER_SIZE..total).unwrap_or_default()
    }
}

impl<L: Link> Uplink<L> {
    /// Joins a TAP device (or another link) and a switch. With a capture, every frame is recorded before it is
    /// decided upon.
    #[must_use]
    pub fn new(link: L, switch: Arc<Switch>, pcap: Option<Pcap>) -> Self {
        let bounce = vec![0_u8; BOUNCE].into_boxed_slice();
        let bounce = bounce.try_into().unwrap_or_else(|_| Box::new([0; BOUNCE]));
        let reader = Mutex::new(Reader { bounce, slots: Box::new(Slots::new()) });
        Uplink { link, switch, pcap, counters: Counters::default(), reader, room: Room::default() }
    }

    /// The TAP device, to wait for.
    #[must_use]
    pub fn link(&self) -> &L {
        &self.link
    }

    /// The switch.
    #[must_use]
    pub fn switch(&self) -> &Arc<Switch> {
        &self.switch
    }

    /// The capture.
    #[must_use]
    pub fn pcap(&self) -> Option<&Pcap> {
        self.pcap.as_ref()
    }

    /// Frames read from the host (`rx`) and written to it (`tx`). Drops: of frames that no port answers for.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Frames that wait for guests' buffers.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.room.frames()
    }

    /// Delivers what waits for a guest's buffers, as far as it has given some. To be called when it may have: when it exits or rings, as long as
    /// [`Port::is_waited_for`].
    pub fn flush(&self, port: &Arc<Port>, now_ns: u64, notices: &mut Notices) {
        let mut batch = Batch::begin(port);
        // Asked to ring first, so that buffers that come now are seen now or announced.
        let _ = batch.want_doorbell(true);
        if batch.flush(now_ns) {
            let _ = batch.want_doorbell(false);
        }
        batch.remind_only_if_it_gave_some();
        batch.finish(notices);
    }

    /// Takes at most `budget` frames from the TAP device and delivers them. Returns [`Served::Busy`] at once if
    /// another thread does so already.
    ///
    /// `now_ns` is the caller's monotonic clock, for limits.
    ///
    /// # Errors
    /// The TAP device is off or gone. What was delivered before that stands in `notices`.
    pub fn receive(&self, budget: usize, now_ns: u64, notices: &mut Notices) -> io::Result<Work> {
        let mut reader = match self.reader.try_lock() {
            Ok(reader) => reader,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(Work { served: Served::Busy, ..Work::default() }),
        };
        let mut work = Work::default();
        let result = self.receive_batch(&mut reader, budget, now_ns, notices, &mut work);
        if work.frames > 0 {
            self.counters.rx.add(count(work.frames), count(work.bytes));
        }
        work.served = result?;
        Ok(work)
    }

    fn receive_batch(
        &self,
        reader: &mut Reader,
        budget: usize,
        now_ns: u64,
        notices: &mut Notices,
        work: &mut Work,
    ) -> io::Result<Served> {
        let Some(mut total) = self.read(reader, work)? else { return Ok(Served::Drained) };
        loop {
            let frame = reader.frame(total);
            match self.switch.route_uplink(frame, frame.len()) {
                Route::Port(port) => {
                    match self.receive_run(reader, total, &port, budget, now_ns, notices, work)? {
                        Run::Next(next) => {
                            total = next;
                            continue;
                        }
                        Run::End(served) => return Ok(served),
                    }
                }
                Route::Reply(reply) => {
                    if self.link.send(Whole::new(reply.bytes()).parts()).is_err() {
                        self.counters.tx.drops.count(DropReason::Uplink);
                    }
                }
                Route::Drop(reason) => self.counters.rx.drops.count(reason),
                Route::Uplink => self.counters.rx.drops.count(DropReason::UnknownDestination),
            }
            if work.frames >= budget {
                return Ok(Served::More);
            }
            match self.read(reader, work)? {
                Some(next) => total = next,
                None => return Ok(Served::Drained),
            }
        }
    }

    /// Delivers the frame at hand, and those behind it as long as they go to the same port.
    #[expect(clippy::too_many_arguments, reason = "one loop in two functions")]
    fn receive_run(
        &self,
        reader: &mut Reader,
        mut total: usize,
        port: &Arc<Port>,
        budget: usize,
        now_ns: u64,
        notices: &mut Notices,
        work: &mut Work,
    ) -> io::Result<Run> {
        let mut batch = Batch::begin(port);
        let run = loop {
            let whole = Whole::new(reader.bounce.get(..total).unwrap_or_default());
            let bare = frame::bare_acknowledgement(reader.frame(total));
            let mut outcome = batch.deliver_from_host(whole.parts(), bare, now_ns);
            if outcome == Outcome::Full {
                outcome = batch.keep(reader.bounce.get(..total).unwrap_or_default(), &self.room, now_ns);
            }
            if outcome == Outcome::Delivered {
                let _ = batch.want_doorbell(false);
            }
            let large = outcome == Outcome::Delivered && total >= DIRECT;
            match self.next(reader, &mut batch, large, budget, work) {
                Ok(Next::Frame(next)) => total = next,
                Ok(Next::End(served)) => break Ok(Run::End(served)),
                Err(e) => break Err(e),
            }
            if !self.same_way(batch.port(), reader.frame(total)) {
                break Ok(Run::Next(total));
            }
        };
        batch.finish(notices);
        run
    }

    /// Reads until there is a frame in the bounce buffer. After a `large` one that was delivered, frames for the same
    /// port are read straight into its buffers if it is the only port.
    #[inline]
    fn next(
        &self,
        reader: &mut Reader,
        batch: &mut Batch<'_>,
        mut large: bool,
        budget: usize,
        work: &mut Work,
    ) -> io::Result<Next> {
        while large && self.pcap.is_none() && work.frames < budget {
            let Reader { bounce, slots, .. } = &mut *reader;
            let Some(_alone) = self.switch.only_port(batch.port()) else { break };
            let Some(front) = bounce.first_chunk_mut::<FRONT>() else { break };
            if !batch.offer(slots) {
                break;
            }
            let Some(total) = self.link.receive_scattered(batch.places(slots, front))? else {
                return Ok(Next::End(Served::Drained));
            };
            if !self.arrived(total, work) {
                continue;
            }
            if self.same_way(batch.port(), front.get(HEADER_SIZE..total.min(FRONT)).unwrap_or_default()) {
                batch.accept(slots, front, total);
                large = total >= DIRECT;
                continue;
            }
            // Of what was read into the guest's memory nothing is decided upon: it may have changed.
            batch.rest(slots, total).copy_to(bounce.get_mut(FRONT..total).unwrap_or_default());
            return Ok(Next::Frame(total));
        }
        if work.frames >= budget {
            return Ok(Next::End(Served::More));
        }
        Ok(self.read(reader, work)?.map_or(Next::End(Served::Drained), Next::Frame))
    }

    /// Whether a frame surely goes to this port, as [`Switch::route_uplink`] would say.
    #[inline]
    fn same_way(&self, port: &Port, frame: &[u8]) -> bool {
        !self.switch.is_divided()
            && frame::ethernet(frame).is_ok_and(|(destination, _, ethertype)| {
                destination == port.mac()
                    && (ethertype == ETHERTYPE_IPV4
                        || ethertype == ETHERTYPE_IPV6 && frame::no_discovery(frame))
            })
    }

    /// Reads a frame with its header into the bounce buffer and returns their length.
    #[inline]
    fn read(&self, reader: &mut Reader, work: &mut Work) -> io::Result<Option<usize>> {
        loop {
            let Some(total) = self.link.receive(reader.bounce.as_mut_slice())? else { return Ok(None) };
            if let Some(pcap) = &self.pcap {
                pcap.record(total.saturating_sub(HEADER_SIZE), |to| {
                    to.copy_from_slice(reader.frame(total).get(..to.len()).unwrap_or_default())
                });
            }
            if self.arrived(total, work) {
                return Ok(Some(total));
            }
        }
    }

    /// Counts a frame of `total` bytes with its header. False, and it is dropped, if that is no length of a frame.
    #[inline]
    fn arrived(&self, total: usize, work: &mut Work) -> bool {
        let length = total.saturating_sub(HEADER_SIZE);
        trace::pass(Point::TapRead, length);
        work.frames += 1;
        work.bytes += length;
        let good = (ETHERNET_HEADER..=MAX_FRAME).contains(&length);
        if !good {
            self.counters.rx.drops.count(DropReason::Malformed);
        }
        good
    }

    /// Takes at most `frames` from a port's transmit ring, and at most so many `bytes` of them (but always one frame), and sends
    /// them on. Waits for another thread that does so already: what the guest made available before the call is dealt with when it
    /// returns [`Served::Drained`].
    ///
    /// `now_ns` is the caller's monotonic clock, for limits.
    pub fn transmit(
        &self,
        port: &Arc<Port>,
        frames: usize,
        bytes: usize,
        now_ns: u64,
        notices: &mut Notices,
    ) -> Work {
        let mut work = Work::default();
        let mut guard = port.lock_transmit();
        let Some(half) = guard.as_mut() else { return work };
        let mut sent = Sent::default();
        match self.transmit_batch(half, port, (frames, bytes), now_ns, notices, &mut work, &mut sent) {
            Ok(served) => {
                work.served = served;
                sent.published |= half.queue.publish();
                if sent.published && half.queue.interrupt_wanted() {
                    notices.raise(port, interrupt::NET_TX);
                }
            }
            Err(fault) => {
                *guard = None;
                notices.fault(port, fault);
            }
        }
        if sent.frames > 0 {
            port.counters().tx.add(sent.frames, sent.bytes);
            self.counters.tx.add_shared(sent.uplink_frames, sent.uplink_bytes);
        }
        work
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the body of the function above, apart for its error's sake"
    )]
    fn transmit_batch(
        &self,
        half: &mut TransmitHalf,
        port: &Arc<Port>,
        (frames, bytes): (usize, usize),
        now_ns: u64,
        notices: &mut Notices,
        work: &mut Work,
        sent: &mut Sent,
    ) -> Result<Served, RingFault> {
        let mut frame = Outgoing::new();
        let (mut unpublished, mut unpublished_bytes) = (0, 0);
        loop {
            if work.frames >= frames {
                return Ok(Served::More);
            }
            if !half.queue.next(&mut frame)? {
                return Ok(Served::Drained);
            }
            // It stays in the ring, and is looked at anew by the next call.
            if work.frames > 0 && work.bytes + frame.length() > bytes {
                return Ok(Served::More);
            }
            trace::pass(Point::Taken, frame.length());
            port.tracer().pass(Point::Taken, frame.length());
            match self.send(half, port, &mut frame, now_ns, notices) {
                Ok(Way::Uplink) => {
                    sent.add(frame.length());
                    sent.uplink_frames += 1;
                    sent.uplink_bytes += count(frame.length());
                }
                Ok(Way::Inside) => sent.add(frame.length()),
                Ok(Way::Throttled(until_ns)) => return Ok(Served::Throttled { until_ns }),
                Err(reason) => port.counters().tx.drops.count(reason),
            }
            half.queue.complete(&frame);
            work.frames += 1;
            work.bytes += frame.length();
            unpublished += 1;
            unpublished_bytes += frame.length();
            if unpublished >= PUBLISH_FRAMES || unpublished_bytes >= PUBLISH_BYTES {
                sent.published |= half.queue.publish();
                (unpublished, unpublished_bytes) = (0, 0);
            }
        }
    }

    /// Decides on a frame and sends it where it goes.
    #[inline]
    fn send(
        &self,
        half: &mut TransmitHalf,
        port: &Arc<Port>,
        outgoing: &mut Outgoing,
        now_ns: u64,
        notices: &mut Notices,
    ) -> Result<Way, DropReason> {
        let length = outgoing.length();
        if let Some(pcap) = &self.pcap {
            record(pcap, outgoing.parts(&half.queue));
        }
        let frame = frame::parse(outgoing.prefix(), length).map_err(|_| DropReason::Malformed)?;
        let checked = offload::matches(&outgoing.header(), &frame, length).ok_or(DropReason::BadOffload)?;
        let on_wire = match checked.header.gso_size {
            0 => length,
            size => usize::from(checked.header.hdr_len) + usize::from(size),
        };
        if on_wire > ETHERNET_HEADER + usize::from(port.mtu()) {
            return Err(DropReason::TooLarge);
        }
        let route = self.switch.route_guest(port, &frame);
        if let Route::Drop(reason) = route {
            return Err(reason);
        }
        match half.charge(length, checked.segments, now_ns) {
            Allowance::Granted => {}
            Allowance::Refused => return Err(DropReason::RateLimited),
            Allowance::WaitUntil(until_ns) => return Ok(Way::Throttled(until_ns)),
        }
        outgoing.set_header(checked.header);
        match route {
            Route::Uplink => {
                trace::pass(Point::TapWrite, length);
                self.link.send(outgoing.parts(&half.queue)).map_err(|_| DropReason::Uplink)?;
                Ok(Way::Uplink)
            }
            Route::Port(to) => {
                deliver(&to, outgoing.parts(&half.queue), &self.room, now_ns, notices);
                Ok(Way::Inside)
            }
            Route::Reply(reply) => {
                deliver(port, Whole::new(reply.bytes()).parts(), &self.room, now_ns, notices);
                Ok(Way::Inside)
            }
            Route::Drop(reason) => Err(reason),
        }
    }
}

/// How a run of frames to one port ended.
enum Run {
    /// The frame at hand, of this many bytes with its header, goes elsewhere.
    Next(usize),
    End(Served),
}

/// What reading on came to.
enum Next {
    /// A frame of this many bytes with its header is in the bounce buffer.
    Frame(usize),
    End(Served),
}

/// Which way a frame of a guest took.
enum Way {
    Uplink,
    Inside,
    Throttled(u64),
}

/// Totals of a batch.
#[derive(Default)]
struct Sent {
    frames: u64,
    bytes: u64,
    uplink_frames: u64,
    uplink_bytes: u64,
    published: bool,
}

impl Sent {
    fn add(&mut self, bytes: usize) {
        self.frames += 1;
        self.bytes += count(bytes);
    }
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// Delivers one frame from inside the cell.
fn deliver(to: &Arc<Port>, frame: Parts<'_>, room: &Room, now_ns: u64, notices: &mut Notices) {
    let mut batch = Batch::begin(to);
    batch.deliver_from_neighbour(frame, room, now_ns);
    batch.finish(notices);
}

#[cold]
fn record(pcap: &Pcap, frame: Parts<'_>) {
    pcap.record(frame.total().saturating_sub(HEADER_SIZE), |to| {
        let mut reader = frame.reader();
        let mut header = [0_u8; HEADER_SIZE];
        // SAFETY: an array of that size.
        unsafe { reader.copy(NonNull::from(&mut header).cast(), HEADER_SIZE) };
        // SAFETY: a slice.
        unsafe { reader.copy(NonNull::from(&mut *to).cast(), to.len()) };
    });
}
