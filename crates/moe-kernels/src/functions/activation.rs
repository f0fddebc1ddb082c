//! The activations of experts.

use burn::tensor::Tensor;

use super::{primitive, tensor};
use crate::MoeBackend;

/// `silu(gate) * up`, where the first half of the columns is the gate ([Shazeer, 2020](https://arxiv.org/abs/2002.05202)).
///
/// # Shapes
///
/// - input: `[R, 2F]`, gate columns first
/// - output: `[R, F]`
///
/// # Panics
///
/// Panics when the number of columns is odd or 0.
pub fn swiglu<B: MoeBackend>(input: Tensor<B, 2>) -> Tensor<B, 2> {
    let [_, width] = input.dims();
    assert!(width.is_multiple_of(2), "swiglu: the input [R, 2F] has an odd width, {width}");
    assert!(width > 0, "swiglu: the input [R, 2F] must have a width");
    tensor(B::moe_swiglu(primitive(input)))
}

/// `x * cdf(x)`, the exact GELU ([Hendrycks and Gimpel, 2016](https://arxiv.org/abs/1606.08415)), with its exact
/// gradient.
///
/// burn 0.21 pairs the exact forward pass with the gradient of the tanh approximation on every backend that does
/// not bring its own (NdArray and CubeCL among them), which is off by up to 9e-4.
///
/// # Shapes
///
/// - input: `[R, F]`
/// - output: `[R, F]`
pub fn gelu<B: MoeBackend>(input: Tensor<B, 2>) -> Tensor<B, 2> {
    tensor(B::moe_gelu(primitive(input)))
}
