//! Gradients of the network: in one pass by experts where so few threads share the work that their sums of tokens fit beside each other,
//! and else in two, over the rows by tokens, which leaves the gradient of the pre-activation and the gated activations, then over
//! the weights by experts.

use super::Problem;
use super::one_pass::one_pass;
use super::rows::{RowGradients, rows_pass};
use super::segments::Split;
use super::weights::weights_pass;

/// Which gradients are wanted. That of the gates is a by-product.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Needs {
    pub(crate) tokens: bool,
    pub(crate) w_in: bool,
    pub(crate) w_out: bool,
    pub(crate) b_in: bool,
    pub(crate) b_out: bool,
}

/// The gradients, in the shapes of the inputs; empty where not wanted or where there is no such input.
#[derive(Debug)]
pub(crate) struct Gradients {
    pub(crate) tokens: Vec<f32>,
    pub(crate) gates: Vec<f32>,
    pub(crate) w_in: Vec<f32>,
    pub(crate) w_out: Vec<f32>,
    pub(crate) b_in: Vec<f32>,
    pub(crate) b_out: Vec<f32>,
}

/// `pre_activation` `[R, C]` is what the forward pass kept, and may be overwritten; `grad` `[T, D]` is the gradient of the
/// output.
pub(crate) fn backward(problem: &Problem<'_>, pre_activation: &mut [f32], grad: &[f32], needs: Needs) -> Gradients {
    let split = Split::new(problem.plan, problem.num_tokens(), rayon::current_num_threads());
    if split.has_one_range() {
        return one_pass(problem, &split, pre_activation, grad, needs);
    }
    let rows = rows_pass(problem, &split, pre_activation, grad, needs.tokens);
    let weights = weights_pass(problem, pre_activation, &rows.hidden, grad, needs);
    let RowGradients { tokens, gates, .. } = rows;
    Gradients {
        tokens,
        gates: problem.plan.by_slot(&gates),
        w_in: weights.w_in,
        w_out: weights.w_out,
        b_in: weights.b_in,
        b_out: weights.b_out,
    }
}
