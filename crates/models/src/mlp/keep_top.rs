//! The `K` largest activations of every sample.

use burn::tensor::Tensor;
use moe_kernels::MoeBackend;

/// Sets all but the `top_k` largest elements of every row to zero; the lower index wins a tie.
///
/// The gradient passes through what is kept and nowhere else.
///
/// # Shapes
///
/// - hidden: `[T, E]`
/// - output: `[T, E]`
///
/// # Panics
///
/// Panics unless `1 <= top_k <= E`.
pub fn keep_top<B: MoeBackend>(hidden: Tensor<B, 2>, top_k: usize) -> Tensor<B, 2> {
    let [rows, width] = hidden.dims();
    assert!((1..=width).contains(&top_k), "keep_top: top_k = {top_k} must be in 1..={width}, the width of the rows");
    if top_k == width || rows == 0 {
        return hidden;
    }
    hidden.clone() * top_mask(hidden.detach(), top_k)
}

/// 1 where an element is among the `top_k` largest of its row, else 0.
fn top_mask<B: MoeBackend>(values: Tensor<B, 2>, top_k: usize) -> Tensor<B, 2> {
    let (_, indices) = moe_kernels::top_k(values.clone(), top_k);
    let ones = Tensor::ones(indices.dims(), (&values.device(), values.dtype()));
    values.zeros_like().scatter(1, indices, ones, burn::tensor::IndexingUpdateOp::Add)
}
