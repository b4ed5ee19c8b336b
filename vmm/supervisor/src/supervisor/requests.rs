//! What clients can ask of the supervisor. Whatever changes something that must outlive it returns a [`Ticket`]: the client is told when that is written.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foraker_api::guest::{Filter, MOST_AT_ONCE};
use foraker_api::owner::{LONGEST_NAME, is_name};
use foraker_api::{Action, Create, Guest, GuestDetail, GuestSpec, OwnerSettings, page};

use super::Supervisor;
use super::collections::owner_change;
use super::restore::cell_of;
use super::state::{Phase, Record, State};
use crate::channel::{Ended, Order, ToCell, monotonic_ns};
use crate::images::usual_name;
use crate::refused::Refused;
use crate::resolve::resolve;
use crate::store::{Change, Ticket};

/// How often somebody who waits for many guests to run looks: to be told of each would cost more.
const SETTLE: Duration = Duration::from_millis(5);
/// Up to so many, who waits is told.
const FEW: u64 = 64;
/// Most labels of a guest, and the longest name or value of one, characters.
const LABELS: usize = 64;
const LONGEST_LABEL: usize = 256;

impl Supervisor {
    /// Takes guests, and returns the first id and the last. They start as the gatekeeper admits them and cells have room.
    ///
    /// # Errors
    /// One of them is refused; then none is taken.
    pub fn create(&self, create: &Create) -> Result<(RangeInclusive<u64>, Ticket), Refused> {
        let taken = self.try_create(create);
        if taken.is_err() {
            self.lock().refused += 1;
        }
        taken
    }

    fn try_create(&self, create: &Create) -> Result<(RangeInclusive<u64>, Ticket), Refused> {
        let requested_ns = monotonic_ns();
        let Create { count, guest: spec, .. } = create;
        check(spec, *count)?;
        let (digest, path, defaults) = {
            let state = self.lock();
            let image = state.images.find(&spec.image)?;
            let digest: Arc<str> = image.stored.digest.as_str().into();
            (digest, state.images.path(&image.stored.digest), Arc::clone(&image.defaults))
        };
        let name = spec.name.as_deref().unwrap_or_else(|| usual_name(&spec.image));
        // The number of its network is given under the lock.
        let order = resolve(spec, name, path, &defaults, 0).map_err(Refused::Invalid)?;
        self.take(spec, &digest, order, *count, requested_ns)
    }

    pub(super) fn take(
        &self,
        spec: &GuestSpec,
        digest: &Arc<str>,
        order: Order,
        count: u64,
        requested_ns: u64,
    ) -> Result<(RangeInclusive<u64>, Ticket), Refused> {
        let home = match order.network.as_ref().and_then(|n| n.ipv4) {
            Some(address) => Some(cell_of(&self.0.config, address).ok_or_else(|| {
                Refused::Invalid(format!(
                    "no cell's subnet has the address {address}: see `vmm system cells`"
                ))
            })?),
            None => None,
        };
        if let (Some(home), Some(address)) = (home, order.network.as_ref().and_then(|n| n.ipv4))
            && !self.lock().may_be_on(&order.owner, home)
        {
            return Err(Refused::Conflict(format!(
                "the address {address} is of cell {home}, which owner {} may not be on: see `vmm system cells`",
                order.owner
            )));
        }
        // Copied before anybody waits for the state.
        let base = order.name.clone();
        let named = |number| Order { name: format!("{base}-{number}"), ..order.clone() };
        let mut orders: Vec<_> = if count == 1 { vec![order] } else { (1..=count).map(named).collect() };
        let spec = Arc::new(spec.clone());
        let mut state = self.lock();
        let network = state.networks.number(&spec.owner, spec.network.name.as_deref())?;
        for order in &mut orders {
            if let Some(of_guest) = &mut order.network {
                of_guest.network = network;
            }
        }
        let new_owner = !state.admission.knows(&spec.owner);
        let first = state.last_id + 1;
        let offered = state.admission.offer((first..).zip(&orders));
        if offered.is_err() {
            // It may have put others off.
            state.settle();
        }
        let decisions = offered?;
        let last = state.last_id + count;
        state.last_id = last;
        state.last_spec += 1;
        let number = state.last_spec;
        for (id, order) in (first..).zip(orders) {
            let mut record =
                Record::new((number, Arc::clone(&spec)), Arc::clone(digest), order, requested_ns);
            record.home = home;
            state.insert(id, record);
        }
        decisions.into_iter().for_each(|decision| state.carry_out(decision));
        state.settle();
        // Told and written after they were placed: nobody waits for that longer than must be.
        let mut changes = vec![Change::Spec(number, Arc::clone(&spec)), state.newcomers(first..=last)];
        if new_owner {
            changes.push(owner_change(&mut state, &spec.owner, &OwnerSettings::default()));
        }
        let ticket = state.records.store.write(changes);
        for id in first..=last {
            state.tell_of("guest.create", id, String::new());
        }
        Ok((first..=last, ticket))
    }

