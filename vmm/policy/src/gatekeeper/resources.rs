//! What guests need and the host has: amounts of each kind of resource, and the shares that follow from them.

use std::num::NonZeroU32;
use std::ops::{Index, IndexMut};

/// A kind of resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Bytes.
    Memory,
    /// Machines of KVM.
    Machines,
    /// Thousandths of a processor.
    Cpu,
    /// Bytes per second, both directions together.
    Bandwidth,
    /// Guests.
    Guests,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 5] = [Kind::Memory, Kind::Machines, Kind::Cpu, Kind::Bandwidth, Kind::Guests];

    /// An amount of it as people write it.
    #[must_use]
    pub fn text(self, amount: u64) -> String {
        match self {
            Kind::Memory => format!("{} of memory", bytes(amount)),
            Kind::Machines => format!("{amount} machines"),
            Kind::Cpu => format!("{} processors", thousandths(amount)),
            Kind::Bandwidth => format!("{}/s of bandwidth", bytes(amount)),
            Kind::Guests => format!("{amount} guests"),
        }
    }
}

fn bytes(amount: u64) -> String {
    let shift = amount.checked_ilog2().map_or(0, |log| log / 10 * 10).min(40);
    let unit = ["bytes", "KiB", "MiB", "GiB", "TiB"][shift as usize / 10];
    let tenths = (u128::from(amount) * 10) >> shift;
    if tenths.is_multiple_of(10) {
        format!("{} {unit}", tenths / 10)
    } else {
        format!("{}.{} {unit}", tenths / 10, tenths % 10)
    }
}

fn thousandths(amount: u64) -> String {
    let text = format!("{}.{:03}", amount / 1000, amount % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Something for each kind of resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerKind<T> {
    /// For memory.
    pub memory: T,
    /// For machines.
    pub machines: T,
    /// For processors.
    pub cpu: T,
    /// For bandwidth.
    pub bandwidth: T,
    /// For the number of guests.
    pub guests: T,
}

impl<T> PerKind<T> {
    /// What `value` says for each kind.
    pub fn from_fn(mut value: impl FnMut(Kind) -> T) -> PerKind<T> {
        PerKind {
            memory: value(Kind::Memory),
            machines: value(Kind::Machines),
            cpu: value(Kind::Cpu),
            bandwidth: value(Kind::Bandwidth),
            guests: value(Kind::Guests),
        }
    }
}

impl<T> Index<Kind> for PerKind<T> {
    type Output = T;

    fn index(&self, kind: Kind) -> &T {
        match kind {
            Kind::Memory => &self.memory,
            Kind::Machines => &self.machines,
            Kind::Cpu => &self.cpu,
            Kind::Bandwidth => &self.bandwidth,
            Kind::Guests => &self.guests,
        }
    }
}

impl<T> IndexMut<Kind> for PerKind<T> {
    fn index_mut(&mut self, kind: Kind) -> &mut T {
        match kind {
            Kind::Memory => &mut self.memory,
            Kind::Machines => &mut self.machines,
            Kind::Cpu => &mut self.cpu,
            Kind::Bandwidth => &mut self.bandwidth,
            Kind::Guests => &mut self.guests,
        }
    }
}

/// An amount of each kind. Sums saturate, so that nothing that a client asks for wraps around.
pub type Resources = PerKind<u64>;

impl Resources {
    /// Both together.
    #[must_use]
    pub fn plus(&self, other: &Resources) -> Resources {
        PerKind::from_fn(|k| self[k].saturating_add(other[k]))
    }

    /// What is left without `other`, nothing where it is more.
    #[must_use]
    pub fn minus(&self, other: &Resources) -> Resources {
        PerKind::from_fn(|k| self[k].saturating_sub(other[k]))
    }

    /// What is in both: the less of each kind.
    #[must_use]
    pub fn at_most(&self, other: &Resources) -> Resources {
        PerKind::from_fn(|k| self[k].min(other[k]))
    }

    /// Whether there is nothing of any kind.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Resources::default()
    }
}

/// The most of each kind; None where there is no bound.
pub type Budget = PerKind<Option<u64>>;

impl Budget {
    /// A kind of which `amount` is more than the budget, with the budget.
    #[must_use]
    pub fn exceeded_by(&self, amount: &Resources) -> Option<(Kind, u64)> {
        Kind::ALL.into_iter().find_map(|k| self[k].filter(|most| amount[k] > *most).map(|most| (k, most)))
    }

    /// Whether `amount` is within it.
    #[must_use]
    pub fn holds(&self, amount: &Resources) -> bool {
        self.exceeded_by(amount).is_none()
    }

    /// The dominant share of `amount`: the largest part that it is of what this budget has of a kind, divided by the owner's weight.
    #[must_use]
    pub fn share(&self, amount: &Resources, weight: NonZeroU32) -> Share {
        let of = |k| {
            let whole = self[k].filter(|_| amount[k] > 0)?.max(1);
            Some((u128::from(amount[k]) << 64) / (u128::from(whole) * u128::from(weight.get())))
        };
        Share(Kind::ALL.into_iter().filter_map(of).max().unwrap_or(0))
    }
}

/// A part of the whole, in units of 2^-64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u128);

impl Share {
    /// As a fraction, 1 for the whole.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "for people to read")]
    pub fn fraction(self) -> f64 {
        self.0 as f64 / (1u128 << 64) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_read_well() {
        let texts = [
            (Kind::Memory, 3 << 29, "1.5 GiB of memory"),
            (Kind::Memory, 0, "0 bytes of memory"),
            (Kind::Memory, u64::MAX, "16777215.9 TiB of memory"),
            (Kind::Cpu, 2500, "2.5 processors"),
            (Kind::Cpu, 1000, "1 processors"),
            (Kind::Bandwidth, 1 << 20, "1 MiB/s of bandwidth"),
            (Kind::Guests, 7, "7 guests"),
        ];
        for (kind, amount, text) in texts {
            assert_eq!(kind.text(amount), text);
        }
    }

    #[test]
    fn the_dominant_share_is_the_largest_of_what_is_limited() {
        let host = Budget { memory: Some(100), cpu: Some(1000), ..Budget::default() };
        let used = Resources { memory: 25, cpu: 500, bandwidth: u64::MAX, ..Resources::default() };
        let share = |weight| host.share(&used, NonZeroU32::new(weight).unwrap()).fraction();
        assert!((share(1) - 0.5).abs() < 1e-9 && (share(2) - 0.25).abs() < 1e-9);
        assert_eq!(host.share(&Resources::default(), NonZeroU32::MIN), Share::default());
        assert_eq!(host.exceeded_by(&Resources { memory: 101, ..used }), Some((Kind::Memory, 100)));
        assert!(host.holds(&used));
    }
}
