//! Which core runs next on a worker, and for how long.
//!
//! Each core has an account in *virtual time*: processor time divided by its share (as in stride scheduling: Waldspurger and Weihl, 1995; and
//! start-time fair queueing: Goyal, Guo and Vin, OSDI '96). The one that is furthest behind runs next, which among equals is round robin.
//! A core that wakes up does not claim the time that it slept.
//!
//! Processors come in two *grains* (Akaros): a *fine* turn is a millisecond and a waking fine core interrupts a coarse one; a *coarse*
//! turn is a hundred, because each change costs both guests an exit. A core on `Auto` is fine until it has computed for a while without resting.
//!
//! Virtual time is one for all workers of a cell, so that queues can be compared: a worker takes over a core from another's
//! queue when it has nothing to do, or when its own next one is far ahead of the other's.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Share of a core when nobody says otherwise.
pub const DEFAULT_SHARE: u32 = 100;
/// Smallest and largest share.
pub const SHARES: std::ops::RangeInclusive<u32> = 1..=10_000;

/// How finely a core's time is cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Grain {
    /// As the core behaves.
    #[default]
    Auto,
    /// Long turns, seldom interrupted.
    Coarse,
    /// Short turns, soon after it wakes.
    Fine,
}

/// Tuning. Nanoseconds of processor time.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// A fine turn.
    pub fine_ns: u64,
    /// A coarse turn.
    pub coarse_ns: u64,
    /// A core on `Auto` that has run this long without offering to rest is coarse.
    pub patience_ns: u64,
    /// What a core that wakes is put ahead of those that never slept.
    pub credit_ns: u64,
    /// How far a fine core may be ahead of the one furthest behind and still run before it.
    pub lead_ns: u64,
    /// How far another worker's next core may be behind before it is taken over from a worker that has work.
    pub margin_ns: u64,
}

impl Default for Tuning {
    fn default() -> Self {
        Tuning {
            fine_ns: 1_000_000,
            coarse_ns: 100_000_000,
            patience_ns: 10_000_000,
            credit_ns: 1_000_000,
            lead_ns: 200_000_000,
            margin_ns: 200_000_000,
        }
    }
}

/// A core's account.
#[derive(Clone, Copy, Debug)]
pub struct Account {
    share: u32,
    grain: Grain,
    /// Virtual time that it has used, nanoseconds at the default share.
    pub used: u64,
    /// Processor time since it last rested.
    burst_ns: u64,
}

impl Account {
    /// A core that has not run yet.
    #[must_use]
    pub fn new(share: u32, grain: Grain) -> Account {
        Account { share: share.clamp(*SHARES.start(), *SHARES.end()), grain, used: 0, burst_ns: 0 }
    }

    /// Virtual time that it will have used after running for so long.
    #[must_use]
    pub fn used_after(&self, ns: u64) -> u64 {
        self.used.saturating_add(self.virtually(ns))
    }

    /// It has run.
    pub fn charge(&mut self, ns: u64) {
        self.used = self.used_after(ns);
        self.burst_ns = self.burst_ns.saturating_add(ns);
    }

    /// It has offered to give up the processor.
    pub fn rested(&mut self) {
        self.burst_ns = 0;
    }

    /// Its turns are short now.
    #[must_use]
    pub fn is_fine(&self, tuning: &Tuning) -> bool {
        match self.grain {
            Grain::Auto => self.burst_ns < tuning.patience_ns,
            Grain::Coarse => false,
            Grain::Fine => true,
        }
    }

    fn virtually(&self, ns: u64) -> u64 {
        ns.saturating_mul(u64::from(DEFAULT_SHARE)) / u64::from(self.share)
    }

    /// Processor time in which it uses so much virtual time.
    fn really(&self, virtual_ns: u64) -> u64 {
        virtual_ns.saturating_mul(u64::from(self.share)) / u64::from(DEFAULT_SHARE)
    }
}

/// How often a worker on which nobody waits looks whether others have too much to do, nanoseconds.
pub const HEARTBEAT_NS: u64 = 500_000_000;

/// Order of a queue: virtual time, then who came first.
type Place = (u64, u64);

/// Those that come in order have numbers from here on, those before all others lower ones.
const FIRST: u64 = 1 << 32;

/// The cores that wait for one worker.
#[derive(Debug)]
pub struct RunQueue<T> {
    tuning: Tuning,
    ready: BTreeMap<Place, (Account, T)>,
    /// Of those, the fine ones.
    fine: BTreeSet<Place>,
    next: u64,
}

