//! Sleeping and timeouts.

use super::executor::Timer;
use crate::time::Instant;
use core::future::{Future, poll_fn};
use core::pin::{Pin, pin};
use core::task::{Context, Poll};
use core::time::Duration;

/// A future that is done at a point of time. It can be [set](Self::reset) again and again: putting off what is not due
/// yet, as an idle timeout does, costs next to nothing.
pub struct Sleep {
    timer: Option<Timer>,
    deadline: u64,
}

impl Sleep {
    /// Is done at `deadline`.
    #[must_use]
    pub const fn until(deadline: Instant) -> Self {
        Sleep { timer: None, deadline: deadline.as_nanos() }
    }

    /// Sets a new deadline. Takes effect at the next poll.
    pub fn reset(&mut self, deadline: Instant) {
        self.deadline = deadline.as_nanos();
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if crate::now() >= self.deadline {
            return Poll::Ready(());
        }
        let deadline = self.deadline;
        self.timer.get_or_insert_with(Timer::new).set(deadline, context.waker());
        Poll::Pending
    }
}

/// Waits for `duration`.
pub fn sleep(duration: Duration) -> Sleep {
    Sleep::until(Instant::now() + duration)
}

/// Waits until `deadline`.
pub fn sleep_until(deadline: Instant) -> Sleep {
    Sleep::until(deadline)
}

/// The time was up before the future was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elapsed;

impl core::fmt::Display for Elapsed {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("time is up")
    }
}

impl core::error::Error for Elapsed {}

/// Runs `future` for `duration` at most.
///
/// # Errors
/// [`Elapsed`] when the time is up; the future is dropped.
pub async fn timeout<F: Future>(duration: Duration, future: F) -> Result<F::Output, Elapsed> {
    let mut future = pin!(future);
    let mut sleep = pin!(sleep(duration));
    poll_fn(|context| {
        if let Poll::Ready(output) = future.as_mut().poll(context) {
            return Poll::Ready(Ok(output));
        }
        sleep.as_mut().poll(context).map(|()| Err(Elapsed))
    })
    .await
}
