//! The uplink's thread: it serves the rings while that is its to do, and otherwise sends what guests could not send themselves.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use foraker_abi::net::MAX_FRAME;
use foraker_confine::Kind;
use foraker_net::{DeficitRoundRobin, Port, Served};
use foraker_policy::ring_service::Server;

use super::{BUDGET, EXIT_BYTES, LOOK, NOTICES, Network, QUANTUM};
use crate::affinity::Apart;
use crate::cell::Shared;
use crate::urgency::Urgency;
use crate::vigil::timespec;

/// How long the uplink's thread looks before it sleeps.
const UPLINK_LOOK: Duration = Duration::from_micros(20);
/// From when on a burst without a rest counts as several.
const LONG_BURST: Duration = Duration::from_millis(1);
/// Looks at the rings for one at the TAP device while the uplink's thread waits for answers.
const RING_LOOKS: u32 = 64;

/// Guests that have something to send, in the uplink's thread.
type Turns = DeficitRoundRobin<Arc<Port>>;

/// Ports of the guests that run now. Not the guests themselves: whoever sleeps with these keeps nobody's memory, as a port lets go of it when its
/// guest ends.
fn running_ports(cell: &Shared) -> impl Iterator<Item = Arc<Port>> {
    cell.workers.iter().filter_map(|worker| worker.running()?.port.clone())
}

/// What the uplink's thread moved between two rests.
struct Burst {
    frames: u64,
    /// Most frames that one pass received.
    largest: u64,
    first: Instant,
    last: Instant,
}

impl Burst {
    fn new() -> Burst {
        let now = Instant::now();
        Burst { frames: 0, largest: 0, first: now, last: now }
    }

    fn add(&mut self, received: usize, sent: usize) {
        self.frames += (received + sent) as u64;
        self.largest = self.largest.max(received as u64);
        self.last = Instant::now();
    }

    /// How many frames there were at once: all of them in a short burst, while a long one may be many small ones in a row.
    fn depth(&self) -> u64 {
        if self.is_long() { 2 * self.largest } else { self.frames }
    }

    /// Without a rest for so long that what was seen is reported.
    fn is_long(&self) -> bool {
        self.last - self.first > LONG_BURST
    }
}

impl Network {
    /// The uplink's thread.
    pub(crate) fn serve_uplink(cell: &Shared) {
        let Some(network) = &cell.network else { return };
        let mut urgency = Urgency::new();
        foraker_confine::enter(Kind::Uplink);
        let mut turns = Turns::new(QUANTUM, MAX_FRAME);
        while !cell.is_stopping() {
            if network.server() == Server::Worker {
                // Workers serve; what they cannot do is to send later what is above a limit now, while they run something else.
                let waiting = network.throttled.next().map(|at| network.left_until(at));
                let timeout = if turns.is_empty() { waiting } else { Some(Duration::ZERO) };
                wait(&mut [poll_for(network.wake.as_raw_fd())], timeout);
                let _ = network.wake.read();
                network.serve_turns(&mut turns);
            } else {
                network.serve_while_wanted(cell, &mut turns, &mut urgency);
            }
        }
    }

