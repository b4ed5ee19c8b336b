//! How long a frame may wait for the full receive ring of the only guest of a cell.
//!
//! Leaving frames in the TAP device's queue instead of dropping them is what a sender's TCP needs: the queue is long,
//! a guest's ring holds a few large frames, and the guest empties it in microseconds. Nobody else waits behind them. After a
//! while frames are dropped until one is delivered. Where there are more guests, frames wait in a [`crate::backlog`].

/// Longest wait, nanoseconds.
pub(crate) const LONGEST_NS: u64 = 100_000_000;

/// Decides whether to wait.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    /// Since when the present frame waits.
    waiting: Option<u64>,
    /// A frame was given up, and none delivered since.
    exhausted: bool,
}

impl Patience {
    /// The ring is full at `now_ns`: until when the frame may wait (it is tried again before), or None to drop it.
    pub(crate) fn wait(&mut self, now_ns: u64) -> Option<u64> {
        if self.exhausted {
            return None;
        }
        let until = self.waiting.get_or_insert(now_ns).saturating_add(LONGEST_NS);
        self.exhausted = now_ns >= until;
        (!self.exhausted).then_some(until)
    }

    /// A frame was delivered.
    #[inline]
    pub(crate) fn progress(&mut self) {
        *self = Patience::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_long_once() {
        let mut patience = Patience::default();
        assert_eq!(patience.wait(5), Some(5 + LONGEST_NS));
        assert_eq!(patience.wait(5 + LONGEST_NS - 1), Some(5 + LONGEST_NS));
        assert_eq!(patience.wait(5 + LONGEST_NS), None);
        assert_eq!(patience.wait(6 + LONGEST_NS), None);
        patience.progress();
        assert!(patience.wait(7 + LONGEST_NS).is_some());
    }
}
