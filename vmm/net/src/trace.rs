//! What happens when: frames that pass certain points of their way through the VMM, for whoever measures their latency, and whatever happens to one guest, for
//! whoever wants to understand it.
//!
//! Off, a point costs one load. On, each passing is one record in a ring that was set aside before; while that is full, further ones are dropped and counted.
//! [`write()`] puts those of all frames out, little-endian: time-stamp counter (8), point (4), bytes of the frame (4). Those of one guest are taken
//! from its ring while it runs.

use std::arch::x86_64::_rdtsc;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Points on the way of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Point {
    /// Reading it from the TAP device returned.
    TapRead = 1,
    /// It stands in a guest's receive ring, and so do all frames delivered with it.
    Published = 2,
    /// It was found in a guest's transmit ring.
    Taken = 3,
    /// Writing it to the TAP device starts.
    TapWrite = 4,
    /// It was put into a guest's receive ring. Only in the trace of that guest.
    Delivered = 5,
}

/// Most records of a ring.
pub const MOST_RECORDS: usize = 1 << 20;

/// One thing that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// The host's time-stamp counter.
    pub time: u64,
    /// What: a [`Point`], or a number of whoever owns the ring.
    pub kind: u16,
    /// The core that it happened on; 0 for frames.
    pub core: u16,
    /// How much, or which: of a frame, its bytes.
    pub value: u32,
}

#[derive(Debug, Default)]
struct Slot {
    /// One more than the number of the record that is here, once it is complete.
    complete: AtomicU64,
    time: AtomicU64,
    what: AtomicU64,
}

/// A bounded ring of records: any thread adds, one takes.
#[derive(Debug)]
pub struct Ring {
    slots: Box<[Slot]>,
    next: AtomicU64,
    taken: AtomicU64,
    dropped: AtomicU64,
}

impl Ring {
    /// Sets aside room for `most` records, at least 1 and at most [`MOST_RECORDS`].
    #[must_use]
    pub fn new(most: usize) -> Ring {
        Ring {
            slots: (0..most.clamp(1, MOST_RECORDS)).map(|_| Slot::default()).collect(),
            next: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        }
    }

    fn slot(&self, number: u64) -> Option<&Slot> {
        self.slots.get(usize::try_from(number % self.slots.len() as u64).unwrap_or(0))
    }

    fn add(&self, record: Record) {
        let room = self.slots.len() as u64;
        // Acquire: the slot that is used again was read before it was given free.
        let free = |next: u64| (next - self.taken.load(Ordering::Acquire) < room).then_some(next + 1);
        let Ok(number) = self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, free) else {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        };
        if let Some(slot) = self.slot(number) {
            let Record { time, kind, core, value } = record;
            slot.time.store(time, Ordering::Relaxed);
            let what = u64::from(value) << 32 | u64::from(core) << 16 | u64::from(kind);
            slot.what.store(what, Ordering::Relaxed);
            slot.complete.store(number + 1, Ordering::Release);
        }
    }

    /// A record that is complete and not taken.
    fn get(&self, number: u64) -> Option<(u64, u64)> {
        let slot = self.slot(number).filter(|slot| slot.complete.load(Ordering::Acquire) == number + 1)?;
        Some((slot.time.load(Ordering::Relaxed), slot.what.load(Ordering::Relaxed)))
    }

    /// Takes the oldest record, if there is one. Two threads must not do it at the same time: each record might come twice then.
    pub fn take(&self) -> Option<Record> {
        let number = self.taken.load(Ordering::Relaxed);
        let (time, what) = self.get(number)?;
        self.taken.store(number + 1, Ordering::Release);
        let [a, b, c, d, e, f, g, h] = what.to_le_bytes();
        Some(Record {
            time,
            kind: u16::from_le_bytes([a, b]),
            core: u16::from_le_bytes([c, d]),
            value: u32::from_le_bytes([e, f, g, h]),
        })
    }

    /// How many records were dropped because the ring was full.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// Where what happens to one guest, or one part of it, is recorded if anybody wants that.
#[derive(Debug, Default)]
pub struct Tracer {
    on: AtomicBool,
    ring: Mutex<Option<Arc<Ring>>>,
}

impl Tracer {
    fn ring(&self) -> std::sync::MutexGuard<'_, Option<Arc<Ring>>> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records from now on, unless it does so already. Returns whether it begins.
    #[must_use]
    pub fn start(&self, ring: &Arc<Ring>) -> bool {
        let mut there = self.ring();
        let begins = there.is_none();
        if begins {
            *there = Some(Arc::clone(ring));
            self.on.store(true, Ordering::Relaxed);
        }
        begins
    }

    /// Records nothing any longer.
    pub fn stop(&self) {
        self.on.store(false, Ordering::Relaxed);
        *self.ring() = None;
    }

