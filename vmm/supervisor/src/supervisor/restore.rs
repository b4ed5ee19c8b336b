//! What an earlier supervisor has left: it is read from the registry, and guests start again as their policies say.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use foraker_api::Restart;

use super::state::{CellSlot, Phase, Record, Records, State};
use super::{Config, StartError};
use crate::admission::within;
use crate::channel::{Ended, monotonic_ns};
use crate::cores::Cores;
use crate::directory::Directory;
use crate::events::{Events, event};
use crate::images::Images;
use crate::logs::Logs;
use crate::networks::Networks;
use crate::resolve::resolve;
use crate::store::{Change, Contents, EVENTS_OF_A_DAEMON, Store, StoredGuest};

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Images.
    pub images: usize,
    /// Owners.
    pub owners: usize,
    /// Guests that had ended.
    pub ended: usize,
    /// Guests that start again, or still wait.
    pub returning: usize,
    /// Guests that ran and do not come back, as their policy says.
    pub lost: usize,
    /// Guests that cannot be taken up.
    pub refused: usize,
}

impl Found {
    /// Whether there was anything.
    #[must_use]
    pub fn is_anything(&self) -> bool {
        *self != Found::default()
    }
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Found { images, owners, ended, returning, lost, refused } = self;
        let guests = ended + returning + lost + refused;
        write!(
            f,
            "found {images} images, {owners} owners and {guests} guests: {returning} start or wait again, "
        )?;
        write!(f, "{lost} ran and do not come back, {ended} had ended, {refused} are refused")
    }
}

/// Opens the registry and the logs, and makes the state that they say.
pub(super) fn take_up(config: &Config, directory: &Directory) -> Result<(State, Logs, Found), StartError> {
    let (store, contents, _) = Store::open(directory.path())?;
    let logs = Logs::open(directory.path(), config.log_sizes)?;
    let Contents { specs, guests, owners, networks, images, names, cells, gatekeeper, last_id, daemons } =
        contents;
    let events = Events::new(daemons * EVENTS_OF_A_DAEMON);
    let images = Images::open(directory.path().join(crate::images::FOLDER), images, names)?;
    let slot = |number| CellSlot { owner: cells.get(&number).cloned(), ..CellSlot::default() };
    let slots = (0..config.cells).map(slot).collect();
    let known: BTreeSet<u64> = guests.iter().map(|guest| guest.id).collect();
    let cores = Cores::open(directory.path(), |id| known.contains(&id))?;
    let records = Records { store, events, logs: Some(logs.clone()), cores: Some(cores) };
    let mut found = Found { images: images.len(), owners: owners.len(), ..Found::default() };
    let mut state = State::new(slots, within(config.gatekeeper, config.cells), images, records);
    state.last_id = last_id;
    state.last_spec = specs.keys().copied().max().unwrap_or(0);
    let of_owners: BTreeMap<_, _> =
        owners.iter().map(|(name, owner)| (name.clone(), owner.network)).collect();
    state.networks = Networks::new(of_owners, networks);
    if let Some(settings) = gatekeeper {
        // Nothing is provisioned yet that could contradict it.
        state.admission.set(within(settings, config.cells)).map_err(std::io::Error::other)?;
    }
    state.settled = gatekeeper;
    for (name, owner) in owners {
        let missing = cells.iter().filter(|(at, of)| **of == name && **at >= config.cells).count();
        if missing > 0 {
            log::error!(
                "{missing} cells of owner {name} are not there: start with more --cells; its guests share those that it has left, or wait"
            );
        }
        if let Err(e) = state.admission.set_owner(&name, &owner.settings) {
            log::error!("what was settled for owner {name} does not hold on this host: {e}");
        }
    }
    for guest in guests {
        let Some(spec) = specs.get(&guest.spec) else { continue };
        let record = take_up_guest(&mut state, config, &guest, (guest.spec, std::sync::Arc::clone(spec)));
        let id = guest.id;
        let counted = match &record.phase {
            Phase::Ended(Ended::Refused(_)) if guest.progress.ended.is_none() => &mut found.refused,
            Phase::Ended(_) if guest.progress.ended.is_none() => &mut found.lost,
            Phase::Ended(_) => &mut found.ended,
            _ => &mut found.returning,
        };
        *counted += 1;
        let changed = guest.progress.ended.is_none();
        let over = matches!(record.phase, Phase::Ended(_));
        state.insert(id, record);
        if over && state.guests.get(&id).is_some_and(|g| g.spec.1.remove) {
            let (_, changes) = state.forget(&[id]);
            state.records.store.note(changes);
        } else if changed {
            state.note(id);
        }
    }
    state.records.events.happened(foraker_api::Event {
        detail: found.to_string(),
        ..event("daemon.start", std::process::id())
    });
    Ok((state, logs, found))
}

