//! Limits of time.

use std::time::{Duration, Instant};

/// How much longer everything may take where the machine itself is emulated.
const SLOW: u32 = 15;

/// Whether the processor is emulated in software.
#[must_use]
pub fn emulated() -> bool {
    let set = |name, value: &str| std::env::var(name).is_ok_and(|v| v == value);
    set("BACK_END", "stock") || set("FORAKER_SLOW", "1")
}

/// A limit for something that takes this long on a usual machine.
#[must_use]
pub fn stretched(duration: Duration) -> Duration {
    if emulated() { duration * SLOW } else { duration }
}

/// A limit in seconds.
#[must_use]
pub fn seconds(count: u64) -> Duration {
    stretched(Duration::from_secs(count))
}

/// Looks again and again until `condition` holds; false when it did not within `limit` (stretched).
pub fn eventually(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + stretched(limit);
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
