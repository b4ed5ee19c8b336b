//! Cases with names.

use std::num::NonZeroU32;

use super::*;

fn host(memory: u64, cpu: u64) -> Limits {
    let host = Budget { memory: Some(memory), cpu: Some(cpu), ..Budget::default() };
    Limits { host, waiting: 1000, waiting_each: 1000, discipline: Discipline::Fair }
}

fn needs(memory: u64, cpu: u64) -> Resources {
    Resources { memory, machines: 1, cpu, bandwidth: 0, guests: 1 }
}

/// Offers a guest whose age is its number.
fn offer(
    gate: &mut Gatekeeper,
    id: u64,
    owner: OwnerId,
    demand: Resources,
) -> Result<Option<Decision>, Refusal> {
    offer_with(gate, id, owner, demand, 0)
}

/// The same with so much memory that is kept for it alone.
fn offer_with(
    gate: &mut Gatekeeper,
    id: u64,
    owner: OwnerId,
    demand: Resources,
    memory: u64,
) -> Result<Option<Decision>, Refusal> {
    gate.offer(id, &Request { owner, priority: 0, age: id, demand, provision: of_memory(memory) })
}

fn of_memory(memory: u64) -> Resources {
    Resources { memory, ..Resources::default() }
}

fn provide(gate: &mut Gatekeeper, owner: OwnerId, provision: Resources) {
    assert_eq!(gate.set_owner(owner, Settings { provision, ..Settings::default() }), Ok(Vec::new()));
}

/// Guests that are admitted at once.
fn run(gate: &mut Gatekeeper, ids: impl IntoIterator<Item = u64>, owner: OwnerId, demand: Resources) {
    for id in ids {
        assert_eq!(offer(gate, id, owner, demand), Ok(Some(Decision::Admit(id))));
    }
}

#[expect(clippy::unnecessary_wraps, reason = "what is compared with it")]
fn resized(id: u64, granted: bool) -> Option<Decision> {
    Some(Decision::Resized { id, granted })
}

fn admitted(gate: &mut Gatekeeper) -> Vec<u64> {
    std::iter::from_fn(|| gate.next())
        .map(|decision| match decision {
            Decision::Admit(id) => id,
            other => panic!("{other:?}"),
        })
        .collect()
}

/// A host that is full with one guest (number 0) of an owner of its own.
fn full(limits: &Limits) -> Gatekeeper {
    let mut gate = Gatekeeper::new(limits);
    let blocker = gate.add_owner();
    let all = Resources { memory: limits.host.memory.unwrap(), cpu: limits.host.cpu.unwrap(), ..needs(0, 0) };
    assert_eq!(offer(&mut gate, 0, blocker, all), Ok(Some(Decision::Admit(0))));
    gate
}

fn count(gate: &Gatekeeper, owner: OwnerId) -> u64 {
    gate.usage(owner).allocated.guests
}

/// The example of the paper: 9 processors, 18 GB; A's tasks need 1 and 4 GB, B's 3 and 1 GB. A gets 3 and B 2, two thirds of
/// the memory and two thirds of the processors.
#[test]
fn the_example_of_the_paper() {
    let mut gate = full(&host(18, 9));
    let (a, b) = (gate.add_owner(), gate.add_owner());
    for id in 1..=10 {
        assert_eq!(offer(&mut gate, id, a, needs(4, 1)), Ok(None));
    }
    for id in 11..=20 {
        assert_eq!(offer(&mut gate, id, b, needs(1, 3)), Ok(None));
    }
    gate.release(0);
    assert_eq!(admitted(&mut gate).len(), 5);
    assert_eq!((count(&gate, a), count(&gate, b)), (3, 2));
    assert_eq!(gate.usage(a).share, gate.usage(b).share);
}

#[test]
fn first_come_gives_everything_to_the_first() {
    let mut gate = full(&Limits { discipline: Discipline::FirstCome, ..host(18, 9) });
    let (a, b) = (gate.add_owner(), gate.add_owner());
    for id in 1..=10 {
        assert_eq!(offer(&mut gate, id, b, needs(1, 3)), Ok(None));
        assert_eq!(offer(&mut gate, 100 + id, a, needs(4, 1)), Ok(None));
    }
    gate.release(0);
    let _ = admitted(&mut gate);
    assert_eq!((count(&gate, a), count(&gate, b)), (0, 3));
}

