//! Handles of tasks.

use async_task::Task;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};

/// The handle of a task: awaiting it gives the task's output. Dropping it lets the task run on.
pub struct JoinHandle<T> {
    /// Empty only while the handle is being dropped or given up.
    task: Option<Task<T>>,
}

impl<T> JoinHandle<T> {
    pub(super) fn new(task: Task<T>) -> Self {
        JoinHandle { task: Some(task) }
    }

    /// Whether the task is done.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.task.as_ref().is_none_or(Task::is_finished)
    }

    /// Cancels the task: it is dropped at its turn, and not run again.
    pub fn abort(mut self) {
        drop(self.task.take());
    }

    /// Cancels the task and waits until it is dropped. Gives its output if it was done before.
    pub async fn cancel(mut self) -> Option<T> {
        match self.task.take() {
            Some(task) => task.cancel().await,
            None => None,
        }
    }
}

impl<T> Drop for JoinHandle<T> {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.detach();
        }
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        match &mut self.task {
            Some(task) => Pin::new(task).poll(context),
            None => Poll::Pending,
        }
    }
}

impl<T> core::fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("JoinHandle").field("finished", &self.is_finished()).finish()
    }
}
