//! What clients can ask about everything but guests: owners, networks, images, cells, admission. See `requests.rs` for what they get back.

use std::collections::{BTreeMap, HashMap};

use foraker_api::network::NetworkSettings;
use foraker_api::{
    Cell, Event, Gatekeeper, GatekeeperSettings, Health, Image, Network, Owner, OwnerSettings,
};
use foraker_policy::gatekeeper::Refusal;

use super::Supervisor;
use super::state::{Phase, Record, State};
use crate::admission::within;
use crate::channel::Ended;
use crate::events::{Events, event};
use crate::images::Kept;
use crate::logs::Logs;
use crate::refused::Refused;
use crate::store::{Change, StoredOwner, Ticket};

impl Supervisor {
    /// Settles what an owner may have. Its guests that have more keep it until they end; those in line that can never be admitted now are
    /// refused.
    ///
    /// # Errors
    /// The settings make no sense.
    pub fn set_owner(&self, name: &str, settings: &OwnerSettings) -> Result<Ticket, Refused> {
        let mut state = self.lock();
        let plan = state.plan_cells(&self.0.config, name, settings.cells.into())?;
        let refused = state.admission.set_owner(name, settings)?;
        let mut changes = state.carry_out_plan(plan);
        state.hopeless(refused);
        state.settle();
        changes.push(owner_change(&mut state, name, settings));
        state.records.events.happened(event("owner.set", name));
        self.0.heard.notify_waiters();
        Ok(state.records.store.write(changes))
    }

    /// Every owner.
    #[must_use]
    pub fn owners(&self) -> Vec<Owner> {
        self.lock().admission.list()
    }

    /// Every network with a name.
    #[must_use]
    pub fn networks(&self) -> Vec<Network> {
        let state = self.lock();
        let mut guests: HashMap<u32, usize> = HashMap::new();
        for network in state.guests.values().filter_map(|g| g.order.network.as_ref()) {
            *guests.entry(network.network).or_default() += 1;
        }
        state.networks.list(|number| guests.get(&number).copied().unwrap_or(0))
    }

    /// Makes a network. It may be there already.
    ///
    /// # Errors
    /// It is another owner's.
    pub fn make_network(&self, name: &str, settings: &NetworkSettings) -> Result<Ticket, Refused> {
        let mut state = self.lock();
        let Some(made) = state.networks.make(name, &settings.owner)? else {
            return Ok(state.records.store.write(Vec::new()));
        };
        let owner = settings.owner.clone();
        state.records.events.happened(Event { owner, ..event("network.create", name) });
        Ok(state.records.store.write(vec![Change::Network(name.to_owned(), made)]))
    }

    /// Removes a network that no guest is in.
    ///
    /// # Errors
    /// It is not there, or somebody is in it.
    pub fn remove_network(&self, name: &str) -> Result<Ticket, Refused> {
        let mut state = self.lock();
        state.networks.get(name)?;
        let named = |g: &&Record| g.spec.1.network.name.as_deref() == Some(name);
        let guests = state.guests.values().filter(named).count();
        if guests > 0 {
            return Err(Refused::Conflict(format!(
                "{guests} guests are in network {name}: remove them first"
            )));
        }
        state.networks.remove(name);
        state.records.events.happened(event("network.remove", name));
        Ok(state.records.store.write(vec![Change::ForgetNetwork(name.to_owned())]))
    }

    /// Removes an owner of whom there is nothing else.
    ///
    /// # Errors
    /// It is not there, or something is its.
    pub fn remove_owner(&self, name: &str) -> Result<Ticket, Refused> {
        let mut state = self.lock();
        if !state.admission.knows(name) {
            return Err(Refused::NotFound(format!("there is no owner {name}: see `vmm owner ls`")));
        }
        let guests = state.guests.values().filter(|g| g.order.owner == name).count();
        let networks = state.networks.list(|_| 0).iter().filter(|n| n.owner == name).count();
        if guests + networks > 0 {
            return Err(Refused::Conflict(format!(
                "owner {name} has {guests} guests and {networks} networks: remove them first"
            )));
        }
        let plan = state.plan_cells(&self.0.config, name, 0)?;
        let mut changes = state.carry_out_plan(plan);
        state.admission.forget_owner(name);
        state.records.events.happened(event("owner.remove", name));
        changes.push(Change::ForgetOwner(name.to_owned()));
        Ok(state.records.store.write(changes))
    }

    /// Where images are.
    #[must_use]
    pub fn images_directory(&self) -> std::path::PathBuf {
        self.lock().images.directory().to_path_buf()
    }

    /// Takes an image that lies in the directory, under a name if one is given.
    ///
    /// # Errors
    /// The name is none.
    pub(crate) fn add_image(&self, image: Kept, name: Option<&str>) -> Result<(Image, Ticket), Refused> {
        let mut state = self.lock();
        let (stored, digest) = (image.stored.clone(), image.stored.digest.clone());
        let mut changes = Vec::new();
        if state.images.add(image) {
            changes.push(Change::Image(stored));
            state.records.events.happened(event("image.create", &digest));
        }
        if let Some(name) = name {
            state.images.name(name, &digest)?;
            changes.push(Change::Name(name.to_owned(), digest.clone()));
        }
        let ticket = state.records.store.write(changes);
        let counts = counts(&state);
        let listed =
            state.images.listed(state.images.find(&digest)?, |d| counts.get(d).copied().unwrap_or(0));
        Ok((listed, ticket))
    }

