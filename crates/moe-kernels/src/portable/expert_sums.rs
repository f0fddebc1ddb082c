//! The grouped feed-forward network with what each expert put out over the batch, made of the other ops.
//!
//! The second product is linear, so the sum of an expert's outputs is the product of the sum of its activations: no
//! expert output is kept.

use burn::tensor::Tensor;
use burn::tensor::ops::FloatTensor;

use super::{accumulator, activate, linear, matmul, unwrap, wrap};
use crate::{ExpertPlan, FfnSummed, FfnWeights, MoeBackend};

pub(crate) fn expert_ffn_summing<B: MoeBackend>(
    tokens: FloatTensor<B>,
    gates: FloatTensor<B>,
    shares: FloatTensor<B>,
    weights: FfnWeights<B>,
    plan: &ExpertPlan<B>,
) -> FfnSummed<B> {
    let FfnWeights { w_in, w_out, b_in, b_out, activation } = weights;
    let rows = B::moe_dispatch(tokens, plan);
    let pre_activation = linear::<B>(rows, w_in, b_in, plan);
    let hidden = activate::<B>(activation, pre_activation.clone());
    let share_of_row = wrap::<B, 2>(shares).reshape([plan.num_rows(), 1]).select(0, plan.slot_of_row.clone());
    let (sums, totals) = sums::<B>(hidden.clone(), share_of_row, &w_out, b_out.as_ref(), plan);
    let rows = linear::<B>(hidden, w_out, b_out, plan);
    FfnSummed { output: B::moe_combine(rows, gates, plan), pre_activation, sums, totals }
}

/// From the activations `[R, F]` and the share of each row, `[R, 1]`: `[E, D]` and `[E]`.
fn sums<B: MoeBackend>(
    hidden: FloatTensor<B>,
    share_of_row: Tensor<B, 2>,
    w_out: &Tensor<B, 3>,
    b_out: Option<&Tensor<B, 2>>,
    plan: &ExpertPlan<B>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let hidden = wrap::<B, 2>(hidden);
    let dtype = accumulator(hidden.dtype());
    let share_of_row = share_of_row.cast(dtype);
    let ones = share_of_row.ones_like();
    let over_rows =
        |values: Tensor<B, 2>| wrap::<B, 3>(B::moe_grouped_outer(unwrap(share_of_row.clone()), unwrap(values), plan));
    let totals = over_rows(ones).squeeze_dim::<2>(1);
    let mut sums = matmul(over_rows(hidden.cast(dtype)), w_out.clone().cast(dtype)).squeeze_dim::<2>(1);
    if let Some(bias) = b_out {
        sums = sums + bias.clone().cast(dtype) * totals.clone();
    }
    (unwrap(sums), unwrap(totals.squeeze_dim::<1>(1)))
}
