//! Who serves the rings: a controller.
//!
//! Two ways of moving frames between rings and the TAP device suit different loads. When a guest's *worker* does it at exits,
//! a whole batch costs one exit, which is unbeatable when batches are large, and an idle guest costs nothing; but each small batch pays a
//! whole exit. When the *uplink*'s thread does it while the guest looks at its rings, no exit is paid at all, but two threads are
//! busy. So the uplink serves when exits are frequent and carry little, and the worker in all other cases. How much is little depends on what an
//! exit costs, which differs from host to host by a factor of thirty; and two busy threads are no gain where others want the processors: many cells that
//! all look at their rings take them from one another.
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
    /// Worker -> uplink: the typical frame left in a batch smaller than this, for each 100 microseconds that an exit costs.
    pub small_batch: u64,
    /// Uplink -> worker: the typical frame came in a batch at least this large, likewise.
    pub large_batch: u64,
    /// What an exit costs as long as nothing is known, nanoseconds.
    pub exit_ns: u64,
    /// Others want the processors where workers, together, waited for one for this part of a window: one in so many.
    pub contended_part: u64,
    /// For how long the uplink is not tried again after workers took over because others wanted the processors, nanoseconds; twice as long each time that
    /// happens soon after.
    pub respite_ns: u64,
    /// The longest such time, nanoseconds.
    pub longest_respite_ns: u64,
    /// For how long a guest that has run without an exit is taken for one that does so again, nanoseconds: the uplink serves, whoever wants the processors.
    pub computes_ns: u64,
}

impl Default for Tuning {
    fn default() -> Self {
        Tuning {
            window_ns: 10_000_000,
            busy_batches: 10,
            small_batch: 133,
            large_batch: 173,
            exit_ns: 75_000,
            contended_part: 10,
            respite_ns: 50_000_000,
            longest_respite_ns: 1_600_000_000,
            computes_ns: 100_000_000,
        }
    }
}

/// Where exits cost next to nothing, a wake-up of the worker still does: batches smaller than this are small everywhere.
const ALWAYS_SMALL: u64 = 8;

