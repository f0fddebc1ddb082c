//! Half precision beside burn's own ops in the same precision.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};

use crate::compare::{host, random};
use crate::errors::note_error;

/// Both kinds, each with its name in the notes of errors.
pub const HALF: [(DType, &str); 2] = [(DType::BF16, "bf16"), (DType::F16, "f16")];

/// Errors allowed, in those of plain ops.
const FACTOR: f64 = 2.0;
/// With less than that nothing was rounded.
const LEAST: f64 = 1e-5;

/// `sqrt(sum (x - oracle)^2 / sum oracle^2)` over a tensor.
pub fn mean_square_error(found: &[f64], oracle: &[f64]) -> f64 {
    let squares = found.iter().zip(oracle).map(|(x, y)| (x - y).powi(2)).sum::<f64>();
    (squares / oracle.iter().map(|y| y * y).sum::<f64>()).sqrt()
}

/// [`random`] numbers that `dtype` represents exactly.
pub fn rounded<B: Backend>(n: usize, seed: u64, dtype: DType, device: &B::Device) -> Vec<f64> {
    let values = burn::tensor::TensorData::new(random(n, seed), [n]);
    host(Tensor::<B, 1>::from_data(values, (device, dtype)))
}

/// Notes the error of `found`, and panics when it is more than twice that of `plain` in the mean square; both were computed in the precision
/// that `dtype` names. The name of a tensor ends `what`, behind a comma.
pub fn assert_like_plain_ops(what: &str, dtype: &str, [found, plain]: [&[f64]; 2], oracle: &[f64]) {
    assert_eq!([found.len(), plain.len()], [oracle.len(); 2], "{dtype}, {what}: lengths differ");
    note_error(what, dtype, found, oracle);
    let [found, plain] = [found, plain].map(|values| mean_square_error(values, oracle));
    assert!(plain > LEAST, "{dtype}, {what}: nothing was rounded");
    assert!(found <= FACTOR * plain, "{dtype}, {what}: error {found:e}, plain {plain:e}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twice_the_error_of_plain_ops_is_allowed_and_no_more() {
        assert_like_plain_ops("output", "bf16", [&[1.015625], &[1.0078125]], &[1.0]);
        let more = || assert_like_plain_ops("output", "bf16", [&[1.0157], &[1.0078125]], &[1.0]);
        assert!(std::panic::catch_unwind(more).is_err());
        let exact = || assert_like_plain_ops("output", "bf16", [&[1.0], &[1.0]], &[1.0]);
        assert!(std::panic::catch_unwind(exact).is_err());
    }

    #[cfg(feature = "flex")]
    #[test]
    fn rounded_numbers_are_those_of_the_precision() {
        let device = Default::default();
        let values = rounded::<burn::backend::Flex>(64, 3, DType::BF16, &device);
        assert_ne!(values, random(64, 3));
        let data = burn::tensor::TensorData::new(values.clone(), [64]);
        assert_eq!(host(Tensor::<burn::backend::Flex, 1>::from_data(data, (&device, DType::BF16))), values);
    }
}
