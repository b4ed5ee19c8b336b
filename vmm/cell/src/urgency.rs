//! Precedence for a thread that others wait for.

use std::time::Instant;

use foraker_policy::precedence::Precedence;

use crate::queue::nanoseconds;

/// What a thread that is woken for others asks of the host's scheduler: to run for so long at a time, nanoseconds, but soon.
const SLICE_NS: u64 = 100_000;
/// Ten times the weight of a thread that computes.
///
/// Woken beside one, a thread runs at once if it is due to be done first (EEVDF: if its virtual deadline is the earlier one). A slice of 100 us is, except
/// when the other has less than that left of its own 2.8 ms: one time in 28, and then it waits for the tick, up to 4 ms. With this weight its slice counts as
/// 11 us: one time in 260.
const NICE: i32 = -10;

/// What the calling thread asks of the scheduler: to run soon after it wakes, in front of those that compute, as long as [`Precedence`] lets it.
///
/// The scheduler (EEVDF, from Linux 6.12 on) lets whoever asks for shorter slices go first. Without the right to more weight the slice stays. Older kernels
/// take no notice of the slice.
pub(crate) struct Urgency {
    /// The weight that the thread was given.
    given: i32,
    precedence: Precedence,
    epoch: Instant,
    awake_since: Instant,
}

impl Urgency {
    pub(crate) fn new() -> Urgency {
        // SAFETY: a call with numbers; of the calling thread it cannot fail.
        let given = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
        let epoch = Instant::now();
        let urgency = Urgency { given, precedence: Precedence::new(0), epoch, awake_since: epoch };
        urgency.ask(true);
        urgency
    }

    /// The thread wakes.
    pub(crate) fn wakes(&mut self) {
        self.awake_since = Instant::now();
    }

    /// The thread is about to rest, or has been awake for long.
    pub(crate) fn note(&mut self) {
        let now = Instant::now();
        let awake = now.duration_since(self.awake_since);
        self.awake_since = now;
        if let Some(goes_before) = self.precedence.worked(self.since_epoch(now), nanoseconds(awake)) {
            self.ask(goes_before);
        }
    }

    fn since_epoch(&self, now: Instant) -> u64 {
        nanoseconds(now.saturating_duration_since(self.epoch))
    }

    fn ask(&self, goes_before: bool) {
        let _ = goes_before && set(self.given.min(NICE)) || set(self.given);
    }
}

fn set(nice: i32) -> bool {
    let attributes = libc::sched_attr {
        size: u32::try_from(size_of::<libc::sched_attr>()).unwrap_or(0),
        sched_policy: libc::SCHED_OTHER.cast_unsigned(),
        sched_flags: 0,
        sched_nice: nice,
        sched_priority: 0,
        sched_runtime: SLICE_NS,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: a valid structure that says its own size. Refused, everything stays as it is.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) == 0 }
}
