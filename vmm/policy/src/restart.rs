//! Whether a guest that has ended comes back, and when.

/// A guest's policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Restart {
    /// It does not come back.
    #[default]
    No,
    /// It comes back unless it ended by itself with status 0, or somebody ended it.
    OnFailure,
    /// It comes back unless somebody ended it.
    Always,
}

/// How it ended, as far as that matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// By itself, with status 0.
    Success,
    /// With another status, by a fault, or with its cell.
    Failure,
    /// Somebody wanted it.
    Wanted,
}

/// The first wait, nanoseconds.
const FIRST_NS: u64 = 100_000_000;
/// The longest wait.
const LONGEST_NS: u64 = 60_000_000_000;
/// Who has run for so long starts again without having failed before.
const GOOD_NS: u64 = 10_000_000_000;

/// How often a guest failed in a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Failures(u32);

impl Failures {
    /// The guest has ended after it ran for `ran_ns`. Says how long to wait before it is started again, or None to leave it. A guest whose
    /// cell died (`blameless`) is not made to wait for that.
    pub fn ended(&mut self, policy: Restart, ending: Ending, blameless: bool, ran_ns: u64) -> Option<u64> {
        let again = match (policy, ending) {
            (_, Ending::Wanted) | (Restart::No, _) | (Restart::OnFailure, Ending::Success) => false,
            (Restart::Always, _) | (Restart::OnFailure, Ending::Failure) => true,
        };
        if ran_ns >= GOOD_NS {
            self.0 = 0;
        }
        if !again {
            return None;
        }
        if blameless {
            return Some(0);
        }
        let wait = FIRST_NS.saturating_mul(1 << self.0.min(30)).min(LONGEST_NS);
        self.0 = self.0.saturating_add(1);
        Some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies() {
        use Ending::{Failure, Success, Wanted};
        let again = |policy, ending| Failures::default().ended(policy, ending, false, 0).is_some();
        assert!(!again(Restart::No, Failure) && !again(Restart::Always, Wanted));
        assert!(!again(Restart::OnFailure, Success) && again(Restart::OnFailure, Failure));
        assert!(again(Restart::Always, Success) && again(Restart::Always, Failure));
    }

    #[test]
    fn who_fails_at_once_waits_longer_each_time_and_who_ran_well_does_not() {
        let mut f = Failures::default();
        let mut wait = |ran| f.ended(Restart::Always, Ending::Failure, false, ran);
        assert_eq!([wait(0), wait(0), wait(0)], [Some(FIRST_NS), Some(2 * FIRST_NS), Some(4 * FIRST_NS)]);
        for _ in 0..100 {
            assert!(wait(0) <= Some(LONGEST_NS));
        }
        assert_eq!(wait(0), Some(LONGEST_NS));
        assert_eq!(wait(GOOD_NS), Some(FIRST_NS));
        assert_eq!(f.ended(Restart::OnFailure, Ending::Failure, true, 0), Some(0));
    }
}
