//! Guest time: from the time-stamp counter and the virtual registers, without an exit.

use core::sync::atomic::{Ordering, fence};
use core::time::Duration;
use foraker_abi::registers::Time;

/// Guest time in nanoseconds. It starts near 0 at launch and never goes back.
#[inline]
#[must_use]
pub fn now() -> u64 {
    #[cfg(not(test))]
    return read(&crate::registers().time, tsc);
    #[cfg(test)]
    crate::testing::now()
}

/// Nanoseconds since 1970-01-01 UTC, by the host's clock.
#[must_use]
pub fn wall() -> u64 {
    now().wrapping_add(crate::registers().time.wall_offset_ns.load(Ordering::Relaxed))
}

/// The time-stamp counter.
#[inline(always)]
#[must_use]
pub fn tsc() -> u64 {
    // SAFETY: `rdtsc` is allowed at CPL 3 and only writes RDX and RAX.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Reads `time` by its sequence lock. The VMM changes it rarely (restore, migration), so this does not wait in practice.
#[inline]
#[cfg_attr(test, allow(dead_code, reason = "tests have a clock of their own"))]
fn read(time: &Time, tsc: impl Fn() -> u64) -> u64 {
    loop {
        let sequence = time.sequence.load(Ordering::Acquire);
        let multiplier = time.multiplier.load(Ordering::Relaxed);
        let base_tsc = time.base_tsc.load(Ordering::Relaxed);
        let base_ns = time.base_ns.load(Ordering::Relaxed);
        let ticks = tsc().saturating_sub(base_tsc);
        fence(Ordering::Acquire);
        if sequence & 1 == 0 && sequence == time.sequence.load(Ordering::Relaxed) {
            return base_ns.wrapping_add(scale(ticks, multiplier));
        }
        core::hint::spin_loop();
    }
}

/// `ticks * multiplier / 2^32`, the product in 128 bits.
#[inline(always)]
fn scale(ticks: u64, multiplier: u64) -> u64 {
    ((u128::from(ticks) * u128::from(multiplier)) >> 32) as u64
}

/// A point of guest time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// Now.
    #[inline]
    #[must_use]
    pub fn now() -> Self {
        Instant(now())
    }

    /// The point `ns` nanoseconds of guest time after the guest's start.
    #[must_use]
    pub const fn from_nanos(ns: u64) -> Self {
        Instant(ns)
    }

    /// Nanoseconds of guest time.
    #[inline]
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Time since this point; zero if it is in the future.
    #[must_use]
    pub fn elapsed(self) -> Duration {
        Duration::from_nanos(now().saturating_sub(self.0))
    }

    /// Time from `earlier` to this point; zero if `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl core::ops::Add<Duration> for Instant {
    type Output = Instant;

    /// Saturates at the end of time, some 584 years after launch.
    fn add(self, duration: Duration) -> Instant {
        Instant(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::{AtomicU32, AtomicU64};

    fn time(multiplier: u64, base_tsc: u64, base_ns: u64) -> Time {
        Time {
            sequence: AtomicU32::new(2),
            reserved: 0,
            multiplier: AtomicU64::new(multiplier),
            base_tsc: AtomicU64::new(base_tsc),
            base_ns: AtomicU64::new(base_ns),
            wall_offset_ns: AtomicU64::new(0),
            tsc_hz: AtomicU64::new(0),
            reserved1: [0; 2],
        }
    }

    #[test]
    fn scales_ticks_without_overflow() {
        // 2 GHz: half a nanosecond a tick.
        let half = time(1 << 31, 1000, 500);
        assert_eq!(read(&half, || 1000), 500);
        assert_eq!(read(&half, || 3000), 1500);
        assert_eq!(read(&half, || 10), 500, "a counter behind the base counts as the base");
        // A century.
        assert_eq!(read(&half, || 1000 + (6 << 60)), 500 + (3 << 60));
    }

    #[test]
    fn waits_for_a_writer() {
        let time = time(1 << 32, 0, 0);
        time.sequence.store(3, Ordering::Relaxed);
        let reads = core::cell::Cell::new(0);
        let value = read(&time, || {
            reads.set(reads.get() + 1);
            if reads.get() == 3 {
                time.base_ns.store(77, Ordering::Relaxed);
                time.sequence.store(4, Ordering::Release);
            }
            5
        });
        // The read during which the writer finished is made again.
        assert_eq!((value, reads.get()), (82, 4));
    }

    #[test]
    fn instants_saturate() {
        let end = Instant::from_nanos(u64::MAX - 1) + Duration::from_secs(9);
        assert_eq!(end.as_nanos(), u64::MAX);
        assert_eq!(Instant::from_nanos(5).since(Instant::from_nanos(9)), Duration::ZERO);
    }
}
