//! A rate of processor time: a limit that a guest does not exceed, or a promise that is kept before anybody else runs.
//!
//! Both are a virtual clock that runs ahead with what is used (Zhang's VirtualClock, SIGCOMM '90): a guest that has not run for a while may use a
//! burst at once.

/// What a guest may use at once, nanoseconds.
const BURST_NS: u64 = 20_000_000;
/// A promise that was used up is due again when so much can be used, nanoseconds: each change of guests costs both an exit.
const LEAST_NS: u64 = 1_000_000;

/// A rate.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Thousandths of a processor.
    permille: u32,
}

impl Rate {
    /// So many thousandths of a processor, at least one.
    #[must_use]
    pub fn new(permille: u32) -> Rate {
        Rate { permille: permille.max(1) }
    }

    /// The guest's clock after it has used `ns` until `now`. `clock` is what this returned before, 0 at first.
    #[must_use]
    pub fn charge(&self, clock: u64, now: u64, ns: u64) -> u64 {
        clock.max(now.saturating_sub(ns)).saturating_add(self.stretched(ns))
    }

    /// From when on a guest with this limit may run.
    #[must_use]
    pub fn ready_at(&self, clock: u64) -> u64 {
        clock.saturating_sub(self.stretched(BURST_NS))
    }

    /// From when on a guest with this promise is due.
    #[must_use]
    pub fn due_at(&self, clock: u64) -> u64 {
        clock.saturating_sub(self.stretched(BURST_NS - LEAST_NS))
    }

    /// How long it may run from `now` on.
    #[must_use]
    pub fn left(&self, clock: u64, now: u64) -> u64 {
        let ahead = clock.saturating_sub(now);
        // While it runs, real time passes too.
        let room = self.stretched(BURST_NS).saturating_sub(ahead);
        let rate = u64::from(self.permille);
        if rate >= 1000 { u64::MAX } else { room.saturating_mul(rate) / (1000 - rate) }
    }

    /// How much of `ns` from `began` on was promised: all until that is used up, and from then on what comes while it runs on.
    #[must_use]
    pub fn part(&self, clock: u64, began: u64, ns: u64) -> u64 {
        let first = ns.min(self.left(clock, began));
        first
            + (ns - first) / 1000 * u64::from(self.permille)
            + (ns - first) % 1000 * u64::from(self.permille) / 1000
    }

    fn stretched(&self, ns: u64) -> u64 {
        ns.saturating_mul(1000) / u64::from(self.permille)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_limit_holds_over_time() {
        let limit = Rate::new(250);
        let (mut now, mut clock, mut used) = (0u64, 0u64, 0u64);
        while now < 10_000 * MS {
            let at = limit.ready_at(clock);
            now = now.max(at);
            let run = limit.left(clock, now).clamp(MS / 10, 7 * MS);
            now += run;
            used += run;
            clock = limit.charge(clock, now, run);
        }
        assert!((2_480..2_550).contains(&(used / MS)), "{} ms", used / MS);
    }

    #[test]
    fn a_promise_comes_in_pieces_that_are_worth_a_change() {
        let promise = Rate::new(250);
        let (mut now, mut clock, mut used, mut turns) = (0u64, 0u64, 0u64, 0u64);
        while now < 10_000 * MS {
            now = now.max(promise.due_at(clock));
            let run = promise.left(clock, now);
            assert!(run >= LEAST_NS, "{run} ns after {turns} turns");
            now += run;
            used += run;
            turns += 1;
            clock = promise.charge(clock, now, run);
        }
        assert!((2_480..2_550).contains(&(used / MS)), "{} ms in {turns} turns", used / MS);
    }
}
