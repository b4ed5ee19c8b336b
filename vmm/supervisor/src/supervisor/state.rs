//! What the supervisor knows, and what follows from each thing that happens: no thread and no process here.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foraker_api::guest::Fault;
use foraker_api::{Event, GatekeeperSettings, Guest, GuestSpec, Restart, State as Shown};
use foraker_policy::gatekeeper::Decision;
use foraker_policy::placement::{Load, place};
use foraker_policy::restart::{Ending, Failures};

use foraker_api::units::now_ms;

use crate::admission::Admission;
use crate::channel::{Ended, FromCell, Look, Order, ToCell, monotonic_ns};
use crate::cores::{self, Cores};
use crate::events::{Events, event};
use crate::images::Images;
use crate::logs::Logs;
use crate::networks::Networks;
use crate::outbox::Tell;
use crate::store::{Change, Progress, Store, StoredGuest};

use super::own_cells::Whose;

/// How long a guest that is to be forgotten at its end is still known, so that whoever waits for it hears how it ended.
const FAREWELL: Duration = Duration::from_secs(5);

/// Where a guest is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// In the gatekeeper's line.
    Waiting,
    /// For a cell with room, or for its own one to be there again: it has what it needs.
    Admitted,
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
pub(super) struct Record {
    /// What was asked for, and its number in the registry.
    pub(super) spec: (u64, Arc<GuestSpec>),
    /// Its image.
    pub(super) digest: Arc<str>,
    pub(super) order: Order,
    pub(super) created_ms: u64,
    pub(super) since_ms: u64,
    pub(super) phase: Phase,
    pub(super) paused: bool,
    /// It has run since it was asked for or started.
    pub(super) begun: bool,
    pub(super) cell: usize,
    pub(super) ipv4: Option<Ipv4Addr>,
    pub(super) failures: Failures,
    pub(super) restarts: u32,
    pub(super) started: Instant,
    /// When it was asked for, or came back, by [`monotonic_ns`].
    pub(super) requested_ns: u64,
    /// From then to its first instruction, as far as its cell has told.
    pub(super) start_us: Option<u64>,
    /// Somebody asked it to end.
    pub(super) unwanted: bool,
    /// It starts again as soon as it has ended: somebody asked for that.
    pub(super) again: bool,
    /// The cell that it must be on, because its address belongs there.
    pub(super) home: Option<usize>,
    /// The owner that asked for what it uses, and was told to have it.
    pub(super) asked_back: Option<String>,
    /// How much of its memory it has or has asked for, bytes.
    pub(super) memory: u64,
    /// What it ended with.
    pub(super) fault: Option<Box<Fault>>,
}

/// What is known of a cell.
#[derive(Debug, Default)]
pub(super) struct CellSlot {
    pub(super) to: Option<Box<dyn Tell>>,
    pub(super) load: Load,
    pub(super) tap: Option<String>,
    pub(super) process: Option<u32>,
    pub(super) restarts: u32,
    /// The owner that has it alone.
    pub(super) owner: Option<String>,
}

/// Where what happens is written down.
#[derive(Debug)]
pub(super) struct Records {
    pub(super) store: Store,
    pub(super) events: Events,
    /// None where no cell has a console: in tests.
    pub(super) logs: Option<Logs>,
    /// The same.
    pub(super) cores: Option<Cores>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) cells: Vec<CellSlot>,
    pub(super) guests: BTreeMap<u64, Record>,
    /// Guests of each name.
    pub(super) names: HashMap<String, BTreeSet<u64>>,
    pub(super) admission: Admission,
    pub(super) networks: Networks,
    pub(super) images: Images,
    pub(super) records: Records,
    /// Guests that are admitted and wait for a cell with room, in the order of their ids.
    pub(super) unplaced: BTreeSet<u64>,
    /// Guests that rest, by when they start again.
    pub(super) due: BTreeSet<(Instant, u64)>,
    /// Guests that are forgotten then.
    pub(super) leaving: BTreeSet<(Instant, u64)>,
    pub(super) last_id: u64,
    pub(super) last_spec: u64,
    /// Requests refused.
    pub(super) refused: u64,
    /// What a client has settled that the gatekeeper gives, as it was said.
    pub(super) settled: Option<GatekeeperSettings>,
    pub(super) stopping: bool,
}

impl CellSlot {
    pub(super) fn tell(&self, message: ToCell) {
        if let Some(to) = &self.to {
            to.tell(message);
        }
    }
}

