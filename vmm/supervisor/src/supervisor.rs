//! The supervisor's state: guests, cells, and who is where.
//!
//! Threads: for each cell one that reads what it says (and starts it again when it dies) and one that writes to it, so that nobody waits
//! for a slow cell with the state locked; one for restarts that wait for their time.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use foraker_policy::placement::{Load, place};
use foraker_policy::restart::{Ending, Failures, Restart};

use crate::channel::{Ended, FromCell, Order, ToCell, receive, send};
use crate::control::Listed;

/// How often somebody who waits for guests to run looks.
const SETTLE: Duration = Duration::from_millis(5);
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
}

/// Where a guest is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// For a cell with room.
    Waiting,
    /// For its time to start again.
    Resting,
    /// Its cell was told.
    Starting,
    /// It runs.
    Running,
    /// It has ended and does not come back.
    Ended(Ended),
}

/// What is known of a guest.
#[derive(Debug)]
struct Record {
    order: Order,
    restart: Restart,
    phase: Phase,
    cell: usize,
    ipv4: Option<Ipv4Addr>,
    failures: Failures,
    restarts: u32,
    started: Instant,
    /// Somebody asked it to end.
    unwanted: bool,
    /// The cell that it must be on, because its address belongs there.
    home: Option<usize>,
}

/// What is known of a cell.
#[derive(Debug, Default)]
struct CellSlot {
    to: Option<Sender<ToCell>>,
    load: Load,
    tap: Option<String>,
    process: Option<u32>,
    restarts: u32,
}

#[derive(Debug, Default)]
struct State {
    cells: Vec<CellSlot>,
    guests: BTreeMap<u64, Record>,
    /// Guests that wait for a cell with room, in the order of their ids.
    line: BTreeSet<u64>,
    /// Guests that rest, by when they start again.
    due: BTreeSet<(Instant, u64)>,
    last_id: u64,
    stopping: bool,
}

#[derive(Debug)]
struct Shared {
    config: Config,
    state: Mutex<State>,
    /// A cell came or went, or the supervisor stops.
    changed: Condvar,
    /// There is a new guest in `due`.
    due: Condvar,
}

/// The supervisor.
#[derive(Clone, Debug)]
pub struct Supervisor(Arc<Shared>);

