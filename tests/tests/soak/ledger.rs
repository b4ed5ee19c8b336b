//! What was done to each guest, and which ends fit it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use foraker_tests::bounds::stretched;
use foraker_tests::hostile::{Case, judge_listed};
use foraker_tests::supervisor::Listed;

/// How long a guest may be `starting`: each change of a machine's memory waits in the kernel for readers of all of them (SRCU), which takes tens of
/// milliseconds when the host is busy with other things, and a cell starts one guest after the other.
const STARTING: Duration = Duration::from_secs(30);
/// How long a guest may run that is to end by itself.
const ENDING: Duration = Duration::from_secs(30);

/// What a guest is for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// Serves until it is asked to end.
    Web,
    /// Ends at once with status 0.
    Hello,
    /// Ends as its case says.
    Fault(&'static Case),
    /// Misbehaves until it is killed.
    Endless(&'static Case),
}

/// How somebody ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ask {
    /// It was asked to end.
    Stop,
    /// It was killed.
    Kill,
}

/// What is known of a guest.
#[derive(Debug)]
struct Entry {
    kind: Kind,
    /// It may come back after its end.
    comes_back: bool,
    asked: Option<Ask>,
    phase: String,
    /// Since when it was seen like this.
    since: Instant,
    /// A problem with it was told.
    reported: bool,
}

/// Every guest that has not ended yet.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    open: BTreeMap<u64, Entry>,
    total: u64,
    /// Ends, by what they were.
    pub(crate) ends: BTreeMap<&'static str, u64>,
}

impl Ledger {
    /// Guests were started.
    pub(crate) fn add(&mut self, ids: std::ops::RangeInclusive<u64>, kind: Kind, comes_back: bool) {
        for id in ids {
            let (phase, since) = (String::new(), Instant::now());
            self.total += 1;
            self.open.insert(id, Entry { kind, comes_back, asked: None, phase, since, reported: false });
        }
    }

    /// Somebody is about to end a guest.
    pub(crate) fn ask(&mut self, id: u64, ask: Ask) {
        if let Some(entry) = self.open.get_mut(&id) {
            entry.asked = entry.asked.max(Some(ask));
        }
    }

    /// Guests that nobody has ended yet, what they are for, and whether they were seen to run.
    pub(crate) fn unasked(&self) -> impl Iterator<Item = (u64, Kind, bool)> {
        self.open.iter().filter(|(_, e)| e.asked.is_none()).map(|(id, e)| (*id, e.kind, e.phase == "running"))
    }

    /// Every guest that has not been seen to end.
    pub(crate) fn open(&self) -> impl Iterator<Item = u64> {
        self.open.keys().copied()
    }

    /// Whether a guest is there and nobody has ended it.
    pub(crate) fn is_unasked(&self, id: u64) -> bool {
        self.open.get(&id).is_some_and(|entry| entry.asked.is_none())
    }

    /// Guests of some kinds that have not been seen to end.
    pub(crate) fn of_kind(&self, wanted: impl Fn(Kind) -> bool) -> impl Iterator<Item = u64> {
        self.open.iter().filter(move |(_, e)| wanted(e.kind)).map(|(id, _)| *id)
    }

    /// How many there were.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// How many have not been seen to end.
    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    /// Compares a list with what is known; what does not fit.
    pub(crate) fn compare(&mut self, listed: &[Listed]) -> Vec<String> {
        let mut problems = Vec::new();
        for guest in listed {
            let Some(entry) = self.open.get_mut(&guest.id) else { continue };
            if entry.phase != guest.phase {
                entry.phase.clone_from(&guest.phase);
                entry.since = Instant::now();
            }
            match entry.judge(guest) {
                Ok(None) => {}
                Ok(Some(end)) => {
                    *self.ends.entry(end).or_default() += 1;
                    self.open.remove(&guest.id);
                }
                Err(why) => {
                    if !std::mem::replace(&mut entry.reported, true) {
                        problems.push(format!("guest {} {:?}: {why}: {guest:?}", guest.id, entry));
                    }
                    // One that has not ended is still to be ended.
                    if !["waiting", "starting", "running", "restarting"].contains(&guest.phase.as_str()) {
                        self.open.remove(&guest.id);
                    }
                }
            }
        }
        problems
    }
}

impl Entry {
    /// Whether where the guest is in its life fits; what its end was, if it has ended.
    fn judge(&self, guest: &Listed) -> Result<Option<&'static str>, String> {
        let long = |most| self.since.elapsed() > stretched(most);
        let by_itself = |case: &Case| judge_listed(case, &guest.phase).map(|()| Some("as its case says"));
        match (guest.phase.as_str(), self.kind) {
            ("waiting", _) => Ok(None),
            ("starting", _) if long(STARTING) => Err("it does not start".to_owned()),
            ("starting", _) => Ok(None),
            ("running", Kind::Web) if guest.restarts > 0 => Err("it came back and had not ended".to_owned()),
            ("running", Kind::Hello | Kind::Fault(_)) if long(ENDING) => Err("it does not end".to_owned()),
            ("running", _) => Ok(None),
            ("restarting", Kind::Hello | Kind::Fault(_)) if self.comes_back => Ok(None),
            ("killed: while it waited", _) if self.asked.is_some() => Ok(Some("ended in line")),
            ("killed: it was killed", _) if self.asked == Some(Ask::Kill) => Ok(Some("killed")),
            ("exit 0", Kind::Web) if self.asked.is_some() => Ok(Some("asked to end")),
            ("exit 0", Kind::Hello) if !self.comes_back || self.asked.is_some() => Ok(Some("by itself")),
            // One that comes back ends only when somebody wants it to, and then in its own way perhaps.
            (_, Kind::Fault(case)) if !self.comes_back || self.asked.is_some() => by_itself(case),
            _ => Err("this fits nothing that was done to it".to_owned()),
        }
    }
}