impl Record {
    /// A guest that asks to be admitted.
    pub(super) fn new(
        spec: (u64, Arc<GuestSpec>),
        digest: Arc<str>,
        order: Order,
        requested_ns: u64,
    ) -> Record {
        let now = now_ms();
        Record {
            spec,
            digest,
            order,
            created_ms: now,
            since_ms: now,
            phase: Phase::Waiting,
            paused: false,
            begun: false,
            cell: 0,
            ipv4: None,
            failures: Failures::default(),
            restarts: 0,
            started: Instant::now(),
            requested_ns,
            start_us: None,
            unwanted: false,
            again: false,
            home: None,
            asked_back: None,
            memory: 0,
            fault: None,
        }
    }

    /// It need not come back under its address.
    fn leave_home(&mut self) {
        (self.home, self.ipv4) = (None, None);
        if let Some(network) = &mut self.order.network {
            network.ipv4 = None;
        }
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.since_ms = now_ms();
    }

    /// Where it is in its life, as others see it.
    pub(super) fn shown(&self) -> Shown {
        match &self.phase {
            Phase::Waiting | Phase::Admitted => Shown::Waiting,
            Phase::Resting => Shown::Restarting,
            Phase::Starting => Shown::Starting,
            Phase::Running if self.paused => Shown::Paused,
            Phase::Running => Shown::Running,
            Phase::Ended(Ended::Exit(_)) => Shown::Exited,
            Phase::Ended(Ended::Fault(_)) => Shown::Faulted,
            Phase::Ended(Ended::Killed(_)) => Shown::Killed,
            Phase::Ended(Ended::Refused(_)) => Shown::Refused,
            Phase::Ended(Ended::CellDied | Ended::SupervisorGone) => Shown::Lost,
        }
    }

    pub(super) fn is_on_a_cell(&self) -> bool {
        matches!(self.phase, Phase::Starting | Phase::Running)
    }

    fn reason(&self) -> Option<String> {
        Some(match &self.phase {
            Phase::Waiting => "in the gatekeeper's line".to_owned(),
            Phase::Admitted => "for a cell with room".to_owned(),
            Phase::Ended(Ended::Fault(why) | Ended::Killed(why) | Ended::Refused(why)) => why.clone(),
            Phase::Ended(Ended::CellDied) => "its cell died".to_owned(),
            Phase::Ended(Ended::SupervisorGone) => "its supervisor was gone".to_owned(),
            Phase::Resting | Phase::Starting | Phase::Running | Phase::Ended(Ended::Exit(_)) => return None,
        })
    }

    /// The line of a list.
    pub(super) fn listed(&self, id: u64) -> Guest {
        let spec = &self.spec.1;
        Guest {
            id,
            name: self.order.name.clone(),
            owner: self.order.owner.clone(),
            image: spec.image.clone(),
            state: self.shown(),
            status: match self.phase {
                Phase::Ended(Ended::Exit(status)) => Some(status),
                _ => None,
            },
            reason: self.reason(),
            cell: self.is_on_a_cell().then_some(self.cell),
            ipv4: self.ipv4,
            restarts: self.restarts,
            restart: spec.restart,
            memory: self.order.memory,
            created_ms: self.created_ms,
            since_ms: self.since_ms,
            start_us: self.start_us,
            labels: spec.labels.clone(),
        }
    }

    /// What of its life stands in the registry.
    fn progress(&self) -> Progress {
        Progress {
            since_ms: self.since_ms,
            restarts: self.restarts,
            begun: self.begun,
            unwanted: self.unwanted,
            cell: self.ipv4.map(|_| self.cell),
            ipv4: self.ipv4,
            ended: match &self.phase {
                Phase::Ended(ended) => Some(ended.clone()),
                _ => None,
            },
        }
    }

    /// How it stands in the registry.
    pub(super) fn stored(&self, id: u64) -> StoredGuest {
        StoredGuest {
            id,
            name: self.order.name.clone(),
            spec: self.spec.0,
            digest: self.digest.to_string(),
            created_ms: self.created_ms,
            progress: self.progress(),
        }
    }
}

/// The policy in the words of `foraker-policy`.
pub(super) fn policy(restart: Restart) -> foraker_policy::restart::Restart {
    use foraker_policy::restart::Restart as Policy;
    match restart {
        Restart::No => Policy::No,
        Restart::OnFailure => Policy::OnFailure,
        Restart::Always => Policy::Always,
    }
}