#[test]
fn weights_divide_the_shares() {
    let mut gate = full(&host(90, 90));
    let (a, b) = (gate.add_owner(), gate.add_owner());
    let settings = Settings { weight: NonZeroU32::new(2).unwrap(), ..Settings::default() };
    assert_eq!(gate.set_owner(a, settings), Ok(Vec::new()));
    for id in 1..=100 {
        let _ = offer(&mut gate, id, a, needs(1, 1));
        let _ = offer(&mut gate, 100 + id, b, needs(1, 1));
    }
    gate.release(0);
    let _ = admitted(&mut gate);
    assert_eq!((count(&gate, a), count(&gate, b)), (60, 30));
}

#[test]
fn within_an_owner_priority_comes_before_age() {
    let mut gate = full(&host(10, 10));
    let a = gate.add_owner();
    for (id, priority) in [(1, 5), (2, 9), (3, 5), (4, 1)] {
        let request =
            Request { owner: a, priority, age: id, demand: needs(1, 1), provision: Resources::default() };
        assert_eq!(gate.offer(id, &request), Ok(None));
    }
    gate.release(0);
    assert_eq!(admitted(&mut gate), [2, 1, 3, 4]);
}

#[test]
fn what_can_never_be_admitted_is_refused_with_the_reason() {
    let mut gate = Gatekeeper::new(&host(1 << 30, 4000));
    let a = gate.add_owner();
    let budget = Budget { memory: Some(1 << 20), guests: Some(1), ..Budget::default() };
    let _ = gate.set_owner(a, Settings { budget, ..Settings::default() });
    let why = |e: Refusal| e.to_string();
    let host = offer(&mut gate, 1, a, needs(3 << 30, 0)).map_err(why);
    assert_eq!(host, Err("it needs 3 GiB of memory, and the host gives 1 GiB of memory in all".into()));
    let owner = offer(&mut gate, 1, a, needs(2 << 20, 0)).map_err(why);
    assert_eq!(
        owner,
        Err("it needs 2 MiB of memory, and its owner's budget is 1 MiB of memory in all".into())
    );
    assert_eq!(offer(&mut gate, 1, a, needs(1, 4000)), Ok(Some(Decision::Admit(1))));
    assert_eq!(offer(&mut gate, 1, a, needs(1, 1)), Err(Refusal::Known));
    // Within the budget, but not now.
    assert_eq!(offer(&mut gate, 2, a, needs(1, 1)), Ok(None));
    gate.release(1);
    assert_eq!(admitted(&mut gate), [2]);
}

#[test]
fn an_owner_that_is_at_its_budget_holds_nobody_up() {
    let mut gate = Gatekeeper::new(&host(10, 10));
    let (a, b) = (gate.add_owner(), gate.add_owner());
    let budget = Budget { guests: Some(1), ..Budget::default() };
    let _ = gate.set_owner(a, Settings { budget, ..Settings::default() });
    assert_eq!(offer(&mut gate, 1, a, needs(1, 1)), Ok(Some(Decision::Admit(1))));
    assert_eq!(offer(&mut gate, 2, a, needs(1, 1)), Ok(None));
    run(&mut gate, 3..12, b, needs(1, 1));
}

