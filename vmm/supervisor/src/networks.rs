//! Networks: guests of different ones do not reach each other. Each has a number, which cells tell them apart by.
//!
//! Number 0 is everybody's of whom nothing is said: that of the owner `default`. Each other owner has one of its own, and makes more by
//! name.

use std::collections::BTreeMap;

use foraker_api::Network;
use foraker_api::owner::{DEFAULT, is_name};

use crate::refused::Refused;
use crate::store::StoredNetwork;

/// Most networks with names.
const MOST: usize = 65_536;

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Networks {
    /// Each owner's own.
    of_owners: BTreeMap<String, u32>,
    named: BTreeMap<String, StoredNetwork>,
    /// The greatest number ever given.
    last: u32,
}

impl Networks {
    /// Those that stand in the registry.
    pub(crate) fn new(of_owners: BTreeMap<String, u32>, named: BTreeMap<String, StoredNetwork>) -> Networks {
        let numbers = of_owners.values().copied().chain(named.values().map(|n| n.number));
        Networks { last: numbers.max().unwrap_or(0), of_owners, named }
    }

    /// The number of an owner's own network, given now if it has none yet.
    pub(crate) fn of_owner(&mut self, owner: &str) -> u32 {
        if owner == DEFAULT {
            return 0;
        }
        if let Some(number) = self.of_owners.get(owner) {
            return *number;
        }
        self.last = self.last.saturating_add(1);
        self.of_owners.insert(owner.to_owned(), self.last);
        self.last
    }

    /// The number of the network that a guest of an owner asks for.
    ///
    /// # Errors
    /// It is not there, or another owner's.
    pub(crate) fn number(&mut self, owner: &str, name: Option<&str>) -> Result<u32, Refused> {
        let Some(name) = name else { return Ok(self.of_owner(owner)) };
        match self.named.get(name) {
            Some(network) if network.owner == owner => Ok(network.number),
            Some(network) => Err(Refused::Conflict(format!(
                "network {name} is that of owner {}: guests of owner {owner} cannot be in it",
                network.owner
            ))),
            None => Err(Refused::NotFound(format!(
                "there is no network {name}: make it with `vmm network create {name} --owner {owner}`"
            ))),
        }
    }

    /// Makes one. None if it is there already.
    ///
    /// # Errors
    /// It is another owner's, or its name is none.
    pub(crate) fn make(&mut self, name: &str, owner: &str) -> Result<Option<StoredNetwork>, Refused> {
        for name in [name, owner] {
            if !is_name(name) {
                return Err(Refused::Invalid(format!(
                    "'{name}' is no name: use 1 to 64 letters, digits, '-', '_' and '.'"
                )));
            }
        }
        match self.named.get(name) {
            Some(there) if there.owner == owner => return Ok(None),
            Some(there) => {
                return Err(Refused::Conflict(format!("network {name} is that of owner {}", there.owner)));
            }
            None if self.named.len() >= MOST => {
                return Err(Refused::Conflict(format!("there are {MOST} networks already")));
            }
            None => {}
        }
        self.last = self.last.saturating_add(1);
        let made = StoredNetwork { owner: owner.to_owned(), number: self.last };
        self.named.insert(name.to_owned(), made.clone());
        Ok(Some(made))
    }

    /// One of them.
    pub(crate) fn get(&self, name: &str) -> Result<&StoredNetwork, Refused> {
        self.named
            .get(name)
            .ok_or_else(|| Refused::NotFound(format!("there is no network {name}: see `vmm network ls`")))
    }

    /// Removes one.
    pub(crate) fn remove(&mut self, name: &str) {
        self.named.remove(name);
    }

    /// Those with names; `guests` counts those of each number.
    pub(crate) fn list(&self, guests: impl Fn(u32) -> usize) -> Vec<Network> {
        let listed = |(name, network): (&String, &StoredNetwork)| Network {
            name: name.clone(),
            owner: network.owner.clone(),
            guests: guests(network.number),
        };
        self.named.iter().map(listed).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_never_given_twice() {
        let mut networks = Networks::default();
        assert_eq!((networks.of_owner("default"), networks.of_owner("a"), networks.of_owner("b")), (0, 1, 2));
        let blue = networks.make("blue", "a").unwrap().unwrap();
        assert_eq!((blue.number, networks.make("blue", "a")), (3, Ok(None)));
        assert!(matches!(networks.make("blue", "b"), Err(Refused::Conflict(_))));
        assert!(matches!(networks.make("b/d", "b"), Err(Refused::Invalid(_))));
        assert_eq!(networks.number("a", Some("blue")), Ok(3));
        assert!(matches!(networks.number("b", Some("blue")), Err(Refused::Conflict(_))));
        assert!(matches!(networks.number("b", Some("red")), Err(Refused::NotFound(_))));
        networks.remove("blue");
        assert_eq!(networks.make("blue", "b").unwrap().unwrap().number, 4);
        let again = Networks::new([("a".to_owned(), 1)].into(), [("blue".to_owned(), blue)].into());
        assert_eq!(again.last, 3);
    }
}
