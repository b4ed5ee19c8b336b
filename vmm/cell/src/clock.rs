//! Guest time: nanoseconds since launch, from the time-stamp counter, the same for the guest and for the VMM.
//!
//! The guest computes it from three numbers in its virtual registers and its machine's counter, without an exit; the VMM computes it from the
//! host's counter, so that a deadline means the same on both sides. It never steps.

use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use foraker_abi::registers::Time;
use foraker_machine::machine::host_time_stamp;

/// The clock of one guest. It stays the same when the guest goes to another machine, whose counter may differ.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Nanoseconds per 2^32 ticks.
    multiplier: u64,
    /// The host's counter at time 0.
    base: u64,
    frequency: u64,
}

impl Clock {
    /// A clock that is at 0 when the host's counter is at `host`.
    #[must_use]
    pub fn new(khz: u32, host: u64) -> Clock {
        let khz = u64::from(khz.max(1));
        Clock { multiplier: (1_000_000u64 << 32) / khz, base: host, frequency: khz * 1000 }
    }

    /// The same clock at `time` instead of 0.
    #[must_use]
    pub fn set_to(mut self, time: u64) -> Clock {
        let ticks = (u128::from(time) << 32).div_ceil(u128::from(self.multiplier));
        self.base = self.base.wrapping_sub(u64::try_from(ticks).unwrap_or(0));
        self
    }

    /// Writes the clock to the virtual registers of a guest that does not run. `guest` and `host` are the counter of its machine and the host's
    /// at one moment.
    pub fn publish(&self, time: &Time, (guest, host): (u64, u64)) {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall = u64::try_from(wall.as_nanos()).unwrap_or(0);
        let sequence = time.sequence.load(Ordering::SeqCst) & !1;
        time.sequence.store(sequence | 1, Ordering::SeqCst);
        time.multiplier.store(self.multiplier, Ordering::Relaxed);
        time.base_tsc.store(self.base.wrapping_add(guest.wrapping_sub(host)), Ordering::Relaxed);
        time.base_ns.store(0, Ordering::Relaxed);
        time.wall_offset_ns.store(wall.wrapping_sub(self.now()), Ordering::Relaxed);
        time.tsc_hz.store(self.frequency, Ordering::Relaxed);
        time.sequence.store(sequence.wrapping_add(2), Ordering::SeqCst);
    }

    /// Guest time now.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.at_host(host_time_stamp())
    }

    /// Guest time at a value of the host's counter.
    #[must_use]
    pub fn at_host(&self, host: u64) -> u64 {
        let ticks = host.wrapping_sub(self.base);
        // A counter that lags behind the base by a little (another processor) is time 0, not the far future.
        if ticks > u64::MAX / 2 {
            return 0;
        }
        let product = (u128::from(ticks) * u128::from(self.multiplier)) >> 32;
        u64::try_from(product).unwrap_or(u64::MAX)
    }

    /// Time left until `deadline`.
    #[must_use]
    pub fn until(&self, deadline: u64) -> Duration {
        Duration::from_nanos(deadline.saturating_sub(self.now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_nanoseconds_from_zero() {
        let clock = Clock::new(2_500_000, 5_000);
        assert_eq!(clock.at_host(5_000), 0);
        assert_eq!(clock.at_host(4_000), 0);
        let second = clock.at_host(5_000 + 2_500_000_000);
        assert!((999_999_999..=1_000_000_000).contains(&second), "{second}");
        let year = clock.at_host(5_000 + 2_500_000_000 * 86_400 * 365);
        let later = clock.set_to(3_000_000_000);
        assert!(later.at_host(5_000).abs_diff(3_000_000_000) < 2, "{}", later.at_host(5_000));
        assert!(year.abs_diff(86_400 * 365 * 1_000_000_000) < 20_000_000, "{year}");
    }
}
