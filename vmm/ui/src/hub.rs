//! One task that looks at the source, and the browsers that hear from it.
//!
//! The work is done once: every browser is sent the same bytes. While nobody looks there is no task at all.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use tokio::sync::{Mutex, broadcast};
use tokio::time::{MissedTickBehavior, interval};

use crate::message::{self, Moment};
use crate::rates::Rates;
use crate::source::{Graph, Place, Source};
use crate::table::Table;

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(100);
/// Messages that wait for a browser that is slow; it is then sent everything anew.
pub(crate) const BACKLOG: usize = 16;
/// Most browsers (tabs of them) that look at a time.
pub const MOST_WATCHERS: usize = 32;
/// Looks between two at the cells.
const CELLS: u64 = 10;

/// What is known, and who hears of it.
pub(crate) struct Hub {
    pub(crate) source: Arc<dyn Source>,
    writable: bool,
    shown: Mutex<Shown>,
    /// Whether `shown` is of now: false until the task has looked.
    fresh: AtomicBool,
    sender: broadcast::Sender<Update>,
    watchers: StdMutex<Watchers>,
}

/// What the last look found.
#[derive(Default)]
struct Shown {
    table: Table,
    rates: Rates,
    moment: Moment,
    cells: Vec<Place>,
    graph: Option<Graph>,
    number: u64,
    /// For whoever comes next, of the look with this number.
    everything: Option<(u64, Bytes)>,
}

#[derive(Default)]
struct Watchers {
    count: usize,
    /// There is a task that looks.
    looking: bool,
}

/// A message, and the number of the look that it is of.
#[derive(Clone)]
struct Update {
    number: u64,
    bytes: Bytes,
}

impl Hub {
    pub(crate) fn new(source: Arc<dyn Source>, writable: bool) -> Arc<Self> {
        let (sender, _) = broadcast::channel(BACKLOG);
        let (shown, watchers) = Default::default();
        Arc::new(Self { source, writable, shown, fresh: AtomicBool::new(false), sender, watchers })
    }

    /// Somebody looks; none if too many do. Within a tokio runtime.
    pub(crate) fn watch(self: &Arc<Self>) -> Option<Watcher> {
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        if watchers.count == MOST_WATCHERS {
            return None;
        }
        watchers.count += 1;
        // Before the first look, so that nothing of it is missed.
        let receiver = self.sender.subscribe();
        if !watchers.looking {
            watchers.looking = true;
            self.fresh.store(false, Ordering::Release);
            tokio::spawn(look_on(Arc::clone(self)));
        }
        Some(Watcher { hub: Arc::clone(self), receiver, behind: true, number: 0 })
    }

    /// Whether the task may end: then it has ended for whoever comes next.
    fn nobody_looks(&self) -> bool {
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        watchers.looking = watchers.count > 0;
        !watchers.looking
    }

    /// Everything there is now, encoded at most once for each look.
    async fn everything(&self) -> Option<Update> {
        if !self.fresh.load(Ordering::Acquire) {
            return None;
        }
        let mut shown = self.shown.lock().await;
        let shown = &mut *shown;
        let number = shown.number;
        let bytes = match &shown.everything {
            Some((of, bytes)) if *of == number => bytes.clone(),
            _ => {
                let (graph, writable) = (shown.graph.as_ref()?, self.writable);
                message::everything(&shown.table, &shown.moment, &shown.cells, graph, writable)
            }
        };
        shown.everything = Some((number, bytes.clone()));
        Some(Update { number, bytes })
    }

    /// Looks once. May wait for the source.
    fn look(&self) -> Update {
        let mut shown = self.shown.blocking_lock();
        let shown = &mut *shown;
        shown.number += 1;
        shown.everything = None;
        let begins = !self.fresh.load(Ordering::Acquire);
        if begins {
            shown.graph = Some(self.source.graph());
            shown.rates.forget();
        }
        // Before the source is asked, as that may take a while.
        let now = seconds();
        let changes = shown.table.look(|roll| self.source.guests(roll));
        let figures = self.source.figures();
        let rates = shown.rates.of(now, message::counters(&shown.table, &figures));
        shown.moment = Moment::new(time_of_day(), &shown.table, &figures, &rates);
        let mut cells = None;
        if begins || shown.number.is_multiple_of(CELLS) {
            let now = self.source.cells();
            if now != shown.cells {
                shown.cells = now;
                cells = Some(shown.cells.as_slice());
            }
        }
        let bytes = message::difference(&shown.table, &changes, &shown.moment, cells);
        self.fresh.store(true, Ordering::Release);
        Update { number: shown.number, bytes }
    }
}

/// The task: looks until nobody else does.
async fn look_on(hub: Arc<Hub>) {
    let mut clock = interval(PERIOD);
    // Looks that were missed show nothing any more.
    clock.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        clock.tick().await;
        if hub.nobody_looks() {
            return;
        }
        let looking = Arc::clone(&hub);
        match tokio::task::spawn_blocking(move || looking.look()).await {
            // That nobody hears it any more is seen in the next round.
            Ok(update) => drop(hub.sender.send(update)),
            Err(e) => {
                log::error!("the page's source: {e}");
                hub.watchers.lock().unwrap_or_else(PoisonError::into_inner).looking = false;
                return;
            }
        }
    }
}

/// A browser that looks.
pub(crate) struct Watcher {
    hub: Arc<Hub>,
    receiver: broadcast::Receiver<Update>,
    /// It needs everything.
    behind: bool,
    /// The last look that it heard of.
    number: u64,
}

impl Watcher {
    /// The next message for it.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.behind
                && let Some(update) = self.hub.everything().await
            {
                (self.behind, self.number) = (false, update.number);
                return Some(update.bytes);
            }
            match self.receiver.recv().await {
                Ok(update) if !self.behind && update.number > self.number => {
                    self.number = update.number;
                    return Some(update.bytes);
                }
                // It is in what was sent, or will be.
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(_)) => self.behind = true,
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.hub.watchers.lock().unwrap_or_else(PoisonError::into_inner).count -= 1;
    }
}

/// Seconds since some time, never backwards.
fn seconds() -> f64 {
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    START.elapsed().as_secs_f64()
}

/// Milliseconds since 1970.
fn time_of_day() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