    /// The guest that a text means: its id, or its name if that is one guest's only.
    fn meant(state: &State, text: &str) -> Result<u64, Refused> {
        if let Some(id) = text.parse().ok().filter(|id| state.guests.contains_key(id)) {
            return Ok(id);
        }
        let ids =
            state.names.get(text).map(|ids| ids.iter().copied().collect::<Vec<_>>()).unwrap_or_default();
        // Of several, the one that has not ended.
        let alive = |id: &&u64| state.guests.get(id).is_some_and(|g| !matches!(g.phase, Phase::Ended(_)));
        let live: Vec<_> = ids.iter().filter(alive).copied().collect();
        match (&live[..], &ids[..]) {
            ([id], _) | ([], [id]) => Ok(*id),
            (_, []) => Err(Refused::NotFound(format!("there is no guest {text}: see `vmm ps --all`"))),
            _ => Err(Refused::Conflict(format!(
                "{} guests are called {text}: give the id of one of them",
                ids.len()
            ))),
        }
    }

    /// The id of the guest that a text means.
    ///
    /// # Errors
    /// There is none, or several.
    pub fn id_of(&self, text: &str) -> Result<u64, Refused> {
        Self::meant(&self.lock(), text)
    }

    /// One guest as lists show it.
    ///
    /// # Errors
    /// It is not there.
    pub fn guest(&self, id: u64) -> Result<Guest, Refused> {
        let state = self.lock();
        let record = state.guests.get(&id);
        record.map(|g| g.listed(id)).ok_or_else(|| Refused::NotFound(format!("there is no guest {id}")))
    }

    /// Everything about a guest.
    ///
    /// # Errors
    /// It is not there.
    pub async fn detail(&self, id: u64) -> Result<GuestDetail, Refused> {
        let counters = self.survey(Some(vec![id])).await.into_iter().find(|c| c.id == id);
        let (mut detail, image) = {
            let state = self.lock();
            let g =
                state.guests.get(&id).ok_or_else(|| Refused::NotFound(format!("there is no guest {id}")))?;
            let detail = GuestDetail {
                guest: g.listed(id),
                digest: g.digest.to_string(),
                spec: (*g.spec.1).clone(),
                counters,
                fault: g.fault.as_deref().cloned(),
                core_bytes: None,
            };
            (detail, state.images.path(&g.digest))
        };
        // The symbols are looked for when somebody asks: a cell has no business with files, and most faults nobody looks at.
        if let Some(mut fault) = detail.fault.take() {
            let located = tokio::task::spawn_blocking(move || {
                crate::fault::locate(&mut fault, &image);
                fault
            });
            detail.fault = located.await.ok();
        }
        if detail.spec.keep_core {
            detail.core_bytes = self.kept_core(id).await.map(|(_, bytes)| bytes);
        }
        Ok(detail)
    }

