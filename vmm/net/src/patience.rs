//! How long a frame may wait for its guest's full receive ring, and with it all frames behind it.
//!
//! Leaving frames in the TAP device's queue instead of dropping them is what a sender's TCP needs: the queue is long,
//! a guest's ring holds a few large frames, and the guest empties it in microseconds. But frames for others wait
//! behind. So when the cell has one port, a frame may wait long; when there are more, a short time, and all waits
//! together take at most a fifth of the time, however badly a guest behaves. Afterwards frames are dropped until one
//! is delivered.

use foraker_policy::token_bucket::TokenBucket;

/// Longest wait when nobody else is concerned, nanoseconds.
pub(crate) const ALONE_NS: u64 = 100_000_000;
/// Longest wait when there are other ports, nanoseconds.
pub(crate) const SHARED_NS: u64 = 200_000;
/// Nanoseconds of waiting in a second when there are other ports.
const SHARED_RATE: u64 = 200_000_000;
/// Nanoseconds of waiting that can be saved up.
const SHARED_BURST: u64 = 1_000_000;

/// Decides whether to wait.
#[derive(Debug)]
pub(crate) struct Patience {
    /// Since when the present frame waits.
    waiting: Option<u64>,
    /// A frame was given up, and none delivered since.
    exhausted: bool,
    shared: TokenBucket,
}

impl Patience {
    pub(crate) fn new() -> Self {
        Patience { waiting: None, exhausted: false, shared: TokenBucket::new(SHARED_RATE, SHARED_BURST, 0) }
    }

    /// The ring is full at `now_ns`: until when the frame may wait (it is tried again before), or None to drop it.
    pub(crate) fn wait(&mut self, now_ns: u64, alone: bool) -> Option<u64> {
        if self.exhausted {
            return None;
        }
        let since = match self.waiting {
            Some(since) => since,
            // A wait begins only if it can be paid for to its end.
            None if alone || self.shared.available(now_ns) >= SHARED_NS => now_ns,
            None => return None,
        };
        self.waiting = Some(since);
        let until = since.saturating_add(if alone { ALONE_NS } else { SHARED_NS });
        if now_ns >= until {
            self.pay(now_ns);
            self.exhausted = true;
            return None;
        }
        Some(until)
    }

    /// Ends the present wait, if there is one.
    fn pay(&mut self, now_ns: u64) {
        if let Some(since) = self.waiting.take() {
            let cost = now_ns.saturating_sub(since);
            let _ = self.shared.take(now_ns, cost.min(SHARED_NS));
        }
    }

    /// A frame was delivered.
    #[inline]
    pub(crate) fn progress(&mut self, now_ns: u64) {
        self.pay(now_ns);
        self.exhausted = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn alone_waits_long_once() {
        let mut patience = Patience::new();
        assert_eq!(patience.wait(5, true), Some(5 + ALONE_NS));
        assert_eq!(patience.wait(5 + ALONE_NS - 1, true), Some(5 + ALONE_NS));
        assert_eq!(patience.wait(5 + ALONE_NS, true), None);
        assert_eq!(patience.wait(6 + ALONE_NS, true), None);
        patience.progress(6 + ALONE_NS);
        assert!(patience.wait(7 + ALONE_NS, true).is_some());
    }

    proptest! {
        /// Others wait at most a fifth of the time, and a burst, for whoever lets its ring run full.
        #[test]
        fn shared_waits_are_bounded(steps in proptest::collection::vec((1_u64..400_000, any::<bool>()), 1..400)) {
            let mut patience = Patience::new();
            let (mut now, mut waited) = (1_000_000_000_u64, 0_u64);
            let start = now;
            for (step, delivered) in steps {
                if delivered {
                    patience.progress(now);
                }
                let waits = patience.wait(now, false);
                if let Some(until) = waits {
                    prop_assert!(until <= now + SHARED_NS);
                    let end = until.min(now + step);
                    waited += end - now;
                    now = end;
                } else {
                    now += step;
                }
                // A wait is paid for when it ends: the present one is not yet.
                prop_assert!(waited <= (now - start) / 5 + SHARED_BURST + SHARED_NS);
            }
        }
    }
}