/// What was seen in a window.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    start_ns: u64,
    batches: u64,
    frames: u64,
    /// Sum of frames times the size of their batch.
    weighted: u64,
    /// How long workers waited for a processor, nanoseconds.
    waited_ns: u64,
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
    /// When a guest had run for long without an exit, for the last time.
    computed_ns: Option<u64>,
    /// Until when the uplink is not tried, and how long that was.
    respite_until_ns: u64,
    respite_ns: u64,
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
            computed_ns: None,
            respite_until_ns: 0,
            respite_ns: 0,
        }
    }

    /// What an exit costs on this host, nanoseconds.
    pub fn exit_costs(&mut self, ns: u64) {
        self.tuning.exit_ns = ns;
    }

    /// Whether the window is over, so that what the workers have [waited](Self::waited) is of interest.
    #[must_use]
    pub fn is_due(&self, now_ns: u64) -> bool {
        now_ns.saturating_sub(self.now.start_ns) >= self.tuning.window_ns
    }

    /// For how long workers were ready to run and had no processor since this was said last, nanoseconds.
    pub fn waited(&mut self, ns: u64) {
        self.now.waited_ns = ns;
    }

    /// A number of frames that is `per_100_us` for an exit of 100 us.
    fn batch(&self, per_100_us: u64) -> u64 {
        (self.tuning.exit_ns.saturating_mul(per_100_us) / 100_000)
            .max(ALWAYS_SMALL * per_100_us / self.tuning.small_batch.max(1))
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
        self.computed_ns = Some(now_ns);
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
        let contended = seen.waited_ns.saturating_mul(self.tuning.contended_part) >= age;
        // Nobody looked for long because all rested, or because they had no processor to look with.
        let rested = age >= 2 * self.tuning.window_ns && !contended;
        self.last = if rested { Window::default() } else { seen };
        self.now = Window { start_ns: now_ns, ..Window::default() };
        if rested || seen.batches == 0 {
            return;
        }
        let (doubt, other) = match self.server {
            Server::Worker => {
                let small = seen.typical_batch() < self.batch(self.tuning.small_batch);
                let free = !contended && now_ns >= self.respite_until_ns;
                (seen.batches >= self.tuning.busy_batches && small && free, Server::Uplink)
            }
            Server::Uplink => {
                let needed =
                    self.computed_ns.is_some_and(|at| now_ns.saturating_sub(at) < self.tuning.computes_ns);
                let large = seen.typical_batch() >= self.batch(self.tuning.large_batch);
                (large || contended && !needed, Server::Worker)
            }
        };
        if std::mem::replace(&mut self.doubted, doubt) && doubt {
            if other == Server::Worker && contended {
                let soon = now_ns < self.respite_until_ns + self.tuning.longest_respite_ns;
                let longer = if soon { self.respite_ns * 2 } else { 0 };
                self.respite_ns = longer.clamp(self.tuning.respite_ns, self.tuning.longest_respite_ns);
                self.respite_until_ns = now_ns + self.respite_ns;
            }
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
    fn what_is_small_depends_on_what_an_exit_costs() {
        let mut s = RingService::new(Tuning::default());
        s.exit_costs(27_000);
        let t = load(&mut s, 1_000_000_000, 200_000, 60, 400);
        assert_eq!(s.server(), Server::Worker, "60 frames are worth 27 us");
        let t = load(&mut s, t, 200_000, 30, 400);
        assert_eq!(s.server(), Server::Uplink);
        s.exit_costs(1_000);
        load(&mut s, t, 200_000, 7, 400);
        assert_eq!(s.server(), Server::Uplink, "a wake-up costs, too");
        load(&mut s, t + 100_000_000, 200_000, 12, 400);
        assert_eq!(s.server(), Server::Worker);
    }

    /// The same, while workers wait for a processor for so long in each window.
    fn contended(s: &mut RingService, start: u64, n: u64, waited: u64) -> u64 {
        for i in 0..n {
            let now = start + i * 100_000;
            if s.is_due(now) {
                s.waited(waited);
            }
            s.served(now, 2, 2);
        }
        start + n * 100_000
    }

    #[test]
    fn where_others_want_the_processors_the_worker_serves() {
        let mut s = RingService::new(Tuning::default());
        let t = contended(&mut s, 1_000_000_000, 1000, 5_000_000);
        assert_eq!(s.server(), Server::Worker);
        let t = contended(&mut s, t, 1000, 100_000);
        assert_eq!(s.server(), Server::Uplink);
        let t = contended(&mut s, t, 300, 5_000_000);
        assert_eq!(s.server(), Server::Worker);
        let t = contended(&mut s, t, 200, 100_000);
        assert_eq!(s.server(), Server::Worker, "not again so soon");
        let t = contended(&mut s, t, 1000, 100_000);
        assert_eq!(s.server(), Server::Uplink);
        // So much so that nobody comes to look for five windows at a time.
        let mut t = t + 200_000_000;
        for _ in 0..4 {
            s.waited(20_000_000);
            s.served(t, 2, 2);
            t += 50_000_000;
        }
        assert_eq!(s.server(), Server::Worker);
        // Whoever computes can be served by nobody else.
        s.guest_computes(t);
        let t = contended(&mut s, t, 900, 5_000_000);
        assert_eq!(s.server(), Server::Uplink);
        contended(&mut s, t, 500, 5_000_000);
        assert_eq!(s.server(), Server::Worker);
    }

    /// Others want the processors only while the uplink's thread takes part: it is tried ever more rarely.
    #[test]
    fn what_was_in_vain_is_tried_ever_more_rarely() {
        let mut s = RingService::new(Tuning::default());
        let (mut t, mut uplink, mut all) = (1_000_000_000, 0u64, 0u64);
        for _ in 0..200 {
            let waited = if s.server() == Server::Uplink { 5_000_000 } else { 0 };
            t = contended(&mut s, t, 500, waited);
            uplink += u64::from(s.server() == Server::Uplink);
            all += 1;
        }
        assert!(uplink * 10 < all, "{uplink} of {all}");
        // It is not forgotten for good.
        let mut tries = 0;
        for _ in 0..100 {
            t = contended(&mut s, t, 500, 100_000);
            tries += u64::from(s.server() == Server::Uplink);
        }
        assert!(tries > 50, "{tries}");
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
