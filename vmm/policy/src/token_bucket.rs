//! Token bucket: bounds a rate and allows bursts (Turner, "New directions in communications", 1986).
//!
//! Time is passed in as nanoseconds of any monotonic clock. All arithmetic saturates; time that goes backwards
//! counts as standing still.

const SECOND_NS: u128 = 1_000_000_000;

/// Holds at most `burst` tokens and gains `rate` of them in a second.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    rate: u64,
    burst: u64,
    tokens: u64,
    /// Time up to which `tokens` is right. It lags behind the clock by less than the time of one token, so that
    /// asking often loses no fractions of tokens.
    filled_ns: u64,
}

impl TokenBucket {
    /// A full bucket. `rate` is in tokens per second; `burst` in tokens, at least 1.
    #[must_use]
    pub fn new(rate: u64, burst: u64, now_ns: u64) -> Self {
        let burst = burst.max(1);
        TokenBucket { rate, burst, tokens: burst, filled_ns: now_ns }
    }

    /// Tokens per second.
    #[must_use]
    pub fn rate(&self) -> u64 {
        self.rate
    }

    /// Most tokens that can gather.
    #[must_use]
    pub fn burst(&self) -> u64 {
        self.burst
    }

    /// Tokens there now.
    pub fn available(&mut self, now_ns: u64) -> u64 {
        self.fill(now_ns);
        self.tokens
    }

    /// Takes `amount` tokens if that many are there; otherwise takes none and returns false. An amount above the
    /// burst counts as the burst, so that it passes when the bucket is full instead of never.
    pub fn take(&mut self, now_ns: u64, amount: u64) -> bool {
        let amount = amount.min(self.burst);
        if self.tokens < amount {
            self.fill(now_ns);
            if self.tokens < amount {
                return false;
            }
        }
        self.tokens -= amount;
        true
    }

    /// When `amount` tokens (at most the burst) will be there if nobody takes any: `now_ns` if they are there,
    /// `u64::MAX` if that never happens.
    pub fn ready_at(&mut self, now_ns: u64, amount: u64) -> u64 {
        self.fill(now_ns);
        let missing = amount.min(self.burst).saturating_sub(self.tokens);
        if missing == 0 {
            return now_ns;
        }
        if self.rate == 0 {
            return u64::MAX;
        }
        let wait = (u128::from(missing) * SECOND_NS).div_ceil(u128::from(self.rate));
        u64::try_from(u128::from(self.filled_ns) + wait).unwrap_or(u64::MAX)
    }

    fn fill(&mut self, now_ns: u64) {
        let elapsed = now_ns.saturating_sub(self.filled_ns);
        if elapsed == 0 {
            return;
        }
        let gained = u128::from(elapsed) * u128::from(self.rate) / SECOND_NS;
        let room = u128::from(self.burst - self.tokens);
        if gained >= room {
            self.tokens = self.burst;
            self.filled_ns = now_ns;
        } else if gained > 0 {
            // `gained < room` fits 64 bits, and so does the time it took, which is at most `elapsed`. Rounded up, so
            // that the rate is never exceeded.
            self.tokens += u64::try_from(gained).unwrap_or(0);
            let took = (gained * SECOND_NS).div_ceil(u128::from(self.rate));
            self.filled_ns += u64::try_from(took).unwrap_or(elapsed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn starts_full_and_refills_at_its_rate() {
        let mut b = TokenBucket::new(1000, 10, 0);
        assert!(b.take(0, 10));
        assert!(!b.take(0, 1));
        assert!(!b.take(MS - 1, 1));
        assert!(b.take(MS, 1));
        assert!(!b.take(MS, 1));
        assert_eq!(b.ready_at(MS, 3), 4 * MS);
        assert!(!b.take(4 * MS - 1, 3));
        assert!(b.take(4 * MS, 3));
    }

    #[test]
    fn never_holds_more_than_its_burst() {
        let mut b = TokenBucket::new(u64::MAX, 5, 0);
        assert_eq!(b.available(u64::MAX), 5);
        assert!(b.take(u64::MAX, 5));
        assert!(!b.take(u64::MAX, 1));
    }

    #[test]
    fn an_amount_above_the_burst_passes_a_full_bucket() {
        let mut b = TokenBucket::new(100, 10, 0);
        assert!(b.take(0, 1_000_000));
        assert_eq!(b.available(0), 0);
    }

    #[test]
    fn asking_often_loses_no_fraction() {
        let mut often = TokenBucket::new(3, 1000, 0);
        assert!(often.take(0, 1000));
        for ns in (0..10_000 * MS).step_by(777_777) {
            let _ = often.available(ns);
        }
        // Times are rounded up to whole nanoseconds, once for each token at most.
        assert_eq!(often.available(10_000 * MS + 30), 30);
    }

    #[test]
    fn time_that_goes_backwards_stands_still() {
        let mut b = TokenBucket::new(1000, 10, 100 * MS);
        assert!(b.take(100 * MS, 10));
        assert!(!b.take(0, 1));
        assert!(b.take(101 * MS, 1));
    }

    #[test]
    fn a_rate_of_nothing_is_never_ready() {
        let mut b = TokenBucket::new(0, 4, 0);
        assert!(b.take(0, 4));
        assert_eq!(b.ready_at(7, 1), u64::MAX);
        assert!(!b.take(u64::MAX, 1));
    }

    /// Over any run of takes at random times, no more than burst + rate * time passes, and a greedy taker of single
    /// tokens loses less than one token of that.
    #[test]
    fn conforms_to_its_rate() {
        let (rate, burst) = (12_345, 64);
        let mut b = TokenBucket::new(rate, burst, 0);
        let (mut now, mut passed, mut seed) = (0_u64, 0_u64, 0x9e37_79b9_7f4a_7c15_u64);
        for _ in 0..20_000 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            now += seed % 300_000;
            while b.take(now, 1) {
                passed += 1;
            }
            let most = burst + rate * now / 1_000_000_000;
            assert!(passed <= most, "{passed} > {most} at {now}");
        }
        assert!(passed + burst + 1 >= rate * now / 1_000_000_000);
    }
}
