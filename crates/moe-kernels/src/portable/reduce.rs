//! Sums and maxima along one dimension, by the op that Fusion leaves alone, and division by one number per row.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;

use super::{unwrap, wrap};
use crate::MoeBackend;

pub(super) fn sum_dim<B: MoeBackend, const D: usize>(x: Tensor<B, D>, dim: usize) -> Tensor<B, D> {
    wrap(B::moe_sum_dim(unwrap(x), dim))
}

pub(super) fn mean_dim<B: MoeBackend, const D: usize>(x: Tensor<B, D>, dim: usize) -> Tensor<B, D> {
    let count = x.dims()[dim] as f64;
    sum_dim(x, dim).div_scalar(count)
}

pub(super) fn max_dim<B: MoeBackend, const D: usize>(x: Tensor<B, D>, dim: usize) -> Tensor<B, D> {
    wrap(B::moe_max_dim(unwrap(x), dim))
}

pub(crate) fn divide_rows<B: Backend>(x: FloatTensor<B>, divisors: FloatTensor<B>) -> FloatTensor<B> {
    B::float_div(x, divisors)
}

/// Gradients of `x` `[T, N]` and the divisors `[T, 1]` from those of the output.
pub(crate) fn divide_rows_backward<B: MoeBackend>(
    output: FloatTensor<B>,
    divisors: FloatTensor<B>,
    grad: FloatTensor<B>,
) -> [FloatTensor<B>; 2] {
    let (output, divisors, grad) = (wrap::<B, 2>(output), wrap::<B, 2>(divisors), wrap::<B, 2>(grad));
    let along = sum_dim(output * grad.clone(), 1);
    [unwrap(grad / divisors.clone()), unwrap((along / divisors).neg())]
}
