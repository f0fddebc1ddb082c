//! Dropless dispatch: every slot that has an expert is served, nothing is padded.
//!
//! One op, [`expert_ffn`], which keeps only the pre-activation for the backward pass. The same in steps, for those who
//! want something in between, is [`dispatch_rows`](moe_kernels::dispatch_rows), [`Experts::forward`] and
//! [`combine_rows`](moe_kernels::combine_rows).

use burn::tensor::Tensor;
use moe_kernels::{MoeBackend, expert_ffn};

use crate::{Experts, Routing};

/// Each expert runs on the tokens that chose it:
/// `y_t = sum_k gate_tk * expert_tk(x_t)`.
///
/// # Shapes
///
/// - tokens: `[T, D]`
/// - output: `[T, D]`, dtype of the tokens
///
/// # Panics
///
/// Panics when tokens, experts and routing disagree on `T`, `D` or `E`.
pub fn grouped<B: MoeBackend>(tokens: Tensor<B, 2>, experts: &Experts<B>, routing: &Routing<B>) -> Tensor<B, 2> {
    let dtype = tokens.dtype();
    expert_ffn(tokens, routing.gates.clone().cast(dtype), experts.weights(dtype), &routing.plan)
}
