//! Random data, transfer, and comparison with an oracle in f64.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Allowed relative error in f32.
pub const RELATIVE: f64 = 1e-5;
/// Allowed absolute error in f32, for values near zero.
pub const ABSOLUTE: f64 = 1e-6;

/// `n` numbers in `-1..1`, the same for the same seed, each exactly representable in f32.
pub fn random(n: usize, seed: u64) -> Vec<f64> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..n).map(|_| f64::from(rng.random_range(-1.0f32..1.0))).collect()
}

/// The numbers as a tensor.
pub fn tensor<B: Backend, const D: usize>(values: &[f64], shape: [usize; D], device: &B::Device) -> Tensor<B, D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

/// The tensor's numbers.
pub fn host<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

/// Panics with the worst element when `actual` strays from `expected`.
///
/// The absolute tolerance grows with the largest expected value: a sum's rounding error follows its terms.
pub fn assert_close(what: &str, actual: &[f64], expected: &[f64]) {
    assert_eq!(actual.len(), expected.len(), "{what}: lengths differ");
    let scale = expected.iter().fold(1.0, |m: f64, e| m.max(e.abs()));
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        let allowed = ABSOLUTE * scale + RELATIVE * e.abs();
        assert!((a - e).abs() <= allowed, "{what}[{i}]: got {a}, expected {e}, allowed error {allowed:e}");
    }
}
