//! What happens to one guest, as it happens: exits, interrupts, frames. And, for measurements, when all frames of the process pass certain points.
//!
//! Nobody waits for whoever reads: what finds no room in the ring is dropped and counted. So a guest that does a lot loses only some of its own trace.

use std::fmt;
use std::sync::Arc;

use foraker_abi::{hypercall, interrupt};
use foraker_machine::Exit;
use foraker_net::trace::{Point, Record, Ring};
pub use foraker_net::trace::{start, write};

use crate::guest::Guest;

/// Numbers of what is recorded, behind those of points that frames pass.
const HYPERCALL: u16 = 16;
const DOORBELL: u16 = 17;
const INTERRUPTED: u16 = 18;
const FAULT: u16 = 19;
const PORT: u16 = 20;
const MACHINE: u16 = 21;
const RAISED: u16 = 22;
const RECEIVED: u16 = Point::Delivered as u16;
const SENT: u16 = Point::Taken as u16;

/// Something that happened to a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It made a hypercall of this number; `u32::MAX` stands for all above.
    Hypercall(u32),
    /// It rang the doorbell, and the worker serves its rings.
    Doorbell,
    /// It was called out: its turn is over, somebody else needs the worker, or it is paused.
    Interrupted,
    /// The processor raised an exception; 32 stands for `syscall`.
    Fault(u32),
    /// It used a port that it may not use.
    Port,
    /// The machine cannot run on.
    Machine,
    /// Interrupts were raised: bits of [`foraker_abi::interrupt`].
    Raised(u32),
    /// A frame of so many bytes was put into its receive ring.
    Received(u32),
    /// A frame of so many bytes was found in its transmit ring.
    Sent(u32),
    /// Something that this version does not know.
    Other(u16),
}

/// Something that happened to a guest, and when. Its text is one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Happened {
    /// Guest time, nanoseconds since its launch.
    pub at: u64,
    /// The core; 0 for frames.
    pub core: u16,
    /// What.
    pub event: Event,
}

impl Event {
    fn of(record: &Record) -> Event {
        match record.kind {
            HYPERCALL => Event::Hypercall(record.value),
            DOORBELL => Event::Doorbell,
            INTERRUPTED => Event::Interrupted,
            FAULT => Event::Fault(record.value),
            PORT => Event::Port,
            MACHINE => Event::Machine,
            RAISED => Event::Raised(record.value),
            RECEIVED => Event::Received(record.value),
            SENT => Event::Sent(record.value),
            other => Event::Other(other),
        }
    }
}

const HYPERCALLS: [(u64, &str); 9] = [
    (hypercall::NOP, "nop"),
    (hypercall::READY, "ready"),
    (hypercall::IDLE, "idle"),
    (hypercall::YIELD, "yield"),
    (hypercall::TERMINATE, "terminate"),
    (hypercall::CONSOLE, "console"),
    (hypercall::DOORBELL, "doorbell"),
    (hypercall::MEMORY, "memory"),
    (hypercall::RESOURCES, "resources"),
];

const INTERRUPTS: [(u64, &str); 8] = [
    (interrupt::TIMER, "timer"),
    (interrupt::NET_RX, "net-rx"),
    (interrupt::NET_TX, "net-tx"),
    (interrupt::BLOCK, "block"),
    (interrupt::STOP, "stop"),
    (interrupt::PREEMPT, "preempt"),
    (interrupt::WAKE, "wake"),
    (interrupt::RESOURCES, "resources"),
];

