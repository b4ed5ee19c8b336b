//! Whether a thread that works for others goes before those that compute.
//!
//! Who works seldom and briefly may: it takes next to nothing from them, and others wait for it. Who works much of the time must not: it would have their
//! processor whenever there is a little to do, instead of a lot at once after a while.

/// How long a thread is watched before it is decided again, nanoseconds.
const WINDOW_NS: u64 = 10_000_000;
/// Parts of the time: it loses precedence above the first, and has it back below the second.
const LOST_ABOVE: u64 = 4;
const BACK_BELOW: u64 = 8;

/// The precedence of one thread.
#[derive(Debug)]
pub struct Precedence {
    since: u64,
    worked: u64,
    goes_before: bool,
}

impl Precedence {
    /// That of a thread that has done nothing yet: it goes before others.
    #[must_use]
    pub fn new(now_ns: u64) -> Precedence {
        Precedence { since: now_ns, worked: 0, goes_before: true }
    }

    /// The thread has been awake for so long, since it said so last. Returns whether it goes before others, if that has changed.
    pub fn worked(&mut self, now_ns: u64, awake_ns: u64) -> Option<bool> {
        self.worked = self.worked.saturating_add(awake_ns);
        let elapsed = now_ns.saturating_sub(self.since);
        if elapsed < WINDOW_NS {
            return None;
        }
        let part = if self.goes_before { LOST_ABOVE } else { BACK_BELOW };
        let before = self.goes_before;
        self.goes_before = self.worked <= elapsed / part;
        (self.since, self.worked) = (now_ns, 0);
        (self.goes_before != before).then_some(self.goes_before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// Works for `work` of every `period`, for `time`. Returns what has changed.
    fn works(of: &mut Precedence, now: &mut u64, work: u64, period: u64, time: u64) -> Vec<bool> {
        let end = *now + time;
        let mut changes = Vec::new();
        while *now < end {
            *now += period;
            changes.extend(of.worked(*now, work));
        }
        changes
    }

    #[test]
    fn who_works_much_of_the_time_waits_like_others() {
        let (mut one, mut now) = (Precedence::new(0), 0);
        assert_eq!(works(&mut one, &mut now, MS / 10, 5 * MS, 1000 * MS), []);
        assert_eq!(works(&mut one, &mut now, MS / 10, MS / 5, 1000 * MS), [false]);
        // Between both limits everything stays as it is.
        assert_eq!(works(&mut one, &mut now, MS, 6 * MS, 1000 * MS), []);
        assert_eq!(works(&mut one, &mut now, MS, 20 * MS, 1000 * MS), [true]);
        assert_eq!(works(&mut one, &mut now, MS, 6 * MS, 1000 * MS), []);
        // Without a rest, too.
        assert_eq!(works(&mut one, &mut now, MS, MS, 1000 * MS), [false]);
    }

    #[test]
    fn after_a_long_rest_it_is_decided_at_once() {
        let (mut one, mut now) = (Precedence::new(0), 0);
        assert_eq!(works(&mut one, &mut now, MS, MS, 20 * MS), [false]);
        now += 10_000 * MS;
        assert_eq!(one.worked(now, MS), Some(true));
        assert_eq!(one.worked(now, u64::MAX), None);
        assert_eq!(one.worked(now + 10 * MS, u64::MAX), Some(false));
    }
}
