//! The supervisor: its cells' processes, its threads, and what clients can ask of it. What it knows is in `supervisor/state.rs`.
//!
//! Threads: for each cell one that reads what it says (and starts it again when it dies) and one that writes to it, so that nobody waits
//! for a slow cell with the state locked; one for restarts that wait for their time.

mod state;
#[cfg(test)]
mod tests;

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use foraker_policy::restart::{Failures, Restart};

use crate::admission::{Host, ListedOwner, NotTaken, OwnerSettings};
use crate::channel::{Ended, FromCell, Order, ToCell, monotonic_ns, receive};
use crate::control::Listed;
use crate::outbox::{Outbox, Tell};
use crate::weights::Weights;
pub use state::Phase;
use state::{CellSlot, Record, State};

/// How often somebody who waits for many guests to run looks: to be told of each would cost more.
const SETTLE: Duration = Duration::from_millis(5);
/// Up to so many, who waits is told.
const FEW: u64 = 64;
/// A cell that died sooner than this after its start is started again only after a while: a quarter of it, and twice as long each time.
const SHORT_LIFE: Duration = Duration::from_secs(1);

/// How a supervisor is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// Cells.
    pub cells: usize,
    /// Command that runs a cell, whose standard input is its channel; the cell's number, its subnet and the
    /// range of all subnets are appended.
    pub command: Vec<std::ffi::OsString>,
    /// The first cell's subnet of 16 bits; the next ones follow.
    pub first_subnet: Ipv4Addr,
    /// What guests may have.
    pub host: Host,
}

#[derive(Debug)]
struct Shared {
    config: Config,
    state: Mutex<State>,
    /// A cell came or went, or the supervisor stops.
    changed: Condvar,
    /// There is a new guest in `due`.
    due: Condvar,
    /// A guest may have come to run or ended.
    heard: Condvar,
    /// What cells weigh beside each other, where the host can weigh processes.
    weights: Option<Weights>,
}

/// The supervisor.
#[derive(Clone, Debug)]
pub struct Supervisor(Arc<Shared>);

/// Cells' groups; none, with a word about it, where the host does not allow it.
fn weights() -> Option<Weights> {
    let weights = Weights::of_this_process();
    if let Err(e) = &weights {
        log::info!("shares hold within each cell, and cells share the processors alike: {e}");
    }
    weights.ok()
}