impl fmt::Display for Happened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, rest) = (self.at / 1_000_000_000, self.at % 1_000_000_000);
        write!(f, "{seconds}.{rest:09} core {}: {}", self.core, self.event)
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Event::Hypercall(number) => match HYPERCALLS.iter().find(|(n, _)| *n == u64::from(number)) {
                Some((_, name)) => write!(f, "hypercall {name}"),
                None => write!(f, "hypercall {number}"),
            },
            Event::Doorbell => write!(f, "doorbell"),
            Event::Interrupted => write!(f, "called out"),
            Event::Fault(vector) => write!(f, "fault, vector {vector}"),
            Event::Port => write!(f, "port"),
            Event::Machine => write!(f, "machine stopped"),
            Event::Raised(bits) => {
                write!(f, "interrupt")?;
                for (_, name) in INTERRUPTS.iter().filter(|(bit, _)| u64::from(bits) & bit != 0) {
                    write!(f, " {name}")?;
                }
                Ok(())
            }
            Event::Received(bytes) => write!(f, "received {bytes} bytes"),
            Event::Sent(bytes) => write!(f, "sent {bytes} bytes"),
            Event::Other(kind) => write!(f, "event {kind}"),
        }
    }
}

/// The trace of a guest, from its start until this is dropped.
#[derive(Debug)]
pub struct Trace {
    guest: Arc<Guest>,
    ring: Arc<Ring>,
}

impl Guest {
    /// Records what happens to the guest from now on, with room for `most` records (1 to 2^20, of 24 bytes each) that are not read yet. None while
    /// somebody else does.
    #[must_use]
    pub fn trace(self: &Arc<Self>, most: usize) -> Option<Trace> {
        let ring = Arc::new(Ring::new(most));
        if !self.tracer.start(&ring) {
            return None;
        }
        if let Some(port) = &self.port {
            // Nobody else's: the guest's own has just begun.
            let _ = port.tracer().start(&ring);
        }
        Some(Trace { guest: Arc::clone(self), ring })
    }

    /// A core has left the guest. `number` is what it asks for if that is a hypercall.
    #[inline]
    pub(crate) fn trace_exit(&self, core: u32, exit: Exit, number: impl FnOnce() -> u64) {
        if !self.tracer.is_on() {
            return;
        }
        let (kind, value) = match exit {
            Exit::Hypercall => (HYPERCALL, number()),
            Exit::Doorbell => (DOORBELL, 0),
            Exit::Interrupted => (INTERRUPTED, 0),
            Exit::Fault(vector) => (FAULT, u64::from(vector)),
            Exit::Port => (PORT, 0),
            Exit::Shutdown | Exit::Broken(_) => (MACHINE, 0),
        };
        self.tracer.note(kind, core, value);
    }

    #[inline]
    pub(crate) fn trace_interrupts(&self, core: u32, bits: u64) {
        self.tracer.note(RAISED, core, bits);
    }
}

impl Trace {
    /// Takes the oldest record that was not taken yet.
    pub fn take(&mut self) -> Option<Happened> {
        let record = self.ring.take()?;
        let at = self.guest.clock.at_host(record.time);
        Some(Happened { at, core: record.core, event: Event::of(&record) })
    }

    /// How many records have found no room so far.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.ring.dropped()
    }

    /// The guest.
    #[must_use]
    pub fn guest(&self) -> &Arc<Guest> {
        &self.guest
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if let Some(port) = &self.guest.port {
            port.tracer().stop();
        }
        self.guest.tracer.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_line() {
        let line = |kind, value| {
            let event = Event::of(&Record { time: 0, kind, core: 0, value });
            Happened { at: 1_000_000_042, core: 3, event }.to_string()
        };
        assert_eq!(line(HYPERCALL, 1), "1.000000042 core 3: hypercall idle");
        assert_eq!(line(HYPERCALL, 77), "1.000000042 core 3: hypercall 77");
        assert_eq!(line(RAISED, 0b11), "1.000000042 core 3: interrupt timer net-rx");
        assert_eq!(line(RECEIVED, 60), "1.000000042 core 3: received 60 bytes");
        assert_eq!(line(SENT, 61), "1.000000042 core 3: sent 61 bytes");
        assert_eq!(line(99, 0), "1.000000042 core 3: event 99");
    }
}