    /// Whether anybody wants to know.
    #[inline]
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Something happens.
    #[inline]
    pub fn note(&self, kind: u16, core: u32, value: u64) {
        if self.is_on() {
            self.add(kind, core, value);
        }
    }

    /// A frame passes a point.
    #[inline]
    pub(crate) fn pass(&self, point: Point, length: usize) {
        self.note(point as u16, 0, length as u64);
    }

    #[cold]
    fn add(&self, kind: u16, core: u32, value: u64) {
        if let Some(ring) = &*self.ring() {
            let (core, value) =
                (u16::try_from(core).unwrap_or(u16::MAX), u32::try_from(value).unwrap_or(u32::MAX));
            ring.add(Record { time: now(), kind, core, value });
        }
    }
}

fn now() -> u64 {
    // SAFETY: every x86-64 processor has the instruction.
    unsafe { _rdtsc() }
}

static ON: AtomicBool = AtomicBool::new(false);
static RING: OnceLock<Ring> = OnceLock::new();

/// Records from now on all frames of the process, at most `most` points. A second call changes nothing.
pub fn start(most: usize) {
    RING.get_or_init(|| Ring::new(most));
    ON.store(true, Ordering::Release);
}

/// A frame passes a point.
#[inline]
pub(crate) fn pass(point: Point, length: usize) {
    if ON.load(Ordering::Relaxed) {
        record(point, length);
    }
}

#[cold]
fn record(point: Point, length: usize) {
    if let Some(ring) = RING.get() {
        let value = u32::try_from(length).unwrap_or(u32::MAX);
        ring.add(Record { time: now(), kind: point as u16, core: 0, value });
    }
}

/// Writes what was recorded. Returns how many points were dropped for want of room.
///
/// # Errors
/// Those of the destination.
pub fn write(mut to: impl Write) -> io::Result<u64> {
    let Some(ring) = RING.get() else { return Ok(0) };
    for (time, what) in (0..ring.next.load(Ordering::Relaxed)).filter_map(|number| ring.get(number)) {
        to.write_all(&time.to_le_bytes())?;
        to.write_all(&what.to_le_bytes())?;
    }
    to.flush()?;
    Ok(ring.dropped())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_recorded_in_their_form_and_bounded() {
        // One test, since the recorder is one for the process (whose other tests pass points, too).
        pass(Point::TapRead, 1);
        assert_eq!(write(&mut Vec::new()).unwrap(), 0, "nothing is recorded before the start");
        start(1000);
        pass(Point::Taken, 0x1234);
        let mut out = Vec::new();
        write(&mut out).unwrap();
        let found =
            out.chunks_exact(16).any(|r| r[8..] == [3, 0, 0, 0, 0x34, 0x12, 0, 0] && r[..8] != [0; 8]);
        assert!(found, "the record has its point and length behind its time");
        for _ in 0..2000 {
            pass(Point::TapWrite, 60);
        }
        let mut out = Vec::new();
        assert!(write(&mut out).unwrap() >= 1001, "what does not fit is counted");
        assert!(out.len() <= 1000 * 16);
    }

    #[test]
    fn a_ring_gives_records_in_order_and_counts_what_finds_no_room() {
        let ring = Arc::new(Ring::new(4));
        let tracer = Tracer::default();
        tracer.note(9, 0, 1);
        assert!(tracer.start(&ring) && !tracer.start(&ring));
        for n in 0..6 {
            tracer.note(7, 3, n);
        }
        let taken = |ring: &Ring| std::iter::from_fn(|| ring.take()).map(|r| r.value).collect::<Vec<_>>();
        assert_eq!((taken(&ring), ring.dropped()), (vec![0, 1, 2, 3], 2));
        tracer.note(7, 3, 1 << 40);
        let record = ring.take().unwrap();
        assert_eq!((record.kind, record.core, record.value), (7, 3, u32::MAX));
        tracer.stop();
        tracer.note(7, 3, 1);
        assert_eq!((ring.take(), ring.dropped()), (None, 2));
    }

    #[test]
    fn threads_that_add_lose_nothing_and_mix_nothing() {
        let ring = Arc::new(Ring::new(64));
        let tracer = Tracer::default();
        assert!(tracer.start(&ring));
        let mut last = [None; 3];
        let mut seen = 0;
        std::thread::scope(|scope| {
            for thread in 0..3u16 {
                let tracer = &tracer;
                scope.spawn(move || (0..20_000).for_each(|n| tracer.note(thread, u32::from(thread), n)));
            }
            let mut idle = 0;
            while seen + ring.dropped() < 60_000 && idle < 100_000_000 {
                let Some(record) = ring.take() else {
                    idle += 1;
                    continue;
                };
                seen += 1;
                assert_eq!(record.kind, record.core);
                let last = &mut last[usize::from(record.kind)];
                assert!(last.is_none_or(|last| last < record.value), "{last:?} {record:?}");
                *last = Some(record.value);
            }
        });
        assert_eq!(seen + ring.dropped(), 60_000);
    }
}