#[test]
fn the_line_is_bounded_for_all_and_for_each() {
    let mut gate = full(&Limits { waiting: 5, waiting_each: 3, ..host(10, 10) });
    let (a, b) = (gate.add_owner(), gate.add_owner());
    for id in 1..=3 {
        assert_eq!(offer(&mut gate, id, a, needs(1, 1)), Ok(None));
    }
    assert_eq!(offer(&mut gate, 4, a, needs(1, 1)), Err(Refusal::OwnersLineFull(3)));
    assert_eq!(offer(&mut gate, 5, b, needs(1, 1)), Ok(None));
    assert_eq!(offer(&mut gate, 6, b, needs(1, 1)), Ok(None));
    assert_eq!(offer(&mut gate, 7, b, needs(1, 1)), Err(Refusal::LineFull(5)));
    // Those who are away keep their places.
    gate.leave(0);
    assert_eq!(admitted(&mut gate).len(), 5);
    for id in 1..=3 {
        gate.leave(id);
    }
    assert_eq!(offer(&mut gate, 8, a, needs(9, 1)), Err(Refusal::OwnersLineFull(3)));
    // There is room for this one, and it needs no place.
    assert_eq!(offer(&mut gate, 9, a, needs(1, 1)), Ok(Some(Decision::Admit(9))));
}

#[test]
fn who_comes_back_has_its_old_age() {
    let mut gate = Gatekeeper::new(&host(2, 10));
    let a = gate.add_owner();
    for id in 1..=4 {
        let _ = offer(&mut gate, id, a, needs(1, 1));
    }
    gate.leave(1);
    assert_eq!(admitted(&mut gate), [3]);
    assert_eq!(gate.rejoin(1), Ok(()));
    assert_eq!(admitted(&mut gate), [0; 0]);
    gate.release(2);
    assert_eq!(admitted(&mut gate), [1]);
}

/// Small ones come and go for ever; a large one of an owner that has nothing is passed [`PATIENCE`] times, and not again.
#[test]
fn a_large_request_is_not_starved() {
    let mut gate = Gatekeeper::new(&host(10, 1000));
    let (small, large) = (gate.add_owner(), gate.add_owner());
    run(&mut gate, 1..=10, small, needs(1, 1));
    assert_eq!(offer(&mut gate, 1_000_000, large, needs(8, 1)), Ok(None));
    let mut passed = 0;
    for id in 11..200 {
        let _ = offer(&mut gate, id, small, needs(1, 1));
        gate.release(id - 10);
        let now = admitted(&mut gate);
        if now.contains(&1_000_000) {
            assert_eq!(passed, PATIENCE);
            return;
        }
        passed += u32::try_from(now.len()).unwrap();
    }
    panic!("passed {passed} times");
}

#[test]
fn what_is_lent_comes_back_when_its_owner_asks() {
    let mut gate = Gatekeeper::new(&host(10, 1000));
    let (a, b, c) = (gate.add_owner(), gate.add_owner(), gate.add_owner());
    provide(&mut gate, a, of_memory(4));
    for id in 1..=8 {
        let priority = if id == 7 { 0 } else { 9 };
        let request =
            Request { owner: b, priority, age: id, demand: needs(1, 1), provision: Resources::default() };
        assert_eq!(gate.offer(id, &request), Ok(Some(Decision::Admit(id))));
    }
    run(&mut gate, 9..=10, c, needs(1, 1));
    // From the owner with the largest excess: the least important, then the youngest.
    let asked = offer(&mut gate, 11, a, needs(2, 1));
    assert_eq!(asked, Ok(Some(Decision::Reclaim { owner: a, lent: vec![7, 8] })));
    // Others get nothing of what comes back.
    assert_eq!(offer(&mut gate, 12, c, needs(1, 1)), Ok(None));
    gate.leave(7);
    assert_eq!(admitted(&mut gate), [0; 0]);
    assert_eq!(gate.rejoin(7), Ok(()));
    assert_eq!(admitted(&mut gate), [0; 0]);
    gate.release(8);
    assert_eq!(admitted(&mut gate), [11]);
    // The rest of the provision, and not more.
    let asked = offer(&mut gate, 13, a, needs(3, 1));
    assert_eq!(asked, Ok(None), "beyond its provision it waits like everybody");
    let request =
        Request { owner: a, priority: 1, age: 14, demand: needs(2, 1), provision: Resources::default() };
    assert_eq!(gate.offer(14, &request), Ok(Some(Decision::Reclaim { owner: a, lent: vec![6, 5] })));
    // Those who had to go may end in the meantime, or the request be withdrawn.
    gate.release(14);
    gate.release(6);
    assert_eq!(admitted(&mut gate), [12], "the least share is c's");
}

