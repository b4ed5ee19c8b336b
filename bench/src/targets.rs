//! What each figure is to reach. The one place where the promises stand.

use std::fmt;

use crate::figure::Figure;

/// A promise about a figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// The ratio to the baseline is at most this.
    RatioAtMost(f64),
    /// The ratio to the baseline is at least this.
    RatioAtLeast(f64),
    /// The value itself is at most this.
    ValueAtMost(f64),
    /// The value itself is at least this.
    ValueAtLeast(f64),
}

impl Target {
    /// Whether `figure` reaches it. A figure without a ratio reaches no promise about one.
    #[must_use]
    pub fn is_met(self, figure: &Figure) -> bool {
        match self {
            Target::RatioAtMost(most) => figure.ratio.is_some_and(|r| r <= most),
            Target::RatioAtLeast(least) => figure.ratio.is_some_and(|r| r >= least),
            Target::ValueAtMost(most) => figure.value <= most,
            Target::ValueAtLeast(least) => figure.value >= least,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::RatioAtMost(v) => write!(f, "<= {v}x"),
            Target::RatioAtLeast(v) => write!(f, ">= {v}x"),
            Target::ValueAtMost(v) => write!(f, "<= {v}"),
            Target::ValueAtLeast(v) => write!(f, ">= {v}"),
        }
    }
}

/// `(id, what, promise)`. On the development machine's `/dev/kvm`; ratios within one run.
pub const TARGETS: &[(&str, &str, Target)] = &[
    ("launch", "in_process", Target::RatioAtMost(1.25)),
    ("launch", "whole_process", Target::RatioAtMost(2.0)),
    ("launch", "memory", Target::RatioAtMost(1.15)),
    ("exit", "hypercall", Target::RatioAtMost(1.1)),
    ("http", "1", Target::RatioAtLeast(1.5)),
    ("http", "16", Target::RatioAtLeast(0.7)),
    ("http", "64", Target::RatioAtLeast(0.85)),
    ("http", "256", Target::RatioAtLeast(1.0)),
    ("http", "1000", Target::RatioAtLeast(1.2)),
    ("http", "4000", Target::RatioAtLeast(1.2)),
    ("http", "exits_per_request", Target::ValueAtMost(0.05)),
    ("http", "idle_4000", Target::RatioAtLeast(0.95)),
    ("A8", "share_ratio/2", Target::ValueAtLeast(0.9)),
    ("A8", "share_ratio/3", Target::ValueAtLeast(0.9)),
    ("D1", "vmm_share", Target::RatioAtMost(0.2)),
    ("D2", "host_to_guest", Target::RatioAtLeast(0.95)),
    ("D2", "guest_to_host", Target::RatioAtLeast(1.3)),
    ("D4", "64", Target::RatioAtLeast(1.3)),
    ("D5", "64", Target::RatioAtLeast(2.0)),
    ("start", "first_instruction", Target::ValueAtMost(0.5)),
    ("start", "first_instruction/p99", Target::RatioAtMost(3.0)),
    ("start", "first_reply", Target::ValueAtMost(1.5)),
    ("start", "first_reply/p99", Target::RatioAtMost(3.0)),
    ("start", "warm_reply", Target::ValueAtMost(1.0)),
    ("api", "requests", Target::ValueAtLeast(5000.0)),
    ("api", "list", Target::ValueAtMost(50.0)),
    ("api", "guests_p99", Target::RatioAtMost(1.05)),
    ("killed", "300/answers", Target::ValueAtMost(2.0)),
    ("killed", "300/guests", Target::ValueAtMost(2.0)),
    ("killed", "10000/answers", Target::ValueAtMost(2.0)),
    ("page", "first_paint", Target::ValueAtMost(1000.0)),
    ("page", "updates", Target::ValueAtLeast(9.5)),
    ("page", "core", Target::ValueAtMost(10.0)),
    ("scale", "idle", Target::ValueAtMost(1.0)),
    ("scale", "10000", Target::RatioAtMost(1.15)),
    ("fair", "cpu", Target::RatioAtLeast(0.9)),
    ("fair", "cpu/p99", Target::RatioAtMost(1.1)),
    ("fair", "exits", Target::RatioAtLeast(0.9)),
    ("fair", "exits/p99", Target::RatioAtMost(1.1)),
    ("fair", "packets", Target::RatioAtLeast(0.9)),
    ("fair", "packets/p99", Target::RatioAtMost(1.1)),
    ("fair", "console", Target::RatioAtLeast(0.9)),
    ("fair", "console/p99", Target::RatioAtMost(1.1)),
    ("A1", "memory", Target::ValueAtMost(2.0)),
    ("A1", "core", Target::ValueAtMost(2.0)),
    ("A1", "guest_memory", Target::ValueAtMost(2.0)),
    ("A1", "guest_core", Target::ValueAtMost(2.0)),
    ("A2", "wake_p99", Target::ValueAtMost(2.0)),
    ("A2", "batch", Target::RatioAtLeast(0.95)),
    ("storm", "10000", Target::RatioAtLeast(0.6)),
    ("density", "resident", Target::ValueAtMost(660.0)),
    ("density", "warm", Target::ValueAtMost(64.0)),
];

/// The promise about a figure, if there is one.
#[must_use]
pub fn of(id: &str, what: &str) -> Option<Target> {
    TARGETS.iter().find(|(i, w, _)| (*i, *w) == (id, what)).map(|(_, _, target)| *target)
}