impl Supervisor {
    /// Starts the cells and waits until they are there.
    ///
    /// # Errors
    /// The host has no threads to give, or no cell can be started.
    pub fn start(config: Config) -> io::Result<Supervisor> {
        let cells = (0..config.cells).map(|_| CellSlot::default()).collect();
        let state = State { cells, ..State::default() };
        let count = config.cells;
        let supervisor = Supervisor(Arc::new(Shared {
            config,
            state: Mutex::new(state),
            changed: Condvar::new(),
            due: Condvar::new(),
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

    /// Takes guests, `count` of the same order, and returns the first id and the last. They start as cells have room.
    #[must_use]
    pub fn run(&self, order: &Order, count: u64, restart: Restart) -> (u64, u64) {
        let mut state = self.lock();
        let first = state.last_id + 1;
        for number in 1..=count {
            state.last_id += 1;
            // The place to number a guest's network, by whatever owns it: all share one as yet.
            let mut order = order.clone();
            if count > 1 {
                order.name = format!("{}-{number}", order.name);
            }
            let record = Record {
                order,
                restart,
                phase: Phase::Waiting,
                cell: 0,
                ipv4: None,
                failures: Failures::default(),
                restarts: 0,
                started: Instant::now(),
                unwanted: false,
                home: None,
            };
            let id = state.last_id;
            state.guests.insert(id, record);
            state.line.insert(id);
        }
        state.place_line();
        (first, state.last_id)
    }

    /// Asks guests to end, or ends them. Returns how many were there to be asked.
    #[must_use]
    pub fn end(&self, which: Option<&[u64]>, kill: bool) -> usize {
        let mut state = self.lock();
        let State { cells, guests, line, .. } = &mut *state;
        let mut ids: Vec<Vec<u64>> = vec![Vec::new(); cells.len()];
        let mut count = 0;
        for (id, g) in guests.iter_mut().filter(|(id, _)| which.is_none_or(|w| w.contains(id))) {
            match g.phase {
                Phase::Ended(_) => continue,
                Phase::Waiting | Phase::Resting => {
                    line.remove(id);
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
            image: g.order.image.display().to_string(),
            phase: match &g.phase {
                Phase::Waiting => "waiting".to_owned(),
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
        loop {
            let open = |g: &Record| matches!(g.phase, Phase::Waiting | Phase::Starting);
            let open = self.lock().guests.range(ids.clone()).filter(|(_, g)| open(g)).count();
            if open == 0 || Instant::now() >= until {
                return open;
            }
            // To be told of each guest would cost more than to look now and then.
            std::thread::sleep(SETTLE);
        }
    }

    /// Ends every guest and every cell. Returns when the cells are gone.
    pub fn stop(&self) {
        let mut state = self.lock();
        state.stopping = true;
        for cell in &mut state.cells {
            // Its writer ends, which closes the channel, which ends the cell.
            cell.to = None;
        }
        self.0.changed.notify_all();
        self.0.due.notify_all();
        while state.cells.iter().any(|c| c.process.is_some()) {
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
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
        let mut writer = ours.try_clone()?;
        let (to, orders) = channel::<ToCell>();
        std::thread::Builder::new().name(format!("to-cell-{number}")).spawn(move || {
            for message in orders {
                if let Err(e) = send(&mut writer, &message) {
                    // Its reader sees the same, and acts.
                    log::debug!("cannot write to cell {number}: {e}");
                    return;
                }
            }
            // Nobody will write any more: the cell is to end.
            let _ = writer.shutdown(std::net::Shutdown::Write);
        })?;
        let mut state = self.lock();
        let stopping = state.stopping;
        if let Some(cell) = state.cells.get_mut(number) {
            cell.process = Some(child.id());
            cell.to = (!stopping).then_some(to);
        }
        Ok((child, ours))
    }

    /// Hears what a cell says until its process has ended.
    fn follow(&self, number: usize, mut child: Child, mut from: UnixStream) {
        loop {
            match receive::<FromCell>(&mut from) {
                Ok(Some(message)) => {
                    let ready = matches!(message, FromCell::Ready { .. });
                    let mut state = self.lock();
                    let rested = state.due.len();
                    state.hear(number, message);
                    if ready {
                        self.0.changed.notify_all();
                    }
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
            state.place_line();
            let wait = state.due.first().map_or(Duration::from_secs(3600), |(at, _)| *at - now);
            (state, _) = self.0.due.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl CellSlot {
    fn tell(&self, message: ToCell) {
        if let Some(to) = &self.to {
            // A writer that has ended left a cell that has died, which its reader sees.
            let _ = to.send(message);
        }
    }
}

impl State {
    /// A guest that rested stands in line, unless somebody ended it meanwhile.
    fn wake(&mut self, id: u64) {
        if let Some(g) = self.guests.get_mut(&id).filter(|g| g.phase == Phase::Resting) {
            g.phase = Phase::Waiting;
            self.line.insert(id);
        }
    }

    /// Gives guests in line to cells with room.
    fn place_line(&mut self) {
        let mut loads: Vec<Load> = self.cells.iter().map(|c| c.load).collect();
        if self.line.is_empty() || place(&loads).is_none() {
            return;
        }
        let mut orders: Vec<Vec<(u64, Order)>> = vec![Vec::new(); self.cells.len()];
        for id in std::mem::take(&mut self.line) {
            let Some(g) = self.guests.get_mut(&id) else { continue };
            let home = |at: &usize| loads.get(*at).is_some_and(Load::has_room);
            let Some(at) = g.home.map_or_else(|| place(&loads), |at| Some(at).filter(home)) else {
                self.line.insert(id);
                continue;
            };
            let (Some(load), Some(orders)) = (loads.get_mut(at), orders.get_mut(at)) else { continue };
            load.guests += 1;
            load.memory += g.order.memory;
            g.phase = Phase::Starting;
            g.cell = at;
            orders.push((id, g.order.clone()));
        }
        for ((cell, load), orders) in self.cells.iter_mut().zip(loads).zip(orders) {
            cell.load = load;
            if !orders.is_empty() {
                cell.tell(ToCell::Start(orders));
            }
        }
    }

    fn hear(&mut self, number: usize, message: FromCell) {
        match message {
            FromCell::Ready { tap } => {
                if let Some(cell) = self.cells.get_mut(number) {
                    cell.tap = tap;
                    cell.load = Load { alive: true, ..Load::default() };
                }
                self.place_line();
            }
            FromCell::Started(guests) => {
                for (id, ipv4) in guests {
                    if let Some(g) = self.guests.get_mut(&id)
                        && g.cell == number
                        && g.phase == Phase::Starting
                    {
                        (g.phase, g.ipv4, g.started) = (Phase::Running, ipv4, Instant::now());
                    }
                }
            }
            FromCell::Ended { id, end } => {
                self.ended(number, id, end);
                self.place_line();
            }
        }
    }

    /// A guest has ended: its room is free, and perhaps it comes back. A cell speaks for its own guests only: it runs what is hostile.
    fn ended(&mut self, number: usize, id: u64, end: Ended) {
        let on_it = |g: &&mut Record| g.cell == number && matches!(g.phase, Phase::Starting | Phase::Running);
        let Some(g) = self.guests.get_mut(&id).filter(on_it) else { return };
        if let Some(cell) = self.cells.get_mut(g.cell) {
            cell.load.guests = cell.load.guests.saturating_sub(1);
            cell.load.memory = cell.load.memory.saturating_sub(g.order.memory);
        }
        let ending = match &end {
            _ if g.unwanted => Ending::Wanted,
            Ended::Exit(0) => Ending::Success,
            _ => Ending::Failure,
        };
        let ran = u64::try_from(g.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let blameless = end == Ended::CellDied;
        g.phase = match g.failures.ended(g.restart, ending, blameless, ran) {
            Some(wait) => {
                g.restarts += 1;
                // It comes back under its address, which is one of its cell's.
                if let (Some(network), Some(ipv4)) = (&mut g.order.network, g.ipv4) {
                    network.ipv4 = Some(ipv4);
                    g.home = Some(g.cell);
                }
                self.due.insert((Instant::now() + Duration::from_nanos(wait), id));
                Phase::Resting
            }
            None => Phase::Ended(end),
        };
    }

    /// A cell's process is gone, and with it its guests.
    fn cell_died(&mut self, number: usize) {
        let on_it = |g: &Record| g.cell == number && matches!(g.phase, Phase::Starting | Phase::Running);
        let lost: Vec<u64> = self.guests.iter().filter(|(_, g)| on_it(g)).map(|(id, _)| *id).collect();
        for id in lost {
            self.ended(number, id, Ended::CellDied);
        }
        if let Some(cell) = self.cells.get_mut(number) {
            let restarts = cell.restarts + 1;
            *cell = CellSlot { restarts, ..CellSlot::default() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order() -> Order {
        Order {
            image: "image".into(),
            name: "guest".to_owned(),
            memory: 1 << 20,
            large_pages: false,
            cores: 1,
            arguments: Vec::new(),
            environment: Vec::new(),
            network: Some(foraker_cell::NetworkSpec::default()),
            console_limit: 0,
            publish: Vec::new(),
            processor: foraker_cell::ProcessorSpec::default(),
            immediate: false,
        }
    }

    /// Two cells that are there, without processes, and what they are told.
    fn two_cells() -> (Supervisor, Vec<std::sync::mpsc::Receiver<ToCell>>) {
        let config = Config { cells: 2, command: Vec::new(), first_subnet: Ipv4Addr::new(10, 100, 0, 0) };
        let (tos, told): (Vec<_>, Vec<_>) = (0..2).map(|_| channel()).unzip();
        let cells = tos.into_iter().map(|to| CellSlot { to: Some(to), ..CellSlot::default() }).collect();
        let mut state = State { cells, ..State::default() };
        for number in 0..2 {
            state.hear(number, FromCell::Ready { tap: None });
        }
        let shared =
            Shared { config, state: Mutex::new(state), changed: Condvar::new(), due: Condvar::new() };
        (Supervisor(Arc::new(shared)), told)
    }

    fn starts(told: &std::sync::mpsc::Receiver<ToCell>) -> Vec<u64> {
        let ids = |message| match message {
            ToCell::Start(orders) => orders.into_iter().map(|(id, _)| id).collect(),
            ToCell::Stop { .. } => Vec::new(),
        };
        told.try_iter().flat_map(ids).collect()
    }

    fn phases(supervisor: &Supervisor) -> Vec<String> {
        supervisor.list().into_iter().map(|g| g.phase).collect()
    }

    #[test]
    fn a_cell_speaks_for_its_own_guests_only() {
        let (supervisor, told) = two_cells();
        assert_eq!(supervisor.run(&order(), 2, Restart::No), (1, 2));
        assert_eq!((starts(&told[0]), starts(&told[1])), (vec![1], vec![2]));
        let mut state = supervisor.lock();
        state.hear(1, FromCell::Started(vec![(1, None), (2, None), (77, None)]));
        state.hear(1, FromCell::Ended { id: 1, end: Ended::Exit(0) });
        drop(state);
        assert_eq!(phases(&supervisor), ["starting", "running"]);
        supervisor.lock().hear(0, FromCell::Ended { id: 1, end: Ended::Exit(0) });
        // Said twice, it counts once.
        supervisor.lock().hear(0, FromCell::Ended { id: 1, end: Ended::Exit(5) });
        assert_eq!(phases(&supervisor), ["exit 0", "running"]);
        assert_eq!(supervisor.cells().iter().map(|c| c.2).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(supervisor.forget_ended(), 1);
    }

    #[test]
    fn guests_of_a_dead_cell_wait_for_it_and_come_back_under_their_addresses() {
        let (supervisor, told) = two_cells();
        let _ = supervisor.run(&order(), 2, Restart::OnFailure);
        let _ = (starts(&told[0]), starts(&told[1]));
        let address = Some(Ipv4Addr::new(10, 100, 0, 2));
        let mut state = supervisor.lock();
        state.hear(0, FromCell::Started(vec![(1, address)]));
        state.hear(1, FromCell::Started(vec![(2, None)]));
        state.cell_died(0);
        let (_, id) = *state.due.first().expect("it rests");
        state.due.clear();
        state.wake(id);
        state.place_line();
        assert_eq!((id, state.line.len()), (1, 1), "it does not go to another cell");
        let (to, again) = channel();
        state.cells[0].to = Some(to);
        state.hear(0, FromCell::Ready { tap: None });
        drop(state);
        let Ok(ToCell::Start(orders)) = again.try_recv() else { panic!("it is not started") };
        assert_eq!(orders[0].1.network.as_ref().and_then(|n| n.ipv4), address);
        assert_eq!(
            (phases(&supervisor), starts(&told[1])),
            (vec!["starting".into(), "running".into()], vec![])
        );
    }

    #[test]
    fn who_is_asked_to_end_does_not_come_back() {
        let (supervisor, told) = two_cells();
        let _ = supervisor.run(&order(), 1, Restart::Always);
        assert_eq!(supervisor.end(None, false), 1);
        assert!(told[0].try_iter().any(|m| matches!(m, ToCell::Stop { ids, kill: false } if ids == [1])));
        supervisor.lock().hear(0, FromCell::Ended { id: 1, end: Ended::Exit(0) });
        assert_eq!(phases(&supervisor), ["exit 0"]);
        assert_eq!(supervisor.end(None, true), 0);
    }

    #[test]
    fn when_all_cells_are_full_guests_wait_in_line() {
        let (supervisor, told) = two_cells();
        let room = 2 * foraker_policy::placement::MOST_GUESTS as u64;
        let _ = supervisor.run(&order(), room + 3, Restart::No);
        assert_eq!(starts(&told[0]).len() + starts(&told[1]).len(), room as usize);
        let waiting = |s: &Supervisor| phases(s).iter().filter(|p| *p == "waiting").count();
        assert_eq!(waiting(&supervisor), 3);
        supervisor.lock().hear(0, FromCell::Ended { id: 1, end: Ended::Exit(0) });
        assert_eq!((waiting(&supervisor), starts(&told[0])), (2, vec![room + 1]));
    }
}
