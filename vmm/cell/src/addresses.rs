//! Which IPv4 address a new guest gets.
//!
//! Addresses that nobody had yet come first, in ascending order; then those that were given back, the one that has rested longest first, because others may
//! still think of who had it before: clients with connections half closed, caches. Every operation takes constant time on average. Pure.

use std::collections::{HashMap, VecDeque};
use std::net::Ipv4Addr;

use foraker_net::switch::MAX_PORTS;

use crate::subnet::Subnet;

/// Addresses that are handed out unasked, at most: twice as many as a switch has ports, so that half of them rest, and what is known of them stays small in
/// a huge subnet.
const MOST: u32 = 2 * MAX_PORTS as u32;

/// Why a guest cannot have the address that it wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unavailable {
    /// It is none of a guest in this subnet.
    Outside,
    /// Another guest has it.
    Taken,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Held,
    /// Given back, as the entry of this number in `rested`.
    Free(u64),
}

/// The addresses of a subnet.
#[derive(Debug)]
pub(crate) struct Addresses {
    subnet: Subnet,
    /// The lowest host part that was not handed out in its turn.
    fresh: u32,
    /// Host parts that somebody has or had.
    states: HashMap<u32, State>,
    /// Host parts that were given back, oldest first. An entry whose number is not that of the state is void.
    rested: VecDeque<(u32, u64)>,
    /// Entries of `rested` that are not void.
    free: usize,
    given_back: u64,
}

impl Addresses {
    pub(crate) fn new(subnet: Subnet) -> Addresses {
        Addresses {
            subnet,
            fresh: 1,
            states: HashMap::new(),
            rested: VecDeque::new(),
            free: 0,
            given_back: 0,
        }
    }

    /// The next address; None if guests have them all.
    pub(crate) fn take(&mut self) -> Option<Ipv4Addr> {
        let end = self.subnet.broadcast_part().min(MOST);
        while self.fresh < end {
            let host = self.fresh;
            self.fresh += 1;
            let address = self.subnet.address(host);
            if address != self.subnet.gateway() && !self.states.contains_key(&host) {
                self.states.insert(host, State::Held);
                return Some(address);
            }
        }
        while let Some((host, number)) = self.rested.pop_front() {
            if self.states.get(&host) == Some(&State::Free(number)) {
                self.states.insert(host, State::Held);
                self.free -= 1;
                return Some(self.subnet.address(host));
            }
        }
        None
    }

    /// Takes this address.
    pub(crate) fn take_this(&mut self, address: Ipv4Addr) -> Result<(), Unavailable> {
        let host = self.subnet.host_part(address).filter(|_| address != self.subnet.gateway());
        let host = host.ok_or(Unavailable::Outside)?;
        match self.states.insert(host, State::Held) {
            Some(State::Held) => return Err(Unavailable::Taken),
            Some(State::Free(_)) => self.free -= 1,
            None => {}
        }
        // Guests that come and go with the same address must not let void entries pile up.
        if self.rested.len() > 2 * self.free + 16 {
            let states = &self.states;
            self.rested.retain(|(host, number)| states.get(host) == Some(&State::Free(*number)));
        }
        Ok(())
    }

