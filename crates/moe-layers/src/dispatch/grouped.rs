//! Dropless dispatch: every slot is served, nothing is padded.

use burn::tensor::Tensor;
use moe_kernels::{MoeBackend, combine_rows, dispatch_rows};

use crate::{Experts, Routing};

/// Sorts the slots by expert, runs each expert on its own rows, and brings the results back:
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
    if routing.num_tokens() == 0 {
        return tokens;
    }
    let dtype = tokens.dtype();
    let rows = dispatch_rows(tokens, &routing.plan);
    let rows = experts.forward(rows, &routing.plan);
    combine_rows(rows, routing.gates.clone().cast(dtype), &routing.plan)
}
