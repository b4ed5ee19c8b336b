//! Which of many is asked for: Zipf's law, by which the second is asked for half as often as the first, the third a third as often.
//!
//! The same seed gives the same sequence, so that every run asks for the same.

/// A source of ranks.
#[derive(Clone, Debug)]
pub struct Zipf {
    /// The chance of a rank or a lower one.
    below: Vec<f64>,
    random: u64,
}

impl Zipf {
    /// Ranks from 0 to `count - 1`; `exponent` 0 is uniform.
    #[must_use]
    pub fn new(count: usize, exponent: f64, seed: u64) -> Zipf {
        let weight = |rank: usize| (rank as f64 + 1.0).powf(-exponent);
        let total: f64 = (0..count).map(weight).sum();
        let below = (0..count).scan(0.0, |sum, rank| {
            *sum += weight(rank) / total;
            Some(*sum)
        });
        Zipf { below: below.collect(), random: seed }
    }

    /// The next rank.
    pub fn draw(&mut self) -> usize {
        // SplitMix64 (Steele, Lea and Flood, OOPSLA '14); the upper 53 bits are a fraction.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.random;
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        let fraction = (bits >> 11) as f64 / (1u64 << 53) as f64;
        // The last chance may be a little less than 1.
        self.below.partition_point(|b| *b <= fraction).min(self.below.len().saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(zipf: &mut Zipf, draws: usize) -> Vec<usize> {
        let mut counts = vec![0; zipf.below.len()];
        (0..draws).for_each(|_| counts[zipf.draw()] += 1);
        counts
    }

    #[test]
    fn a_rank_is_drawn_as_often_as_the_law_says() {
        // 1 + 1/2 + 1/3 + 1/4 = 25/12.
        let counts = counts(&mut Zipf::new(4, 1.0, 1), 100_000);
        for (rank, count) in counts.iter().enumerate() {
            let expected = 100_000.0 * 12.0 / 25.0 / (rank as f64 + 1.0);
            assert!((*count as f64 / expected - 1.0).abs() < 0.05, "{rank}: {count}, not {expected}");
        }
    }

    #[test]
    fn every_rank_is_drawn_and_no_other() {
        assert!(counts(&mut Zipf::new(100, 0.0, 7), 10_000).iter().all(|count| *count > 0));
        assert_eq!(Zipf::new(1, 1.0, 3).draw(), 0);
        let (mut one, mut other) = (Zipf::new(9, 1.0, 5), Zipf::new(9, 1.0, 5));
        assert!((0..100).all(|_| one.draw() == other.draw()));
    }
}