    fn serve_while_wanted(&self, cell: &Shared, turns: &mut Turns, urgency: &mut Urgency) {
        urgency.wakes();
        let mut running: Vec<Arc<Port>> = Vec::new();
        // Frames that guests were given and have not answered yet, as far as one can tell: what is worth waiting for awake.
        let mut owed = 0usize;
        let mut burst = Burst::new();
        let mut passes = 0u32;
        // Passes in a row without a frame.
        let mut spins = 0u32;
        let mut apart: Option<Apart> = None;
        while self.server() == Server::Uplink && !cell.is_stopping() {
            // Which guests run changes seldom; a guest that leaves its worker is served there.
            if passes.is_multiple_of(16) {
                running.clear();
                running.extend(running_ports(cell));
                if apart.is_none()
                    && let Some(w) = cell.workers.iter().find(|w| w.attention.in_guest())
                {
                    apart = Apart::from(w.attention.thread(), w.attention.processor());
                }
            }
            passes = passes.wrapping_add(1);
            // A look at the TAP device is a system call, a look at a ring is not: while answers are awaited, rings come first.
            let received = if spins.is_multiple_of(RING_LOOKS) { self.receive() } else { 0 };
            for port in &running {
                self.flush(port);
                if self.has_work(port) {
                    turns.join(port.id(), Arc::clone(port));
                }
            }
            let sent = self.serve_turns(turns);
            // What guests at rest were given they answer through their workers.
            owed = if running.is_empty() { 0 } else { (owed + received).saturating_sub(sent) };
            if received + sent > 0 {
                spins = 1;
                burst.add(received, sent);
                if burst.is_long() {
                    urgency.note();
                    self.decide_for(cell, |c, now| c.served(now, burst.frames, burst.depth()));
                    burst = Burst::new();
                }
            } else if running.iter().any(|port| port.is_waited_for()) && burst.last.elapsed() < LOOK {
                // The guest is at work on a full ring, and whoever sends may be waiting for this processor.
                spins = 0;
                std::thread::yield_now();
            } else if owed > 0 && burst.last.elapsed() < UPLINK_LOOK {
                spins += 1;
                std::hint::spin_loop();
            } else {
                spins = 0;
                if burst.frames > 0 {
                    self.decide_for(cell, |c, now| c.served(now, burst.frames, burst.depth()));
                }
                urgency.note();
                self.rest_uplink(cell);
                urgency.wakes();
                burst = Burst::new();
                owed = 0;
                passes = 0;
            }
        }
        // Workers serve from here on: those that sleep wake up to watch the TAP device, and guests that look in vain are called out.
        for w in &cell.workers {
            w.wake();
            if let Some(guest) = w.running() {
                guest.schedule().look_ns.store(0, Ordering::Relaxed);
                w.attention.call();
            }
        }
    }

    /// Asks for doorbells, looks once more, and sleeps.
    fn rest_uplink(&self, cell: &Shared) {
        self.asleep.store(true, Ordering::SeqCst);
        let ports: Vec<_> = running_ports(cell).collect();
        let mut pending = false;
        for port in &ports {
            pending |= port.set_looking(false) && !self.throttled.contains(port);
        }
        if !pending && self.server() == Server::Uplink && !cell.is_stopping() {
            let rests = self.device_rests();
            let tap = if rests.is_some() { -1 } else { self.uplink.link().as_raw_fd() };
            let throttled = self.throttled.next().map(|at| self.left_until(at));
            let timeout = rests.into_iter().chain(throttled).min();
            let mut polls =
                [poll_for(tap), poll_for(self.doorbell.as_raw_fd()), poll_for(self.wake.as_raw_fd())];
            wait(&mut polls, timeout);
            if polls[1].revents != 0 {
                let _ = self.doorbell.read();
            }
            if polls[2].revents != 0 {
                let _ = self.wake.read();
            }
        }
        self.asleep.store(false, Ordering::SeqCst);
        for port in &ports {
            port.set_looking(true);
        }
    }

    /// Has those send who stand in line, and those whose limits have held them up long enough: each a quantum, in its turn. Returns the frames moved.
    fn serve_turns(&self, turns: &mut Turns) -> usize {
        while self.throttled.next().is_some_and(|at| at <= self.now())
            && let Some(port) = self.throttled.pop(self.now())
        {
            turns.join(port.id(), port);
        }
        NOTICES.with_borrow_mut(|notices| {
            let mut frames = 0;
            for _ in 0..turns.len() {
                let Some(turn) = turns.begin() else { break };
                // While nobody else waits, a long turn is at nobody's cost.
                let bytes = if turns.is_empty() { EXIT_BYTES } else { turn.credit() };
                let work = self.uplink.transmit(turn.sender(), BUDGET, bytes, self.now(), notices);
                frames += work.frames;
                self.act(notices);
                if let Served::Throttled { until_ns } = work.served {
                    self.throttle(turn.sender(), until_ns);
                }
                turns.finish(turn, work.bytes, work.served == Served::More);
            }
            self.line.store(turns.len(), Ordering::Relaxed);
            frames
        })
    }
}

/// An entry for `poll` that waits for input; a negative descriptor is ignored.
fn poll_for(fd: i32) -> libc::pollfd {
    libc::pollfd { fd, events: libc::POLLIN, revents: 0 }
}

/// Waits for one of several descriptors, at most `timeout` if there is one.
fn wait(polls: &mut [libc::pollfd], timeout: Option<Duration>) {
    let spec = timeout.map(timespec);
    let spec = spec.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let count = polls.len() as libc::nfds_t;
    // SAFETY: the slice and the time are valid for the call; an interrupted wait is a wait that ended.
    unsafe { libc::ppoll(polls.as_mut_ptr(), count, spec, std::ptr::null()) };
}