    /// Gives an address back. One that nobody holds stays as it is.
    pub(crate) fn give_back(&mut self, address: Ipv4Addr) {
        let Some(host) = self.subnet.host_part(address) else { return };
        if self.states.get(&host) != Some(&State::Held) {
            return;
        }
        if host >= MOST {
            self.states.remove(&host);
            return;
        }
        self.given_back += 1;
        self.states.insert(host, State::Free(self.given_back));
        self.rested.push_back((host, self.given_back));
        self.free += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn of(gateway: [u8; 4], prefix: u8) -> Addresses {
        Addresses::new(Subnet::new(gateway.into(), prefix))
    }

    #[test]
    fn a_small_subnet_is_used_up_and_again_oldest_first() {
        // .0 is the network's, .3 the host's, .7 everybody's.
        let mut addresses = of([10, 9, 8, 3], 29);
        let all: Vec<_> = std::iter::from_fn(|| addresses.take()).map(|a| a.octets()[3]).collect();
        assert_eq!(all, [1, 2, 4, 5, 6]);
        for last in [5, 1, 4] {
            addresses.give_back(Ipv4Addr::new(10, 9, 8, last));
        }
        // Twice is once.
        addresses.give_back(Ipv4Addr::new(10, 9, 8, 5));
        assert_eq!(addresses.take_this(Ipv4Addr::new(10, 9, 8, 1)), Ok(()));
        let again: Vec<_> = std::iter::from_fn(|| addresses.take()).map(|a| a.octets()[3]).collect();
        assert_eq!(again, [5, 4]);
    }

    #[test]
    fn what_no_guest_can_have_is_refused() {
        let mut addresses = of([10, 9, 0, 1], 16);
        for outside in [[10, 9, 0, 0], [10, 9, 0, 1], [10, 9, 255, 255], [10, 8, 0, 2], [11, 9, 0, 2]] {
            assert_eq!(addresses.take_this(outside.into()), Err(Unavailable::Outside), "{outside:?}");
        }
        assert_eq!(addresses.take_this([10, 9, 255, 254].into()), Ok(()));
        assert_eq!(addresses.take_this([10, 9, 255, 254].into()), Err(Unavailable::Taken));
        for (gateway, prefix) in [([10, 9, 0, 1], 32), ([10, 9, 0, 1], 31), ([10, 9, 0, 1], 30)] {
            let one = (prefix == 30).then_some(Ipv4Addr::new(10, 9, 0, 2));
            let mut addresses = of(gateway, prefix);
            assert_eq!((addresses.take(), addresses.take()), (one, None), "/{prefix}");
        }
    }

    #[test]
    fn starts_are_not_limited_by_the_size_of_the_subnet() {
        let mut addresses = of([10, 9, 0, 1], 16);
        let mut first = None;
        for round in 0..200_000 {
            let address = addresses.take().expect("one is free");
            assert_ne!(first.replace(address), Some(address), "{round}: used again at once");
            addresses.give_back(address);
        }
        assert!(addresses.states.len() <= 65_533);
    }

    #[test]
    fn a_huge_subnet_costs_what_is_used_of_it() {
        let mut addresses = of([10, 0, 0, 1], 8);
        for _ in 0..3 * MOST {
            let address = addresses.take().expect("one is free");
            addresses.give_back(address);
        }
        for host in 0..1000 {
            let far = Ipv4Addr::from_bits(Ipv4Addr::new(10, 200, 0, 0).to_bits() + host);
            assert_eq!(addresses.take_this(far), Ok(()));
            addresses.give_back(far);
        }
        assert!(addresses.states.len() <= MOST as usize);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Take,
        TakeThis(u8),
        GiveBack(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            Just(Step::Take),
            (0_u8..32).prop_map(Step::TakeThis),
            (0_u8..32).prop_map(Step::GiveBack)
        ]
    }

    proptest! {
        /// Against a plain list: nobody gets another's address, none is lost, and the one that rested longest comes first.
        #[test]
        fn as_a_plain_list_would(steps in proptest::collection::vec(step(), 0..400)) {
            let mut addresses = of([10, 9, 8, 1], 27);
            let mut held: HashSet<u8> = HashSet::new();
            let mut next: Vec<u8> = (2..31).collect();
            for step in steps {
                match step {
                    Step::Take => {
                        let expected = (!next.is_empty()).then(|| next.remove(0));
                        prop_assert_eq!(addresses.take().map(|a| a.octets()[3]), expected);
                        held.extend(expected);
                    }
                    Step::TakeThis(host) => {
                        let expected = if !(2..31).contains(&host) {
                            Err(Unavailable::Outside)
                        } else if held.insert(host) {
                            next.retain(|h| *h != host);
                            Ok(())
                        } else {
                            Err(Unavailable::Taken)
                        };
                        prop_assert_eq!(addresses.take_this([10, 9, 8, host].into()), expected);
                    }
                    Step::GiveBack(host) => {
                        addresses.give_back([10, 9, 8, host].into());
                        if held.remove(&host) {
                            next.push(host);
                        }
                    }
                }
                prop_assert!(addresses.rested.len() <= 2 * addresses.free + 17 + 29);
            }
        }
    }
}
