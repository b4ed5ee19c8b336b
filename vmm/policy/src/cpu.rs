//! Which core runs next on a worker, and for how long.
//!
//! Each core has an account in *virtual time*: processor time divided by its share (as in stride scheduling: Waldspurger and Weihl, 1995; and
//! start-time fair queueing: Goyal, Guo and Vin, OSDI '96). The one that is furthest behind runs next, which among equals is round robin.
//! A core that wakes up does not claim the time that it slept.
//!
//! Processors come in two *grains* (Akaros): a *fine* turn is a millisecond and a waking fine core interrupts a coarse one; a *coarse*
//! turn is a hundred, because each change costs both guests an exit. A core on `Auto` is fine until it has computed for a while without resting.
//!
//! Before all that come *promises*: a guest may be provisioned a rate of processor time ([`crate::rate`]). While it stays within, its cores run before
//! those of others, and what they use does not count in virtual time; what it does not use is everybody's.
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
            // Longer than what a server has to catch up with when the host has kept its processor for some time.
            patience_ns: 30_000_000,
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
    /// From when on it runs as its guest was promised, on the caller's clock.
    pub due: Option<u64>,
    /// Processor time since it last rested.
    burst_ns: u64,
}

impl Account {
    /// A core that has not run yet.
    #[must_use]
    pub fn new(share: u32, grain: Grain) -> Account {
        Account { share: share.clamp(*SHARES.start(), *SHARES.end()), grain, used: 0, due: None, burst_ns: 0 }
    }

    /// Virtual time that it will have used after running for so long.
    #[must_use]
    pub fn used_after(&self, ns: u64) -> u64 {
        self.used.saturating_add(self.virtually(ns))
    }

    /// It has run, `promised` of that as its guest was promised.
    pub fn charge(&mut self, ns: u64, promised: u64) {
        self.used = self.used_after(ns.saturating_sub(promised));
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

/// Whoever has its turn keeps it for this part of a fine turn, whatever was promised to others.
const SOME: u64 = 4;

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
    /// Of those, the ones with a promise, by when it is due.
    promised: BTreeSet<(u64, Place)>,
    /// The last one taken was taken for its promise: the next is the next by shares, so that nobody starves where a change of guests takes as long
    /// as it takes a promise to be due again.
    kept: bool,
    next: u64,
}

impl<T> RunQueue<T> {
    /// Nobody waits.
    #[must_use]
    pub fn new(tuning: Tuning) -> RunQueue<T> {
        RunQueue {
            tuning,
            ready: BTreeMap::new(),
            fine: BTreeSet::new(),
            promised: BTreeSet::new(),
            kept: false,
            next: FIRST,
        }
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
        if let Some(due) = account.due {
            self.promised.insert((due, place));
        }
        self.ready.insert(place, (account, core));
    }

    /// Takes the core that runs next at `now`: one whose promise is due, or the one furthest behind, or a fine one that is not much further.
    pub fn pop(&mut self, now: u64) -> Option<(Account, T)> {
        let first @ (used, order) = *self.ready.first_key_value()?.0;
        let due = self
            .promised
            .first()
            .filter(|(due, _)| *due <= now && order >= FIRST && !self.kept)
            .map(|(_, place)| *place);
        self.kept = due.is_some();
        let fine = self.fine.first().copied().filter(|(f, _)| *f <= used.saturating_add(self.tuning.lead_ns));
        let place = due.or(fine).unwrap_or(first);
        let (account, core) = self.ready.remove(&place)?;
        self.fine.remove(&place);
        if let Some(due) = account.due {
            self.promised.remove(&(due, place));
        }
        Some((account, core))
    }

