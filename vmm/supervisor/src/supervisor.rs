//! The supervisor: its cells' processes, its threads, and what clients can ask of it. What it knows is in `supervisor/state.rs`, what it does for
//! clients in `supervisor/requests.rs` and `supervisor/collections.rs`, and what it does with what an earlier one has left in `supervisor/restore.rs`.
//!
//! Threads: for each cell one that reads what it says (and starts it again when it dies), one that writes to it and one that reads its console, so that nobody waits
//! for a slow cell with the state locked; one for what waits for its time; one for the registry, one for logs.

mod apply;
mod collections;
mod looks;
mod own_cells;
mod requests;
mod restore;
mod state;
mod survey;
#[cfg(test)]
mod tests;

use std::io;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use foraker_api::{Counters, GatekeeperSettings};
use foraker_confine::Kind;
use thiserror::Error;
use tokio::sync::Notify;

use crate::channel::{FromCell, ToCell, receive};
use crate::directory::Directory;
use crate::events::Events;
use crate::launcher::{Ending, Launcher, Started};
use crate::logs::{LogSizes, Logs};
use crate::outbox::{Outbox, Tell};
use crate::store::StoreError;
pub use looks::Looking;
use looks::Looks;
pub use restore::Found;
pub use state::Phase;
use state::State;
use survey::Surveys;

/// A cell that died sooner than this after its start is started again only after a while: a quarter of it, and twice as long each time.
const SHORT_LIFE: Duration = Duration::from_secs(1);

/// How long a cell's process may take to end when its channel has: then it is ended.
const LINGERS: Duration = Duration::from_secs(10);

/// How often it is looked whether cells of an earlier supervisor are gone.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// How a supervisor is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// Cells.
    pub cells: usize,
    /// The first cell's subnet of 16 bits; the next ones follow.
    pub first_subnet: Ipv4Addr,
    /// What guests may have, unless a client has settled that.
    pub gatekeeper: GatekeeperSettings,
    /// How much of guests' logs is kept.
    pub log_sizes: LogSizes,
}

