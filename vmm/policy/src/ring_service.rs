//! Who serves the rings: a controller.
//!
//! Two ways of moving frames between rings and the TAP device suit different loads. When a guest's *worker* does it at exits,
//! a whole batch costs one exit, which is unbeatable when batches are large, and an idle guest costs nothing; but each small batch pays a
//! whole exit. When the *uplink*'s thread does it while the guest looks at its rings, no exit is paid at all, but two threads are
//! busy. So the uplink serves when exits are frequent and carry little, and the worker in all other cases.
//!
//! In SEDA's terms this is a batching controller (Welsh, Culler, Brewer, SOSP '01): it watches the size of batches and moves
//! between two ways of working, with hysteresis. The size is the mean over frames, not over batches: the batch in which the typical frame
//! travels. (The mean over batches says little when a few large ones carry most of the load.)

/// Who serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// Workers, when a guest exits.
    Worker,
    /// The uplink's thread, while guests look at their rings.
    Uplink,
}

/// Tuning of the controller. The defaults lie between the loads at which the two ways were measured to be equally good.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// Length of a window of observation, nanoseconds. Two in a row must agree: batches vary a good deal around their mean.
    pub window_ns: u64,
    /// Fewer batches than this in a window are a trickle, which the worker serves.
    pub busy_batches: u64,
    /// Worker -> uplink: the typical frame left in a batch smaller than this.
    pub small_batch: u64,
    /// Uplink -> worker: the typical frame came in a batch at least this large.
    pub large_batch: u64,
}

impl Default for Tuning {
    fn default() -> Self {
        Tuning { window_ns: 10_000_000, busy_batches: 10, small_batch: 100, large_batch: 130 }
    }
}

/// What was seen in a window.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    start_ns: u64,
    batches: u64,
    frames: u64,
    /// Sum of frames times the size of their batch.
    weighted: u64,
}

impl Window {
    /// Size of the batch in which the typical frame travelled; 0 without frames.
    fn typical_batch(&self) -> u64 {
        self.weighted.checked_div(self.frames).unwrap_or(0)
    }
}

/// The controller.
#[derive(Clone, Debug)]
pub struct RingService {
    tuning: Tuning,
    server: Server,
    now: Window,
    /// The window before; empty when nothing happened for a while.
    last: Window,
    /// The last window spoke for the other way.
    doubted: bool,
}

impl RingService {
    /// Starts with the worker.
    #[must_use]
    pub fn new(tuning: Tuning) -> RingService {
        RingService {
            tuning,
            server: Server::Worker,
            now: Window::default(),
            last: Window::default(),
            doubted: false,
        }
    }

    /// Who serves now.
    #[must_use]
    pub fn server(&self) -> Server {
        self.server
    }

    /// Whoever serves has moved `frames` frames: at one exit, or between two rests of the uplink. `depth` is how many of them
    /// were there at once: the same number where they were, less where they came one after the other.
    pub fn served(&mut self, now_ns: u64, frames: u64, depth: u64) -> Server {
        self.advance(now_ns);
        self.now.batches += 1;
        self.now.frames += frames;
        self.now.weighted = self.now.weighted.saturating_add(frames.saturating_mul(depth));
        self.server
    }

    /// A guest has run for long without an exit: only the uplink can serve it.
    pub fn guest_computes(&mut self, now_ns: u64) -> Server {
        self.turn(Server::Uplink, now_ns)
    }

    /// Every guest rests. If it is for good, and not between two requests, a sleeping worker watches the device itself.
    pub fn all_rest(&mut self, now_ns: u64) -> Server {
        self.advance(now_ns);
        if self.now.batches + self.last.batches < self.tuning.busy_batches {
            self.turn(Server::Worker, now_ns);
        }
        self.server
    }

    /// Closes windows that are over, and decides at the end of each.
    fn advance(&mut self, now_ns: u64) {
        let age = now_ns.saturating_sub(self.now.start_ns);
        if age < self.tuning.window_ns {
            return;
        }
        let seen = self.now;
        self.last = if age < 2 * self.tuning.window_ns { seen } else { Window::default() };
        self.now = Window { start_ns: now_ns, ..Window::default() };
        if age >= 2 * self.tuning.window_ns || seen.batches == 0 {
            return;
        }
        let (doubt, other) = match self.server {
            Server::Worker => (
                seen.batches >= self.tuning.busy_batches && seen.typical_batch() < self.tuning.small_batch,
                Server::Uplink,
            ),
            Server::Uplink => (seen.typical_batch() >= self.tuning.large_batch, Server::Worker),
        };
        if std::mem::replace(&mut self.doubted, doubt) && doubt {
            self.turn(other, now_ns);
        }
    }

    fn turn(&mut self, server: Server, now_ns: u64) -> Server {
        if self.server != server {
            self.server = server;
            self.doubted = false;
            self.now = Window { start_ns: now_ns, ..Window::default() };
        }
        server
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Batches of `frames`, one every `gap` nanoseconds, for `n` batches from `start` on.
    fn load(s: &mut RingService, start: u64, gap: u64, frames: u64, n: u64) -> u64 {
        for i in 0..n {
            s.served(start + i * gap, frames, frames);
        }
        start + n * gap
    }

    #[test]
    fn small_frequent_batches_go_to_the_uplink_and_large_ones_back() {
        let mut s = RingService::new(Tuning::default());
        let t = load(&mut s, 1_000_000_000, 100_000, 2, 400);
        assert_eq!(s.server(), Server::Uplink);
        let t = load(&mut s, t, 20_000, 2, 2000);
        assert_eq!(s.server(), Server::Uplink, "small batches stay");
        let t = load(&mut s, t, 200_000, 200, 40);
        assert_eq!(s.server(), Server::Uplink, "one window is none");
        let t = load(&mut s, t, 200_000, 200, 160);
        assert_eq!(s.server(), Server::Worker);
        load(&mut s, t, 400_000, 300, 200);
        assert_eq!(s.server(), Server::Worker, "large batches stay");
    }

    #[test]
    fn one_request_after_another_is_not_a_large_batch() {
        let mut s = RingService::new(Tuning::default());
        let t = load(&mut s, 1_000_000_000, 100_000, 2, 400);
        for i in 0..100 {
            s.served(t + i * 1_000_000, 200, 2);
        }
        assert_eq!(s.server(), Server::Uplink);
    }

    #[test]
    fn a_trickle_stays_with_the_worker() {
        let mut s = RingService::new(Tuning::default());
        load(&mut s, 1_000_000_000, 20_000_000, 1, 500);
        assert_eq!(s.server(), Server::Worker);
    }

    #[test]
    fn a_short_rest_changes_nothing_and_a_long_one_does() {
        let mut s = RingService::new(Tuning::default());
        let t = load(&mut s, 1_000_000_000, 100_000, 2, 400);
        assert_eq!(s.all_rest(t), Server::Uplink);
        assert_eq!(s.all_rest(t + 50_000_000), Server::Worker);
        assert_eq!(s.guest_computes(t + 60_000_000), Server::Uplink);
    }
}
