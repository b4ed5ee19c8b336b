//! Who serves the rings: a controller.
//!
//! Two ways of moving frames between rings and the TAP device suit different loads. When a guest's *worker* does it at exits,
//! a whole batch costs one exit, which is unbeatable when batches are large, and an idle guest costs nothing; but each small batch pays a
//! whole exit. When the *uplink*'s thread does it while the guest looks at its rings, no exit is paid at all, but two threads are
//! busy. So the uplink serves when exits are frequent and carry little, and the worker in all other cases.
//!
//! In SEDA's terms this is a batching controller (Welsh, Culler, Brewer, SOSP '01): it watches the size of batches and moves
//! between two ways of working, with hysteresis.

/// Who serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// Workers, when a guest exits.
    Worker,
    /// The uplink's thread, while guests look at their rings.
    Uplink,
}

/// Tuning of the controller. Times in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// Length of a window of observation.
    pub window_ns: u64,
    /// Worker -> uplink: at least so many exits that moved frames in a window ...
    pub busy_exits: u64,
    /// ... and on average fewer frames than this in each.
    pub small_batch: u64,
    /// Uplink -> worker: at least this rate of frames in a window (frames, not a rate per second) ...
    pub heavy_frames: u64,
    /// ... and on average at least this many in each round.
    pub large_batch: u64,
}

impl Default for Tuning {
    fn default() -> Self {
        Tuning { window_ns: 5_000_000, busy_exits: 10, small_batch: 24, heavy_frames: 200, large_batch: 24 }
    }
}

/// The controller.
#[derive(Clone, Debug)]
pub struct RingService {
    tuning: Tuning,
    server: Server,
    window_start: u64,
    rounds: u64,
    frames: u64,
}

impl RingService {
    /// Starts with the worker.
    #[must_use]
    pub fn new(tuning: Tuning) -> RingService {
        RingService { tuning, server: Server::Worker, window_start: 0, rounds: 0, frames: 0 }
    }

    /// Who serves now.
    #[must_use]
    pub fn server(&self) -> Server {
        self.server
    }

    /// Whoever serves has moved `frames` (more than 0) frames in one round: at one exit, or in one pass of the uplink.
    pub fn served(&mut self, now_ns: u64, frames: u64) -> Server {
        if now_ns.saturating_sub(self.window_start) > 2 * self.tuning.window_ns {
            self.restart(now_ns);
        }
        self.rounds += 1;
        self.frames += frames;
        if now_ns.saturating_sub(self.window_start) >= self.tuning.window_ns {
            let next = match self.server {
                Server::Worker
                    if self.rounds >= self.tuning.busy_exits
                        && self.frames < self.rounds * self.tuning.small_batch =>
                {
                    Server::Uplink
                }
                Server::Uplink
                    if self.frames >= self.tuning.heavy_frames
                        && self.frames >= self.rounds * self.tuning.large_batch =>
                {
                    Server::Worker
                }
                same => same,
            };
            self.server = next;
            self.restart(now_ns);
        }
        self.server
    }

    /// A guest has run for long without an exit: only the uplink can serve it.
    pub fn guest_computes(&mut self, now_ns: u64) -> Server {
        self.server = Server::Uplink;
        self.restart(now_ns);
        self.server
    }

    /// Every guest rests: a sleeping worker watches the device itself.
    pub fn all_rest(&mut self, now_ns: u64) -> Server {
        self.server = Server::Worker;
        self.restart(now_ns);
        self.server
    }

    fn restart(&mut self, now_ns: u64) {
        self.window_start = now_ns;
        self.rounds = 0;
        self.frames = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rounds of `frames`, one every `gap` nanoseconds, for `n` rounds from `start` on.
    fn load(s: &mut RingService, start: u64, gap: u64, frames: u64, n: u64) -> u64 {
        for i in 0..n {
            s.served(start + i * gap, frames);
        }
        start + n * gap
    }

    #[test]
    fn small_frequent_batches_go_to_the_uplink_and_large_ones_back() {
        let mut s = RingService::new(Tuning::default());
        let t = load(&mut s, 1_000_000_000, 100_000, 2, 200);
        assert_eq!(s.server(), Server::Uplink);
        let t = load(&mut s, t, 20_000, 2, 2000);
        assert_eq!(s.server(), Server::Uplink, "small batches stay");
        let t = load(&mut s, t, 200_000, 64, 200);
        assert_eq!(s.server(), Server::Worker);
        load(&mut s, t, 400_000, 64, 200);
        assert_eq!(s.server(), Server::Worker, "large batches stay");
    }

    #[test]
    fn a_trickle_stays_with_the_worker() {
        let mut s = RingService::new(Tuning::default());
        load(&mut s, 1_000_000_000, 20_000_000, 1, 500);
        assert_eq!(s.server(), Server::Worker);
    }

    #[test]
    fn rest_and_long_computation_decide_at_once() {
        let mut s = RingService::new(Tuning::default());
        assert_eq!(s.guest_computes(5), Server::Uplink);
        assert_eq!(s.all_rest(6), Server::Worker);
    }
}
