//! Tokens to rows sorted by expert, and back.

use burn::tensor::Tensor;

use super::{check_dtypes, primitive, tensor};
use crate::{ExpertPlan, MoeBackend};

/// Copies each token once per chosen expert, sorted by expert.
///
/// # Shapes
///
/// - tokens: `[T, D]`
/// - output: `[R, D]`
///
/// # Panics
///
/// Panics when the plan was made for another number of tokens, or `D` is 0.
pub fn dispatch_rows<B: MoeBackend>(tokens: Tensor<B, 2>, plan: &ExpertPlan<B>) -> Tensor<B, 2> {
    let [num_tokens, width] = tokens.dims();
    assert_eq!(num_tokens, plan.num_tokens(), "dispatch_rows: tokens [T, D] and the plan disagree on T");
    assert!(width > 0, "dispatch_rows: tokens [T, D] must have a width");
    tensor(B::moe_dispatch(primitive(tokens), plan))
}

/// Brings rows back to their tokens: `y_t = sum_k gate_tk * row(t, k)`.
///
/// # Shapes
///
/// - rows: `[R, D]`, sorted by expert
/// - gates: `[T, K]`, same dtype as the rows
/// - output: `[T, D]`
///
/// # Panics
///
/// Panics when rows or gates do not have the plan's shape, `D` is 0, or the dtypes differ.
pub fn combine_rows<B: MoeBackend>(rows: Tensor<B, 2>, gates: Tensor<B, 2>, plan: &ExpertPlan<B>) -> Tensor<B, 2> {
    let [num_rows, width] = rows.dims();
    assert_eq!(num_rows, plan.num_rows(), "combine_rows: rows [R, D] and the plan disagree on R = T * K");
    assert_eq!(gates.dims(), [plan.num_tokens(), plan.top_k()], "combine_rows: gates must be [T, K]");
    assert!(width > 0, "combine_rows: rows [R, D] must have a width");
    check_dtypes("combine_rows: rows and gates", [rows.dtype(), gates.dtype()]);
    tensor(B::moe_combine(primitive(rows), primitive(gates), plan))
}
