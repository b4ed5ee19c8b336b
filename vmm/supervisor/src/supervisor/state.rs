//! What the supervisor knows, and what follows from each thing that happens: no thread and no process here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use foraker_policy::gatekeeper::Decision;
use foraker_policy::placement::{Load, place};
use foraker_policy::restart::{Ending, Failures, Restart};

use crate::admission::{Admission, Host};
use crate::channel::{Ended, FromCell, Order, ToCell, monotonic_ns};
use crate::outbox::Tell;

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
    pub(super) order: Order,
    pub(super) restart: Restart,
    pub(super) phase: Phase,
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
    /// The cell that it must be on, because its address belongs there.
    pub(super) home: Option<usize>,
    /// The owner that asked for what it uses, and was told to have it.
    pub(super) asked_back: Option<String>,
    /// How much of its memory it has or has asked for, bytes.
    pub(super) memory: u64,
}

/// What is known of a cell.
#[derive(Debug, Default)]
pub(super) struct CellSlot {
    pub(super) to: Option<Box<dyn Tell>>,
    pub(super) load: Load,
    pub(super) tap: Option<String>,
    pub(super) process: Option<u32>,
    pub(super) restarts: u32,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) cells: Vec<CellSlot>,
    pub(super) guests: BTreeMap<u64, Record>,
    pub(super) admission: Admission,
    /// Guests that are admitted and wait for a cell with room, in the order of their ids.
    pub(super) unplaced: BTreeSet<u64>,
    /// Guests that rest, by when they start again.
    pub(super) due: BTreeSet<(Instant, u64)>,
    pub(super) last_id: u64,
    pub(super) stopping: bool,
}

impl CellSlot {
    pub(super) fn tell(&self, message: ToCell) {
        if let Some(to) = &self.to {
            to.tell(message);
        }
    }
}

impl State {
    pub(super) fn new(cells: Vec<CellSlot>, host: &Host) -> State {
        State {
            cells,
            guests: BTreeMap::new(),
            admission: Admission::new(host),
            unplaced: BTreeSet::new(),
            due: BTreeSet::new(),
            last_id: 0,
            stopping: false,
        }
    }

    /// A guest that rested stands in line, unless somebody ended it meanwhile.
    pub(super) fn wake(&mut self, id: u64) {
        if let Some(g) = self.guests.get_mut(&id).filter(|g| g.phase == Phase::Resting) {
            (g.requested_ns, g.start_us) = (monotonic_ns(), None);
            g.phase = match self.admission.rejoin(id) {
                Ok(()) => Phase::Waiting,
                Err(refusal) => Phase::Ended(Ended::Refused(refusal.to_string())),
            };
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
                    g.phase = Phase::Admitted;
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
        if matches!(g.phase, Phase::Starting | Phase::Running) {
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
            g.phase = Phase::Resting;
            self.wake(id);
        }
    }

    /// Gives admitted guests to cells with room.
    fn place_admitted(&mut self) {
        let mut loads: Vec<Load> = self.cells.iter().map(|c| c.load).collect();
        if self.unplaced.is_empty() || place(&loads).is_none() {
            return;
        }
        let mut orders: Vec<Vec<(u64, Order)>> = vec![Vec::new(); self.cells.len()];
        for id in std::mem::take(&mut self.unplaced) {
            let Some(g) = self.guests.get_mut(&id) else { continue };
            let home = |at: &usize| loads.get(*at).is_some_and(Load::has_room);
            let Some(at) = g.home.map_or_else(|| place(&loads), |at| Some(at).filter(home)) else {
                self.unplaced.insert(id);
                continue;
            };
            let (Some(load), Some(orders)) = (loads.get_mut(at), orders.get_mut(at)) else { continue };
            load.guests += 1;
            load.memory += g.order.memory;
            (g.phase, g.memory) = (Phase::Starting, g.order.memory);
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

    pub(super) fn hear(&mut self, number: usize, message: FromCell) {
        match message {
            FromCell::Ready { tap } => {
                if let Some(cell) = self.cells.get_mut(number) {
                    cell.tap = tap;
                    cell.load = Load { alive: true, ..Load::default() };
                }
                self.settle();
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
            // For whoever weighs cells.
            FromCell::Demand(_) => {}
            FromCell::Memory { id, bytes } => {
                if let Some(g) = self.guests.get_mut(&id)
                    && g.cell == number
                    && matches!(g.phase, Phase::Starting | Phase::Running)
                {
                    g.memory = bytes;
                    // Whatever a cell says, it is no more than the guest was admitted with.
                    if let Some(decision) = self.admission.resize(id, bytes.min(g.order.memory)) {
                        self.carry_out(decision);
                    }
                    self.settle();
                }
            }
            FromCell::Ended { id, end } => {
                self.ended(number, id, end);
                self.settle();
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
        let asked_back = g.asked_back.take().filter(|_| !g.unwanted && matches!(end, Ended::Killed(_)));
        let ending = match &end {
            _ if g.unwanted => Ending::Wanted,
            Ended::Exit(0) => Ending::Success,
            _ => Ending::Failure,
        };
        let ran = u64::try_from(g.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let blameless = end == Ended::CellDied || asked_back.is_some();
        let Some(wait) = g.failures.ended(g.restart, ending, blameless, ran) else {
            let lent = |owner| format!("what it used was lent, and owner {owner} asked for it back");
            g.phase = Phase::Ended(asked_back.map(lent).map_or(end, Ended::Killed));
            self.admission.release(id);
            return;
        };
        g.restarts += 1;
        // It comes back under its address, which is one of its cell's.
        if let (Some(network), Some(ipv4)) = (&mut g.order.network, g.ipv4) {
            network.ipv4 = Some(ipv4);
            g.home = Some(g.cell);
        }
        self.admission.leave(id);
        if asked_back.is_some() {
            self.back_in_line(id);
        } else {
            g.phase = Phase::Resting;
            self.due.insert((Instant::now() + Duration::from_nanos(wait), id));
        }
    }

    /// A cell's process is gone, and with it its guests.
    pub(super) fn cell_died(&mut self, number: usize) {
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
