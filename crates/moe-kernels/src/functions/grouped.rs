//! The grouped matrix products.

use burn::tensor::Tensor;

use super::{check_dtypes, primitive, tensor};
use crate::{ExpertPlan, MoeBackend};

/// Multiplies each expert's rows by that expert's matrix.
///
/// An expert without rows costs nothing and gets a zero gradient. Its gradients are the other two products,
/// [`grouped_matmul_transposed`] and [`grouped_outer`].
///
/// # Shapes
///
/// - rows: `[R, I]`, sorted by expert
/// - weight: `[E, I, O]`, same dtype as the rows
/// - output: `[R, O]`
///
/// # Panics
///
/// Panics when the shapes do not fit each other or the plan, `I` or `O` is 0, or the dtypes differ.
pub fn grouped_matmul<B: MoeBackend>(rows: Tensor<B, 2>, weight: Tensor<B, 3>, plan: &ExpertPlan<B>) -> Tensor<B, 2> {
    let ([num_rows, width], [num_experts, d_in, _]) = (rows.dims(), weight.dims());
    assert_eq!(num_rows, plan.num_rows(), "grouped_matmul: rows [R, I] and the plan disagree on R = T * K");
    assert_eq!(num_experts, plan.num_experts(), "grouped_matmul: weight [E, I, O] and the plan disagree on E");
    assert_eq!(width, d_in, "grouped_matmul: rows [R, I] and weight [E, I, O] disagree on I");
    check_weight("grouped_matmul", &weight);
    check_dtypes("grouped_matmul: rows and weight", [rows.dtype(), weight.dtype()]);
    tensor(B::moe_grouped_matmul(primitive(rows), primitive(weight), plan))
}

/// Multiplies each expert's rows by the transpose of that expert's matrix, which is not copied.
///
/// An expert without rows costs nothing and gets a zero gradient.
///
/// # Shapes
///
/// - rows: `[R, O]`, sorted by expert
/// - weight: `[E, I, O]`, same dtype as the rows
/// - output: `[R, I]`
///
/// # Panics
///
/// Panics when the shapes do not fit each other or the plan, `I` or `O` is 0, or the dtypes differ.
pub fn grouped_matmul_transposed<B: MoeBackend>(
    rows: Tensor<B, 2>,
    weight: Tensor<B, 3>,
    plan: &ExpertPlan<B>,
) -> Tensor<B, 2> {
    let ([num_rows, width], [num_experts, _, d_out]) = (rows.dims(), weight.dims());
    assert_eq!(num_rows, plan.num_rows(), "grouped_matmul_transposed: rows [R, O] and the plan disagree on R = T * K");
    assert_eq!(
        num_experts,
        plan.num_experts(),
        "grouped_matmul_transposed: weight [E, I, O] and the plan disagree on E"
    );
    assert_eq!(width, d_out, "grouped_matmul_transposed: rows [R, O] and weight [E, I, O] disagree on O");
    check_weight("grouped_matmul_transposed", &weight);
    check_dtypes("grouped_matmul_transposed: rows and weight", [rows.dtype(), weight.dtype()]);
    tensor(B::moe_grouped_matmul_transposed(primitive(rows), primitive(weight), plan))
}

/// Multiplies, expert by expert, the transpose of its rows in `lhs` by its rows in `rhs`: the gradient of a stack of
/// weights. The matrix of an expert without rows is zero.
///
/// # Shapes
///
/// - lhs: `[R, I]`, sorted by expert
/// - rhs: `[R, O]`, sorted by expert, same dtype
/// - output: `[E, I, O]`
///
/// # Panics
///
/// Panics when the shapes do not fit the plan, `I` or `O` is 0, or the dtypes differ.
pub fn grouped_outer<B: MoeBackend>(lhs: Tensor<B, 2>, rhs: Tensor<B, 2>, plan: &ExpertPlan<B>) -> Tensor<B, 3> {
    let ([lhs_rows, d_in], [rhs_rows, d_out]) = (lhs.dims(), rhs.dims());
    assert_eq!(lhs_rows, plan.num_rows(), "grouped_outer: lhs [R, I] and the plan disagree on R = T * K");
    assert_eq!(rhs_rows, plan.num_rows(), "grouped_outer: rhs [R, O] and the plan disagree on R = T * K");
    assert!(
        d_in > 0 && d_out > 0,
        "grouped_outer: lhs [R, I] and rhs [R, O] must have a width, got {d_in} and {d_out}"
    );
    check_dtypes("grouped_outer: lhs and rhs", [lhs.dtype(), rhs.dtype()]);
    tensor(B::moe_grouped_outer(primitive(lhs), primitive(rhs), plan))
}

fn check_weight<B: MoeBackend>(name: &str, weight: &Tensor<B, 3>) {
    let [_, d_in, d_out] = weight.dims();
    assert!(d_in > 0 && d_out > 0, "{name}: weight [E, I, O] must have I and O of at least 1, got {:?}", weight.dims());
}
