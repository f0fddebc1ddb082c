//! Random orders that depend on numbers alone: the same on every device, in every process and after a resume.

/// A permutation of `0..len` drawn with `key`, every one as likely (Fisher and Yates' shuffle).
pub(crate) fn permutation(len: usize, key: [u64; 3]) -> Vec<i32> {
    let mut state = key.into_iter().fold(0, |state, part| mix(state ^ mix(part)));
    let mut order: Vec<i32> = (0..len as i32).collect();
    for last in (1..len).rev() {
        state = state.wrapping_add(INCREMENT);
        order.swap(last, below(mix(state), last as u64 + 1) as usize);
    }
    order
}

/// Of SplitMix64 (Steele, Lea and Flood, 2014): `2^64` over the golden ratio, made odd.
const INCREMENT: u64 = 0x9e37_79b9_7f4a_7c15;

/// The output function of SplitMix64.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(INCREMENT);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// `x / 2^64 * bound`, rounded down; the bias is below `bound / 2^64`.
fn below(x: u64, bound: u64) -> u64 {
    ((u128::from(x) * u128::from(bound)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_occurs_once() {
        for len in [0, 1, 2, 7, 64] {
            let mut order = permutation(len, [1, 2, 3]);
            order.sort_unstable();
            assert_eq!(order, (0..len as i32).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_order_depends_on_every_part_of_the_key_and_on_nothing_else() {
        let order = |key| permutation(20, key);
        assert_eq!(order([1, 2, 3]), order([1, 2, 3]));
        for other in [[0, 2, 3], [1, 0, 3], [1, 2, 0], [2, 1, 3], [3, 2, 1]] {
            assert_ne!(order([1, 2, 3]), order(other));
        }
    }

    #[test]
    fn every_order_of_three_is_about_as_frequent() {
        let mut seen = std::collections::BTreeMap::new();
        for step in 0..6000 {
            *seen.entry(permutation(3, [7, step, 0])).or_insert(0) += 1;
        }
        assert_eq!(seen.len(), 6);
        // 6 standard deviations of a binomial with n = 6000, p = 1/6.
        assert!(seen.values().all(|&n: &i32| (n - 1000).abs() < 173), "{seen:?}");
    }
}
