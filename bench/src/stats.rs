//! Samples of one quantity.

/// Values of one quantity, in the order in which they were measured.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Adds one value. One that is not a number is a bug of the measurement.
    pub fn push(&mut self, value: f64) {
        assert!(value.is_finite(), "a sample must be a number");
        self.0.push(value);
    }

    /// In the order in which they came.
    #[must_use]
    pub fn values(&self) -> &[f64] {
        &self.0
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The middle value; of an even number, the mean of the two in the middle. `None` without samples.
    #[must_use]
    pub fn median(&self) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => None,
            n if n % 2 == 1 => Some(sorted[middle]),
            _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
        }
    }

    /// The value that so large a part of the samples does not exceed (nearest rank): 0.99 is the 99th percentile. `None` without samples.
    #[must_use]
    pub fn quantile(&self, part: f64) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (part * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied()
    }

    /// Least, median, greatest. `None` without samples.
    #[must_use]
    pub fn spread(&self) -> Option<(f64, f64, f64)> {
        Some((self.min()?, self.median()?, self.max()?))
    }

    /// The least.
    #[must_use]
    pub fn min(&self) -> Option<f64> {
        self.0.iter().copied().min_by(f64::total_cmp)
    }

    /// The greatest.
    #[must_use]
    pub fn max(&self) -> Option<f64> {
        self.0.iter().copied().max_by(f64::total_cmp)
    }
}

impl Extend<f64> for Samples {
    fn extend<I: IntoIterator<Item = f64>>(&mut self, values: I) {
        for value in values {
            self.push(value);
        }
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        let mut samples = Samples::default();
        samples.extend(values);
        samples
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(Samples::default().median(), None);
        assert_eq!([3.0, 1.0, 9.0].into_iter().collect::<Samples>().median(), Some(3.0));
        assert_eq!([4.0, 1.0, 2.0, 9.0].into_iter().collect::<Samples>().median(), Some(3.0));
    }

    #[test]
    fn a_quantile_is_one_of_the_samples() {
        let samples: Samples = (1..=200).rev().map(f64::from).collect();
        assert_eq!((samples.quantile(0.99), samples.quantile(0.5)), (Some(198.0), Some(100.0)));
        assert_eq!((samples.quantile(1.0), samples.quantile(0.0)), (Some(200.0), Some(1.0)));
        assert_eq!(Samples::default().quantile(0.99), None);
    }

    #[test]
    fn the_spread_is_that_of_all_runs() {
        let samples: Samples = [3.0, -1.0, 9.0].into_iter().collect();
        assert_eq!((samples.min(), samples.max(), samples.len()), (Some(-1.0), Some(9.0), 3));
    }
}
