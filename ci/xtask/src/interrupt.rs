//! Ctrl-C and SIGTERM: they end this program as usual, except while it has something to put in order first.

use std::sync::{
    Arc, LazyLock,
    atomic::{AtomicBool, Ordering},
};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    flag,
};

struct State {
    /// A signal has come.
    came: Arc<AtomicBool>,
    /// Nobody needs to put anything in order: a signal ends the program.
    unguarded: Arc<AtomicBool>,
}

static STATE: LazyLock<State> = LazyLock::new(|| State::new(&[SIGINT, SIGTERM, SIGHUP]));

impl State {
    fn new(signals: &[i32]) -> Self {
        let state =
            State { came: Arc::new(AtomicBool::new(false)), unguarded: Arc::new(AtomicBool::new(true)) };
        for &signal in signals {
            // Neither can fail for these signals; without handlers they would end the program, as they do anywhere.
            let _ = flag::register_conditional_default(signal, Arc::clone(&state.unguarded));
            let _ = flag::register(signal, Arc::clone(&state.came));
        }
        state
    }

    fn guard(&'static self) -> Guard {
        Guard { state: self, outermost: self.unguarded.swap(false, Ordering::SeqCst) }
    }
}

/// While this lives, a signal does not end the program but shows in [`Guard::came`]. Guards may nest.
pub(crate) struct Guard {
    state: &'static State,
    outermost: bool,
}

impl Guard {
    pub(crate) fn new() -> Self {
        STATE.guard()
    }

    /// Whether a signal has come. It stays so: whoever notices ends what it does.
    pub(crate) fn came(&self) -> bool {
        self.state.came.load(Ordering::SeqCst)
    }
}

/// Ends whatever runs under a guard, as a signal would.
pub(crate) fn raise() {
    STATE.came.store(true, Ordering::SeqCst);
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.outermost {
            self.state.unguarded.store(true, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guarded_program_survives_the_signal_and_sees_it() {
        use signal_hook::consts::SIGUSR1;
        static OWN: LazyLock<State> = LazyLock::new(|| State::new(&[SIGUSR1]));
        let outer = OWN.guard();
        assert!(!outer.came());
        drop(OWN.guard());
        // The inner guard's end is not the outer one's: the signal would end the test.
        signal_hook::low_level::raise(SIGUSR1).unwrap();
        assert!(outer.came());
    }
}
