//! From tokens to sorted rows and back, by gathers only: both permutations are at hand, so no gradient scatters.

use burn::tensor::Tensor;
use burn::tensor::ops::FloatTensor;

use super::reduce::sum_dim;
use super::{unwrap, wrap};
use crate::{ExpertPlan, MoeBackend};

pub(crate) fn dispatch<B: MoeBackend>(tokens: FloatTensor<B>, plan: &ExpertPlan<B>) -> FloatTensor<B> {
    unwrap(wrap::<B, 2>(tokens).select(0, plan.token_of_row.clone()))
}

pub(crate) fn dispatch_backward<B: MoeBackend>(grad: FloatTensor<B>, plan: &ExpertPlan<B>) -> FloatTensor<B> {
    unwrap(sum_over_k(slots::<B>(grad, plan)))
}

pub(crate) fn combine<B: MoeBackend>(
    rows: FloatTensor<B>,
    gates: FloatTensor<B>,
    plan: &ExpertPlan<B>,
) -> FloatTensor<B> {
    let gates = wrap::<B, 2>(gates).unsqueeze_dim::<3>(2);
    unwrap(sum_over_k(slots::<B>(rows, plan) * gates))
}

pub(crate) fn combine_backward_rows<B: MoeBackend>(
    grad: FloatTensor<B>,
    gates: FloatTensor<B>,
    plan: &ExpertPlan<B>,
) -> FloatTensor<B> {
    let gates = wrap::<B, 2>(gates).reshape([plan.num_rows(), 1]).select(0, plan.slot_of_row.clone());
    unwrap(wrap::<B, 2>(dispatch::<B>(grad, plan)) * gates)
}

pub(crate) fn combine_backward_gates<B: MoeBackend>(
    grad: FloatTensor<B>,
    rows: FloatTensor<B>,
    plan: &ExpertPlan<B>,
) -> FloatTensor<B> {
    let grad = wrap::<B, 2>(grad).unsqueeze_dim::<3>(1);
    let products = slots::<B>(rows, plan) * grad;
    unwrap(sum_dim(products, 2).squeeze_dim::<2>(2))
}

/// Sorted rows `[R, D]` back in slot order, `[T, K, D]`.
fn slots<B: MoeBackend>(rows: FloatTensor<B>, plan: &ExpertPlan<B>) -> Tensor<B, 3> {
    let rows = wrap::<B, 2>(rows);
    let [_, width] = rows.dims();
    rows.select(0, plan.row_of_slot.clone()).reshape([plan.num_tokens, plan.top_k, width])
}

fn sum_over_k<B: MoeBackend>(slots: Tensor<B, 3>) -> Tensor<B, 2> {
    sum_dim(slots, 1).squeeze_dim(1)
}