/// Why a supervisor cannot be started.
#[derive(Debug, Error)]
pub enum StartError {
    /// Its state cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The host says no.
    #[error("{0}")]
    Host(#[from] io::Error),
}

#[derive(Debug)]
struct Shared {
    config: Config,
    state: Mutex<State>,
    /// A cell came or went, or the supervisor stops.
    changed: Condvar,
    /// There is a new guest in `due` or `leaving`.
    due: Condvar,
    /// A guest may have come to run or ended.
    heard: Notify,
    /// Starts cells.
    launcher: Option<Launcher>,
    surveys: Surveys,
    looks: Looks,
    events: Events,
    logs: Option<Logs>,
    /// Held as long as the supervisor lives.
    directory: Option<Directory>,
    since_ms: u64,
}

/// The supervisor.
#[derive(Clone, Debug)]
pub struct Supervisor(Arc<Shared>);

impl Supervisor {
    /// Takes up what an earlier one has left, starts the cells and waits until they are there; not if cells of an earlier one are: then they follow when those are gone.
    ///
    /// # Errors
    /// The state cannot be used, the host has no threads to give, or no cell can be started.
    pub fn start(
        config: Config,
        directory: Directory,
        launcher: Launcher,
    ) -> Result<(Supervisor, Found), StartError> {
        let vacant = directory.is_vacant()?;
        let (state, logs, found) = restore::take_up(&config, &directory)?;
        let count = config.cells;
        let supervisor = Supervisor(Arc::new(Shared {
            config,
            events: state.records.events.clone(),
            state: Mutex::new(state),
            changed: Condvar::new(),
            due: Condvar::new(),
            heard: Notify::new(),
            launcher: Some(launcher),
            surveys: Surveys::default(),
            looks: Looks::default(),
            logs: Some(logs),
            directory: Some(directory),
            since_ms: foraker_api::units::now_ms(),
        }));
        for number in 0..count {
            let supervisor = supervisor.clone();
            std::thread::Builder::new().name(format!("cell-{number}")).spawn(move || {
                foraker_confine::enter(Kind::Keeper);
                supervisor.keep_cell(number);
            })?;
        }
        let again = supervisor.clone();
        std::thread::Builder::new().name("restarts".to_owned()).spawn(move || {
            foraker_confine::enter(Kind::Sender);
            again.keep_time();
        })?;
        if !vacant {
            log::warn!("cells of an earlier supervisor are still there: guests start when those are gone");
            return Ok((supervisor, found));
        }
        let mut state = supervisor.lock();
        // A cell that cannot be made ends at once, and is started again and again.
        while !state.cells.iter().all(|c| c.load.alive) && state.cells.iter().all(|c| c.restarts < 3) {
            state = supervisor.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let alive = state.cells.iter().any(|c| c.load.alive);
        drop(state);
        if alive {
            Ok((supervisor, found))
        } else {
            supervisor.stop();
            Err(io::Error::other("no cell can be started: see what they said").into())
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends every guest and every cell. Returns when the cells are gone.
    pub fn stop(&self) {
        let mut state = self.lock();
        state.stopping = true;
        for cell in &mut state.cells {
            cell.tell(ToCell::End);
            // What was said is sent, and the channel closed, which ends the cell.
            cell.to = None;
        }
        self.0.changed.notify_all();
        self.0.due.notify_all();
        while state.cells.iter().any(|c| c.process.is_some()) {
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        // What was noted is written before the process ends.
        let written = state.records.store.write(Vec::new());
        drop(state);
        written.wait();
        if let Some(launcher) = &self.0.launcher {
            launcher.end();
        }
    }

    /// Runs a cell's process, again whenever it ends, until the supervisor stops.
    fn keep_cell(&self, number: usize) {
        self.await_earlier_cells();
        // Short lives in a row.
        let mut short = 0;
        while !self.lock().stopping {
            let started = Instant::now();
            match self.spawn(number) {
                Ok((process, from)) => self.follow(number, &process, from),
                Err(e) => log::error!("cell {number} cannot be started: {e}"),
            }
            let mut state = self.lock();
            state.cell_died(number);
            self.0.surveys.gone(number);
            self.0.heard.notify_waiters();
            self.0.changed.notify_all();
            self.0.due.notify_all();
            if state.stopping {
                break;
            }
            log::warn!("cell {number} has died; it is started again");
            short = if started.elapsed() < SHORT_LIFE { short + 1 } else { 0 };
            let wait = SHORT_LIFE / 4 * (1 << short.min(6)) / 2;
            if short > 0 {
                // Only whoever stops the supervisor is to be heard meanwhile.
                let stopping = |state: &mut State| !state.stopping;
                drop(self.0.changed.wait_timeout_while(state, wait, stopping));
            }
        }
    }

    /// Waits until the cells of an earlier supervisor are gone, or this one stops.
    fn await_earlier_cells(&self) {
        let Some(directory) = &self.0.directory else { return };
        let since = Instant::now();
        let mut told = since;
        loop {
            match directory.is_vacant() {
                Ok(true) => return,
                Ok(false) => {}
                Err(e) => {
                    return log::error!("cannot tell whether cells of an earlier supervisor are gone: {e}");
                }
            }
            if told.elapsed() > LINGERS {
                let waited = since.elapsed().as_secs();
                log::warn!("cells of an earlier supervisor do not end, for {waited} s now: see `ps -C vmm`");
                told = Instant::now();
            }
            let state = self.lock();
            let stopping = |state: &mut State| !state.stopping;
            let (state, _) = self
                .0
                .changed
                .wait_timeout_while(state, LOOK_AGAIN, stopping)
                .unwrap_or_else(PoisonError::into_inner);
            if state.stopping {
                return;
            }
        }
    }

    fn spawn(&self, number: usize) -> io::Result<(Ending, UnixStream)> {
        let none = || io::Error::other("nobody starts cells");
        let launcher = self.0.launcher.as_ref().ok_or_else(none)?;
        let Started { process, channel, console } = launcher.start_cell(number)?;
        if let Some(logs) = &self.0.logs {
            let (logs, supervisor) = (logs.clone(), self.clone());
            std::thread::Builder::new().name(format!("console-{number}")).spawn(move || {
                foraker_confine::enter(Kind::Console);
                logs.hear(console, |id| supervisor.is_of(number, id));
            })?;
        }
        let to = Outbox::new(channel.try_clone()?, format!("to-cell-{number}"))?;
        let mut state = self.lock();
        let stopping = state.stopping;
        if let Some(cell) = state.cells.get_mut(number) {
            cell.process = Some(process.process());
            cell.to = (!stopping).then(|| Box::new(to) as Box<dyn Tell>);
        }
        Ok((process, channel))
    }

    /// Whether a guest is, or was last, on a cell: that speaks for its own guests only.
    fn is_of(&self, cell: usize, id: u64) -> bool {
        self.lock().guests.get(&id).is_some_and(|g| g.cell == cell)
    }

    /// The counters of a cell's own guests, and the sum of them, which has no guest's id: a cell speaks for nobody else.
    fn own(&self, cell: usize, mut counters: Vec<Counters>) -> Vec<Counters> {
        let state = self.lock();
        counters.retain(|c| c.id == 0 || state.guests.get(&c.id).is_some_and(|g| g.cell == cell));
        counters
    }

    /// Hears what a cell says until its process has ended.
    fn follow(&self, number: usize, process: &Ending, mut from: UnixStream) {
        let launcher = self.0.launcher.as_ref();
        loop {
            match receive::<FromCell>(&mut from) {
                Ok(Some(FromCell::Demand(asked))) => {
                    if let Some(launcher) = launcher {
                        launcher.weigh(number, asked);
                    }
                }
                Ok(Some(FromCell::Survey { number: survey, guests, load })) => {
                    let guests = self.own(number, guests);
                    self.0.surveys.answered(survey, number, guests, load);
                }
                Ok(Some(message)) => {
                    let ready = matches!(message, FromCell::Ready { .. });
                    let mut state = self.lock();
                    let timed = state.due.len() + state.leaving.len();
                    state.hear(number, message);
                    if ready {
                        self.0.changed.notify_all();
                    }
                    self.0.heard.notify_waiters();
                    if state.due.len() + state.leaving.len() > timed {
                        self.0.due.notify_all();
                    }
                }
                Ok(None) => break,
                Err(e) => {
                    log::error!("cell {number} says what cannot be understood: {e}");
                    // It is lost to us.
                    self.kill(number);
                    break;
                }
            }
        }
        loop {
            match process.wait(LINGERS) {
                Ok(true) => return,
                // It has closed its channel, and does not end.
                Ok(false) if self.kill(number) => {}
                // Nobody is left who could end it.
                Ok(false) => return,
                Err(e) => return log::error!("cell {number}: {e}"),
            }
        }
    }

    /// Has a cell ended that does not end by itself. Returns whether somebody was there to do so.
    fn kill(&self, number: usize) -> bool {
        self.0.launcher.as_ref().is_some_and(|launcher| launcher.kill(number).is_ok())
    }

    /// Starts guests again whose time has come, and forgets those that have said farewell.
    fn keep_time(&self) {
        let mut state = self.lock();
        while !state.stopping {
            let now = Instant::now();
            while let Some(&(at, id)) = state.due.first()
                && at <= now
            {
                state.due.pop_first();
                state.wake(id);
            }
            let mut gone = Vec::new();
            while let Some(&(at, id)) = state.leaving.first()
                && at <= now
            {
                state.leaving.pop_first();
                gone.push(id);
            }
            if !gone.is_empty() {
                let (_, changes) = state.forget(&gone);
                state.records.store.note(changes);
            }
            state.settle();
            self.0.heard.notify_waiters();
            let next = state.due.first().into_iter().chain(state.leaving.first()).map(|(at, _)| *at).min();
            let wait = next.map_or(Duration::from_secs(3600), |at| at.saturating_duration_since(now));
            (state, _) = self.0.due.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
