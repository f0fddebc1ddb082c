//! The grouped matrix product.

use burn::tensor::Tensor;

use super::{primitive, tensor};
use crate::{ExpertPlan, MoeBackend};

/// Multiplies each expert's rows by that expert's matrix.
///
/// An expert without rows costs nothing and gets a zero gradient.
///
/// # Shapes
///
/// - rows: `[R, I]`, sorted by expert
/// - weight: `[E, I, O]`, same dtype as the rows
/// - output: `[R, O]`
///
/// # Panics
///
/// Panics when the shapes do not fit each other or the plan.
pub fn grouped_matmul<B: MoeBackend>(rows: Tensor<B, 2>, weight: Tensor<B, 3>, plan: &ExpertPlan<B>) -> Tensor<B, 2> {
    let ([num_rows, width], [num_experts, d_in, _]) = (rows.dims(), weight.dims());
    assert_eq!(num_rows, plan.num_rows(), "grouped_matmul: rows [R, I] and the plan disagree on R = T * K");
    assert_eq!(num_experts, plan.num_experts(), "grouped_matmul: weight [E, I, O] and the plan disagree on E");
    assert_eq!(width, d_in, "grouped_matmul: rows [R, I] and weight [E, I, O] disagree on I");
    tensor(B::moe_grouped_matmul(primitive(rows), primitive(weight), plan))
}
