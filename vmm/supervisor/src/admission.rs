//! Admission: owners by their names, what a guest needs, and the gatekeeper of `foraker-policy` that decides.

use std::collections::BTreeMap;

use foraker_api::owner::{LONGEST_NAME, is_name};
use foraker_api::system::Discipline as Wanted;
use foraker_api::{Amounts, GatekeeperSettings, Owner, OwnerSettings};
use foraker_policy::gatekeeper::{
    BadSettings, Budget, Decision, Discipline, Gatekeeper, Limits, OwnerId, Refusal, Request, Resources,
    Settings,
};
use foraker_policy::placement::MOST_GUESTS;
use thiserror::Error;

use crate::channel::Order;

/// What a guest costs beside its own memory, bytes: its machine in the kernel and what is kept of it in a cell (the benchmark `density`
/// measures it).
pub const OVERHEAD: u64 = 640 << 10;
/// Most owners.
const MOST_OWNERS: usize = 10_000;

fn budget(amounts: Amounts) -> Budget {
    let Amounts { memory, machines, cpus, bandwidth, guests } = amounts;
    Budget { memory, machines, cpu: cpus, bandwidth, guests }
}

fn amounts(budget: Budget) -> Amounts {
    let Budget { memory, machines, cpu, bandwidth, guests } = budget;
    Amounts { memory, machines, cpus: cpu, bandwidth, guests }
}

/// A cell holds no more machines, whatever is asked for.
pub(crate) fn within(mut settings: GatekeeperSettings, cells: usize) -> GatekeeperSettings {
    let room = (cells * MOST_GUESTS) as u64;
    settings.budget.machines = Some(settings.budget.machines.map_or(room, |machines| machines.min(room)));
    settings
}

fn limits(settings: &GatekeeperSettings) -> Limits {
    let waiting = usize::try_from(settings.most_waiting).unwrap_or(usize::MAX);
    Limits {
        host: budget(settings.budget),
        waiting,
        waiting_each: waiting.div_ceil(2),
        discipline: match settings.discipline {
            Wanted::Fair => Discipline::Fair,
            Wanted::FirstCome => Discipline::FirstCome,
        },
    }
}

/// Why a request is refused.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum NotTaken {
    /// The name of the owner.
    #[error("'{0}' is no name of an owner: use 1 to {LONGEST_NAME} letters, digits, '-', '_' and '.'")]
    BadName(String),
    /// There are too many.
    #[error("there are {MOST_OWNERS} owners already")]
    TooManyOwners,
    /// The gatekeeper says no.
    #[error("refused for owner {owner}: {refusal}")]
    Refused {
        /// Whose guest.
        owner: String,
        /// Why.
        refusal: Refusal,
    },
    /// What is provisioned already is more.
    #[error("the budget cannot be so small: {0}")]
    Host(BadSettings),
    /// The settings contradict each other or the host.
    #[error("owner {owner}: {why}")]
    Settings {
        /// Whose.
        owner: String,
        /// Why.
        why: BadSettings,
    },
}

/// The gatekeeper, and who the owners are.
#[derive(Debug)]
pub(crate) struct Admission {
    gate: Gatekeeper,
    settings: GatekeeperSettings,
    owners: BTreeMap<String, (OwnerId, OwnerSettings)>,
    names: BTreeMap<OwnerId, String>,
    /// Of owners that were removed: the next ones have them.
    free: Vec<OwnerId>,
}

impl Admission {
    pub(crate) fn new(settings: GatekeeperSettings) -> Admission {
        Admission {
            gate: Gatekeeper::new(&limits(&settings)),
            settings,
            owners: BTreeMap::new(),
            names: BTreeMap::new(),
            free: Vec::new(),
        }
    }

    /// What is settled for all guests together.
    pub(crate) fn settings(&self) -> GatekeeperSettings {
        self.settings
    }

    /// Settles that. Returns waiting guests that now can never be admitted.
    pub(crate) fn set(&mut self, settings: GatekeeperSettings) -> Result<Vec<(u64, Refusal)>, NotTaken> {
        let refused = self.gate.set_limits(&limits(&settings)).map_err(NotTaken::Host)?;
        self.settings = settings;
        Ok(refused)
    }

    /// An owner comes into being when it is first named.
    fn owner(&mut self, name: &str) -> Result<OwnerId, NotTaken> {
        if let Some((id, _)) = self.owners.get(name) {
            return Ok(*id);
        }
        if !is_name(name) {
            return Err(NotTaken::BadName(name.chars().take(LONGEST_NAME).collect()));
        }
        if self.owners.len() >= MOST_OWNERS {
            return Err(NotTaken::TooManyOwners);
        }
        let id = self.free.pop().unwrap_or_else(|| self.gate.add_owner());
        self.owners.insert(name.to_owned(), (id, OwnerSettings::default()));
        self.names.insert(id, name.to_owned());
        Ok(id)
    }

