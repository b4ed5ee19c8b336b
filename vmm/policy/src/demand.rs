//! How much of the processors a group of guests asks for: the shares of those that could run, as a mean over time.
//!
//! A cell's weight beside other cells, so that a share means the same in every cell: a group of one busy guest and a thousand idle ones asks for one share.
//! Linux weighs its own groups of tasks in the same way.

use serde::{Deserialize, Serialize};

/// What is runnable, and what was since somebody asked.
#[derive(Clone, Debug, Default)]
pub struct Demand {
    runnable: u64,
    /// Shares times nanoseconds.
    sum: u128,
    /// Nanoseconds of the caller's clock.
    since: u64,
    asked: u64,
}

impl Demand {
    /// A guest with this share can run from `now` on.
    pub fn add(&mut self, share: u32, now: u64) {
        self.advance(now);
        self.runnable = self.runnable.saturating_add(share.into());
    }

    /// One no longer can.
    pub fn remove(&mut self, share: u32, now: u64) {
        self.advance(now);
        self.runnable = self.runnable.saturating_sub(share.into());
    }

    /// The mean since this was asked last.
    pub fn take(&mut self, now: u64) -> u64 {
        self.advance(now);
        let time = u128::from(now.saturating_sub(self.asked).max(1));
        self.asked = now;
        u64::try_from(std::mem::take(&mut self.sum) / time).unwrap_or(u64::MAX)
    }

    fn advance(&mut self, now: u64) {
        self.sum += u128::from(self.runnable) * u128::from(now.saturating_sub(self.since));
        self.since = self.since.max(now);
    }
}

/// What a cell's guests ask for, means over some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// Shares of those that could run.
    pub shares: u64,
    /// Thousandths of processors that were promised to those.
    pub promised: u64,
}

/// What promises leave at least, thousandths of all: what others weigh beside them must not become nothing.
const LEAST_FREE: u64 = 50;

/// The weights of cells beside each other on a host of so many thousandths of processors, such that each has what its guests were promised, and its
/// shares of the rest. Where nothing was promised, these are the shares.
#[must_use]
pub fn weights(cells: &[Asked], host: u64) -> Vec<u64> {
    let host = host.max(1);
    let sum = |pick: fn(&Asked) -> u64| cells.iter().map(pick).fold(0, u64::saturating_add);
    let (shares, promised) = (sum(|c| c.shares), sum(|c| c.promised));
    let free = host.saturating_sub(promised).max(host * LEAST_FREE / 1000).max(1);
    let weigh = |cell: &Asked| {
        let promise = u128::from(shares) * u128::from(cell.promised) / u128::from(free);
        cell.shares.saturating_add(u64::try_from(promise).unwrap_or(u64::MAX))
    };
    cells.iter().map(weigh).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_busy_count_and_the_idle_do_not() {
        let mut demand = Demand::default();
        demand.add(300, 0);
        demand.add(100, 500);
        demand.remove(100, 1000);
        assert_eq!(demand.take(1000), 350);
        assert_eq!(demand.take(2000), 300, "what was before is forgotten");
        demand.remove(300, 2000);
        assert_eq!(demand.take(3000), 0);
        // A clock that stands still.
        demand.add(7, 3000);
        assert_eq!(demand.take(3000), 0);
    }

    #[test]
    fn promises_weigh_before_shares() {
        let cell = |shares, promised| Asked { shares, promised };
        assert_eq!(weights(&[cell(100, 0), cell(300, 0)], 2000), [100, 300]);
        // One of two processors was promised to the first: it has that, and a quarter of the other.
        let with = weights(&[cell(100, 1000), cell(300, 0)], 2000);
        assert_eq!(with, [500, 300]);
        assert_eq!(weights(&[cell(100, 9000), cell(300, 0)], 2000), [36_100, 300], "more than there is");
        assert_eq!(weights(&[], 0), [0; 0]);
    }

    proptest! {
        /// Whatever comes and goes, the mean lies between the least and the most that there was.
        #[test]
        fn a_mean(steps in proptest::collection::vec((1u32..10_000, 1u64..1_000_000), 1..40)) {
            let (mut demand, mut now, mut least, mut most, mut there) = (Demand::default(), 0, u64::MAX, 0, Vec::new());
            for (share, time) in steps {
                if share % 3 == 0 && let Some(gone) = there.pop() {
                    demand.remove(gone, now);
                } else {
                    demand.add(share, now);
                    there.push(share);
                }
                let runnable: u64 = there.iter().map(|share| u64::from(*share)).sum();
                (least, most) = (least.min(runnable), most.max(runnable));
                now += time;
            }
            let mean = demand.take(now);
            prop_assert!((least..=most).contains(&mean));
        }
    }
}
