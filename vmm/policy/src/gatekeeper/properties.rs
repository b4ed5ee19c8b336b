//! What holds whatever happens.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU32;

use proptest::prelude::*;

use super::*;

const HOST: Budget =
    Budget { memory: Some(48), machines: Some(16), cpu: Some(48), bandwidth: None, guests: Some(40) };
const LINE: usize = 12;
const EACH: usize = 8;

#[derive(Clone, Debug)]
enum Step {
    Offer {
        owner: usize,
        priority: u8,
        memory: u64,
        cpu: u64,
        /// May be more than it needs.
        provision: Resources,
        /// Whether it is taken back at once, as a request is that is not taken whole.
        withdrawn: bool,
    },
    /// The first, or the one after, of those that are known.
    Release(usize),
    Leave(usize),
    /// One that was asked back leaves.
    Obey(usize),
    Rejoin(usize),
    /// To so many eighths of what it was offered with.
    Resize(usize, u64),
    /// One that gave memory back asks for all of it.
    Regain(usize),
    Set {
        owner: usize,
        weight: u32,
        memory: u64,
        provision: Resources,
    },
}

/// Of each kind nothing, a part of so much, or all of it.
fn provision(memory: u64, cpu: u64, machines: u64) -> impl Strategy<Value = Resources> {
    let some = |most| prop_oneof![3 => Just(0), 1 => 0..=most, 1 => Just(most)];
    (some(memory), some(cpu), some(machines), some(7)).prop_map(|(memory, cpu, machines, bandwidth)| {
        Resources { memory, cpu, machines, bandwidth, guests: 0 }
    })
}

fn step() -> impl Strategy<Value = Step> {
    // Much of one, of the other, or as it comes.
    let needs = prop_oneof![(6u64..14, 1u64..6), (0u64..4, 6u64..14), (1u64..6, 1u64..6)];
    let offer = (0usize..4, 0u8..3, needs, provision(24, 20, 1), proptest::bool::weighted(0.1));
    let set = (0usize..4, 1u32..4, 20u64..64, provision(8, 8, 3));
    prop_oneof![
        9 => offer.prop_map(|(owner, priority, (memory, cpu), provision, withdrawn)| {
            Step::Offer { owner, priority, memory, cpu, provision, withdrawn }
        }),
        1 => (0usize..60).prop_map(Step::Release),
        1 => (0usize..60).prop_map(Step::Leave),
        2 => (0usize..60).prop_map(Step::Obey),
        2 => (0usize..60).prop_map(Step::Rejoin),
        4 => (0usize..60, 0u64..10).prop_map(|(at, eighths)| Step::Resize(at, eighths)),
        4 => (0usize..60).prop_map(Step::Regain),
        1 => set.prop_map(|(owner, weight, memory, provision)| Step::Set { owner, weight, memory, provision }),
    ]
}

/// Guests that gave back memory that is kept for them, and others that have it now.
fn crowd() -> Vec<Step> {
    let offer = |owner, memory, cpu, kept| Step::Offer {
        owner,
        priority: 1,
        memory,
        cpu,
        provision: Resources { memory: kept, ..Resources::default() },
        withdrawn: false,
    };
    let given = (0..4).flat_map(|at| [offer(at, 9, 6, 9), Step::Resize(at, 1)]);
    given.chain((0..12).map(|at| offer(at % 4, 4, 1, 0))).collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stand {
    Waits,
    Admitted,
    AskedBack,
    Away,
}

const ALL: [Stand; 4] = [Stand::Waits, Stand::Admitted, Stand::AskedBack, Stand::Away];
const HAVE: [Stand; 2] = [Stand::Admitted, Stand::AskedBack];

/// What became of a guest's wish for more memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Growth {
    None,
    Pending(u64),
    /// It is to be told.
    GivenUp,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    owner: OwnerId,
    place: Place,
    demand: Resources,
    provision: Resources,
    offered: u64,
    stand: Stand,
    growth: Growth,
}

impl Known {
    fn has(&self) -> Amount {
        Amount { whole: self.demand, beyond: self.demand.minus(&self.provision) }
    }

    /// What it needs more for so much memory.
    fn grows_by(&self, memory: u64) -> Amount {
        let then = Known { demand: Resources { memory, ..self.demand }, ..*self };
        then.has().minus(&self.has())
    }
}

/// What the caller of a gatekeeper knows, found by scans.
struct Model {
    gate: Gatekeeper,
    owners: Vec<OwnerId>,
    guests: BTreeMap<u64, Known>,
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

