//! Tasks: an executor whose idle loop is one hypercall.
//!
//! Tasks run on core 0, one at a time, until they wait; a spawn costs tens of nanoseconds and a task some hundred
//! bytes, so that each connection, and each request, can have its own. When nothing can run, and looking at the rings
//! for as long as the VMM welcomes it found nothing, the guest gives up its core until the nearest timer.

mod executor;
mod join;
mod sleep;
#[cfg(test)]
mod tests;
pub(crate) mod timers;

pub use executor::{Shutdown, Statistics, run, spawn, spin_while_timed, statistics};
pub use join::JoinHandle;
pub use sleep::{Elapsed, Sleep, sleep, sleep_until, timeout};

pub use embassy_futures::join::{join, join3};
pub use embassy_futures::select::{Either, Either3, select, select_slice, select3};
pub use embassy_futures::{join as joining, select as selecting};
#[cfg(test)]
pub(crate) use executor::round;
use executor::stop_requested;

use core::future::poll_fn;
use core::task::Poll;

/// Lets every other task that can run go first.
pub async fn yield_now() {
    let mut yielded = false;
    poll_fn(|context| {
        if core::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Is done when the VMM has asked the guest to end itself soon (interrupt `STOP`), at once if it has before.
#[must_use]
pub const fn shutdown_requested() -> Shutdown {
    Shutdown::new()
}

/// Whether the VMM has asked the guest to end itself soon.
#[must_use]
pub fn is_shutdown_requested() -> bool {
    stop_requested()
}
