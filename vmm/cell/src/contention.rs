//! How long a thread was ready to run and had no processor, as the host's scheduler accounts for it.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// The account of one thread, kept open: asked a hundred times a second while a cell is busy.
#[derive(Debug)]
pub(crate) struct Delay(File);

impl Delay {
    /// The calling thread's. `None` on a host that keeps no such accounts.
    pub(crate) fn of_this_thread() -> Option<Delay> {
        File::open("/proc/thread-self/schedstat").ok().map(Delay)
    }

    /// Nanoseconds since the thread began.
    pub(crate) fn total(&self) -> u64 {
        let mut text = [0; 96];
        let length = self.0.read_at(&mut text, 0).unwrap_or(0);
        text.get(..length).and_then(second).unwrap_or(0)
    }
}

/// The second of the numbers: time on processors, time waiting for one, turns.
fn second(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn the_second_number_is_taken() {
        assert_eq!(second(b"123 4567 89\n"), Some(4567));
        assert_eq!(
            (second(b""), second(b"12"), second(b"1 x 2"), second(b"\xff 1")),
            (None, None, None, None)
        );
    }

    #[test]
    fn a_thread_that_others_keep_from_its_processor_waits() {
        let Some(delay) = Delay::of_this_thread() else { return };
        let before = delay.total();
        let busy = AtomicBool::new(true);
        std::thread::scope(|scope| {
            for _ in 0..2 * std::thread::available_parallelism().map_or(1, usize::from) {
                scope.spawn(|| {
                    while busy.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                });
            }
            let start = std::time::Instant::now();
            while start.elapsed().as_millis() < 200 {
                std::hint::spin_loop();
            }
            busy.store(false, Ordering::Relaxed);
        });
        assert!(delay.total() > before);
    }
}