    fn of(&self, owner: Option<OwnerId>) -> impl Iterator<Item = (&u64, &Known)> {
        self.guests.iter().filter(move |(_, g)| owner.is_none_or(|owner| owner == g.owner))
    }

    fn sum(&self, owner: Option<OwnerId>, stands: &[Stand]) -> Amount {
        let these = self.of(owner).filter(|(_, g)| stands.contains(&g.stand));
        these.fold(Amount::default(), |sum, (_, g)| sum.plus(&g.has()))
    }

    fn count(&self, owner: Option<OwnerId>, stand: Stand) -> usize {
        self.of(owner).filter(|(_, g)| g.stand == stand).count()
    }

    /// What something was asked back for.
    fn claims(&self, owner: Option<OwnerId>) -> impl Iterator<Item = (&Known, Amount)> {
        self.of(owner).filter_map(|(id, g)| match (self.gate.guests[id].state, g.growth) {
            (State::Claiming(_), _) => Some((g, g.has())),
            (_, Growth::Pending(memory)) => Some((g, g.grows_by(memory))),
            _ => None,
        })
    }

    fn claimed(&self, owner: Option<OwnerId>) -> Amount {
        self.claims(owner).fold(Amount::default(), |sum, (_, amount)| sum.plus(&amount))
    }

    fn settings(&self, owner: OwnerId) -> Settings {
        self.gate.usage(owner).settings
    }

    fn provisioned(&self) -> Resources {
        let owners = self.owners.iter().map(|owner| self.settings(*owner).provision);
        owners
            .chain(self.guests.values().map(|g| g.provision))
            .fold(Resources::default(), |sum, p| sum.plus(&p))
    }

    /// What an owner would have with this, and with what its guests claim.
    fn with(&self, owner: OwnerId, need: &Amount) -> Amount {
        self.sum(Some(owner), &HAVE).plus(&self.claimed(Some(owner))).plus(need)
    }

    fn is_in_budget(&self, owner: OwnerId, need: &Amount) -> bool {
        self.settings(owner).budget.holds(&self.with(owner, need).whole)
    }

    fn is_backed(&self, owner: OwnerId, need: &Amount) -> bool {
        let (provision, with) = (self.settings(owner).provision, self.with(owner, need).beyond);
        let within = |k| need.beyond[k] == 0 || provision[k] == 0 || with[k] <= provision[k];
        (!provision.is_nothing() || need.whole != need.beyond) && Kind::ALL.into_iter().all(within)
    }

    /// Of which kinds what is missing may be asked back.
    fn is_covered(&self, owner: OwnerId, need: &Amount, kind: Kind) -> bool {
        need.beyond[kind] == 0 || self.settings(owner).provision[kind] > 0
    }

    /// What the host lacks for this when what was asked back is there and claims are served.
    fn missing(&self, need: &Amount) -> Resources {
        let wanted = self.sum(None, &[Stand::Admitted]).plus(&self.claimed(None)).plus(need).whole;
        PerKind::from_fn(|k| HOST[k].map_or(0, |most| wanted[k].saturating_sub(most)))
    }

    fn fits(&self, need: &Amount) -> bool {
        HOST.holds(&self.sum(None, &HAVE).plus(need).whole)
    }

    /// What an owner has beyond its provision and those of its guests.
    fn excess(&self, owner: OwnerId) -> Resources {
        self.sum(Some(owner), &[Stand::Admitted]).beyond.minus(&self.settings(owner).provision)
    }

    /// Who is the first to give back what it has of a kind.
    fn borrower(&self, kind: Kind) -> Option<u64> {
        let share = |owner: OwnerId| HOST.share(&self.excess(owner), self.settings(owner).weight);
        let over = self.owners.iter().copied().filter(|owner| self.excess(*owner)[kind] > 0);
        let owner = over.max_by_key(|owner| (share(*owner), *owner))?;
        let lent = |g: &Known| g.stand == Stand::Admitted && g.has().beyond[kind] > 0;
        let holders = self.of(Some(owner)).filter(|(_, g)| lent(g));
        holders.max_by_key(|(_, g)| g.place).map(|(id, _)| *id)
    }

    fn pick(&self, at: usize, stands: &[Stand]) -> Option<u64> {
        self.pick_where(at, |g| stands.contains(&g.stand))
    }

    fn pick_where(&self, at: usize, wanted: impl Fn(&Known) -> bool) -> Option<u64> {
        let ids: Vec<_> = self.of(None).filter(|(_, g)| wanted(g)).map(|(id, _)| *id).collect();
        ids.get(at % ids.len().max(1)).copied()
    }

    fn guest(&mut self, id: u64) -> &mut Known {
        self.guests.get_mut(&id).unwrap()
    }