#[test]
fn who_is_within_its_provision_gives_nothing_back() {
    let mut gate = Gatekeeper::new(&host(10, 1000));
    let (a, b, c) = (gate.add_owner(), gate.add_owner(), gate.add_owner());
    provide(&mut gate, a, of_memory(4));
    provide(&mut gate, b, of_memory(5));
    let beyond = Settings { provision: of_memory(2), ..Settings::default() };
    let refused = gate.set_owner(c, beyond).map_err(|e| e.to_string());
    let why =
        "with that, 11 bytes of memory would be provisioned in all, and the host gives 10 bytes of memory";
    assert_eq!(refused, Err(why.into()));
    run(&mut gate, 1..=5, b, needs(1, 1));
    run(&mut gate, 6..=10, c, needs(1, 1));
    let asked = offer(&mut gate, 11, a, needs(4, 1));
    assert_eq!(asked, Ok(Some(Decision::Reclaim { owner: a, lent: vec![10, 9, 8, 7] })));
}

#[test]
fn a_smaller_budget_turns_away_who_can_never_be_admitted() {
    let mut gate = full(&host(10, 10));
    let a = gate.add_owner();
    assert_eq!(offer(&mut gate, 1, a, needs(5, 1)), Ok(None));
    assert_eq!(offer(&mut gate, 2, a, needs(2, 1)), Ok(None));
    let settings = |memory| Settings {
        budget: Budget { memory: Some(memory), ..Budget::default() },
        ..Settings::default()
    };
    let gone = gate.set_owner(a, settings(4)).unwrap();
    assert!(matches!(gone[..], [(1, Refusal::TooLargeForOwner { needs: 5, most: 4, .. })]), "{gone:?}");
    gate.release(0);
    assert_eq!(admitted(&mut gate), [2]);
    gate.leave(2);
    let _ = gate.set_owner(a, settings(1));
    assert!(gate.rejoin(2).is_err());
    assert_eq!(gate.allocated(), Resources::default());
}

#[test]
fn a_guest_within_its_provision_is_never_asked_back() {
    let mut gate = Gatekeeper::new(&host(10, 1000));
    let (a, b) = (gate.add_owner(), gate.add_owner());
    provide(&mut gate, a, of_memory(6));
    run(&mut gate, 1..=6, b, needs(1, 1));
    // The youngest of an owner that has more than anybody.
    assert_eq!(offer_with(&mut gate, 7, b, needs(4, 1), 4), Ok(Some(Decision::Admit(7))));
    let asked = offer(&mut gate, 8, a, needs(6, 1));
    assert_eq!(asked, Ok(Some(Decision::Reclaim { owner: a, lent: vec![6, 5, 4, 3, 2, 1] })));
}

#[test]
fn what_a_guest_has_beyond_its_provision_is_lent_to_it() {
    let mut gate = Gatekeeper::new(&host(10, 1000));
    let (a, b, c) = (gate.add_owner(), gate.add_owner(), gate.add_owner());
    provide(&mut gate, a, of_memory(4));
    assert_eq!(offer_with(&mut gate, 1, b, needs(8, 1), 6), Ok(Some(Decision::Admit(1))));
    run(&mut gate, [2, 3], c, needs(1, 1));
    // What counts is what is lent, and not who has most.
    let asked = offer(&mut gate, 4, a, needs(1, 1));
    assert_eq!(asked, Ok(Some(Decision::Reclaim { owner: a, lent: vec![3] })));
    let asked = offer(&mut gate, 5, a, needs(3, 1));
    assert_eq!(asked, Ok(Some(Decision::Reclaim { owner: a, lent: vec![1] })));
}

