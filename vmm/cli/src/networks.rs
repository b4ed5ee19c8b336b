//! Numbers for networks that people name.

use std::collections::HashMap;

/// The names so far, and their numbers.
#[derive(Debug, Default)]
pub(crate) struct Networks(HashMap<String, u32>);

impl Networks {
    /// The number of this name, the same each time. Never 0, which is the network without a name.
    pub(crate) fn number(&mut self, name: &str) -> u32 {
        let next = u32::try_from(self.0.len()).unwrap_or(u32::MAX).saturating_add(1);
        *self.0.entry(name.to_owned()).or_insert(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_number() {
        let mut networks = Networks::default();
        let numbers = ["blue", "red", "blue", "", "red"].map(|name| networks.number(name));
        assert_eq!(numbers, [1, 2, 1, 3, 2]);
    }
}