    fn decided(&mut self, decision: Decision) {
        match decision {
            Decision::Admit(id) => {
                let g = self.guests[&id];
                assert_eq!(g.stand, Stand::Waits);
                assert_eq!(g.demand.memory, g.offered);
                self.guest(id).stand = Stand::Admitted;
                self.is_granted_to(g.owner);
            }
            Decision::Reclaim { owner, lent } => self.asked_back(owner, &lent),
            Decision::Resized { id, granted: true } => {
                let g = self.guests[&id];
                let Growth::Pending(memory) = g.growth else { panic!("nobody waited for {id}: {g:?}") };
                assert_eq!(g.stand, Stand::Admitted);
                *self.guest(id) =
                    Known { demand: Resources { memory, ..g.demand }, growth: Growth::None, ..g };
                self.is_granted_to(g.owner);
            }
            Decision::Resized { id, granted: false } => {
                assert_eq!(std::mem::replace(&mut self.guest(id).growth, Growth::None), Growth::GivenUp);
            }
        }
    }

    fn is_granted_to(&self, owner: OwnerId) {
        assert!(self.is_in_budget(owner, &Amount::default()), "{owner:?} has more than its budget");
        assert!(self.fits(&Amount::default()), "the host's budget is exceeded");
    }

    /// Exactly those are asked who are to be asked, one after the other as long as something is missing, for what may be asked back.
    fn asked_back(&mut self, owner: OwnerId, lent: &[u64]) {
        let asks = self.gate.claims.last().map(|(_, id)| *id).unwrap();
        let (asker, (_, wish)) = (self.guests[&asks], self.gate.guests[&asks].claim().unwrap());
        let need = match wish {
            Wish::Admission => asker.has(),
            Wish::Memory(memory) => asker.grows_by(memory),
        };
        assert!(asker.owner == owner && !lent.is_empty() && !lent.contains(&asks));
        for id in lent {
            let missing = self.missing(&Amount::default());
            let kind = Kind::ALL.into_iter().find(|k| missing[*k] > 0).expect("too much is asked back");
            assert_eq!(Some(*id), self.borrower(kind));
            let lender = self.guest(*id);
            assert!(!lender.has().beyond.is_nothing(), "it is within its provision");
            lender.stand = Stand::AskedBack;
            if lender.growth != Growth::None {
                lender.growth = Growth::GivenUp;
            }
            assert!(lender.owner != owner || need.beyond[kind] == 0, "an owner asks itself");
            assert!(self.is_covered(owner, &need, kind), "nothing is kept of that");
        }
        assert!(self.missing(&Amount::default()).is_nothing(), "too little is asked back");
    }

    fn settle(&mut self) {
        while let Some(decision) = self.gate.next() {
            self.decided(decision);
        }
        self.check();
    }

    fn check(&self) {
        for owner in self.owners.iter().copied().map(Some).chain([None]) {
            let (sums, line) = match owner {
                Some(owner) => (self.gate.owners[owner.0].sums, self.gate.usage(owner).waiting),
                None => (self.gate.sums, self.gate.sums.waiting),
            };
            let expected = Sums {
                allocated: self.sum(owner, &HAVE),
                leaving: self.sum(owner, &[Stand::AskedBack]),
                claimed: self.claimed(owner),
                waiting: self.count(owner, Stand::Waits),
                away: self.count(owner, Stand::Away),
            };
            assert_eq!((sums, line), (expected, expected.waiting), "{owner:?}");
        }
        assert!(self.fits(&Amount::default()), "the host's budget is exceeded");
        assert_eq!(self.gate.provisioned, self.provisioned());
        assert!(HOST.holds(&self.provisioned()), "more is provisioned than there is");
        for owner in &self.owners {
            let (o, excess) = (&self.gate.owners[owner.0], self.excess(*owner));
            let share = HOST.share(&excess, o.settings.weight);
            assert_eq!(o.over, PerKind::from_fn(|k| (excess[k] > 0).then_some(share)));
        }
        // Everybody was answered for whom there is nothing to wait.
        assert!(self.guests.values().all(|g| g.growth != Growth::GivenUp), "it was not told");
        assert!(self.missing(&Amount::default()).is_nothing(), "a claim is not served by what comes back");
        assert_eq!(self.claims(None).count(), self.gate.claims.len());
        assert!(
            self.gate.claims.is_empty() || self.count(None, Stand::AskedBack) > 0,
            "a claim was forgotten"
        );
        self.owners.iter().for_each(|owner| self.check_next(*owner));
    }

