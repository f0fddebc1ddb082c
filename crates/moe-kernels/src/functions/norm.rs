//! Normalisation of rows.

use burn::tensor::Tensor;

use super::{primitive, tensor};
use crate::MoeBackend;

/// `x / sqrt(mean(x^2) + epsilon) * gamma`, row by row ([Zhang and Sennrich, 2019](https://arxiv.org/abs/1910.07467)).
///
/// Computed in f32, or in f64 if `x` is f64.
///
/// # Shapes
///
/// - x: `[T, D]`
/// - gamma: `[D]`
/// - output: `[T, D]`, dtype of `x`
///
/// # Panics
///
/// Panics when the widths differ or are 0.
pub fn rms_norm<B: MoeBackend>(x: Tensor<B, 2>, gamma: Tensor<B, 1>, epsilon: f64) -> Tensor<B, 2> {
    check_width("rms_norm", &x, &gamma);
    tensor(B::moe_rms_norm(primitive(x), primitive(gamma), epsilon))
}

/// `(x - mean(x)) / sqrt(var(x) + epsilon) * gamma + beta`, row by row, with the biased variance
/// ([Ba et al., 2016](https://arxiv.org/abs/1607.06450)).
///
/// Computed in f32, or in f64 if `x` is f64.
///
/// # Shapes
///
/// - x: `[T, D]`
/// - gamma, beta: `[D]`
/// - output: `[T, D]`, dtype of `x`
///
/// # Panics
///
/// Panics when the widths differ or are 0.
pub fn layer_norm<B: MoeBackend>(
    x: Tensor<B, 2>,
    gamma: Tensor<B, 1>,
    beta: Tensor<B, 1>,
    epsilon: f64,
) -> Tensor<B, 2> {
    check_width("layer_norm", &x, &gamma);
    check_width("layer_norm", &x, &beta);
    tensor(B::moe_layer_norm(primitive(x), primitive(gamma), primitive(beta), epsilon))
}

fn check_width<B: MoeBackend>(name: &str, x: &Tensor<B, 2>, channels: &Tensor<B, 1>) {
    let ([_, width], [expected]) = (x.dims(), channels.dims());
    assert!(width > 0, "{name}: rows must have a width");
    assert_eq!(width, expected, "{name}: x [T, D] and its gain or shift [D] disagree on D");
}
