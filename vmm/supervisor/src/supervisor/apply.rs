//! The configuration as a whole: read back, and made true.

use std::collections::{BTreeMap, HashMap};

use foraker_api::config::{Applied, Declared};
use foraker_api::network::NetworkSettings;
use foraker_api::{Configuration, Create, GuestSpec};

use super::Supervisor;
use super::state::{Phase, Record, State};
use crate::refused::Refused;
use crate::store::Ticket;

impl Supervisor {
    /// Everything that is settled: owners, networks, and the guests that are to be there.
    #[must_use]
    pub fn configuration(&self) -> Configuration {
        let owners = self.owners().into_iter().map(|owner| (owner.name, owner.settings)).collect();
        let networks =
            self.networks().into_iter().map(|n| (n.name, NetworkSettings { owner: n.owner })).collect();
        let state = self.lock();
        let mut requests: BTreeMap<u64, Vec<(&u64, &Record)>> = BTreeMap::new();
        for (id, g) in state.guests.iter().filter(|(_, g)| is_wanted(g)) {
            requests.entry(g.spec.0).or_default().push((id, g));
        }
        let mut guests = BTreeMap::new();
        for (_, of_request) in requests {
            let Some((_, first)) = of_request.first() else { continue };
            let spec = &first.spec.1;
            let base = first.order.name.strip_suffix("-1").unwrap_or(&first.order.name);
            let numbered =
                |(n, (_, g)): (usize, &(&u64, &Record))| g.order.name == format!("{base}-{}", n + 1);
            if of_request.len() > 1
                && of_request.iter().enumerate().all(numbered)
                && !guests.contains_key(base)
            {
                let declared = Declared { count: of_request.len() as u64, guest: named(spec, base) };
                guests.insert(base.to_owned(), declared);
                continue;
            }
            for (id, g) in of_request {
                // Of several with one name, the later ones are told apart by their ids.
                let mut name = g.order.name.clone();
                if guests.contains_key(&name) {
                    name = format!("{name}.{id}");
                }
                guests.insert(name, Declared { count: 1, guest: named(spec, &g.order.name) });
            }
        }
        Configuration { gatekeeper: state.settled, owners, networks, guests }
    }

    /// Makes a configuration true. What is so already stays as it is; with `prune`, guests that it does not name are removed. At the first thing that is
    /// refused it stops; what was done until then stays.
    pub fn apply(
        &self,
        configuration: &Configuration,
        prune: bool,
    ) -> (Result<Applied, Refused>, Vec<Ticket>) {
        let mut tickets = Vec::new();
        let applied = self.make_true(configuration, prune, &mut tickets);
        (applied, tickets)
    }

    fn make_true(
        &self,
        configuration: &Configuration,
        prune: bool,
        tickets: &mut Vec<Ticket>,
    ) -> Result<Applied, Refused> {
        let mut applied = Applied::default();
        let Configuration { gatekeeper, owners, networks, guests } = configuration;
        if let Some(settings) = gatekeeper
            && self.lock().settled != Some(*settings)
        {
            tickets.push(self.set_gatekeeper(Some(*settings))?);
            applied.gatekeeper = true;
        }
        let settled: HashMap<_, _> = self.owners().into_iter().map(|o| (o.name, o.settings)).collect();
        for (name, settings) in owners.iter().filter(|(name, wanted)| settled.get(*name) != Some(*wanted)) {
            tickets.push(self.set_owner(name, settings)?);
            applied.owners += 1;
        }
        let made: HashMap<_, _> = self.networks().into_iter().map(|n| (n.name, n.owner)).collect();
        for (name, settings) in
            networks.iter().filter(|(name, wanted)| made.get(*name) != Some(&wanted.owner))
        {
            tickets.push(self.make_network(name, settings)?);
            applied.networks += 1;
        }
        let mut named_guests = Vec::new();
        for (key, Declared { count, guest: spec }) in guests {
            let base = spec.name.clone().unwrap_or_else(|| key.clone());
            let spec = named(spec, &base);
            let missing = {
                let state = self.lock();
                let digest = state.images.find(&spec.image)?.stored.digest.clone();
                let mut missing = Vec::new();
                for n in 1..=*count {
                    let name = if *count == 1 { base.clone() } else { format!("{base}-{n}") };
                    match live(&state, &name) {
                        Some((_, g)) if *g.digest == *digest && named(&g.spec.1, &base) == spec => {
                            applied.unchanged += 1;
                        }
                        found => missing.push((name.clone(), found.map(|(id, _)| id))),
                    }
                    named_guests.push(name);
                }
                missing
            };
            for (_, old) in missing.iter().filter_map(|(name, old)| Some((name, (*old)?))) {
                tickets.push(self.remove(&old.to_string(), true)?);
            }
            applied.replaced += missing.iter().filter(|(_, old)| old.is_some()).count();
            applied.created += missing.iter().filter(|(_, old)| old.is_none()).count();
            if missing.len() as u64 == *count {
                let create = Create { count: *count, wait_seconds: 0, guest: spec };
                tickets.push(self.create(&create)?.1);
            } else {
                for (name, _) in missing {
                    tickets.push(self.create(&Create::one(named(&spec, &name)))?.1);
                }
            }
        }
        if prune {
            let surplus: Vec<u64> = {
                let wanted: std::collections::HashSet<_> = named_guests.iter().collect();
                let state = self.lock();
                let others =
                    state.guests.iter().filter(|(_, g)| is_wanted(g) && !wanted.contains(&g.order.name));
                others.map(|(id, _)| *id).collect()
            };
            for id in surplus {
                tickets.push(self.remove(&id.to_string(), true)?);
                applied.removed += 1;
            }
        }
        Ok(applied)
    }
}

/// Whether a guest is there, or comes back.
fn is_wanted(g: &Record) -> bool {
    !matches!(g.phase, Phase::Ended(_)) && !g.unwanted
}

/// The guest of a name that is there.
fn live<'a>(state: &'a State, name: &str) -> Option<(u64, &'a Record)> {
    let ids = state.names.get(name)?;
    ids.iter().filter_map(|id| Some((*id, state.guests.get(id)?))).find(|(_, g)| is_wanted(g))
}

fn named(spec: &GuestSpec, name: &str) -> GuestSpec {
    GuestSpec { name: Some(name.to_owned()), ..spec.clone() }
}