    /// The next of an owner may be admitted if its budget allows it, and does not wait for what is its own.
    fn check_next(&self, owner: OwnerId) {
        let lined = |(id, _): &(&u64, &Known)| self.gate.guests[id].state == State::Waiting;
        let next = self.of(Some(owner)).filter(lined).min_by_key(|(_, g)| g.place);
        let (o, has) = (&self.gate.owners[owner.0], self.sum(Some(owner), &HAVE).whole);
        let may = next.filter(|(_, g)| self.is_in_budget(owner, &g.has()));
        assert_eq!(o.head.map(|h| h.id), next.map(|(id, _)| *id));
        assert_eq!(o.ready.map(|(share, _)| share), may.map(|_| HOST.share(&has, o.settings.weight)));
        // Claims may have taken what is not provisioned for them; it can be asked back when they are served.
        let Some((id, need)) = may.map(|(id, g)| (id, g.has())).filter(|_| self.gate.claims.is_empty())
        else {
            return;
        };
        let backed = self.is_backed(owner, &need);
        let is_lent = |missing: Resources| {
            Kind::ALL.into_iter().all(|k| missing[k] == 0 || self.is_covered(owner, &need, k))
        };
        assert!(!backed || !is_lent(self.missing(&need)), "{id} does not get what is its own");
    }

    fn offer(&mut self, id: u64, request: &Request, withdrawn: bool) {
        let Request { owner, demand, .. } = *request;
        let provision = PerKind::from_fn(|k| request.provision[k].min(demand[k]));
        let too_much = HOST.exceeded_by(&self.provisioned().plus(&provision)).is_some();
        let lined = |m: &Model| m.gate.sums.waiting + m.gate.sums.away;
        let before = lined(self);
        match self.gate.offer(id, request) {
            Ok(decision) => {
                assert!(!too_much, "more is provisioned than there is");
                let place = Place { priority: Reverse(request.priority), age: request.age, id };
                let (stand, growth, offered) = (Stand::Waits, Growth::None, demand.memory);
                self.guests.insert(id, Known { owner, place, demand, provision, offered, stand, growth });
                let claims = decision.is_some() || self.gate.claims.iter().any(|c| c.1 == id);
                assert!(claims || lined(self) <= before.max(LINE), "the line is too long");
                assert!(claims || self.gate.owners[owner.0].line.len() <= EACH);
                let lent = match &decision {
                    Some(Decision::Reclaim { lent, .. }) => lent.clone(),
                    _ => Vec::new(),
                };
                if let Some(decision) = decision {
                    self.decided(decision);
                }
                if withdrawn {
                    self.release(id);
                    self.gate.keep(&lent);
                    lent.into_iter().for_each(|id| self.guest(id).stand = Stand::Admitted);
                }
            }
            Err(refusal) => {
                assert_eq!(lined(self), before);
                let to_refuse = |r| matches!(r, Refusal::ProvisionBeyondHost { .. });
                assert!(too_much || !to_refuse(refusal), "there is room for its provision");
            }
        }
    }

    fn release(&mut self, id: u64) {
        self.gate.release(id);
        self.guests.remove(&id);
    }

    fn leave(&mut self, at: usize, stands: &[Stand]) {
        let Some(id) = self.pick(at, stands) else { return };
        self.gate.leave(id);
        let guest = self.guest(id);
        (guest.stand, guest.growth) = (Stand::Away, Growth::None);
        guest.demand.memory = guest.offered;
    }

    fn resize(&mut self, id: u64, memory: u64) {
        let g = self.guests[&id];
        let may = g.stand == Stand::Admitted && g.growth == Growth::None && memory <= g.offered;
        let need = g.grows_by(memory);
        let may_grow = may && self.is_in_budget(g.owner, &need);
        let backed = self.is_backed(g.owner, &need) && self.is_covered(g.owner, &need, Kind::Memory);
        let nobody_waits = self.gate.claims.is_empty() && self.count(None, Stand::Waits) == 0;
        let at_once = may && memory <= g.demand.memory
            || may_grow && self.fits(&need) && (nobody_waits || backed && self.missing(&need).is_nothing());
        // What has no provision may have been given to a claim, and cannot be asked back before it is served.
        let lacks = |(claims, amount): (&Known, Amount)| {
            amount.beyond.memory > 0 && self.settings(claims.owner).provision.memory == 0
        };
        let claimed = self.claims(None).any(lacks);
        match self.gate.resize(id, memory) {
            Some(Decision::Resized { id: whose, granted }) => {
                assert_eq!((whose, granted), (id, at_once));
                assert!(granted || !may_grow || !backed || claimed, "{id} does not get what is its own");
                if granted {
                    self.guest(id).demand.memory = memory;
                }
            }
            asked => {
                assert!(may_grow && backed && !at_once);
                self.guest(id).growth = Growth::Pending(memory);
                if let Some(decision) = asked {
                    self.decided(decision);
                }
            }
        }
    }

