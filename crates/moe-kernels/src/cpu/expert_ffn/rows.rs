//! First pass of the backward: everything that belongs to a row or a token.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::forward::{add_to_tokens, blocks};
use super::segments::{Part, Segment, Split, cut};
use super::{Problem, gather, resize};
use crate::cpu::gated::{BackwardRows, gated_backward};
use crate::cpu::gemm::{Mat, MatMut, Onto, gemm};
use crate::cpu::lanes::sum;
use crate::cpu::unset::{Unset, fill};

/// What the pass computes.
pub(super) struct RowGradients {
    /// Gradient of the tokens, `[T, D]`; empty when not wanted.
    pub(super) tokens: Vec<f32>,
    /// Gradient of the gate of each row that is served, `[R]`.
    pub(super) gates: Vec<f32>,
    /// `gate * activation(z)`, `[R, F]`.
    pub(super) hidden: Vec<f32>,
}

/// The part of [`RowGradients`] that one thread writes: a slice for each of its segments.
struct PartOutput<'a> {
    tokens: &'a mut [MaybeUninit<f32>],
    gates: Vec<&'a mut [f32]>,
    pre_activation: Vec<&'a mut [f32]>,
    hidden: Vec<&'a mut [MaybeUninit<f32>]>,
}

/// Buffers of one thread, as a block of rows leaves them.
#[derive(Default)]
pub(super) struct Scratch {
    /// Gradient of the output of each row's token, `[n, D]`.
    pub(super) grad: Vec<f32>,
    /// `[n]`.
    pub(super) gates: Vec<f32>,
    grad_hidden: Vec<f32>,
    /// `[n, D]`.
    pub(super) grad_tokens: Vec<f32>,
}

/// Overwrites the pre-activation `[R, C]` with its gradient.
pub(super) fn rows_pass(
    problem: &Problem<'_>,
    split: &Split,
    pre_activation: &mut [f32],
    grad: &[f32],
    tokens: bool,
) -> RowGradients {
    let (num_rows, width) = (problem.plan.num_served(), if tokens { problem.d_model } else { 0 });
    let tokens_len = problem.num_tokens() * width;
    let lens = [tokens_len, split.extra_len(tokens_len), num_rows * problem.d_hidden];
    let [mut token_grads, mut extra, mut hidden] = lens.map(Unset::new);
    let mut gates = vec![0.0; num_rows];

    let sums = split.accumulators(token_grads.slots(lens[0]), extra.slots(lens[1]), width);
    let gates_of = cut(&mut gates, 1, &split.parts);
    let pre_activation = cut(pre_activation, problem.columns(), &split.parts);
    let hidden_of = cut(hidden.slots(lens[2]), problem.d_hidden, &split.parts);
    let outputs = sums.into_iter().zip(gates_of).zip(pre_activation).zip(hidden_of);
    let outputs =
        outputs.map(|(((tokens, gates), pre_activation), hidden)| PartOutput { tokens, gates, pre_activation, hidden });
    let work: Vec<_> = split.parts.iter().zip(outputs).collect();
    work.into_par_iter().for_each(|(part, output)| rows_part(problem, part, grad, output, tokens));
    // SAFETY: the parts cover all three, and each has filled what is its own.
    let [mut tokens, extra, hidden] =
        unsafe { [token_grads.assume_set(lens[0]), extra.assume_set(lens[1]), hidden.assume_set(lens[2])] };
    split.add_extra(&mut tokens, &extra, width);
    RowGradients { tokens, gates, hidden }
}

fn rows_part(problem: &Problem<'_>, part: &Part, grad: &[f32], output: PartOutput<'_>, with_tokens: bool) {
    let (c, f) = (problem.columns(), problem.d_hidden);
    let mut scratch = Scratch::default();
    let sums = fill(output.tokens, 0.0);
    let slices = output.gates.into_iter().zip(output.pre_activation).zip(output.hidden);
    for (segment, ((gates, z), hidden)) in part.segments.iter().zip(slices) {
        for block in blocks(segment) {
            let local = block.rows.start - segment.rows.start..block.rows.end - segment.rows.start;
            let rows = BackwardRows {
                pre_activation: &mut z[local.start * c..local.end * c],
                hidden: fill(&mut hidden[local.start * f..local.end * f], 0.0),
                grad_gates: &mut gates[local],
            };
            rows_block(problem, &block, grad, rows, &mut scratch, with_tokens);
            if with_tokens {
                add_to_tokens(problem, &block, &scratch.grad_tokens, part.tokens.start, sums);
            }
        }
    }
}

/// Gradients of gates and pre-activation, the gated activations, and in `scratch` the gradient of the gathered tokens.
pub(super) fn rows_block(
    problem: &Problem<'_>,
    block: &Segment,
    grad: &[f32],
    mut rows: BackwardRows<'_>,
    scratch: &mut Scratch,
    with_tokens: bool,
) {
    let (n, d, f, c) = (block.rows.len(), problem.d_model, problem.d_hidden, problem.columns());
    gather(grad, d, 0..d, &problem.plan.token_of_row[block.rows.clone()], &mut scratch.grad);
    problem.gates_of(block.rows.clone(), &mut scratch.gates);

    let grad_hidden = resize(&mut scratch.grad_hidden, n * f);
    let w_out = Mat::new(problem.w_out(block.expert), f, d).t();
    gemm(MatMut::new(grad_hidden, n, f), Onto::Overwrite, Mat::new(&scratch.grad, n, d), w_out);
    gated_backward(problem.activation, grad_hidden, &scratch.gates, &mut rows, f);

    if let Some(bias) = problem.b_out(block.expert) {
        add_dots(&scratch.grad, bias, rows.grad_gates);
    }
    if with_tokens {
        scratch.grad_tokens.resize(n * d, 0.0);
        let w_in = Mat::new(problem.w_in(block.expert), d, c).t();
        let grad_z = Mat::new(rows.pre_activation, n, c);
        gemm(MatMut::new(&mut scratch.grad_tokens, n, d), Onto::Overwrite, grad_z, w_in);
    }
}

/// Adds to each output the dot product of its row with `vector`.
fn add_dots(rows: &[f32], vector: &[f32], outputs: &mut [f32]) {
    for (output, row) in outputs.iter_mut().zip(rows.chunks_exact(vector.len())) {
        *output += sum([row, vector], |[x, v]| x * v);
    }
}
