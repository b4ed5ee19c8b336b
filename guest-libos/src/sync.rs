//! Communication between tasks. Everything here is bounded unless its name says otherwise, and may be used from
//! every core.
//!
//! | | |
//! |---|---|
//! | [`channel`] | many senders, many receivers, each message to one of them |
//! | [`oneshot`] | one message |
//! | [`watch`] | the latest value, to everyone |
//! | [`Mutex`], [`RwLock`], [`Semaphore`], [`Barrier`], [`OnceCell`] | as their names say, waiting without blocking the core |

pub use async_channel::{
    Receiver, RecvError, SendError, Sender, TryRecvError, TrySendError, bounded as channel, unbounded,
};
pub use async_lock::{Barrier, Mutex, OnceCell, RwLock, Semaphore};
pub use futures_channel::oneshot;

pub mod watch {
    //! The latest value of something, for any number of tasks of core 0 that want to know when it changes.

    use alloc::rc::Rc;
    use alloc::vec::Vec;
    use core::cell::RefCell;
    use core::future::poll_fn;
    use core::task::{Poll, Waker};

    struct State<T> {
        value: T,
        version: u64,
        closed: bool,
        wakers: Vec<Waker>,
    }

    /// Sets the value.
    pub struct Sender<T>(Rc<RefCell<State<T>>>);

    /// Sees the value.
    pub struct Receiver<T> {
        state: Rc<RefCell<State<T>>>,
        seen: u64,
    }

    /// A sender, and a receiver that has seen the first value.
    pub fn channel<T: Clone>(value: T) -> (Sender<T>, Receiver<T>) {
        let state = Rc::new(RefCell::new(State { value, version: 0, closed: false, wakers: Vec::new() }));
        (Sender(state.clone()), Receiver { state, seen: 0 })
    }

    impl<T> Sender<T> {
        /// Sets the value and wakes all who wait for a change.
        pub fn send(&self, value: T) {
            let (old, wakers) = {
                let mut state = self.0.borrow_mut();
                state.version += 1;
                (core::mem::replace(&mut state.value, value), core::mem::take(&mut state.wakers))
            };
            wakers.into_iter().for_each(Waker::wake);
            drop(old);
        }
    }

    impl<T> Drop for Sender<T> {
        fn drop(&mut self) {
            let wakers = {
                let mut state = self.0.borrow_mut();
                state.closed = true;
                core::mem::take(&mut state.wakers)
            };
            wakers.into_iter().for_each(Waker::wake);
        }
    }

    impl<T: Clone> Receiver<T> {
        /// The latest value.
        pub fn get(&mut self) -> T {
            let state = self.state.borrow();
            self.seen = state.version;
            state.value.clone()
        }

        /// Waits for a value that was not seen yet; `None` when the sender is gone and its last value was seen.
        pub async fn changed(&mut self) -> Option<T> {
            poll_fn(|context| {
                let mut state = self.state.borrow_mut();
                if state.version != self.seen {
                    self.seen = state.version;
                    return Poll::Ready(Some(state.value.clone()));
                }
                if state.closed {
                    return Poll::Ready(None);
                }
                if !state.wakers.iter().any(|known| known.will_wake(context.waker())) {
                    state.wakers.push(context.waker().clone());
                }
                Poll::Pending
            })
            .await
        }
    }

    impl<T> Clone for Receiver<T> {
        fn clone(&self) -> Self {
            Receiver { state: self.state.clone(), seen: self.seen }
        }
    }
}
