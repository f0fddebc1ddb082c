//! Softmax, log-sum-exp and cross entropy of rows, shifted by the largest number so that nothing overflows.

use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{Int, Tensor};

use super::reduce::{max_dim, sum_dim};
use super::{unwrap, wrap};
use crate::MoeBackend;

pub(crate) fn softmax<B: MoeBackend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let (weights, sums, _) = shifted(wrap::<B, 2>(x));
    unwrap(weights / sums)
}

pub(crate) fn softmax_backward<B: MoeBackend>(output: FloatTensor<B>, grad: FloatTensor<B>) -> FloatTensor<B> {
    let (output, grad) = (wrap::<B, 2>(output), wrap::<B, 2>(grad));
    let along = sum_dim(output.clone() * grad.clone(), 1);
    unwrap((grad - along) * output)
}

pub(crate) fn log_sum_exp<B: MoeBackend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let (_, sums, largest) = shifted(wrap::<B, 2>(x));
    unwrap(sums.log() + largest)
}

pub(crate) fn log_sum_exp_backward<B: MoeBackend>(x: FloatTensor<B>, grad: FloatTensor<B>) -> FloatTensor<B> {
    let (weights, sums, _) = shifted(wrap::<B, 2>(x));
    unwrap(weights * (wrap::<B, 2>(grad) / sums))
}

pub(crate) fn cross_entropy<B: MoeBackend>(logits: FloatTensor<B>, targets: IntTensor<B>) -> FloatTensor<B> {
    let chosen = wrap::<B, 2>(logits.clone()).gather(1, column::<B>(targets));
    let losses = wrap::<B, 2>(log_sum_exp::<B>(logits)) - chosen;
    unwrap(losses.squeeze_dim::<1>(1))
}

pub(crate) fn cross_entropy_backward<B: MoeBackend>(
    logits: FloatTensor<B>,
    targets: IntTensor<B>,
    grad: FloatTensor<B>,
) -> FloatTensor<B> {
    let (shape, device) = (wrap::<B, 2>(logits.clone()).dims(), B::float_device(&logits));
    let grad = wrap::<B, 1>(grad).unsqueeze_dim::<2>(1);
    let columns = Tensor::<B, 1, Int>::arange(0..shape[1] as i64, &device).unsqueeze::<2>();
    let is_target = columns.expand(shape).equal(column::<B>(targets).expand(shape));
    let weights = wrap::<B, 2>(log_sum_exp_backward::<B>(logits, unwrap(grad.clone())));
    unwrap(weights.clone().mask_where(is_target, weights - grad))
}

/// `[T]` to `[T, 1]`.
fn column<B: MoeBackend>(targets: IntTensor<B>) -> Tensor<B, 2, Int> {
    Tensor::<B, 1, Int>::from_primitive(targets).unsqueeze_dim(1)
}

/// `exp(x - max)` `[T, V]`, its sums `[T, 1]` and the maxima `[T, 1]`.
fn shifted<B: MoeBackend>(x: Tensor<B, 2>) -> (Tensor<B, 2>, Tensor<B, 2>, Tensor<B, 2>) {
    let largest = max_dim(x.clone(), 1);
    let weights = (x - largest.clone()).exp();
    let sums = sum_dim(weights.clone(), 1);
    (weights, sums, largest)
}
