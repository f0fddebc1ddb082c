//! The order of the pictures in an epoch: a function of seed and epoch alone.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// `0..len` in random order (Fisher and Yates' shuffle).
pub(crate) fn shuffled(len: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(epoch);
    let mut order: Vec<usize> = (0..len).collect();
    for last in (1..len).rev() {
        let pick = (u128::from(random.next_u64()) * (last as u128 + 1)) >> 64;
        order.swap(last, pick as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_holds_every_picture_once_in_an_order_of_its_own() {
        let mut first = shuffled(100, 1, 0);
        assert_eq!(first, shuffled(100, 1, 0));
        assert_ne!(first, shuffled(100, 1, 1));
        assert_ne!(first, shuffled(100, 2, 0));
        first.sort_unstable();
        assert_eq!(first, (0..100).collect::<Vec<_>>());
    }
}