    /// Guests that meet a filter and come after an id, so many at most.
    #[must_use]
    pub fn list(&self, filter: &Filter, after: u64, most: usize) -> Vec<Guest> {
        let state = self.lock();
        let taken = |(id, g): (&u64, &Record)| Some(g.listed(*id)).filter(|guest| filter.takes(guest));
        let most = most.min(page::MOST);
        match &filter.ids {
            None => state.guests.range(after.saturating_add(1)..).filter_map(taken).take(most).collect(),
            Some(ids) => {
                let there =
                    ids.iter().filter(|id| **id > after).filter_map(|id| state.guests.get_key_value(id));
                there.filter_map(taken).take(most).collect()
            }
        }
    }

    /// The ids of all guests that meet a filter.
    fn chosen(state: &State, filter: &Filter) -> Vec<u64> {
        let taken = |(id, g): (&u64, &Record)| filter.takes(&g.listed(*id)).then_some(*id);
        match &filter.ids {
            None => state.guests.iter().filter_map(taken).collect(),
            Some(ids) => ids.iter().filter_map(|id| taken(state.guests.get_key_value(id)?)).collect(),
        }
    }

    /// Does something to guests. Returns to how many it could be done.
    #[must_use]
    pub fn act_on_all(&self, action: Action, filter: &Filter) -> (usize, Ticket) {
        let mut state = self.lock();
        let ids = Self::chosen(&state, filter);
        let mut orders = CellOrders::default();
        let done = ids.iter().filter(|id| state.act(**id, action, &mut orders) == Ok(true)).count();
        let ticket = self.carry_out(&mut state, action, orders);
        (done, ticket)
    }

    /// Does something to a guest. What is so already stays so.
    ///
    /// # Errors
    /// It is not there, or is where that cannot be done.
    pub fn act(&self, text: &str, action: Action) -> Result<(Guest, Ticket), Refused> {
        let mut state = self.lock();
        let id = Self::meant(&state, text)?;
        let mut orders = CellOrders::default();
        let acted = state.act(id, action, &mut orders);
        let ticket = self.carry_out(&mut state, action, orders);
        acted?;
        let guest = state.guests.get(&id).map(|g| g.listed(id));
        Ok((guest.ok_or_else(|| Refused::NotFound(format!("there is no guest {id}")))?, ticket))
    }

    /// Tells cells what was decided.
    fn carry_out(&self, state: &mut State, action: Action, orders: CellOrders) -> Ticket {
        for (cell, ids) in orders.0 {
            if let Some(cell) = state.cells.get(cell) {
                cell.tell(match action {
                    Action::Pause | Action::Resume => ToCell::Hold { ids, hold: action == Action::Pause },
                    Action::Start | Action::Stop | Action::Kill => {
                        ToCell::Stop { ids, kill: action == Action::Kill }
                    }
                });
            }
        }
        state.settle();
        self.0.heard.notify_waiters();
        // What was noted before is written when this is.
        state.records.store.write(Vec::new())
    }

    /// Forgets a guest; one that has not ended is ended first, if that is wanted.
    ///
    /// # Errors
    /// It is not there, or has not ended.
    pub fn remove(&self, text: &str, force: bool) -> Result<Ticket, Refused> {
        let mut state = self.lock();
        let id = Self::meant(&state, text)?;
        let (forgotten, changes) = state.forget(&[id]);
        if forgotten > 0 {
            return Ok(state.records.store.write(changes));
        }
        if !force {
            return Err(Refused::Conflict(format!(
                "guest {text} has not ended: stop it first, or remove it by force"
            )));
        }
        let mut orders = CellOrders::default();
        state.act(id, Action::Kill, &mut orders)?;
        let ticket = self.carry_out(&mut state, Action::Kill, orders);
        let (forgotten, changes) = state.forget(&[id]);
        if forgotten > 0 {
            return Ok(state.records.store.write(changes));
        }
        // The rest when its cell has told of its end. For whoever comes after this supervisor it was never there.
        if let Some(g) = state.guests.get_mut(&id) {
            g.spec.1 = Arc::new(GuestSpec { remove: true, ..(*g.spec.1).clone() });
        }
        drop(ticket);
        Ok(state.records.store.write(vec![Change::Forget(vec![id])]))
    }