    /// Whether a promise of a core that waits is due at `now`.
    #[must_use]
    pub fn is_due(&self, now: u64) -> bool {
        self.promised.first().is_some_and(|(due, _)| *due <= now)
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
    /// `account` is as it was at the start of the turn, which was at `started`; for `promised` nanoseconds from then on it runs as promised.
    #[must_use]
    pub fn turn(&self, account: &Account, started: u64, promised: u64) -> Option<u64> {
        let ((first, order), _) = self.ready.first_key_value()?;
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
        let by_share = match fine {
            // It is not its turn by shares: only what was promised is.
            _ if promised > 0 && *first < account.used => 0,
            fine => fine.map_or(longest, |fine| fine.min(longest)),
        };
        // Those that were promised something take fine turns among each other.
        let due = self
            .promised
            .first()
            .map(|(due, _)| due.saturating_sub(started).max(promised.min(fine_ns)).max(fine_ns / SOME));
        Some(by_share.max(promised).min(due.unwrap_or(u64::MAX)))
    }

    /// Whether a worker whose own next core is at `mine` should take one from this queue instead.
    #[must_use]
    pub fn is_behind(&self, mine: Option<u64>) -> bool {
        self.first().is_some_and(|first| mine.is_none_or(|m| first.saturating_add(self.tuning.margin_ns) < m))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rate::Rate;
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
        promise: Option<Rate>,
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
        /// For how long it runs as promised.
        promised: u64,
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
        let mut clocks = vec![0; loads.len()];
        let mut floor = 0;
        for (i, l) in loads.iter().enumerate() {
            sleeping.push((l.start, i, Account::new(l.share, l.grain)));
        }
        let mut now = 0;
        while now < until {
            sleeping.retain(|&(at, guest, mut account)| {
                if at <= now {
                    woken[guest] = at;
                    account.due = loads[guest].promise.map(|p| p.due_at(clocks[guest]));
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
                    let clock = clocks[r.guest];
                    let mut promised = 0;
                    if let Some(promise) = loads[r.guest].promise {
                        promised = promise.part(clock, r.since, ran);
                        clocks[r.guest] = promise.charge(clock, now, promised);
                        after.due = Some(promise.due_at(clocks[r.guest]));
                    }
                    after.charge(ran, promised);
                    if left[r.guest] <= ran && loads[r.guest].rest > 0 {
                        seen[r.guest].used += ran;
                        left[r.guest] = loads[r.guest].work;
                        after.rested();
                        sleeping.push((now + loads[r.guest].rest, r.guest, after));
                    } else if queues[w].turn(&r.account, r.since, r.promised).is_some_and(|turn| ran >= turn)
                        || ran >= HEARTBEAT_NS
                            && (0..workers).any(|o| o != w && queues[o].is_behind(Some(after.used)))
                    {
                        seen[r.guest].used += ran;
                        left[r.guest] = left[r.guest].saturating_sub(ran);
                        woken[r.guest] = u64::MAX;
                        queues[w].put_back(after, r.guest);
                    } else {
                        clocks[r.guest] = clock;
                        running[w] = Some(r);
                    }
                }
                if running[w].is_none() {
                    let mine = queues[w].first();
                    let other = (0..workers).find(|&o| o != w && queues[o].is_behind(mine)).unwrap_or(w);
                    let behind = queues[other].first();
                    if let Some((account, guest)) = queues[other].pop(now) {
                        home[guest] = w;
                        floor = floor.max(behind.unwrap_or(0));
                        seen[guest].turns += 1;
                        seen[guest].latency = seen[guest].latency.max(now.saturating_sub(woken[guest]));
                        let promised = loads[guest].promise.map_or(0, |p| p.left(clocks[guest], now));
                        running[w] = Some(Running { account, guest, since: now, promised });
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
        Load { share, grain: Grain::Auto, work: MS, rest: 0, start: 0, promise: None }
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

        /// A promise is kept, whatever shares others have; what is left over is shared as ever, with whoever was promised something, too.
        #[test]
        fn promises_are_kept(permille in 50u32..800, shares in proptest::collection::vec(20u32..4000, 1..6)) {
            let mut loads: Vec<_> = shares.iter().map(|s| batch(*s)).collect();
            loads.push(Load { promise: Some(Rate::new(permille)), ..batch(DEFAULT_SHARE) });
            let until = 20_000 * MS;
            let seen = simulate(&loads, 1, until);
            let promised = until / 1000 * u64::from(permille);
            let all: u32 = loads.iter().map(|l| l.share).sum();
            for (s, load) in seen.iter().zip(&loads) {
                let own = if load.promise.is_some() { promised } else { 0 };
                let due = own + (until - promised) / u64::from(all) * u64::from(load.share);
                prop_assert!(s.used.abs_diff(due) <= 400 * MS, "{:?} of {due} in {seen:?}", s.used);
            }
            prop_assert!(seen.last().is_some_and(|s| s.used + 30 * MS >= promised), "{seen:?}");
        }

        /// Whoever uses less than it was promised runs as soon as it wakes.
        #[test]
        fn a_promise_comes_at_once(work in MS / 2..10 * MS, others in 1usize..6, quick in 0usize..6) {
            let mut loads = vec![batch(4000); others];
            loads.extend(vec![Load { work: MS / 2, rest: 5 * MS, ..batch(DEFAULT_SHARE) }; quick]);
            let promise = Some(Rate::new(500));
            loads.push(Load { work, rest: 2 * work, promise, ..batch(*SHARES.start()) });
            let seen = simulate(&loads, 1, 5_000 * MS);
            prop_assert!(seen.last().is_some_and(|s| s.latency <= MS / 2), "{seen:?}");
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
                prop_assert!(s.latency <= (quick as u64 + 1) * MS + slow as u64 * 30 * MS, "{seen:?}");
            }
        }
    }
}