    /// Guests ask to be admitted: all are taken or none is. Returns what is decided for them; the others wait.
    pub(crate) fn offer<'a>(
        &mut self,
        guests: impl Iterator<Item = (u64, &'a Order)>,
    ) -> Result<Vec<Decision>, NotTaken> {
        let (mut taken, mut decisions) = (Vec::new(), Vec::new());
        for (id, order) in guests {
            let request = self.owner(&order.owner).map(|owner| Request {
                owner,
                priority: order.priority,
                age: id,
                demand: demand(order),
                provision: provision(order),
            });
            let offered = request.and_then(|request| {
                let refused = |refusal| NotTaken::Refused { owner: order.owner.clone(), refusal };
                self.gate.offer(id, &request).map_err(refused)
            });
            match offered {
                Ok(decision) => decisions.extend(decision),
                Err(why) => {
                    taken.into_iter().for_each(|id| self.gate.release(id));
                    for decision in decisions {
                        if let Decision::Reclaim { lent, .. } = decision {
                            self.gate.keep(&lent);
                        }
                    }
                    return Err(why);
                }
            }
            taken.push(id);
        }
        Ok(decisions)
    }

    /// The next decision: see [`Gatekeeper::next`].
    pub(crate) fn next(&mut self) -> Option<Decision> {
        self.gate.next()
    }

    /// A guest has given memory back, or asks for it: see [`Gatekeeper::resize`].
    pub(crate) fn resize(&mut self, id: u64, memory: u64) -> Option<Decision> {
        self.gate.resize(id, memory.saturating_add(OVERHEAD))
    }

    /// See [`Gatekeeper::release`].
    pub(crate) fn release(&mut self, id: u64) {
        self.gate.release(id);
    }

    /// See [`Gatekeeper::leave`].
    pub(crate) fn leave(&mut self, id: u64) {
        self.gate.leave(id);
    }

    /// See [`Gatekeeper::rejoin`].
    pub(crate) fn rejoin(&mut self, id: u64) -> Result<(), Refusal> {
        self.gate.rejoin(id)
    }

    /// Settles what an owner may have. Returns waiting guests that now can never be admitted.
    pub(crate) fn set_owner(
        &mut self,
        name: &str,
        settings: &OwnerSettings,
    ) -> Result<Vec<(u64, Refusal)>, NotTaken> {
        let owner = self.owner(name)?;
        let provision = budget(settings.provision);
        let mut most = settings.most;
        if settings.cells > 0 {
            // More than its cells hold would be admitted and have nowhere to go.
            let room = u64::from(settings.cells) * MOST_GUESTS as u64;
            most.guests = Some(most.guests.map_or(room, |guests| guests.min(room)));
        }
        let guarded = Settings {
            weight: settings.weight,
            budget: budget(most),
            provision: Resources::from_fn(|k| provision[k].unwrap_or(0)),
        };
        let contradiction = |why| NotTaken::Settings { owner: name.to_owned(), why };
        let refused = self.gate.set_owner(owner, guarded).map_err(contradiction)?;
        self.owners.insert(name.to_owned(), (owner, *settings));
        Ok(refused)
    }

    /// Removes an owner that has no guests.
    pub(crate) fn forget_owner(&mut self, name: &str) {
        let Some((id, _)) = self.owners.remove(name) else { return };
        self.names.remove(&id);
        // Whoever comes next begins anew. What everybody has contradicts nothing.
        if self.gate.set_owner(id, Settings::default()).is_ok() {
            self.free.push(id);
        }
    }

    /// Whether an owner is to have cells of its own.
    pub(crate) fn has_own_cells(&self, owner: &str) -> bool {
        self.owners.get(owner).is_some_and(|(_, settings)| settings.cells > 0)
    }

    /// Whether an owner is known.
    pub(crate) fn knows(&self, name: &str) -> bool {
        self.owners.contains_key(name)
    }

    /// What all admitted guests have.
    pub(crate) fn allocated(&self) -> Amounts {
        amounts(Budget::from_fn(|k| Some(self.gate.allocated()[k])))
    }

    /// The name of an owner.
    pub(crate) fn name(&self, owner: OwnerId) -> &str {
        self.names.get(&owner).map_or("?", String::as_str)
    }