    /// Forgets guests that have ended. Returns how many.
    #[must_use]
    pub fn prune(&self, filter: &Filter) -> (usize, Ticket) {
        let mut state = self.lock();
        let ids = Self::chosen(&state, filter);
        let (count, changes) = state.forget(&ids);
        let ticket = state.records.store.write(changes);
        (count, ticket)
    }

    /// Waits until every guest of a range runs or has ended, at most so long. Returns how many do not.
    pub async fn settled(&self, ids: RangeInclusive<u64>, most: Duration) -> usize {
        let open = |g: &Record| matches!(g.phase, Phase::Waiting | Phase::Admitted | Phase::Starting);
        self.none_is(ids, most, open).await
    }

    /// Waits until every guest of a range runs, has ended or stands in the gatekeeper's line, at most so long. Returns how many do not run.
    pub async fn started(&self, ids: RangeInclusive<u64>, most: Duration) -> usize {
        let admitted = |g: &Record| matches!(g.phase, Phase::Admitted | Phase::Starting);
        self.none_is(ids.clone(), most, admitted).await;
        self.settled(ids, Duration::ZERO).await
    }

    /// Waits until nothing is true of any guest of a range any more. Returns of how many it is.
    async fn none_is(&self, ids: RangeInclusive<u64>, most: Duration, is: impl Fn(&Record) -> bool) -> usize {
        // A map has no such range.
        if ids.is_empty() {
            return 0;
        }
        let count = |state: &State| state.guests.range(ids.clone()).filter(|(_, g)| is(g)).count();
        let few = ids.end().saturating_sub(*ids.start()) < FEW;
        let none = self.until(most, few, |state| (count(state) == 0).then_some(0)).await;
        none.unwrap_or_else(|| count(&self.lock()))
    }

    /// Waits until a guest has ended and does not come back, at most so long. None if it has not.
    pub async fn ended(&self, id: u64, most: Duration) -> Option<Guest> {
        let over = |state: &State| match state.guests.get(&id) {
            Some(g) if matches!(g.phase, Phase::Ended(_)) => Some(Some(g.listed(id))),
            Some(_) => None,
            None => Some(None),
        };
        self.until(most, true, over).await.flatten()
    }

