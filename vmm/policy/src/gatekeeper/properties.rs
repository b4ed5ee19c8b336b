//! What holds whatever happens.

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU32;

use proptest::prelude::*;

use super::*;

const HOST: Budget =
    Budget { memory: Some(64), machines: Some(40), cpu: Some(48), bandwidth: None, guests: Some(40) };
const LINE: usize = 12;
const EACH: usize = 8;

#[derive(Clone, Debug)]
enum Step {
    Offer {
        owner: usize,
        priority: u8,
        memory: u64,
        cpu: u64,
    },
    /// The first, or the one after, of those that are known.
    Release(usize),
    Leave(usize),
    Rejoin(usize),
    Set {
        owner: usize,
        weight: u32,
        memory: u64,
        provision: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0usize..4, 0u8..3, 0u64..24, 0u64..20)
            .prop_map(|(owner, priority, memory, cpu)| Step::Offer { owner, priority, memory, cpu }),
        2 => (0usize..60).prop_map(Step::Release),
        2 => (0usize..60).prop_map(Step::Leave),
        2 => (0usize..60).prop_map(Step::Rejoin),
        1 => (0usize..4, 1u32..4, 20u64..64, 0u64..30)
            .prop_map(|(owner, weight, memory, provision)| Step::Set { owner, weight, memory, provision }),
    ]
}

/// What the caller of a gatekeeper knows, found by scans.
struct Model {
    gate: Gatekeeper,
    owners: Vec<OwnerId>,
    guests: BTreeMap<u64, (OwnerId, Resources, Stand)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stand {
    Waits,
    Admitted,
    AskedBack,
    Away,
}

impl Model {
    fn new() -> Model {
        let mut gate = Gatekeeper::new(&Limits {
            host: HOST,
            waiting: LINE,
            waiting_each: EACH,
            discipline: Discipline::Fair,
        });
        let owners = (0..4).map(|_| gate.add_owner()).collect();
        Model { gate, owners, guests: BTreeMap::new() }
    }

    fn sum(&self, owner: Option<OwnerId>, stands: &[Stand]) -> Resources {
        let wanted = |(o, _, s): &&(OwnerId, Resources, Stand)| {
            owner.is_none_or(|owner| owner == *o) && stands.contains(s)
        };
        self.guests.values().filter(wanted).fold(Resources::default(), |sum, (_, d, _)| sum.plus(d))
    }

    fn pick(&self, at: usize, stands: &[Stand]) -> Option<u64> {
        let ids: Vec<_> =
            self.guests.iter().filter(|(_, g)| stands.contains(&g.2)).map(|(id, _)| *id).collect();
        ids.get(at % ids.len().max(1)).copied()
    }

    fn decided(&mut self, decision: Decision) {
        match decision {
            Decision::Admit(id) => {
                let (owner, demand, stand) = self.guests[&id];
                assert_eq!(stand, Stand::Waits);
                let before = self.sum(Some(owner), &[Stand::Admitted, Stand::AskedBack]);
                let budget = self.gate.usage(owner).settings.budget;
                assert!(budget.holds(&before.plus(&demand)), "{owner:?} has more than its budget");
                self.guests.get_mut(&id).unwrap().2 = Stand::Admitted;
            }
            Decision::Reclaim { owner, lent } => {
                assert!(!lent.is_empty());
                for id in lent {
                    let (lender, demand, stand) = self.guests[&id];
                    assert!(lender != owner && stand == Stand::Admitted);
                    let has = self.sum(Some(lender), &[Stand::Admitted]);
                    let provision = self.gate.usage(lender).settings.provision;
                    let beyond = |k| demand[k] > 0 && has[k] > provision[k];
                    assert!(Kind::ALL.into_iter().any(beyond), "{lender:?} is within its provision");
                    self.guests.get_mut(&id).unwrap().2 = Stand::AskedBack;
                }
                // At least what was asked for: all claims fit when it is back.
                let back = self.sum(None, &[Stand::Admitted]).plus(&self.gate.claimed);
                assert!(HOST.holds(&back), "too little was asked back");
            }
        }
    }

    fn settle(&mut self) {
        while let Some(decision) = self.gate.next() {
            self.decided(decision);
        }
        self.check();
    }

    fn check(&self) {
        let admitted = self.sum(None, &[Stand::Admitted, Stand::AskedBack]);
        assert_eq!(admitted, self.gate.allocated(), "allocations are the sum of admitted demands");
        assert!(HOST.holds(&admitted), "the host's budget is exceeded");
        let count = |owner: Option<OwnerId>, s| {
            self.guests.values().filter(|g| g.2 == s && owner.is_none_or(|o| o == g.0)).count()
        };
        for owner in &self.owners {
            let usage = self.gate.usage(*owner);
            assert_eq!(usage.allocated, self.sum(Some(*owner), &[Stand::Admitted, Stand::AskedBack]));
            assert_eq!(usage.waiting, count(Some(*owner), Stand::Waits));
        }
        assert_eq!(self.gate.waiting, count(None, Stand::Waits));
        assert_eq!(self.gate.away, count(None, Stand::Away));
        assert_eq!(self.gate.leaving, self.sum(None, &[Stand::AskedBack]));
    }

