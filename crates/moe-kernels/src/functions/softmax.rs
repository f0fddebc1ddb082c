//! Softmax and its relatives, row by row.

use burn::tensor::{Int, Tensor};

use super::{primitive, tensor};
use crate::MoeBackend;

/// `exp(x) / sum exp(x)` of each row. The gradient is computed from the output alone.
///
/// # Shapes
///
/// - x, output: `[T, V]`
///
/// # Panics
///
/// Panics when `V` is 0.
pub fn softmax_rows<B: MoeBackend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    check_width("softmax_rows", &x);
    tensor(B::moe_softmax(primitive(x)))
}

/// `log sum exp(x)` of each row.
///
/// # Shapes
///
/// - x: `[T, V]`
/// - output: `[T, 1]`
///
/// # Panics
///
/// Panics when `V` is 0.
pub fn log_sum_exp_rows<B: MoeBackend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    check_width("log_sum_exp_rows", &x);
    tensor(B::moe_log_sum_exp(primitive(x)))
}

/// `log sum exp(logits) - logits[target]` of each row, in nats: the cross entropy of a softmax with one right answer.
///
/// Keeps the logits for the backward pass and nothing else.
///
/// # Shapes
///
/// - logits: `[T, V]`
/// - targets: `[T]`, values in `0..V`
/// - output: `[T]`
///
/// # Panics
///
/// Panics when `V` is 0 or the shapes disagree on `T`. A target out of range panics on a CPU backend; elsewhere it is
/// not seen.
pub fn cross_entropy_rows<B: MoeBackend>(logits: Tensor<B, 2>, targets: Tensor<B, 1, Int>) -> Tensor<B, 1> {
    check_width("cross_entropy_rows", &logits);
    assert_eq!(logits.dims()[..1], targets.dims(), "cross_entropy_rows: logits [T, V] and targets [T] disagree on T");
    tensor(B::moe_cross_entropy(primitive(logits), targets.into_primitive()))
}

fn check_width<B: MoeBackend>(name: &str, x: &Tensor<B, 2>) {
    assert!(x.dims()[1] > 0, "{name}: rows must have a width");
}
