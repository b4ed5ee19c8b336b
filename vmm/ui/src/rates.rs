//! From counters to events in each second, over the last second.

use std::collections::VecDeque;

/// Looks over which a rate is a mean: a second of them.
const WINDOW: usize = 10;

/// Counters at the last looks.
#[derive(Debug, Default)]
pub(crate) struct Rates(VecDeque<(f64, Vec<Option<u64>>)>);

impl Rates {
    /// The counters at `now` (seconds); answers how much each grew in a second, none where it is not known.
    pub(crate) fn of(&mut self, now: f64, counters: Vec<Option<u64>>) -> Vec<Option<f64>> {
        if self.0.len() > WINDOW {
            self.0.pop_front();
        }
        let rates = match self.0.front() {
            Some((then, old)) if now > *then => {
                let rate = |(at, new): (usize, &Option<u64>)| {
                    let grown = new.as_ref()?.saturating_sub((*old.get(at)?)?);
                    Some(tenths(grown as f64 / (now - then)))
                };
                counters.iter().enumerate().map(rate).collect()
            }
            _ => counters.iter().map(|_| None).collect(),
        };
        self.0.push_back((now, counters));
        rates
    }

    /// Nobody looked for a while: what comes next says nothing about then.
    pub(crate) fn forget(&mut self) {
        self.0.clear();
    }
}

/// No more digits than anybody reads.
fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_mean_over_a_second() {
        let mut rates = Rates::default();
        assert_eq!(rates.of(0.0, vec![Some(5), None]), [None, None]);
        for tenth in 1..=30_u32 {
            let got = rates.of(f64::from(tenth) / 10.0, vec![Some(5 + 100 * u64::from(tenth)), None]);
            assert_eq!(got, [Some(1000.0), None]);
        }
        // A counter that falls (a cell began anew) is no negative rate.
        assert_eq!(rates.of(3.1, vec![Some(0), Some(7)]), [Some(0.0), None]);
        rates.forget();
        assert_eq!(rates.of(9.0, vec![Some(0), Some(7)]), [None, None]);
    }
}
