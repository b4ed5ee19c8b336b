//! When frames pass certain points of their way through the VMM, for whoever measures their latency.
//!
//! Off, a point costs one load. On, each passing is one record of 16 bytes in memory that was set aside before; when that is used up,
//! further ones are dropped and counted. [`write()`] puts them out, little-endian: time-stamp counter (8), point (4), bytes of the frame (4).

use std::arch::x86_64::_rdtsc;
use std::io::{self, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

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
}

#[derive(Debug, Default)]
struct Record {
    time: AtomicU64,
    /// The point in the low half, bytes in the high half; 0 until the record is complete.
    what: AtomicU64,
}

static ON: AtomicBool = AtomicBool::new(false);
static NEXT: AtomicUsize = AtomicUsize::new(0);
static RECORDS: OnceLock<Box<[Record]>> = OnceLock::new();

/// Records from now on, at most `most` points. A second call changes nothing.
pub fn start(most: usize) {
    RECORDS.get_or_init(|| (0..most).map(|_| Record::default()).collect());
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
    // SAFETY: every x86-64 processor has the instruction.
    let time = unsafe { _rdtsc() };
    let index = NEXT.fetch_add(1, Ordering::Relaxed);
    if let Some(record) = RECORDS.get().and_then(|records| records.get(index)) {
        record.time.store(time, Ordering::Relaxed);
        let length = u64::from(u32::try_from(length).unwrap_or(u32::MAX));
        record.what.store(length << 32 | u64::from(point as u32), Ordering::Release);
    }
}

/// Writes what was recorded. Returns how many points were dropped for want of room.
///
/// # Errors
/// Those of the destination.
pub fn write(mut to: impl Write) -> io::Result<usize> {
    let records = RECORDS.get().map_or(&[][..], |records| records);
    let passed = NEXT.load(Ordering::Relaxed);
    for record in records.iter().take(passed) {
        let what = record.what.load(Ordering::Acquire);
        if what != 0 {
            to.write_all(&record.time.load(Ordering::Relaxed).to_le_bytes())?;
            to.write_all(&what.to_le_bytes())?;
        }
    }
    to.flush()?;
    Ok(passed.saturating_sub(records.len()))
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
}