impl State {
    pub(super) fn new(
        cells: Vec<CellSlot>,
        gatekeeper: GatekeeperSettings,
        images: Images,
        records: Records,
    ) -> State {
        State {
            cells,
            guests: BTreeMap::new(),
            names: HashMap::new(),
            admission: Admission::new(gatekeeper),
            networks: Networks::default(),
            images,
            records,
            unplaced: BTreeSet::new(),
            due: BTreeSet::new(),
            leaving: BTreeSet::new(),
            last_id: 0,
            last_spec: 0,
            refused: 0,
            settled: None,
            stopping: false,
        }
    }

    /// Something has happened to a guest.
    pub(super) fn tell_of(&self, kind: &str, id: u64, detail: String) {
        let Some(g) = self.guests.get(&id) else { return };
        let (name, owner) = (g.order.name.clone(), g.order.owner.clone());
        self.records.events.happened(Event { name, owner, detail, ..event(kind, id) });
    }

    /// A guest is known from now on.
    pub(super) fn insert(&mut self, id: u64, record: Record) {
        self.names.entry(record.order.name.clone()).or_default().insert(id);
        self.guests.insert(id, record);
    }

    /// Guests are no longer known. Those that have not ended stay. Returns how many were forgotten, and what is to be written.
    pub(super) fn forget(&mut self, ids: &[u64]) -> (usize, Vec<Change>) {
        let (mut forgotten, mut with_core) = (Vec::new(), Vec::new());
        for id in ids {
            if !self.guests.get(id).is_some_and(|g| matches!(g.phase, Phase::Ended(_))) {
                continue;
            }
            self.tell_of("guest.remove", *id, String::new());
            if let Some(g) = self.guests.remove(id) {
                if let Some(of_name) = self.names.get_mut(&g.order.name) {
                    of_name.remove(id);
                    if of_name.is_empty() {
                        self.names.remove(&g.order.name);
                    }
                }
                if g.spec.1.keep_core {
                    with_core.push(*id);
                }
            }
            forgotten.push(*id);
        }
        if let Some(logs) = &self.records.logs
            && !forgotten.is_empty()
        {
            logs.forget(forgotten.clone());
        }
        if let Some(cores) = &self.records.cores
            && !with_core.is_empty()
        {
            cores.forget(with_core);
        }
        (forgotten.len(), vec![Change::Forget(forgotten)])
    }

    /// Notes in the registry where a guest is in its life.
    pub(super) fn note(&self, id: u64) {
        if let Some(g) = self.guests.get(&id) {
            self.records.store.note(vec![Change::Progress(id, g.progress())]);
        }
    }

    /// A guest that is on no cell has ended, and does not come back.
    pub(super) fn is_over(&mut self, id: u64, end: Ended) {
        let Some(g) = self.guests.get_mut(&id) else { return };
        g.enter(Phase::Ended(end));
        (g.paused, g.again) = (false, false);
        let remove = g.spec.1.remove;
        let detail = match &g.phase {
            Phase::Ended(Ended::Exit(status)) => format!("exit {status}"),
            _ => g.reason().unwrap_or_default(),
        };
        if remove {
            self.leaving.insert((Instant::now() + FAREWELL, id));
        }
        self.note(id);
        self.tell_of("guest.end", id, detail);
        if let Some(logs) = &self.records.logs {
            logs.ended(id);
        }
    }

    /// A guest that rested stands in line, unless somebody ended it meanwhile.
    pub(super) fn wake(&mut self, id: u64) {
        let Some(g) = self.guests.get_mut(&id).filter(|g| g.phase == Phase::Resting) else { return };
        (g.requested_ns, g.start_us) = (monotonic_ns(), None);
        match self.admission.rejoin(id) {
            Ok(()) => g.enter(Phase::Waiting),
            Err(refusal) => self.is_over(id, Ended::Refused(refusal.to_string())),
        }
    }

    /// Carries out what the gatekeeper decides after something changed, until there is nothing more to decide.
    pub(super) fn settle(&mut self) {
        while let Some(decision) = self.admission.next() {
            self.carry_out(decision);
        }
        self.place_admitted();
    }

    pub(super) fn carry_out(&mut self, decision: Decision) {
        match decision {
            Decision::Admit(id) => {
                if let Some(g) = self.guests.get_mut(&id) {
                    g.enter(Phase::Admitted);
                    self.unplaced.insert(id);
                }
            }
            Decision::Reclaim { owner, lent } => {
                let owner = self.admission.name(owner).to_owned();
                let mut ids: Vec<Vec<u64>> = vec![Vec::new(); self.cells.len()];
                for id in lent {
                    self.give_back(id, &owner, &mut ids);
                }
                for (cell, ids) in self.cells.iter().zip(ids).filter(|(_, ids)| !ids.is_empty()) {
                    cell.tell(ToCell::Stop { ids, kill: true });
                }
            }
            Decision::Resized { id, granted } => {
                if let Some(g) = self.guests.get(&id)
                    && let Some(cell) = self.cells.get(g.cell)
                {
                    cell.tell(ToCell::Memory { id, bytes: g.memory, granted });
                }
            }
        }
    }

