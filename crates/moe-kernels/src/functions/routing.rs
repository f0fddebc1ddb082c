//! Top-K selection.

use burn::tensor::{Int, Tensor};

use super::{primitive, tensor};
use crate::MoeBackend;

/// The `k` largest scores of each row and their columns, best first; the lower column wins a tie.
///
/// A NaN ranks below every number, so the indices are always distinct and in range. The gradient of the values goes
/// to the chosen scores; the choice itself has none.
///
/// # Shapes
///
/// - scores: `[T, E]`
/// - output: values `[T, K]`, indices `[T, K]`
///
/// # Panics
///
/// Panics unless `1 <= k <= E`.
pub fn top_k<B: MoeBackend>(scores: Tensor<B, 2>, k: usize) -> (Tensor<B, 2>, Tensor<B, 2, Int>) {
    let [_, num_experts] = scores.dims();
    assert!((1..=num_experts).contains(&k), "top_k: k = {k} must be in 1..={num_experts}, the width of the scores");
    let indices = B::moe_top_k_indices(primitive(scores.clone().detach()), k);
    let values = tensor(B::moe_top_k_values(primitive(scores), indices.clone()));
    (values, Tensor::from_primitive(indices))
}

/// The scores at `indices`; their gradient goes back to where they came from, without a scatter.
///
/// # Shapes
///
/// - scores: `[T, E]`
/// - indices: `[T, K]`, values in `0..E`, distinct within a row; one that is not gets a gradient that is undefined
/// - output: `[T, K]`
///
/// # Panics
///
/// Panics when the shapes disagree on `T`. An index out of range panics on a CPU backend.
pub fn chosen<B: MoeBackend>(scores: Tensor<B, 2>, indices: Tensor<B, 2, Int>) -> Tensor<B, 2> {
    assert_eq!(scores.dims()[0], indices.dims()[0], "chosen: scores [T, E] and indices [T, K] disagree on T");
    tensor(B::moe_top_k_values(primitive(scores), indices.into_primitive()))
}

/// The scores with zeros at the chosen columns of each row, and the gradient so too.
///
/// # Shapes
///
/// - scores: `[T, E]`, finite
/// - indices: `[T, K]`, distinct within a row, as [`top_k`] gives them
/// - output: `[T, E]`
///
/// # Panics
///
/// Panics when the shapes disagree on `T`. An index out of range panics on a CPU backend.
pub fn unchosen<B: MoeBackend>(scores: Tensor<B, 2>, indices: Tensor<B, 2, Int>) -> Tensor<B, 2> {
    assert_eq!(scores.dims()[0], indices.dims()[0], "unchosen: scores [T, E] and indices [T, K] disagree on T");
    tensor(B::moe_unchosen(primitive(scores), indices.into_primitive()))
}