/// Where a guest is in its life from now on.
fn take_up_guest(
    state: &mut State,
    config: &Config,
    guest: &StoredGuest,
    spec: (u64, std::sync::Arc<foraker_api::GuestSpec>),
) -> Record {
    let progress = &guest.progress;
    let digest: std::sync::Arc<str> = guest.digest.as_str().into();
    let network = state.networks.number(&spec.1.owner, spec.1.network.name.as_deref());
    let order = state.images.find(&guest.digest).map_err(|e| e.to_string()).and_then(|image| {
        let network = network.map_err(|e| e.to_string())?;
        resolve(&spec.1, &guest.name, state.images.path(&guest.digest), &image.defaults, network)
    });
    let (order, broken) = match order {
        Ok(order) => (order, None),
        Err(why) => (crate::resolve::unresolved(&spec.1, &guest.name), Some(why)),
    };
    let restart = spec.1.restart;
    let mut record = Record::new(spec, digest, order, monotonic_ns());
    record.created_ms = guest.created_ms;
    (record.restarts, record.begun, record.unwanted) = (progress.restarts, progress.begun, progress.unwanted);
    if let Some(ended) = &progress.ended {
        (record.phase, record.since_ms) = (Phase::Ended(ended.clone()), progress.since_ms);
        return record;
    }
    if let Some(why) = broken {
        record.phase = Phase::Ended(Ended::Refused(why));
        return record;
    }
    if record.unwanted || restart == Restart::No && record.begun {
        record.phase = Phase::Ended(Ended::SupervisorGone);
        return record;
    }
    if record.begun {
        record.restarts += 1;
    }
    // It comes back under its address, if its cell still has that.
    if let (Some(network), Some(ipv4), Some(cell)) = (&mut record.order.network, progress.ipv4, progress.cell)
        && cell_of(config, ipv4) == Some(cell)
    {
        network.ipv4 = Some(ipv4);
        (record.home, record.ipv4, record.cell) = (Some(cell), Some(ipv4), cell);
    }
    match state.admission.offer([(guest.id, &record.order)].into_iter()) {
        Ok(decisions) => {
            for decision in decisions {
                if matches!(decision, foraker_policy::gatekeeper::Decision::Admit(id) if id == guest.id) {
                    record.phase = Phase::Admitted;
                    state.unplaced.insert(guest.id);
                } else {
                    state.carry_out(decision);
                }
            }
        }
        Err(why) => record.phase = Phase::Ended(Ended::Refused(why.to_string())),
    }
    record
}

/// The cell whose subnet an address is of.
pub(super) fn cell_of(config: &Config, address: Ipv4Addr) -> Option<usize> {
    let ([a, b, ..], [c, d, ..]) = (config.first_subnet.octets(), address.octets());
    let cell = usize::from(d).checked_sub(usize::from(b))?;
    (a == c && cell < config.cells).then_some(cell)
}

impl State {
    /// What is written down of guests that are new.
    pub(super) fn newcomers(&self, ids: std::ops::RangeInclusive<u64>) -> Change {
        Change::Guests(self.guests.range(ids).map(|(id, g)| g.stored(*id)).collect())
    }
}