    /// What a guest uses was lent: it ends, or goes back to the line if it has not started. Those to end are put to their cells' `ids`.
    fn give_back(&mut self, id: u64, owner: &str, ids: &mut [Vec<u64>]) {
        let Some(g) = self.guests.get_mut(&id) else { return };
        if g.is_on_a_cell() {
            g.asked_back = Some(owner.to_owned());
            if let Some(ids) = ids.get_mut(g.cell) {
                ids.push(id);
            }
        } else {
            self.unplaced.remove(&id);
            self.admission.leave(id);
            self.back_in_line(id);
        }
    }

    /// A guest that has left and need not rest waits again.
    fn back_in_line(&mut self, id: u64) {
        if let Some(g) = self.guests.get_mut(&id) {
            g.enter(Phase::Resting);
            self.wake(id);
        }
    }

    /// Gives admitted guests to cells with room.
    fn place_admitted(&mut self) {
        let mut loads: Vec<Load> = self.cells.iter().map(|c| c.load).collect();
        if self.unplaced.is_empty() || place(&loads, |_| true).is_none() {
            return;
        }
        let whose = Whose::new(&self.cells, &self.admission);
        let mut orders: Vec<Vec<(u64, Order)>> = vec![Vec::new(); self.cells.len()];
        let mut misplaced = Vec::new();
        for id in std::mem::take(&mut self.unplaced) {
            let Some(g) = self.guests.get_mut(&id) else { continue };
            let Some(pool) = whose.pool(&g.order.owner) else {
                self.unplaced.insert(id);
                continue;
            };
            let may = |at: usize| whose.has(pool, at);
            if g.home.is_some_and(|at| !may(at)) {
                if g.spec.1.network.ipv4.is_some() {
                    misplaced.push(id);
                    continue;
                }
                // Its address is of a cell that it may not be on any more: it is given another one.
                g.leave_home();
            }
            let home = |at: &usize| loads.get(*at).is_some_and(Load::has_room);
            let Some(at) = g.home.map_or_else(|| place(&loads, may), |at| Some(at).filter(home)) else {
                self.unplaced.insert(id);
                continue;
            };
            let (Some(load), Some(orders)) = (loads.get_mut(at), orders.get_mut(at)) else { continue };
            load.guests += 1;
            load.memory += g.order.memory;
            g.enter(Phase::Starting);
            (g.memory, g.cell) = (g.order.memory, at);
            orders.push((id, g.order.clone()));
        }
        for ((cell, load), orders) in self.cells.iter_mut().zip(loads).zip(orders) {
            cell.load = load;
            if !orders.is_empty() {
                cell.tell(ToCell::Start(orders));
            }
        }
        for id in misplaced {
            self.admission.release(id);
            let why = "the address that it asks for is of a cell that it may not be on any more";
            self.is_over(id, Ended::Refused(why.to_owned()));
        }
    }

    pub(super) fn hear(&mut self, number: usize, message: FromCell) {
        match message {
            FromCell::Ready { tap } => {
                if let Some(cell) = self.cells.get_mut(number) {
                    cell.tap = tap;
                    cell.load = Load { alive: true, ..Load::default() };
                }
                self.records.events.happened(event("cell.start", number));
                self.settle();
            }
            FromCell::Started(guests) => {
                let mut changes = Vec::with_capacity(guests.len());
                for (id, ipv4) in guests {
                    if let Some(g) = self.guests.get_mut(&id)
                        && g.cell == number
                        && g.phase == Phase::Starting
                    {
                        g.enter(Phase::Running);
                        (g.ipv4, g.started, g.fault, g.begun) = (ipv4, Instant::now(), None, true);
                        changes.push(Change::Progress(id, g.progress()));
                        self.tell_of("guest.start", id, String::new());
                    }
                }
                self.records.store.note(changes);
            }
            FromCell::Entered(guests) => {
                for (id, at) in guests {
                    if let Some(g) = self.guests.get_mut(&id)
                        && g.cell == number
                        && g.phase == Phase::Running
                    {
                        g.start_us = Some(at.saturating_sub(g.requested_ns) / 1000);
                    }
                }
            }
            // For whoever weighs cells, and whoever asked.
            FromCell::Demand(_) | FromCell::Survey { .. } => {}
            FromCell::Memory { id, bytes } => {
                if let Some(g) = self.guests.get_mut(&id)
                    && g.cell == number
                    && g.is_on_a_cell()
                {
                    g.memory = bytes;
                    // Whatever a cell says, it is no more than the guest was admitted with.
                    if let Some(decision) = self.admission.resize(id, bytes.min(g.order.memory)) {
                        self.carry_out(decision);
                    }
                    self.settle();
                }
            }
            FromCell::Core { id } => self.take_core(number, id),
            FromCell::Ended { id, end, fault } => {
                self.ended(number, id, end, fault);
                self.settle();
            }
        }
    }