#[test]
fn a_request_within_the_guests_own_provision_is_backed_whatever_its_owner_has() {
    let mut gate = Gatekeeper::new(&host(10, 1000));
    let (a, b) = (gate.add_owner(), gate.add_owner());
    provide(&mut gate, a, of_memory(4));
    run(&mut gate, 1..=4, a, needs(1, 1));
    run(&mut gate, 5..=10, b, needs(1, 1));
    assert_eq!(offer(&mut gate, 11, a, needs(1, 1)), Ok(None), "its owner has used up its provision");
    gate.release(11);
    let asked = offer_with(&mut gate, 12, a, needs(3, 1), 3);
    assert_eq!(asked, Ok(Some(Decision::Reclaim { owner: a, lent: vec![10, 9, 8] })));
    (8..=10).for_each(|id| gate.release(id));
    assert_eq!(admitted(&mut gate), [12]);
    // Where only the owner itself has more than its provision, it is of the owner that is asked.
    (5..=7).for_each(|id| gate.release(id));
    run(&mut gate, 13..=15, a, needs(1, 1));
    let asked = offer_with(&mut gate, 16, a, needs(2, 1), 2);
    assert_eq!(asked, Ok(Some(Decision::Reclaim { owner: a, lent: vec![15, 14] })));
}

#[test]
fn a_backed_request_asks_as_soon_as_it_is_the_next() {
    let mut gate = Gatekeeper::new(&host(10, 1000));
    let (a, b, c) = (gate.add_owner(), gate.add_owner(), gate.add_owner());
    provide(&mut gate, c, of_memory(2));
    run(&mut gate, 1..=10, b, needs(1, 1));
    assert_eq!(offer(&mut gate, 11, a, needs(1, 1)), Ok(None));
    assert_eq!(offer_with(&mut gate, 12, a, needs(3, 1), 3), Ok(None), "the older of its owner is first");
    let asked = offer(&mut gate, 13, c, needs(2, 1));
    assert_eq!(asked, Ok(Some(Decision::Reclaim { owner: c, lent: vec![10, 9] })));
    assert_eq!(gate.next(), None);
    gate.release(11);
    assert_eq!(gate.next(), Some(Decision::Reclaim { owner: a, lent: vec![8, 7, 6] }));
}

#[test]
fn provisions_of_owners_and_guests_are_at_most_the_host() {
    let mut gate = Gatekeeper::new(&host(10, 1000));
    let (a, b) = (gate.add_owner(), gate.add_owner());
    provide(&mut gate, a, of_memory(4));
    run(&mut gate, [0], b, needs(10, 1));
    // More than it needs is not kept for it, and who waits counts as who runs.
    let asked = offer_with(&mut gate, 1, b, needs(5, 1), 9);
    assert_eq!(asked, Ok(Some(Decision::Reclaim { owner: b, lent: vec![0] })));
    let refused = offer_with(&mut gate, 2, b, needs(3, 1), 2).map_err(|e| e.to_string());
    let why =
        "with that, 11 bytes of memory would be provisioned in all, and the host gives 10 bytes of memory";
    assert_eq!(refused, Err(why.into()));
    let settings = Settings { provision: of_memory(2), ..Settings::default() };
    let refused = gate.set_owner(b, settings).map_err(|e| e.to_string());
    assert_eq!(refused, Err(why.into()));
    // A place that is kept keeps its provision too.
    gate.release(0);
    assert_eq!(admitted(&mut gate), [1]);
    gate.leave(1);
    assert!(matches!(gate.set_owner(b, settings), Err(BadSettings::BeyondHost { provisions: 11, .. })));
    gate.release(1);
    assert_eq!(gate.set_owner(b, settings), Ok(Vec::new()));
    assert_eq!(offer_with(&mut gate, 2, b, needs(4, 1), 4), Ok(Some(Decision::Admit(2))));
}

