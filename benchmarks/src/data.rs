//! Numbers that Rust and Python can both make from a seed, so that both sides of a comparison see the same ones without
//! sending them.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use moe_train::config::TrainConfig;
use moe_train::data::Batch;

/// Number `index` of the sequence `seed`, below 2^32 and well mixed: multiplications and shifts as in `mixed` of
/// `torch/common.py`.
pub(crate) fn mixed(index: usize, seed: u64) -> u32 {
    let start = (index as u64).wrapping_mul(2_654_435_761).wrapping_add(seed.wrapping_mul(2_246_822_519));
    let mut h = start as u32;
    for _ in 0..2 {
        h = (h ^ (h >> 16)).wrapping_mul(0x045d_9f3b);
    }
    h ^ (h >> 16)
}

/// `count` numbers in `-scale..scale`, close to evenly spread.
pub(crate) fn hashed(count: usize, seed: u64, scale: f64) -> Vec<f32> {
    let unit = |h: u32| (h >> 8) as f32 / (1 << 23) as f32 - 1.0;
    (0..count).map(|index| unit(mixed(index, seed)) * scale as f32).collect()
}

/// [`hashed`] numbers as a tensor, f32.
pub(crate) fn tensor<B: Backend, const D: usize>(
    shape: [usize; D],
    seed: u64,
    scale: f64,
    device: &B::Device,
) -> Tensor<B, D> {
    Tensor::from_data(TensorData::new(hashed(shape.iter().product(), seed, scale), shape), device)
}

/// Seed of the bytes.
const BYTES: u64 = 1;

/// Sequences of random bytes, and the same moved on by one.
pub(crate) fn bytes(config: &TrainConfig) -> Batch {
    let (batch_size, seq_len) = (config.train.batch_size, config.train.seq_len);
    let bytes: Vec<u32> = (0..batch_size * (seq_len + 1)).map(|i| mixed(i, BYTES) % 256).collect();
    let sequences = || bytes.chunks(seq_len + 1);
    Batch {
        inputs: sequences().flat_map(|sequence| &sequence[..seq_len]).copied().collect(),
        targets: sequences().flat_map(|sequence| &sequence[1..]).copied().collect(),
        batch_size,
        seq_len,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_is_that_of_the_python_side() {
        // Printed by `mixed` and `hashed` of torch/common.py.
        assert_eq!([mixed(0, 1), mixed(1, 1), mixed(12_345_678, 3)], GOLDEN);
        assert_eq!(hashed(2, 1, 2.0), GOLDEN_UNITS);
    }

    const GOLDEN: [u32; 3] = [1_750_795_140, 3_449_593_467, 2_613_776_138];
    const GOLDEN_UNITS: [f32; 2] = [-0.369_445_1, 1.212_684_2];

    #[test]
    fn the_numbers_are_spread_evenly_around_zero() {
        let numbers = hashed(100_000, 5, 1.0);
        let mean = |f: fn(f64) -> f64| numbers.iter().map(|&x| f(f64::from(x))).sum::<f64>() / numbers.len() as f64;
        assert!(mean(|x| x).abs() < 0.01 && (mean(|x| x * x) - 1.0 / 3.0).abs() < 0.01);
        assert!(numbers.iter().all(|x| (-1.0..1.0).contains(x)));
    }

    #[test]
    fn seeds_give_sequences_of_their_own() {
        let same = (0..1000).filter(|&i| mixed(i, 1) % 256 == mixed(i, 2) % 256).count();
        assert!(same < 20, "{same} of 1000 bytes are equal");
    }
}
