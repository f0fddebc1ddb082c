//! Numbers that a seed decides: SplitMix64 ([Steele et al., 2014](https://doi.org/10.1145/2660193.2660195)).

use std::time::Duration;

/// A source of numbers.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `0..limit`.
    ///
    /// # Panics
    ///
    /// Panics if `limit` is 0.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// A part of `whole`.
    pub(super) fn part_of(&mut self, whole: Duration) -> Duration {
        whole.mul_f64((self.next() >> 11) as f64 / (1u64 << 53) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_published_generator() {
        let mut random = Random::new(1_234_567);
        let numbers: Vec<u64> = (0..3).map(|_| random.next()).collect();
        assert_eq!(numbers, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn parts_are_parts() {
        let mut random = Random::new(7);
        let whole = Duration::from_millis(10);
        let parts: Vec<_> = (0..1000).map(|_| random.part_of(whole)).collect();
        assert!(parts.iter().all(|part| *part < whole));
        let mean = parts.iter().sum::<Duration>() / 1000;
        assert!(mean > whole.mul_f64(0.45) && mean < whole.mul_f64(0.55), "{mean:?}");
    }
}