impl Supervisor {
    /// Starts the cells and waits until they are there.
    ///
    /// # Errors
    /// The host has no threads to give, or no cell can be started.
    pub fn start(config: Config) -> io::Result<Supervisor> {
        let cells = (0..config.cells).map(|_| CellSlot::default()).collect();
        let state = State::new(cells, &config.host);
        let count = config.cells;
        let supervisor = Supervisor(Arc::new(Shared {
            config,
            state: Mutex::new(state),
            changed: Condvar::new(),
            due: Condvar::new(),
            heard: Condvar::new(),
            weights: weights(),
        }));
        for number in 0..count {
            let supervisor = supervisor.clone();
            std::thread::Builder::new()
                .name(format!("cell-{number}"))
                .spawn(move || supervisor.keep_cell(number))?;
        }
        let again = supervisor.clone();
        std::thread::Builder::new().name("restarts".to_owned()).spawn(move || again.keep_restarting())?;
        let mut state = supervisor.lock();
        // A cell that cannot be made ends at once, and is started again and again.
        while !state.cells.iter().all(|c| c.load.alive) && state.cells.iter().all(|c| c.restarts < 3) {
            state = supervisor.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let alive = state.cells.iter().any(|c| c.load.alive);
        drop(state);
        if alive {
            Ok(supervisor)
        } else {
            supervisor.stop();
            Err(io::Error::other("no cell can be started: see what they said"))
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes guests, `count` of the same order, and returns the first id and the last. They start as the gatekeeper admits them and cells
    /// have room.
    ///
    /// # Errors
    /// One of them is refused; then none is taken.
    pub fn run(&self, order: &Order, count: u64, restart: Restart) -> Result<(u64, u64), NotTaken> {
        let requested_ns = monotonic_ns();
        // Copied before anybody waits for the state.
        let named = |number| Order { name: format!("{}-{number}", order.name), ..order.clone() };
        let orders: Vec<_> = if count == 1 { vec![order.clone()] } else { (1..=count).map(named).collect() };
        let mut state = self.lock();
        let first = state.last_id + 1;
        let offered = state.admission.offer((first..).zip(&orders));
        if offered.is_err() {
            // It may have put others off.
            state.settle();
        }
        let decisions = offered?;
        state.last_id += count;
        let started = Instant::now();
        let network = state.admission.network(&order.owner);
        let records = orders.into_iter().map(|mut order| Record {
            order: {
                if let Some(n) = &mut order.network {
                    n.network = network;
                }
                order
            },
            restart,
            phase: Phase::Waiting,
            cell: 0,
            ipv4: None,
            failures: Failures::default(),
            restarts: 0,
            started,
            requested_ns,
            start_us: None,
            unwanted: false,
            home: None,
            asked_back: None,
            memory: 0,
        });
        state.guests.extend((first..).zip(records));
        decisions.into_iter().for_each(|decision| state.carry_out(decision));
        state.settle();
        Ok((first, state.last_id))
    }

    /// Settles what an owner may have. Its guests that have more keep it until they end; those in line that can never be admitted now are
    /// refused.
    ///
    /// # Errors
    /// The settings make no sense.
    pub fn set_owner(&self, name: &str, settings: &OwnerSettings) -> Result<(), NotTaken> {
        let mut state = self.lock();
        for (id, refusal) in state.admission.set_owner(name, settings)? {
            if let Some(g) = state.guests.get_mut(&id) {
                g.phase = Phase::Ended(Ended::Refused(refusal.to_string()));
            }
        }
        state.settle();
        self.0.heard.notify_all();
        Ok(())
    }

    /// Every owner.
    #[must_use]
    pub fn owners(&self) -> Vec<ListedOwner> {
        self.lock().admission.list()
    }

    /// Asks guests to end, or ends them. Returns how many were there to be asked.
    #[must_use]
    pub fn end(&self, which: Option<&[u64]>, kill: bool) -> usize {
        let mut state = self.lock();
        let State { cells, guests, admission, unplaced, .. } = &mut *state;
        let mut ids: Vec<Vec<u64>> = vec![Vec::new(); cells.len()];
        let mut count = 0;
        for (id, g) in guests.iter_mut().filter(|(id, _)| which.is_none_or(|w| w.contains(id))) {
            match g.phase {
                Phase::Ended(_) => continue,
                Phase::Waiting | Phase::Admitted | Phase::Resting => {
                    admission.release(*id);
                    unplaced.remove(id);
                    g.phase = Phase::Ended(Ended::Killed("while it waited".to_owned()));
                }
                Phase::Starting | Phase::Running => {
                    if let Some(ids) = ids.get_mut(g.cell) {
                        ids.push(*id);
                    }
                }
            }
            g.unwanted = true;
            count += 1;
        }
        for (cell, ids) in cells.iter().zip(ids).filter(|(_, ids)| !ids.is_empty()) {
            cell.tell(ToCell::Stop { ids, kill });
        }
        state.settle();
        self.0.heard.notify_all();
        count
    }

    /// Forgets guests that have ended. Returns how many.
    #[must_use]
    pub fn forget_ended(&self) -> usize {
        let mut state = self.lock();
        let before = state.guests.len();
        state.guests.retain(|_, g| !matches!(g.phase, Phase::Ended(_)));
        before - state.guests.len()
    }

    /// Every guest.
    #[must_use]
    pub fn list(&self) -> Vec<Listed> {
        let state = self.lock();
        let listed = |(id, g): (&u64, &Record)| Listed {
            id: *id,
            name: g.order.name.clone(),
            owner: g.order.owner.clone(),
            image: g.order.image.display().to_string(),
            phase: match &g.phase {
                Phase::Waiting | Phase::Admitted => "waiting".to_owned(),
                Phase::Resting => "resting".to_owned(),
                Phase::Starting => "starting".to_owned(),
                Phase::Running => "running".to_owned(),
                Phase::Ended(end) => match end {
                    Ended::Exit(status) => format!("exit {status}"),
                    Ended::Fault(what) => format!("fault: {what}"),
                    Ended::Killed(why) => format!("killed: {why}"),
                    Ended::Refused(why) => format!("refused: {why}"),
                    Ended::CellDied => "its cell died".to_owned(),
                },
            },
            cell: g.cell,
            ipv4: g.ipv4,
            restarts: g.restarts,
            start_us: g.start_us,
        };
        state.guests.iter().map(listed).collect()
    }

    /// Each cell: its process, its TAP device, its guests, how often it was started again.
    #[must_use]
    pub fn cells(&self) -> Vec<(Option<u32>, Option<String>, usize, u32)> {
        let state = self.lock();
        state.cells.iter().map(|c| (c.process, c.tap.clone(), c.load.guests, c.restarts)).collect()
    }

    /// Waits until every guest of a range runs or has ended, at most so long. Returns how many do not.
    #[must_use]
    pub fn wait_settled(&self, ids: std::ops::RangeInclusive<u64>, most: Duration) -> usize {
        let until = Instant::now() + most;
        let few = ids.end().saturating_sub(*ids.start()) < FEW;
        let open = |g: &Record| matches!(g.phase, Phase::Waiting | Phase::Admitted | Phase::Starting);
        let mut state = self.lock();
        loop {
            let open = state.guests.range(ids.clone()).filter(|(_, g)| open(g)).count();
            let left = until.saturating_duration_since(Instant::now());
            if open == 0 || left.is_zero() {
                return open;
            }
            if few {
                state = self.0.heard.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            } else {
                drop(state);
                std::thread::sleep(SETTLE);
                state = self.lock();
            }
        }
    }

    /// Where a guest is reached, if it runs and has a network.
    #[must_use]
    pub fn address(&self, id: u64) -> Option<Ipv4Addr> {
        self.lock().guests.get(&id).filter(|g| g.phase == Phase::Running)?.ipv4
    }

    /// Ends every guest and every cell. Returns when the cells are gone.
    pub fn stop(&self) {
        let mut state = self.lock();
        state.stopping = true;
        for cell in &mut state.cells {
            // What was said is sent, and the channel closed, which ends the cell.
            cell.to = None;
        }
        self.0.changed.notify_all();
        self.0.due.notify_all();
        while state.cells.iter().any(|c| c.process.is_some()) {
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if let Some(weights) = &self.0.weights {
            weights.remove();
        }
    }

    /// Runs a cell's process, again whenever it ends, until the supervisor stops.
    fn keep_cell(&self, number: usize) {
        // Short lives in a row.
        let mut short = 0;
        while !self.lock().stopping {
            let started = Instant::now();
            match self.spawn(number) {
                Ok((child, from)) => self.follow(number, child, from),
                Err(e) => log::error!("cell {number} cannot be started: {e}"),
            }
            let mut state = self.lock();
            state.cell_died(number);
            self.0.heard.notify_all();
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

    fn spawn(&self, number: usize) -> io::Result<(Child, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        let config = &self.0.config;
        let program = config.command.first().ok_or_else(|| io::Error::other("no command for cells"))?;
        let [a, b, ..] = config.first_subnet.octets();
        let second = usize::from(b) + number;
        let subnet = format!("{a}.{second}.0.0/16");
        let last = usize::from(b) + config.cells.saturating_sub(1);
        let all = format!("{a}.{b}.0.0-{a}.{last}.255.255");
        let child = Command::new(program)
            .args(config.command.get(1..).unwrap_or_default())
            .args(["--number", &number.to_string(), "--subnet", &subnet, "--subnets", &all])
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()?;
        if let Some(weights) = &self.0.weights {
            weights.admit(number, child.id());
        }
        let to = Outbox::new(ours.try_clone()?, format!("to-cell-{number}"))?;
        let mut state = self.lock();
        let stopping = state.stopping;
        if let Some(cell) = state.cells.get_mut(number) {
            cell.process = Some(child.id());
            cell.to = (!stopping).then(|| Box::new(to) as Box<dyn Tell>);
        }
        Ok((child, ours))
    }

    /// Hears what a cell says until its process has ended.
    fn follow(&self, number: usize, mut child: Child, mut from: UnixStream) {
        loop {
            match receive::<FromCell>(&mut from) {
                Ok(Some(message)) => {
                    if let (FromCell::Demand(asked), Some(weights)) = (&message, &self.0.weights) {
                        weights.set(number, *asked);
                        continue;
                    }
                    let ready = matches!(message, FromCell::Ready { .. });
                    let mut state = self.lock();
                    let rested = state.due.len();
                    state.hear(number, message);
                    if ready {
                        self.0.changed.notify_all();
                    }
                    self.0.heard.notify_all();
                    if state.due.len() > rested {
                        self.0.due.notify_all();
                    }
                }
                Ok(None) => break,
                Err(e) => {
                    log::error!("cell {number} says what cannot be understood: {e}");
                    // It is our own child, and lost to us.
                    let _ = child.kill();
                    break;
                }
            }
        }
        if let Err(e) = child.wait() {
            log::error!("cell {number}: {e}");
        }
    }

    /// Starts guests again whose time has come.
    fn keep_restarting(&self) {
        let mut state = self.lock();
        while !state.stopping {
            let now = Instant::now();
            while let Some(&(at, id)) = state.due.first()
                && at <= now
            {
                state.due.pop_first();
                state.wake(id);
            }
            state.settle();
            self.0.heard.notify_all();
            let wait = state.due.first().map_or(Duration::from_secs(3600), |(at, _)| *at - now);
            (state, _) = self.0.due.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
