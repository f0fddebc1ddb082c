//! The oracle: every expert on every token, in burn's plainest ops.

use std::f64::consts::SQRT_2;

use burn::tensor::activation::{relu, silu};
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};
use moe_kernels::{MoeBackend, linear};

use crate::{Activation, Experts, Routing};

/// `y_t = sum_e g_te * expert_e(x_t)`, where `g_te` is the gate of expert `e` or zero.
///
/// Costs `E / K` times the work of [`grouped`](super::grouped()) and shares no code with it but the product of two matrices: use it to test.
///
/// # Shapes
///
/// - tokens: `[T, D]`
/// - output: `[T, D]`, dtype of the tokens
///
/// # Panics
///
/// Panics when tokens, experts and routing disagree on `T`, `D` or `E`.
pub fn dense<B: MoeBackend>(tokens: Tensor<B, 2>, experts: &Experts<B>, routing: &Routing<B>) -> Tensor<B, 2> {
    let [num_tokens, width] = tokens.dims();
    // Products and sums of plain ops would broadcast over a single token.
    assert_eq!(num_tokens, routing.num_tokens(), "dense: tokens [T, D] and routing disagree on T");
    assert_eq!(width, experts.d_model(), "dense: tokens [T, D] and experts disagree on D");
    assert_eq!(experts.num_experts(), routing.num_experts(), "dense: experts and routing disagree on E");
    let mut output = tokens.zeros_like();
    for e in 0..experts.num_experts() {
        let gate = gate_of(routing.gates.clone(), routing.experts.clone(), e).cast(tokens.dtype());
        output = output + one_expert(tokens.clone(), experts, e) * spread(gate, experts.d_model());
    }
    output
}

/// Column `[T, 1]` of gates of expert `e`: zero where a token did not choose it.
fn gate_of<B: MoeBackend>(gates: Tensor<B, 2>, experts: Tensor<B, 2, Int>, e: usize) -> Tensor<B, 2> {
    let chosen = experts.equal_elem(e as i64).float().cast(gates.dtype());
    sums(gates * chosen)
}

/// Sums of rows, `[T, K]` to `[T, 1]`, as a product: burn may fuse a sum, and a fused one may come out wrong
/// ([`sum_dim`](moe_kernels::sum_dim)).
fn sums<B: MoeBackend>(rows: Tensor<B, 2>) -> Tensor<B, 2> {
    let ones = Tensor::ones([rows.dims()[1], 1], (&rows.device(), rows.dtype()));
    linear(rows, ones)
}

/// A column `[T, 1]` in each of `width` columns, as a product, so that its gradient is one too.
fn spread<B: MoeBackend>(column: Tensor<B, 2>, width: usize) -> Tensor<B, 2> {
    let ones = Tensor::ones([1, width], (&column.device(), column.dtype()));
    linear(column, ones)
}

/// A row `[1, D]` in each of `height` rows, as a product too.
fn repeated<B: MoeBackend>(row: Tensor<B, 2>, height: usize) -> Tensor<B, 2> {
    let ones = Tensor::ones([height, 1], (&row.device(), row.dtype()));
    linear(ones, row)
}

fn one_expert<B: MoeBackend>(tokens: Tensor<B, 2>, experts: &Experts<B>, e: usize) -> Tensor<B, 2> {
    let dtype = tokens.dtype();
    let matrix = |stack: Tensor<B, 3>| stack.slice(e..e + 1).squeeze_dim::<2>(0).cast(dtype);
    let rows = |stack: Tensor<B, 2>| repeated(stack.slice(e..e + 1).cast(dtype), tokens.dims()[0]);

    let mut hidden = linear(tokens.clone(), matrix(experts.w_in.val()));
    if let Some(bias) = &experts.b_in {
        hidden = hidden + rows(bias.val());
    }
    let mut output = linear(activate(hidden, experts.activation), matrix(experts.w_out.val()));
    if let Some(bias) = &experts.b_out {
        output = output + rows(bias.val());
    }
    output
}

fn activate<B: Backend>(hidden: Tensor<B, 2>, activation: Activation) -> Tensor<B, 2> {
    match activation {
        // Not burn's gelu, whose gradient is that of the tanh approximation on most backends.
        Activation::Gelu => ((hidden.clone() / SQRT_2).erf() + 1.0) * hidden * 0.5,
        Activation::Relu => relu(hidden),
        Activation::SwiGlu => {
            let parts = hidden.chunk(2, 1);
            silu(parts[0].clone()) * parts[1].clone()
        }
    }
}