    fn step(&mut self, id: u64, step: &Step) {
        match *step {
            Step::Offer { owner, priority, memory, cpu } => {
                let owner = self.owners[owner];
                let demand = Resources { memory, machines: 1, cpu, bandwidth: 7, guests: 1 };
                let lined = |m: &Model| m.gate.waiting + m.gate.away;
                let before = lined(self);
                match self.gate.offer(id, &Request { owner, priority, age: id, demand }) {
                    Ok(decision) => {
                        self.guests.insert(id, (owner, demand, Stand::Waits));
                        let claims = decision.is_some() || self.gate.claims.iter().any(|c| c.1 == id);
                        assert!(claims || lined(self) <= before.max(LINE), "the line is too long");
                        assert!(claims || self.gate.owners[owner.0].line.len() <= EACH);
                        if let Some(decision) = decision {
                            self.decided(decision);
                        }
                    }
                    Err(_) => assert_eq!(lined(self), before),
                }
            }
            Step::Release(at) => {
                let all = [Stand::Waits, Stand::Admitted, Stand::AskedBack, Stand::Away];
                if let Some(id) = self.pick(at, &all) {
                    self.gate.release(id);
                    self.guests.remove(&id);
                }
            }
            Step::Leave(at) => {
                if let Some(id) = self.pick(at, &[Stand::Admitted, Stand::AskedBack]) {
                    self.gate.leave(id);
                    self.guests.get_mut(&id).unwrap().2 = Stand::Away;
                }
            }
            Step::Rejoin(at) => {
                if let Some(id) = self.pick(at, &[Stand::Away]) {
                    match self.gate.rejoin(id) {
                        Ok(()) => self.guests.get_mut(&id).unwrap().2 = Stand::Waits,
                        Err(_) => drop(self.guests.remove(&id)),
                    }
                }
            }
            Step::Set { owner, weight, memory, provision } => {
                let settings = Settings {
                    weight: NonZeroU32::new(weight).unwrap(),
                    budget: Budget { memory: Some(memory), ..Budget::default() },
                    provision: Resources { memory: provision, cpu: provision / 2, ..Resources::default() },
                };
                for (id, _) in self.gate.set_owner(self.owners[owner], settings).unwrap_or_default() {
                    self.guests.remove(&id);
                }
            }
        }
        self.settle();
    }
}

proptest! {
    /// Budgets, bounds and sums hold after whatever happens, and in the end everything comes back.
    #[test]
    fn nothing_is_exceeded_and_nothing_is_lost(steps in proptest::collection::vec(step(), 1..200)) {
        let mut model = Model::new();
        for (id, step) in (0..).zip(&steps) {
            model.step(id, step);
        }
        // Nobody is starved: when those who run end again and again, everybody has run.
        for _ in 0..steps.len() {
            while let Some(id) = model.pick(0, &[Stand::Admitted, Stand::AskedBack]) {
                model.gate.release(id);
                model.guests.remove(&id);
                model.settle();
            }
        }
        prop_assert!(model.guests.values().all(|g| g.2 == Stand::Away), "{:?}", model.guests);
        for id in model.guests.keys() {
            model.gate.release(*id);
        }
        let gate = model.gate;
        prop_assert!(gate.allocated().is_nothing() && gate.leaving.is_nothing() && gate.claimed.is_nothing());
        prop_assert!(gate.guests.is_empty() && gate.ready.is_empty() && gate.waiting == 0 && gate.away == 0);
        prop_assert!(gate.over == PerKind::default());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// With constant demands that are small beside the host, dominant shares become equal, whoever asked first and most.
    #[test]
    fn dominant_shares_converge(demands in proptest::collection::vec((1u64..20, 1u64..20), 2..5)) {
        let host = Budget { memory: Some(1000), cpu: Some(1000), ..Budget::default() };
        let mut gate =
            Gatekeeper::new(&Limits { host, waiting: 100_000, waiting_each: 100_000, discipline: Discipline::Fair });
        let owners: Vec<_> = demands.iter().map(|_| gate.add_owner()).collect();
        // The owner of each guest, by its number.
        let mut running = VecDeque::new();
        let mut of: Vec<usize> = vec![0];
        let offer = |gate: &mut Gatekeeper, running: &mut VecDeque<u64>, of: &mut Vec<usize>, at: usize| {
            let id = of.len() as u64;
            let (memory, cpu) = demands[at];
            let demand = Resources { memory, cpu, ..Resources::default() };
            let request = Request { owner: owners[at], priority: 0, age: id, demand };
            of.push(at);
            if gate.offer(id, &request).unwrap().is_some() {
                running.push_back(id);
            }
        };
        // The first takes everything, and all of them always ask for more.
        for at in 0..owners.len() {
            for _ in 0..1000 {
                offer(&mut gate, &mut running, &mut of, at);
            }
        }
        for _ in 0..4000 {
            let ended = running.pop_front().unwrap();
            let at = of[ended as usize];
            gate.release(ended);
            offer(&mut gate, &mut running, &mut of, at);
            while let Some(Decision::Admit(id)) = gate.next() {
                running.push_back(id);
            }
        }
        let shares: Vec<_> = owners.iter().map(|o| gate.usage(*o).share.fraction()).collect();
        let (least, most) = shares.iter().fold((1.0_f64, 0.0_f64), |(l, m), s| (l.min(*s), m.max(*s)));
        let task = 20.0 / 1000.0;
        prop_assert!(most - least <= 3.0 * task, "{shares:?}");
    }
}
