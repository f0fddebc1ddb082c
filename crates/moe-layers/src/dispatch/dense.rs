//! The oracle: every expert on every token, in burn's plainest ops.

use std::f64::consts::SQRT_2;

use burn::tensor::activation::{relu, silu};
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};
use moe_kernels::MoeBackend;

use crate::{Activation, Experts, Routing};

/// `y_t = sum_e g_te * expert_e(x_t)`, where `g_te` is the gate of expert `e` or zero.
///
/// Costs `E / K` times the work of [`grouped`](super::grouped()) and shares no code with it: use it to test.
///
/// # Shapes
///
/// - tokens: `[T, D]`
/// - output: `[T, D]`, dtype of the tokens
///
/// # Panics
///
/// Panics when tokens, experts and routing disagree on `T` or `D`.
pub fn dense<B: MoeBackend>(tokens: Tensor<B, 2>, experts: &Experts<B>, routing: &Routing<B>) -> Tensor<B, 2> {
    let mut output = tokens.zeros_like();
    for e in 0..experts.num_experts() {
        let gate = gate_of(routing.gates.clone(), routing.experts.clone(), e).cast(tokens.dtype());
        output = output + one_expert(tokens.clone(), experts, e) * gate;
    }
    output
}

/// Column `[T, 1]` of gates of expert `e`: zero where a token did not choose it.
fn gate_of<B: Backend>(gates: Tensor<B, 2>, experts: Tensor<B, 2, Int>, e: usize) -> Tensor<B, 2> {
    let chosen = experts.equal_elem(e as i64).float().cast(gates.dtype());
    (gates * chosen).sum_dim(1)
}

fn one_expert<B: Backend>(tokens: Tensor<B, 2>, experts: &Experts<B>, e: usize) -> Tensor<B, 2> {
    let dtype = tokens.dtype();
    let matrix = |stack: Tensor<B, 3>| stack.slice(e..e + 1).squeeze_dim::<2>(0).cast(dtype);
    let row = |stack: Tensor<B, 2>| stack.slice(e..e + 1).cast(dtype);

    let mut hidden = tokens.matmul(matrix(experts.w_in.val()));
    if let Some(bias) = &experts.b_in {
        hidden = hidden + row(bias.val());
    }
    let mut output = activate(hidden, experts.activation).matmul(matrix(experts.w_out.val()));
    if let Some(bias) = &experts.b_out {
        output = output + row(bias.val());
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