    /// A guest has ended with a fault, and its core is to be kept if it can be. Its cell hears one way or the other: it waits for that.
    fn take_core(&self, number: usize, id: u64) {
        let on_it = |g: &&Record| g.cell == number && g.is_on_a_cell() && g.order.keep_core;
        if self.guests.get(&id).filter(on_it).is_none() {
            return;
        }
        let stream = self.records.cores.as_ref().and_then(|cores| cores.take(id));
        if let Some(cell) = self.cells.get(number) {
            cell.tell(ToCell::Look { id, how: Look::Core { most: cores::LARGEST }, stream });
        }
    }

    /// A guest has ended: its room is free, and perhaps it comes back. A cell speaks for its own guests only: it runs what is hostile.
    fn ended(&mut self, number: usize, id: u64, end: Ended, fault: Option<Box<Fault>>) {
        let on_it = |g: &&mut Record| g.cell == number && g.is_on_a_cell();
        let Some(g) = self.guests.get_mut(&id).filter(on_it) else { return };
        if let Some(cell) = self.cells.get_mut(g.cell) {
            cell.load.guests = cell.load.guests.saturating_sub(1);
            cell.load.memory = cell.load.memory.saturating_sub(g.order.memory);
        }
        (g.paused, g.fault) = (false, fault);
        let asked_back = g.asked_back.take().filter(|_| !g.unwanted && matches!(end, Ended::Killed(_)));
        let ending = match &end {
            _ if g.unwanted && !g.again => Ending::Wanted,
            Ended::Exit(0) => Ending::Success,
            _ => Ending::Failure,
        };
        let ran = u64::try_from(g.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let again = std::mem::take(&mut g.again);
        let blameless = end == Ended::CellDied || asked_back.is_some() || again;
        let restart = if again { Restart::Always } else { g.spec.1.restart };
        let Some(wait) = g.failures.ended(policy(restart), ending, blameless, ran) else {
            let lent = |owner| format!("what it used was lent, and owner {owner} asked for it back");
            self.admission.release(id);
            self.is_over(id, asked_back.map(lent).map_or(end, Ended::Killed));
            return;
        };
        if self.stopping {
            // It comes back with the next supervisor: in the registry it runs.
            g.enter(Phase::Ended(Ended::SupervisorGone));
            return;
        }
        g.restarts += 1;
        g.unwanted = false;
        // It comes back under its address, which is one of its cell's.
        if let (Some(network), Some(ipv4)) = (&mut g.order.network, g.ipv4) {
            network.ipv4 = Some(ipv4);
            g.home = Some(g.cell);
        }
        self.admission.leave(id);
        if asked_back.is_some() {
            self.back_in_line(id);
        } else {
            g.enter(Phase::Resting);
            self.due.insert((Instant::now() + Duration::from_nanos(wait), id));
        }
        self.note(id);
        let how = match end {
            Ended::Exit(status) => format!("exit {status}"),
            Ended::Fault(why) | Ended::Killed(why) | Ended::Refused(why) => why,
            Ended::CellDied | Ended::SupervisorGone => "its cell died".to_owned(),
        };
        self.tell_of("guest.restart", id, how);
    }

    /// A cell's process is gone, and with it its guests.
    pub(super) fn cell_died(&mut self, number: usize) {
        let on_it = |g: &Record| g.cell == number && g.is_on_a_cell();
        let lost: Vec<u64> = self.guests.iter().filter(|(_, g)| on_it(g)).map(|(id, _)| *id).collect();
        if !self.stopping {
            self.records.events.happened(event("cell.die", number));
        }
        for id in lost {
            self.ended(number, id, Ended::CellDied, None);
        }
        if let Some(cell) = self.cells.get_mut(number) {
            let (restarts, owner) = (cell.restarts + 1, cell.owner.take());
            *cell = CellSlot { restarts, owner, ..CellSlot::default() };
        }
    }
}
