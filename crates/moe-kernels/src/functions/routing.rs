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