#[test]
fn memory_given_back_admits_others_and_is_asked_back_from_them() {
    let mut gate = Gatekeeper::new(&host(10, 1000));
    let (a, b) = (gate.add_owner(), gate.add_owner());
    assert_eq!(offer_with(&mut gate, 1, a, needs(6, 1), 6), Ok(Some(Decision::Admit(1))));
    run(&mut gate, [2], b, needs(4, 1));
    assert_eq!(offer(&mut gate, 3, b, needs(3, 1)), Ok(None));
    assert_eq!(gate.resize(1, 2), resized(1, true));
    assert_eq!(admitted(&mut gate), [3]);
    // What is left is enough for a part.
    assert_eq!(gate.resize(1, 3), resized(1, true));
    assert_eq!(gate.resize(1, 6), Some(Decision::Reclaim { owner: a, lent: vec![3] }));
    for memory in [3, 5, 6] {
        assert_eq!(gate.resize(1, memory), resized(1, false), "it waits for an answer");
    }
    assert_eq!(gate.next(), None);
    // Nobody takes what comes back.
    assert_eq!(offer(&mut gate, 4, b, needs(1, 1)), Ok(None));
    gate.release(3);
    assert_eq!(gate.next(), resized(1, true));
    assert_eq!(gate.next(), None);
    assert_eq!((gate.usage(a).allocated.memory, gate.allocated().memory), (6, 10));
}

#[test]
fn an_owners_provision_backs_growth_too() {
    let mut gate = Gatekeeper::new(&host(10, 1000));
    let (a, b) = (gate.add_owner(), gate.add_owner());
    provide(&mut gate, a, of_memory(6));
    run(&mut gate, [1, 2], a, needs(4, 1));
    assert_eq!((gate.resize(1, 1), gate.resize(2, 1)), (resized(1, true), resized(2, true)));
    run(&mut gate, 3..=10, b, needs(1, 1));
    assert_eq!(gate.resize(1, 4), Some(Decision::Reclaim { owner: a, lent: vec![10, 9, 8] }));
    assert_eq!(gate.resize(2, 3), resized(2, false), "what the first claims counts");
    // What comes back for both is given to both, in the order in which they asked.
    assert_eq!(gate.resize(2, 2), Some(Decision::Reclaim { owner: a, lent: vec![7] }));
    gate.release(7);
    assert_eq!(gate.next(), None);
    (8..=10).for_each(|id| gate.release(id));
    assert_eq!([gate.next(), gate.next(), gate.next()], [resized(1, true), resized(2, true), None]);
}

#[test]
fn growth_without_a_provision_needs_room_and_that_nobody_waits() {
    let mut gate = Gatekeeper::new(&host(10, 1000));
    let (a, b) = (gate.add_owner(), gate.add_owner());
    // What is kept of something else does not help.
    provide(&mut gate, a, Resources { cpu: 100, ..Resources::default() });
    assert_eq!(offer_with(&mut gate, 1, a, needs(6, 1), 1), Ok(Some(Decision::Admit(1))));
    assert_eq!(gate.resize(1, 7), resized(1, false), "it was not offered with that");
    assert_eq!(gate.resize(1, 6), resized(1, true));
    assert_eq!(gate.resize(1, 2), resized(1, true));
    run(&mut gate, [2], b, needs(4, 1));
    assert_eq!(offer(&mut gate, 3, b, needs(5, 1)), Ok(None));
    assert_eq!(gate.resize(3, 1), resized(3, false), "it has nothing yet");
    assert_eq!(gate.resize(1, 3), resized(1, false), "somebody waits");
    gate.release(3);
    assert_eq!(gate.resize(3, 1), None);
    assert_eq!(gate.resize(1, 3), resized(1, true));
    run(&mut gate, [4], b, needs(2, 1));
    assert_eq!(gate.resize(1, 5), resized(1, false), "there is no room");
    assert_eq!(gate.resize(1, 4), resized(1, true));
    gate.release(4);
    let budget = Budget { memory: Some(5), ..Budget::default() };
    let _ = gate.set_owner(a, Settings { budget, ..Settings::default() });
    assert_eq!(gate.resize(1, 6), resized(1, false), "its owner may not have that");
    assert_eq!(gate.resize(1, 5), resized(1, true));
}

