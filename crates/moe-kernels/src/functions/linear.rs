//! The product of rows with one matrix.

use burn::tensor::Tensor;

use super::{primitive, tensor};
use crate::MoeBackend;

/// `x W`, as `x.matmul(weight)`, with a gradient that keeps both and nothing else.
///
/// The same numbers as burn's own product. On burn-flex it is faster for outputs that are large beside the sum's length: burn-flex
/// 0.21 clears every output and copies it once, on one thread.
///
/// # Shapes
///
/// - x: `[T, I]`
/// - weight: `[I, O]`, same dtype
/// - output: `[T, O]`
///
/// # Panics
///
/// Panics when the shapes do not fit each other, or the dtypes differ.
pub fn linear<B: MoeBackend>(x: Tensor<B, 2>, weight: Tensor<B, 2>) -> Tensor<B, 2> {
    let ([_, width], [d_in, _]) = (x.dims(), weight.dims());
    assert_eq!(width, d_in, "linear: x [T, I] and weight [I, O] disagree on I");
    assert_eq!(x.dtype(), weight.dtype(), "linear: x and weight must be of one dtype");
    tensor(B::moe_linear(primitive(x), primitive(weight)))
}

/// `base + x W`: what is added to is read and written once, in its own memory where nothing else holds it. The gradient keeps `x` and the weight and
/// nothing else.
///
/// # Shapes
///
/// - base: `[T, O]`
/// - x: `[T, I]`, same dtype
/// - weight: `[I, O]`, same dtype
/// - output: `[T, O]`
///
/// # Panics
///
/// Panics when the shapes do not fit each other, or the dtypes differ.
pub fn linear_onto<B: MoeBackend>(base: Tensor<B, 2>, x: Tensor<B, 2>, weight: Tensor<B, 2>) -> Tensor<B, 2> {
    let ([rows, width], [d_in, d_out]) = (x.dims(), weight.dims());
    assert_eq!(width, d_in, "linear_onto: x [T, I] and weight [I, O] disagree on I");
    assert_eq!(base.dims(), [rows, d_out], "linear_onto: base must be [T, O]");
    let dtypes = [base.dtype(), weight.dtype()];
    assert_eq!(dtypes, [x.dtype(); 2], "linear_onto: base, x and weight must be of one dtype");
    tensor(B::moe_linear_onto(primitive(base), primitive(x), primitive(weight)))
}

/// `x W^T` for a weight that lies transposed, as the embedding that is also the output layer does. The gradient keeps both and nothing
/// else.
///
/// # Shapes
///
/// - x: `[T, I]`
/// - weight: `[O, I]`, same dtype
/// - output: `[T, O]`
///
/// # Panics
///
/// Panics when the shapes do not fit each other, or the dtypes differ.
pub fn linear_transposed<B: MoeBackend>(x: Tensor<B, 2>, weight: Tensor<B, 2>) -> Tensor<B, 2> {
    let ([_, width], [_, d_in]) = (x.dims(), weight.dims());
    assert_eq!(width, d_in, "linear_transposed: x [T, I] and weight [O, I] disagree on I");
    assert_eq!(x.dtype(), weight.dtype(), "linear_transposed: x and weight must be of one dtype");
    tensor(B::moe_linear_backward_x(primitive(x), primitive(weight)))
}