    /// Gives an image that is there a name.
    ///
    /// # Errors
    /// It is not there, or the name is none.
    pub fn name_image(&self, name: &str, reference: &str) -> Result<(Image, Ticket), Refused> {
        let kept = self.lock().images.find(reference)?.clone();
        self.add_image(kept, Some(name))
    }

    /// Every image.
    #[must_use]
    pub fn images(&self) -> Vec<Image> {
        let state = self.lock();
        let counts = counts(&state);
        state.images.list(|digest| counts.get(digest).copied().unwrap_or(0))
    }

    /// An image by its name or its digest.
    ///
    /// # Errors
    /// It is not there.
    pub fn image(&self, reference: &str) -> Result<Image, Refused> {
        let state = self.lock();
        let counts = counts(&state);
        Ok(state.images.listed(state.images.find(reference)?, |d| counts.get(d).copied().unwrap_or(0)))
    }

    /// Removes an image that no guest needs.
    ///
    /// # Errors
    /// It is not there, or a guest needs it.
    pub fn remove_image(&self, reference: &str) -> Result<Ticket, Refused> {
        let mut state = self.lock();
        let digest = state.images.find(reference)?.stored.digest.clone();
        let guests = counts(&state).get(digest.as_str()).copied().unwrap_or(0);
        if guests > 0 {
            return Err(Refused::Conflict(format!(
                "{guests} guests are of image {reference}: remove them first (`vmm system prune` forgets those that have ended)"
            )));
        }
        let ticket = state.records.store.write(vec![Change::ForgetImage(digest.clone())]);
        state.images.remove(&digest);
        state.records.events.happened(event("image.remove", digest));
        Ok(ticket)
    }

    /// Each cell.
    #[must_use]
    pub fn cells(&self) -> Vec<Cell> {
        let state = self.lock();
        let cell = |(number, c): (usize, &super::state::CellSlot)| Cell {
            number,
            process: c.process,
            tap: c.tap.clone(),
            guests: c.load.guests,
            restarts: c.restarts,
            owner: c.owner.clone(),
        };
        state.cells.iter().enumerate().map(cell).collect()
    }

    /// Admission as it stands.
    #[must_use]
    pub fn gatekeeper(&self) -> Gatekeeper {
        let state = self.lock();
        let mut states = BTreeMap::new();
        for (name, _) in foraker_api::State::ALL {
            states.insert(name.to_owned(), 0);
        }
        for g in state.guests.values() {
            *states.entry(g.shown().name().to_owned()).or_insert(0) += 1;
        }
        Gatekeeper {
            settings: state.admission.settings(),
            settled: state.settled,
            has: state.admission.allocated(),
            waiting: state.guests.values().filter(|g| g.phase == Phase::Waiting).count(),
            states,
            refused: state.refused,
        }
    }

    /// Settles what all guests may have together, until somebody settles something else, also beyond the end of this supervisor; or, with None, as its
    /// command line says. Guests that have more keep it until they end; those in line that can never be admitted now are refused.
    ///
    /// # Errors
    /// More is provisioned already.
    pub fn set_gatekeeper(&self, settings: Option<GatekeeperSettings>) -> Result<Ticket, Refused> {
        let mut state = self.lock();
        let wanted = settings.unwrap_or(self.0.config.gatekeeper);
        let refused = state.admission.set(within(wanted, self.0.config.cells))?;
        state.settled = settings;
        state.hopeless(refused);
        state.settle();
        state.records.events.happened(event("gatekeeper.set", ""));
        self.0.heard.notify_waiters();
        Ok(state.records.store.write(vec![Change::Gatekeeper(settings)]))
    }

    /// Whether all is well.
    #[must_use]
    pub fn health(&self) -> Health {
        let missing_cells = self.lock().cells.iter().filter(|c| !c.load.alive).count();
        Health { healthy: missing_cells == 0, missing_cells, since_ms: self.0.since_ms }
    }

    /// Calls `one` for every guest, in the order of their ids, with its id, name, owner, state and the cell that it is or was on.
    pub fn each(&self, mut one: impl FnMut(u64, &str, &str, foraker_api::State, usize)) {
        let state = self.lock();
        for (id, g) in &state.guests {
            one(*id, &g.order.name, &g.order.owner, g.shown(), g.cell);
        }
    }

    /// What a guest wrote from a byte on, as far as it is kept, or the last part; and where that begins.
    pub async fn console(&self, id: u64, from: Option<u64>, most: u64) -> (u64, Vec<u8>) {
        match &self.0.logs {
            Some(logs) => logs.read_from(id, from, most).await,
            None => (0, Vec::new()),
        }
    }

    pub(crate) fn events(&self) -> &Events {
        &self.0.events
    }

    pub(crate) fn logs(&self) -> Option<&Logs> {
        self.0.logs.as_ref()
    }
}

impl State {
    /// Guests in line that can never be admitted.
    fn hopeless(&mut self, refused: Vec<(u64, Refusal)>) {
        for (id, refusal) in refused {
            self.is_over(id, Ended::Refused(refusal.to_string()));
        }
    }
}

/// Guests of each image.
fn counts(state: &State) -> HashMap<&str, usize> {
    let mut counts = HashMap::new();
    for g in state.guests.values() {
        *counts.entry(&*g.digest).or_default() += 1;
    }
    counts
}

pub(super) fn owner_change(state: &mut State, name: &str, settings: &OwnerSettings) -> Change {
    let network = state.networks.of_owner(name);
    Change::Owner(name.to_owned(), StoredOwner { settings: *settings, network })
}