    /// Every owner.
    pub(crate) fn list(&self) -> Vec<Owner> {
        let listed = |(name, (id, settings)): (&String, &(OwnerId, OwnerSettings))| {
            let usage = self.gate.usage(*id);
            Owner {
                name: name.clone(),
                settings: *settings,
                has: amounts(Budget::from_fn(|k| Some(usage.allocated[k]))),
                dominant_share: usage.share.fraction(),
                waiting: usage.waiting,
            }
        };
        self.owners.iter().map(listed).collect()
    }
}

/// What a guest needs: its memory and what it costs beside it, a machine, and what its limits let it use of processors and network. A guest
/// without limits counts nothing there: it has what others leave.
fn demand(order: &Order) -> Resources {
    let limits = order.network.as_ref().map(|n| [n.rx_bytes, n.tx_bytes]).unwrap_or_default();
    Resources {
        memory: order.memory.saturating_add(OVERHEAD),
        machines: 1,
        cpu: order.processor.limit.max(order.processor.provision).map_or(0, u64::from),
        bandwidth: limits.into_iter().flatten().fold(0, u64::saturating_add),
        guests: 1,
    }
}

/// What of that is kept for the guest alone. What a guest has cannot do without what it costs beside.
fn provision(order: &Order) -> Resources {
    Resources {
        memory: if order.memory_provision > 0 { order.memory_provision.saturating_add(OVERHEAD) } else { 0 },
        cpu: order.processor.provision.map_or(0, u64::from),
        ..Resources::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU32;

    use foraker_cell::{NetworkSpec, ProcessorSpec};

    pub(crate) fn order(owner: &str, memory: u64) -> Order {
        Order {
            image: "image".into(),
            name: "guest".to_owned(),
            memory,
            memory_provision: 0,
            large_pages: false,
            cores: 1,
            arguments: Vec::new(),
            environment: Vec::new(),
            network: None,
            console_limit: 0,
            publish: Vec::new(),
            owner: owner.to_owned(),
            priority: 0,
            processor: ProcessorSpec::default(),
            keep_core: false,
            immediate: false,
        }
    }

    fn admission(guests: u64, waiting: u32) -> Admission {
        let budget = Amounts { guests: Some(guests), memory: Some(1 << 30), ..Amounts::default() };
        Admission::new(GatekeeperSettings { budget, most_waiting: waiting, discipline: Wanted::Fair })
    }

    #[test]
    fn what_a_guest_needs_counts_its_machine_and_its_limits() {
        let network = NetworkSpec { rx_bytes: Some(3), tx_bytes: Some(4), ..NetworkSpec::default() };
        let processor = ProcessorSpec { limit: Some(500), ..ProcessorSpec::default() };
        let needs = demand(&Order { network: Some(network), processor, ..order("a", 1 << 20) });
        let expected =
            Resources { memory: (1 << 20) + OVERHEAD, machines: 1, cpu: 500, bandwidth: 7, guests: 1 };
        assert_eq!(needs, expected);
        assert_eq!(demand(&order("a", u64::MAX)).memory, u64::MAX);
    }

    #[test]
    fn a_request_is_taken_whole_or_not_at_all() {
        let mut admission = admission(4, 2);
        let small = order("a", 1);
        let many = |n: u64| (1..=n).map(|id| (id, &small));
        assert!(matches!(admission.offer(many(6)), Err(NotTaken::Refused { .. })), "one may wait");
        assert_eq!(admission.list()[0].has.guests, Some(0));
        assert_eq!(admission.offer(many(5)).map(|d| d.len()), Ok(4));
        assert_eq!(admission.list()[0].waiting, 1);
        // Nobody was asked back for a request that was not taken.
        let settings = OwnerSettings {
            weight: NonZeroU32::MIN,
            most: Amounts { guests: Some(3), ..Amounts::default() },
            provision: Amounts { guests: Some(2), ..Amounts::default() },
            cells: 0,
        };
        assert_eq!(admission.set_owner("b", &settings), Ok(Vec::new()));
        let theirs = order("b", 1);
        assert!(admission.offer((11..=15).map(|id| (id, &theirs))).is_err());
        let asked = admission.offer([(16, &theirs)].into_iter()).expect("taken");
        assert!(matches!(&asked[..], [Decision::Reclaim { lent, .. }] if lent == &[4]), "{asked:?}");
    }

    #[test]
    fn owners_have_names() {
        let mut admission = admission(4, 2);
        for bad in ["", "a b", "a/b", &"x".repeat(65)] {
            let refused = admission.offer([(1, &order(bad, 1))].into_iter());
            assert!(matches!(refused, Err(NotTaken::BadName(_))), "{bad}: {refused:?}");
        }
        assert!(admission.offer([(1, &order("Team-7_a.b", 1))].into_iter()).is_ok());
        assert_eq!(admission.list().len(), 1);
    }
}
