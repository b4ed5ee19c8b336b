//! Work that a thread hands to another one that has nothing better to do, and does itself when nobody took it.
//!
//! A guest's start takes system calls that wait for each other's locks little: while the starting thread makes the virtual CPU, the worker, which
//! has been woken ahead and would only wait, maps the memory.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

enum State<T> {
    Open(Box<dyn FnOnce() -> T + Send>),
    Taken,
    Done(T),
    Fetched,
}

/// A piece of work and its result.
pub(crate) struct Errand<T> {
    state: Mutex<State<T>>,
    done: Condvar,
}

impl<T> fmt::Debug for Errand<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Errand")
    }
}

/// What a helper sees of it.
pub(crate) trait Run: Send + Sync + fmt::Debug {
    /// Does the work, unless somebody does it already.
    fn run(&self);
}

impl<T: Send + 'static> Errand<T> {
    pub(crate) fn new(work: impl FnOnce() -> T + Send + 'static) -> Arc<Errand<T>> {
        Arc::new(Errand { state: Mutex::new(State::Open(Box::new(work))), done: Condvar::new() })
    }

    /// The result: does the work if nobody has begun, and waits for whoever has.
    pub(crate) fn result(&self) -> Option<T> {
        self.run();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match std::mem::replace(&mut *state, State::Fetched) {
                State::Done(result) => return Some(result),
                State::Fetched => return None,
                other => *state = other,
            }
            state = self.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl<T: Send + 'static> Run for Errand<T> {
    fn run(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let work = match std::mem::replace(&mut *state, State::Taken) {
            State::Open(work) => work,
            other => {
                *state = other;
                return;
            }
        };
        drop(state);
        let result = work();
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = State::Done(result);
        self.done.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn is_done_once_by_whoever_comes_first() {
        for helped in [false, true] {
            let count = Arc::new(AtomicU32::new(0));
            let counted = Arc::clone(&count);
            let errand = Errand::new(move || counted.fetch_add(1, Ordering::SeqCst));
            let helper = {
                let errand = Arc::clone(&errand);
                std::thread::spawn(move || {
                    if helped {
                        errand.run()
                    }
                })
            };
            assert_eq!(errand.result(), Some(0));
            helper.join().unwrap();
            errand.run();
            assert_eq!(count.load(Ordering::SeqCst), 1);
            assert_eq!(errand.result(), None);
        }
    }
}
