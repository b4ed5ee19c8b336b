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
    gate.offer(id, &Request { owner, priority: 0, age: id, demand })
}

fn admitted(gate: &mut Gatekeeper) -> Vec<u64> {
    std::iter::from_fn(|| gate.next())
        .map(|decision| match decision {
            Decision::Admit(id) => id,
            other @ Decision::Reclaim { .. } => panic!("{other:?}"),
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
        let request = Request { owner: a, priority, age: id, demand: needs(1, 1) };
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
    for id in 3..12 {
        assert_eq!(offer(&mut gate, id, b, needs(1, 1)), Ok(Some(Decision::Admit(id))));
    }
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
    for id in 1..=10 {
        assert_eq!(offer(&mut gate, id, small, needs(1, 1)), Ok(Some(Decision::Admit(id))));
    }
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
    let provision = Resources { memory: 4, ..Resources::default() };
    let _ = gate.set_owner(a, Settings { provision, ..Settings::default() });
    for id in 1..=8 {
        let request =
            Request { owner: b, priority: if id == 7 { 0 } else { 9 }, age: id, demand: needs(1, 1) };
        assert_eq!(gate.offer(id, &request), Ok(Some(Decision::Admit(id))));
    }
    for id in 9..=10 {
        assert_eq!(offer(&mut gate, id, c, needs(1, 1)), Ok(Some(Decision::Admit(id))));
    }
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
    let request = Request { owner: a, priority: 1, age: 14, demand: needs(2, 1) };
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
    for (owner, memory) in [(a, 4), (b, 5)] {
        let provision = Resources { memory, ..Resources::default() };
        assert_eq!(gate.set_owner(owner, Settings { provision, ..Settings::default() }), Ok(Vec::new()));
    }
    let beyond =
        Settings { provision: Resources { memory: 2, ..Resources::default() }, ..Settings::default() };
    let refused = gate.set_owner(c, beyond).map_err(|e| e.to_string());
    let why =
        "with that, 11 bytes of memory would be provisioned in all, and the host gives 10 bytes of memory";
    assert_eq!(refused, Err(why.into()));
    for id in 1..=5 {
        assert_eq!(offer(&mut gate, id, b, needs(1, 1)), Ok(Some(Decision::Admit(id))));
    }
    for id in 6..=10 {
        assert_eq!(offer(&mut gate, id, c, needs(1, 1)), Ok(Some(Decision::Admit(id))));
    }
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
