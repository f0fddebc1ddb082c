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

    /// One of `items`, if there is any.
    pub(super) fn one_of<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        if items.is_empty() { None } else { items.get(self.below(items.len() as u64) as usize) }
    }

    /// One of `items`, each as often as it says, in per cent.
    ///
    /// # Panics
    ///
    /// Panics if they are less than 100 in all.
    pub(super) fn by_share<T: Copy>(&mut self, items: &[(T, u64)]) -> T {
        let mut ticket = self.below(100);
        for (item, share) in items {
            match ticket.checked_sub(*share) {
                Some(left) => ticket = left,
                None => return *item,
            }
        }
        panic!("Random::by_share: the shares must be 100 in all")
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
    fn items_are_drawn_as_often_as_they_should_be() {
        let mut random = Random::new(3);
        let drawn: Vec<char> = (0..10_000).map(|_| random.by_share(&[('a', 15), ('b', 0), ('c', 85)])).collect();
        let share = drawn.iter().filter(|item| **item == 'a').count();
        assert!((1400..1600).contains(&share) && !drawn.contains(&'b'), "{share}");
        assert_eq!(random.one_of::<char>(&[]), None);
        let ones: Vec<_> = (0..100).filter_map(|_| random.one_of(&[1, 2, 3])).collect();
        assert!([1, 2, 3].iter().all(|item| ones.contains(&item)) && ones.len() == 100);
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