#[test]
fn growth_without_a_provision_takes_nothing_that_comes_back() {
    let mut gate = Gatekeeper::new(&host(10, 1000));
    let (a, b) = (gate.add_owner(), gate.add_owner());
    assert_eq!(offer_with(&mut gate, 1, a, needs(6, 1), 6), Ok(Some(Decision::Admit(1))));
    run(&mut gate, [2], b, needs(4, 1));
    assert_eq!((gate.resize(1, 2), gate.resize(2, 1)), (resized(1, true), resized(2, true)));
    run(&mut gate, [3], b, needs(5, 1));
    assert_eq!(gate.resize(1, 6), Some(Decision::Reclaim { owner: a, lent: vec![3] }));
    assert_eq!(gate.resize(2, 2), resized(2, false), "there is room, and nobody is in line");
    gate.release(3);
    assert_eq!([gate.next(), gate.next()], [resized(1, true), None]);
    assert_eq!(gate.resize(2, 2), resized(2, true));
}

#[test]
fn growth_is_given_up_when_the_guest_is_asked_back_or_its_owner_changes() {
    let mut gate = Gatekeeper::new(&host(10, 10));
    let (a, b, c) = (gate.add_owner(), gate.add_owner(), gate.add_owner());
    let processors = Resources { cpu: 8, ..Resources::default() };
    provide(&mut gate, a, processors);
    assert_eq!(offer_with(&mut gate, 1, b, needs(6, 5), 6), Ok(Some(Decision::Admit(1))));
    assert_eq!(gate.resize(1, 2), resized(1, true));
    run(&mut gate, [2], c, needs(8, 1));
    let asked = Some(Decision::Reclaim { owner: b, lent: vec![2] });
    assert_eq!(gate.resize(1, 6), asked);
    // Its owner's settings: what was asked back serves the next who asks.
    provide(&mut gate, b, Resources::default());
    assert_eq!(gate.resize(1, 1), resized(1, false), "it waits for the answer");
    assert_eq!([gate.next(), gate.next()], [resized(1, false), None]);
    assert_eq!(gate.resize(1, 6), None);
    // Its memory is its own, but not its processors.
    assert_eq!(offer(&mut gate, 3, a, needs(0, 6)), Ok(Some(Decision::Reclaim { owner: a, lent: vec![1] })));
    assert_eq!([gate.next(), gate.next()], [resized(1, false), None]);
    assert_eq!(gate.resize(1, 1), resized(1, false), "it is to end");
    gate.release(1);
    assert_eq!(admitted(&mut gate), [3]);
    assert_eq!(gate.allocated(), Resources { machines: 2, guests: 2, ..needs(8, 7) });
}

#[test]
fn who_leaves_comes_back_for_all_that_it_was_offered_with() {
    let mut gate = Gatekeeper::new(&host(10, 1000));
    let (a, b) = (gate.add_owner(), gate.add_owner());
    assert_eq!(offer_with(&mut gate, 1, a, needs(6, 1), 6), Ok(Some(Decision::Admit(1))));
    assert_eq!(gate.resize(1, 2), resized(1, true));
    run(&mut gate, [2, 3], b, needs(4, 1));
    assert_eq!(gate.resize(1, 5), Some(Decision::Reclaim { owner: a, lent: vec![3] }));
    // It gets no answer any more.
    gate.leave(1);
    assert_eq!(gate.next(), None);
    assert_eq!(gate.allocated().memory, 8);
    assert_eq!(gate.rejoin(1), Ok(()));
    assert_eq!(gate.next(), None, "what was asked back already is enough");
    gate.release(3);
    assert_eq!(admitted(&mut gate), [1]);
    assert_eq!(gate.usage(a).allocated.memory, 6);
}

#[test]
fn who_has_gone_is_not_told_that_its_growth_was_given_up() {
    for go in [Gatekeeper::leave, Gatekeeper::release] {
        let mut gate = Gatekeeper::new(&host(10, 1000));
        let (a, b) = (gate.add_owner(), gate.add_owner());
        assert_eq!(offer_with(&mut gate, 1, a, needs(6, 1), 6), Ok(Some(Decision::Admit(1))));
        assert_eq!(gate.resize(1, 1), resized(1, true));
        run(&mut gate, [2], b, needs(9, 1));
        assert_eq!(gate.resize(1, 6), Some(Decision::Reclaim { owner: a, lent: vec![2] }));
        provide(&mut gate, a, Resources::default());
        go(&mut gate, 1);
        assert_eq!(gate.next(), None);
    }
}

