//! Sums along one dimension, and division by one number per row.

use burn::tensor::Tensor;

use super::{check_dtypes, primitive, tensor};
use crate::MoeBackend;

/// Sums along `dim`, whose size becomes 1: burn's `sum_dim`, but under Fusion never part of a fused kernel.
///
/// burn 0.21 fuses a reduction with the elementwise operations before it. One of the kernels that autotuning may choose
/// then runs them once more for every idle thread, on the first element; where their result overwrites an input in
/// place, the first element of the result is wrong. So no op of this crate is fused with its sums; neither is
/// the sum in the gradient of a division, which is why [`divide_rows`] exists.
///
/// # Shapes
///
/// - x: any
/// - output: as x, with 1 at `dim`
///
/// # Panics
///
/// Panics when there is no such dimension.
pub fn sum_dim<B: MoeBackend, const D: usize>(x: Tensor<B, D>, dim: usize) -> Tensor<B, D> {
    assert!(dim < D, "sum_dim: there is no dimension {dim} in a tensor of rank {D}");
    tensor(B::moe_sum_dim(primitive(x), dim))
}

/// Each row of `x` divided by its divisor. The gradient is computed from the output.
///
/// # Shapes
///
/// - x, output: `[T, N]`
/// - divisors: `[T, 1]`, same dtype as x
///
/// # Panics
///
/// Panics when the shapes disagree on `T`, or the dtypes differ.
pub fn divide_rows<B: MoeBackend>(x: Tensor<B, 2>, divisors: Tensor<B, 2>) -> Tensor<B, 2> {
    assert_eq!(divisors.dims(), [x.dims()[0], 1], "divide_rows: there must be one divisor [T, 1] for every row of x");
    check_dtypes("divide_rows: x and divisors", [x.dtype(), divisors.dtype()]);
    tensor(B::moe_divide_rows(primitive(x), primitive(divisors)))
}