    /// Waits for something of the state, at most so long.
    async fn until<T>(&self, most: Duration, told: bool, seen: impl Fn(&State) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + most;
        loop {
            let heard = self.0.heard.notified();
            tokio::pin!(heard);
            // From now on it hears of everything that it has not seen.
            heard.as_mut().enable();
            if let Some(found) = seen(&self.lock()) {
                return Some(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            if told {
                // Whether in time or not is seen above.
                let _ = tokio::time::timeout(left, heard).await;
            } else {
                tokio::time::sleep(SETTLE.min(left)).await;
            }
        }
    }
}

/// What cells are to be told: guests of each.
#[derive(Debug, Default)]
struct CellOrders(BTreeMap<usize, Vec<u64>>);

impl State {
    /// Does something to a guest, apart from telling its cell. Returns whether anything changed: what is so already stays so.
    fn act(&mut self, id: u64, action: Action, orders: &mut CellOrders) -> Result<bool, Refused> {
        let Some(g) = self.guests.get_mut(&id) else {
            return Err(Refused::NotFound(format!("there is no guest {id}")));
        };
        let (on_cell, over) = (g.is_on_a_cell(), matches!(g.phase, Phase::Ended(_)));
        let mut tell = |g: &Record| orders.0.entry(g.cell).or_default().push(id);
        let state = g.shown();
        match action {
            Action::Stop | Action::Kill if over => return Ok(false),
            Action::Stop | Action::Kill => {
                (g.unwanted, g.again) = (true, false);
                if on_cell {
                    tell(g);
                    self.note(id);
                } else {
                    self.admission.release(id);
                    self.unplaced.remove(&id);
                    self.is_over(id, Ended::Killed("while it waited".to_owned()));
                }
            }
            Action::Pause | Action::Resume if g.phase != Phase::Running => {
                return Err(Refused::Conflict(format!("guest {id} does not run: it is {state}")));
            }
            Action::Pause | Action::Resume => {
                let pause = action == Action::Pause;
                if g.paused == pause {
                    return Ok(false);
                }
                g.paused = pause;
                tell(g);
                self.tell_of(if pause { "guest.pause" } else { "guest.resume" }, id, String::new());
            }
            // It was asked to end, and is to run: again, then.
            Action::Start if g.unwanted && on_cell => g.again = true,
            Action::Start if over => self.start_again(id)?,
            Action::Start => return Ok(false),
        }
        Ok(true)
    }

    /// A guest that has ended stands in line again.
    fn start_again(&mut self, id: u64) -> Result<(), Refused> {
        let Some(g) = self.guests.get_mut(&id) else { return Ok(()) };
        if g.order.image.as_os_str().is_empty() {
            return Err(Refused::Conflict(format!("guest {id} cannot start: its image is gone")));
        }
        let wanted = g.spec.1.network.ipv4;
        if let Some(network) = &mut g.order.network {
            network.ipv4 = wanted;
        }
        if wanted.is_none() {
            g.home = None;
        }
        let offered = self.admission.offer([(id, &g.order)].into_iter())?;
        g.phase = Phase::Waiting;
        (g.requested_ns, g.start_us, g.unwanted, g.begun) = (monotonic_ns(), None, false, false);
        (g.ipv4, g.failures, g.fault) = (None, Default::default(), None);
        self.leaving.retain(|(_, leaving)| *leaving != id);
        offered.into_iter().for_each(|decision| self.carry_out(decision));
        self.note(id);
        Ok(())
    }
}

/// What can be seen to be wrong without looking at anything else.
fn check(spec: &GuestSpec, count: u64) -> Result<(), Refused> {
    let refuse = |text| Err(Refused::Invalid(text));
    if count == 0 || count > MOST_AT_ONCE {
        return refuse(format!("{count} guests: choose 1 to {MOST_AT_ONCE}"));
    }
    if let Some(name) = spec.name.as_deref().filter(|name| !is_name(name)) {
        let name: String = name.chars().take(LONGEST_NAME).collect();
        return refuse(format!(
            "'{name}' is no name of a guest: use 1 to {LONGEST_NAME} letters, digits, '-', '_' and '.'"
        ));
    }
    if count > 1 {
        if let Some(port) = spec.network.publish.first() {
            return refuse(format!(
                "{count} guests cannot all have port {} of the host: publish one guest at a time",
                port.host.port()
            ));
        }
        if let Some(address) = spec.network.ipv4 {
            return refuse(format!("{count} guests cannot all have the address {address}"));
        }
    }
    let too_long = |(name, value): (&String, &String)| {
        let long = |text: &String| text.chars().count() > LONGEST_LABEL;
        name.is_empty() || long(name) || long(value) || name.contains('=')
    };
    if spec.labels.len() > LABELS || spec.labels.iter().any(too_long) {
        return refuse(format!(
            "labels: {LABELS} at most, their names and values of {LONGEST_LABEL} characters at most, no '=' in a name"
        ));
    }
    if let Some(name) = spec.environment.keys().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
        return refuse(format!("'{}' is no name of a variable", name.escape_debug()));
    }
    Ok(())
}