impl<T> RunQueue<T> {
    /// Nobody waits.
    #[must_use]
    pub fn new(tuning: Tuning) -> RunQueue<T> {
        RunQueue { tuning, ready: BTreeMap::new(), fine: BTreeSet::new(), next: FIRST }
    }

    /// Cores that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ready.len()
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ready.is_empty()
    }

    /// A core that had its turn and wants another.
    pub fn put_back(&mut self, account: Account, core: T) {
        self.next += 1;
        self.insert((account.used, self.next), account, core);
    }

    /// A core that has woken up. `floor` is the virtual time that the cell has come to.
    pub fn wake(&mut self, mut account: Account, floor: u64, core: T) {
        account.used = account.used.max(floor.saturating_sub(self.tuning.credit_ns));
        self.put_back(account, core);
    }

    /// A core that is to run before all others, whatever it has used.
    pub fn put_first(&mut self, account: Account, core: T) {
        // Behind those that were put first before it.
        self.next += 1;
        self.insert((0, self.next - FIRST), account, core);
    }

    fn insert(&mut self, place: Place, account: Account, core: T) {
        if account.is_fine(&self.tuning) {
            self.fine.insert(place);
        }
        self.ready.insert(place, (account, core));
    }

    /// Takes the core that runs next: the one furthest behind, or a fine one that is not much further.
    pub fn pop(&mut self) -> Option<(Account, T)> {
        let (used, _) = *self.ready.first_key_value()?.0;
        let fine = self.fine.first().copied().filter(|(f, _)| *f <= used.saturating_add(self.tuning.lead_ns));
        let Some(place) = fine else { return self.ready.pop_first().map(|(_, next)| next) };
        self.fine.remove(&place);
        self.ready.remove(&place)
    }

    /// Virtual time of the core that is furthest behind.
    #[must_use]
    pub fn first(&self) -> Option<u64> {
        self.ready.first_key_value().map(|((used, _), _)| *used)
    }

    /// The virtual time that this worker has come to: that of whoever is furthest behind, the core that runs (by what it has used until now)
    /// included. None if there is nobody.
    #[must_use]
    pub fn floor(&self, running: Option<u64>) -> Option<u64> {
        self.first().into_iter().chain(running).min()
    }

    /// How long a core with this account runs from the start of its turn, as long as nobody else comes: `None` for as long as it likes.
    ///
    /// `account` is as it was at the start of the turn.
    #[must_use]
    pub fn turn(&self, account: &Account) -> Option<u64> {
        let ((_, order), _) = self.ready.first_key_value()?;
        if *order < FIRST {
            return Some(0);
        }
        let Tuning { fine_ns, coarse_ns, patience_ns, lead_ns, .. } = self.tuning;
        // A fine core runs until it is coarse itself.
        let (least, longest) =
            if account.is_fine(&self.tuning) { (fine_ns, patience_ns) } else { (0, coarse_ns) };
        let fine = self.fine.first().map(|(used, _)| {
            // Until the fine one that waits is no longer too far ahead of it.
            let ahead = used.saturating_sub(account.used).saturating_sub(lead_ns);
            account.really(ahead).max(least)
        });
        Some(fine.map_or(longest, |fine| fine.min(longest)))
    }

    /// Whether a worker whose own next core is at `mine` should take one from this queue instead.
    #[must_use]
    pub fn is_behind(&self, mine: Option<u64>) -> bool {
        self.first().is_some_and(|first| mine.is_none_or(|m| first.saturating_add(self.tuning.margin_ns) < m))
    }
}

/// A limit of processor time over time: a virtual clock that runs ahead with what is used (Zhang's VirtualClock, SIGCOMM '90).
#[derive(Clone, Copy, Debug)]
pub struct Cap {
    /// Thousandths of a processor.
    permille: u32,
    /// Most that can be used at once, nanoseconds.
    burst_ns: u64,
}

/// What a capped guest may use at once.
const CAP_BURST_NS: u64 = 20_000_000;

impl Cap {
    /// A limit of so many thousandths of a processor, at least one.
    #[must_use]
    pub fn new(permille: u32) -> Cap {
        Cap { permille: permille.max(1), burst_ns: CAP_BURST_NS }
    }

    /// The guest's clock after it has used `ns` until `now`. `clock` is what this returned before, 0 at first.
    #[must_use]
    pub fn charge(&self, clock: u64, now: u64, ns: u64) -> u64 {
        clock.max(now.saturating_sub(ns)).saturating_add(self.stretched(ns))
    }

    /// From when on the guest may run.
    #[must_use]
    pub fn ready_at(&self, clock: u64) -> u64 {
        clock.saturating_sub(self.stretched(self.burst_ns))
    }