    fn step(&mut self, id: u64, step: &Step) {
        match *step {
            Step::Offer { owner, priority, memory, cpu, provision, withdrawn } => {
                let demand = Resources { memory, machines: 1, cpu, bandwidth: 7, guests: 1 };
                let owner = self.owners[owner];
                self.offer(id, &Request { owner, priority, age: id, demand, provision }, withdrawn);
            }
            Step::Release(at) => {
                if let Some(id) = self.pick(at, &ALL) {
                    self.release(id);
                }
            }
            Step::Leave(at) => self.leave(at, &HAVE),
            Step::Obey(at) => self.leave(at, &[Stand::AskedBack]),
            Step::Rejoin(at) => {
                if let Some(id) = self.pick(at, &[Stand::Away]) {
                    match self.gate.rejoin(id) {
                        Ok(()) => self.guest(id).stand = Stand::Waits,
                        Err(_) => drop(self.guests.remove(&id)),
                    }
                }
            }
            Step::Resize(at, eighths) => {
                if let Some(id) = self.pick(at, &ALL) {
                    self.resize(id, self.guests[&id].offered * eighths / 8);
                }
            }
            Step::Regain(at) => {
                let gave = |g: &Known| g.stand == Stand::Admitted && g.demand.memory < g.offered;
                if let Some(id) = self.pick_where(at, gave) {
                    self.resize(id, self.guests[&id].offered);
                }
            }
            Step::Set { owner, weight, memory, provision } => {
                let settings = Settings {
                    weight: NonZeroU32::new(weight).unwrap(),
                    budget: Budget { memory: Some(memory), ..Budget::default() },
                    provision,
                };
                self.set(self.owners[owner], settings);
            }
        }
    }

    fn set(&mut self, owner: OwnerId, settings: Settings) {
        let provisions = self.provisioned().minus(&self.settings(owner).provision).plus(&settings.provision);
        let may = settings.budget.holds(&settings.provision) && HOST.holds(&provisions);
        let refused = self.gate.set_owner(owner, settings);
        assert_eq!(refused.is_ok(), may);
        for (id, _) in refused.unwrap_or_default() {
            self.guests.remove(&id);
        }
        let given_up = |g: &&mut Known| may && g.owner == owner && g.growth != Growth::None;
        self.guests.values_mut().filter(given_up).for_each(|g| g.growth = Growth::GivenUp);
    }
}

proptest! {
    /// Budgets, bounds and sums hold after whatever happens, and in the end everything comes back.
    #[test]
    fn nothing_is_exceeded_and_nothing_is_lost(
        crowded in proptest::bool::ANY,
        steps in proptest::collection::vec((step(), proptest::bool::weighted(0.8)), 1..150),
    ) {
        let mut model = Model::new();
        let first = if crowded { crowd() } else { Vec::new() };
        let steps: Vec<_> = first.into_iter().map(|step| (step, true)).chain(steps).collect();
        for (id, (step, settles)) in (0..).zip(&steps) {
            model.step(id, step);
            if *settles {
                model.settle();
            }
        }
        model.settle();
        // Everybody is answered when those who were asked have gone.
        while let Some(id) = model.pick(0, &[Stand::AskedBack]) {
            model.release(id);
            model.settle();
        }
        prop_assert!(model.guests.values().all(|g| g.growth == Growth::None));
        // Nobody is starved: when those who run end again and again, everybody has run.
        for _ in 0..steps.len() {
            while let Some(id) = model.pick(0, &HAVE) {
                model.release(id);
                model.settle();
            }
        }
        prop_assert!(model.guests.values().all(|g| g.stand == Stand::Away), "{:?}", model.guests);
        while let Some(id) = model.pick(0, &ALL) {
            model.release(id);
            model.settle();
        }
        for owner in model.owners.clone() {
            model.set(owner, Settings::default());
        }
        let gate = model.gate;
        prop_assert!(gate.sums == Sums::default() && gate.provisioned.is_nothing() && gate.guests.is_empty());
        prop_assert!(gate.ready.is_empty() && gate.claims.is_empty() && gate.given_up.is_empty());
        prop_assert!(gate.over == PerKind::default());
        prop_assert!(gate.owners.iter().all(|o| o.line.is_empty() && o.holders == PerKind::default()));
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
            let provision = Resources::default();
            let request = Request { owner: owners[at], priority: 0, age: id, demand, provision };
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