#[test]
fn growth_that_is_given_up_is_its_owners_to_use() {
    let mut gate = Gatekeeper::new(&host(10, 10));
    let (a, b, c) = (gate.add_owner(), gate.add_owner(), gate.add_owner());
    provide(&mut gate, a, Resources { cpu: 8, ..Resources::default() });
    let budget = Budget { memory: Some(7), ..Budget::default() };
    assert_eq!(gate.set_owner(b, Settings { budget, ..Settings::default() }), Ok(Vec::new()));
    assert_eq!(offer_with(&mut gate, 1, b, needs(6, 5), 6), Ok(Some(Decision::Admit(1))));
    assert_eq!(gate.resize(1, 2), resized(1, true));
    run(&mut gate, [2], c, needs(5, 1));
    assert_eq!(gate.resize(1, 6), Some(Decision::Reclaim { owner: b, lent: vec![2] }));
    assert_eq!(offer_with(&mut gate, 3, b, needs(3, 1), 3), Ok(None), "more than the budget with the growth");
    assert_eq!(gate.next(), None);
    assert_eq!(offer(&mut gate, 4, a, needs(0, 6)), Ok(Some(Decision::Reclaim { owner: a, lent: vec![1] })));
    assert_eq!([gate.next(), gate.next()], [resized(1, false), Some(Decision::Admit(3))]);
}

#[test]
fn what_is_guarded_may_become_more_or_less() {
    let mut gate = Gatekeeper::new(&host(10, 10));
    let (a, b) = (gate.add_owner(), gate.add_owner());
    run(&mut gate, 1..=5, a, needs(2, 2));
    for id in [6, 7] {
        assert_eq!(offer(&mut gate, id, b, needs(id, 1)), Ok(None));
    }
    // Less: who runs keeps what it has, and who can never fit now is told.
    let refused = gate.set_limits(&host(6, 10)).expect("nothing is provisioned");
    let too_large = Refusal::TooLargeForHost { kind: Kind::Memory, needs: 7, most: 6 };
    assert_eq!(refused, [(7, too_large)]);
    assert_eq!((admitted(&mut gate), count(&gate, a)), (vec![], 5));
    gate.release(1);
    gate.release(2);
    assert_eq!(admitted(&mut gate), [], "6 of 6 are taken");
    // More: who waits is admitted.
    assert_eq!(gate.set_limits(&host(12, 10)), Ok(Vec::new()));
    assert_eq!(admitted(&mut gate), [6]);
    // What is provisioned is there.
    provide(&mut gate, b, of_memory(9));
    let beyond = BadSettings::BeyondHost { kind: Kind::Memory, provisions: 9, host: 8 };
    assert_eq!(gate.set_limits(&host(8, 10)), Err(beyond));
    assert_eq!(gate.host().memory, Some(12));
    // The line may be shorter than those in it: they stay, nobody joins them.
    for id in 20..23 {
        assert_eq!(offer(&mut gate, id, a, needs(12, 1)), Ok(None));
    }
    assert_eq!(gate.set_limits(&Limits { waiting: 2, ..host(12, 10) }), Ok(Vec::new()));
    assert_eq!(offer(&mut gate, 23, a, needs(12, 1)), Err(Refusal::LineFull(2)));
}

#[test]
fn a_claim_is_given_up_when_what_is_guarded_changes() {
    let mut gate = Gatekeeper::new(&host(10, 10));
    let (a, b) = (gate.add_owner(), gate.add_owner());
    provide(&mut gate, b, of_memory(5));
    run(&mut gate, 1..=2, a, needs(5, 1));
    let asked = offer(&mut gate, 3, b, needs(5, 1));
    assert_eq!(asked, Ok(Some(Decision::Reclaim { owner: b, lent: vec![2] })));
    assert_eq!(gate.set_limits(&host(15, 10)), Ok(Vec::new()));
    assert_eq!(admitted(&mut gate), [3]);
    // Whoever was asked back goes all the same.
    gate.release(2);
    assert_eq!(gate.allocated().memory, 10);
}