    /// How long it may run from `now` on.
    #[must_use]
    pub fn left(&self, clock: u64, now: u64) -> u64 {
        let ahead = clock.saturating_sub(now);
        // While it runs, real time passes too.
        let room = self.stretched(self.burst_ns).saturating_sub(ahead);
        let rate = u64::from(self.permille);
        if rate >= 1000 { u64::MAX } else { room.saturating_mul(rate) / (1000 - rate) }
    }

    fn stretched(&self, ns: u64) -> u64 {
        ns.saturating_mul(1000) / u64::from(self.permille)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: u64 = 1_000_000;

    /// A guest of the simulation: computes for `work`, rests for `rest`, again and again. No rest: computes for ever.
    #[derive(Clone, Copy, Debug)]
    struct Load {
        share: u32,
        grain: Grain,
        work: u64,
        rest: u64,
        /// When it comes into being.
        start: u64,
    }

    #[derive(Debug, Default)]
    struct Seen {
        used: u64,
        /// Longest time between waking up and running.
        latency: u64,
        turns: u64,
    }

    struct Running {
        account: Account,
        guest: usize,
        since: u64,
    }

    /// Workers that follow the policy, in steps of simulated time. What a change of guests costs is left out.
    fn simulate(loads: &[Load], workers: usize, until: u64) -> Vec<Seen> {
        const STEP: u64 = MS / 10;
        let tuning = Tuning::default();
        let mut queues: Vec<RunQueue<usize>> = (0..workers).map(|_| RunQueue::new(tuning)).collect();
        let mut running: Vec<Option<Running>> = (0..workers).map(|_| None).collect();
        let mut seen: Vec<Seen> = loads.iter().map(|_| Seen::default()).collect();
        let mut left: Vec<u64> = loads.iter().map(|l| l.work).collect();
        let mut woken = vec![0; loads.len()];
        let mut sleeping: Vec<(u64, usize, Account)> = Vec::new();
        let mut home: Vec<usize> = (0..loads.len()).map(|i| i % workers).collect();
        let mut floor = 0;
        for (i, l) in loads.iter().enumerate() {
            sleeping.push((l.start, i, Account::new(l.share, l.grain)));
        }
        let mut now = 0;
        while now < until {
            sleeping.retain(|&(at, guest, account)| {
                if at <= now {
                    woken[guest] = at;
                    let here = home[guest];
                    let used = running[here].as_ref().map(|r| r.account.used_after(now - r.since));
                    floor = floor.max(queues[here].floor(used).unwrap_or(0));
                    queues[here].wake(account, floor, guest);
                }
                at > now
            });
            for w in 0..workers {
                if let Some(r) = running[w].take() {
                    let ran = now - r.since;
                    let mut after = r.account;
                    after.charge(ran);
                    if left[r.guest] <= ran && loads[r.guest].rest > 0 {
                        seen[r.guest].used += ran;
                        left[r.guest] = loads[r.guest].work;
                        after.rested();
                        sleeping.push((now + loads[r.guest].rest, r.guest, after));
                    } else if queues[w].turn(&r.account).is_some_and(|turn| ran >= turn)
                        || ran >= HEARTBEAT_NS
                            && (0..workers).any(|o| o != w && queues[o].is_behind(Some(after.used)))
                    {
                        seen[r.guest].used += ran;
                        left[r.guest] = left[r.guest].saturating_sub(ran);
                        woken[r.guest] = u64::MAX;
                        queues[w].put_back(after, r.guest);
                    } else {
                        running[w] = Some(r);
                    }
                }
                if running[w].is_none() {
                    let mine = queues[w].first();
                    let other = (0..workers).find(|&o| o != w && queues[o].is_behind(mine)).unwrap_or(w);
                    let behind = queues[other].first();
                    if let Some((account, guest)) = queues[other].pop() {
                        home[guest] = w;
                        floor = floor.max(behind.unwrap_or(0));
                        seen[guest].turns += 1;
                        seen[guest].latency = seen[guest].latency.max(now.saturating_sub(woken[guest]));
                        running[w] = Some(Running { account, guest, since: now });
                    }
                }
            }
            now += STEP;
        }
        for r in running.into_iter().flatten() {
            seen[r.guest].used += until - r.since;
        }
        seen
    }

    fn batch(share: u32) -> Load {
        Load { share, grain: Grain::Auto, work: MS, rest: 0, start: 0 }
    }

    #[test]
    fn who_had_the_processor_alone_owes_nothing_for_it() {
        let late = Load { start: 5_000 * MS, ..batch(DEFAULT_SHARE) };
        let seen = simulate(&[batch(DEFAULT_SHARE), late, late], 1, 11_000 * MS);
        // Alone for five seconds, then a third of six.
        assert!((6_700..7_300).contains(&(seen[0].used / MS)), "{seen:?}");
    }

    #[test]
    fn an_interactive_guest_beside_batch_guests_waits_little_and_costs_little() {
        let quick = Load { work: MS / 2, rest: 20 * MS, ..batch(DEFAULT_SHARE) };
        let mut loads = vec![batch(DEFAULT_SHARE); 4];
        loads.push(quick);
        let seen = simulate(&loads, 2, 5_000 * MS);
        assert!(seen[4].latency <= 2 * MS, "{seen:?}");
        // Long turns: little more than one of each grain per interruption.
        assert!(seen[..4].iter().map(|s| s.turns).sum::<u64>() < 1000, "{seen:?}");
    }

    #[test]
    fn whoever_pretends_to_rest_gets_no_more_than_its_share() {
        // Rests for a moment before it would become coarse.
        let sly = Load { grain: Grain::Fine, work: 9 * MS, rest: MS / 10, ..batch(DEFAULT_SHARE) };
        let seen = simulate(&[sly, batch(DEFAULT_SHARE)], 1, 10_000 * MS);
        assert!(seen[0].used <= 5_500 * MS, "{seen:?}");
    }

    #[test]
    fn three_on_two_workers_get_two_thirds_each() {
        let seen = simulate(&[batch(DEFAULT_SHARE); 3], 2, 20_000 * MS);
        for s in &seen {
            assert!((12_300..14_400).contains(&(s.used / MS)), "{seen:?}");
        }
    }

    #[test]
    fn a_cap_holds_over_time() {
        let cap = Cap::new(250);
        let (mut now, mut clock, mut used) = (0u64, 0u64, 0u64);
        while now < 10_000 * MS {
            let at = cap.ready_at(clock);
            now = now.max(at);
            let run = cap.left(clock, now).clamp(MS / 10, 7 * MS);
            now += run;
            used += run;
            clock = cap.charge(clock, now, run);
        }
        assert!((2_480..2_550).contains(&(used / MS)), "{} ms", used / MS);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Cores that always want to run share the processors by their shares.
        #[test]
        fn shares_hold(shares in proptest::collection::vec(20u32..400, 2..8)) {
            let loads: Vec<_> = shares.iter().map(|s| batch(*s)).collect();
            let until = 20_000 * MS;
            let seen = simulate(&loads, 1, until);
            let all: u32 = shares.iter().sum();
            for (s, share) in seen.iter().zip(&shares) {
                let due = until * u64::from(*share) / u64::from(all);
                // Off by a turn or so of each.
                prop_assert!(s.used.abs_diff(due) <= 300 * MS, "{seen:?} for {shares:?}");
            }
        }

        /// Nobody is forgotten, and no processor rests while somebody waits.
        #[test]
        fn nobody_starves_and_nothing_is_wasted(
            rests in proptest::collection::vec(prop_oneof![Just(0u64), MS..50 * MS], 1..20),
            workers in 1usize..4,
        ) {
            let load = |rest: &u64| Load { work: 3 * MS, rest: *rest, ..batch(DEFAULT_SHARE) };
            let loads: Vec<_> = rests.iter().map(load).collect();
            let until = 8_000 * MS;
            let seen = simulate(&loads, workers, until);
            prop_assert!(seen.iter().all(|s| s.used > 0));
            if rests.iter().filter(|r| **r == 0).count() >= workers {
                let used: u64 = seen.iter().map(|s| s.used).sum();
                prop_assert!(used >= (until - 200 * MS) * workers as u64 * 97 / 100, "{seen:?}");
            }
        }

        /// A core that wakes waits for no more than a fine turn of each other fine one that woke before it.
        #[test]
        fn waking_is_bounded(quick in 1usize..10, slow in 0usize..6) {
            let mut loads = vec![batch(DEFAULT_SHARE); slow];
            loads.extend(vec![Load { work: MS / 2, rest: 40 * MS, ..batch(DEFAULT_SHARE) }; quick]);
            let seen = simulate(&loads, 1, 3_000 * MS);
            for s in &seen[slow..] {
                // The first turns come before anybody is known to be coarse.
                prop_assert!(s.latency <= (quick as u64 + 1) * MS + slow as u64 * 10 * MS, "{seen:?}");
            }
        }
    }
}
