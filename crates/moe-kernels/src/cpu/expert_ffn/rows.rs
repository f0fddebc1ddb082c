//! First pass of the backward: everything that belongs to a row or a token.

use rayon::prelude::*;

use super::forward::{add_to_tokens, blocks, cut_tokens};
use super::segments::{Segment, TokenPart, cut, split_by_tokens};
use super::{Problem, gather, resize};
use crate::cpu::gated::{BackwardRows, gated_backward};
use crate::cpu::gemm::{Mat, MatMut, Onto, gemm};
use crate::cpu::lanes::sum;

/// What the pass computes.
pub(super) struct RowGradients {
    /// Gradient of the tokens, `[T, D]`; empty when not wanted.
    pub(super) tokens: Vec<f32>,
    /// Gradient of the gate of each row, `[R]`.
    pub(super) gates: Vec<f32>,
    /// `gate * activation(z)`, `[R, F]`.
    pub(super) hidden: Vec<f32>,
}

/// The part of [`RowGradients`] that one thread writes: a slice for each of its segments.
struct PartOutput<'a> {
    tokens: &'a mut [f32],
    gates: Vec<&'a mut [f32]>,
    pre_activation: Vec<&'a mut [f32]>,
    hidden: Vec<&'a mut [f32]>,
}

/// Buffers of one thread.
#[derive(Default)]
struct Scratch {
    grad: Vec<f32>,
    gates: Vec<f32>,
    grad_hidden: Vec<f32>,
    grad_tokens: Vec<f32>,
}

/// Overwrites the pre-activation `[R, C]` with its gradient.
pub(super) fn rows_pass(problem: &Problem<'_>, pre_activation: &mut [f32], grad: &[f32], tokens: bool) -> RowGradients {
    let num_rows = problem.plan.num_rows();
    let mut result = RowGradients {
        tokens: vec![0.0; if tokens { problem.tokens.len() } else { 0 }],
        gates: vec![0.0; num_rows],
        hidden: vec![0.0; num_rows * problem.d_hidden],
    };
    let parts = split_by_tokens(problem.plan, problem.num_tokens(), rayon::current_num_threads());
    let work: Vec<_> = parts.iter().zip(outputs(problem, &parts, pre_activation, &mut result)).collect();
    work.into_par_iter().for_each(|(part, output)| rows_part(problem, part, grad, output));
    result
}

fn outputs<'a>(
    problem: &Problem<'_>,
    parts: &[TokenPart],
    pre_activation: &'a mut [f32],
    result: &'a mut RowGradients,
) -> Vec<PartOutput<'a>> {
    let width = if result.tokens.is_empty() { 0 } else { problem.d_model };
    let tokens = cut_tokens(&mut result.tokens, width, parts).into_iter();
    let gates = cut(&mut result.gates, 1, parts);
    let pre_activation = cut(pre_activation, problem.columns(), parts);
    let hidden = cut(&mut result.hidden, problem.d_hidden, parts);
    let slices = tokens.zip(gates).zip(pre_activation).zip(hidden);
    slices
        .map(|(((tokens, gates), pre_activation), hidden)| PartOutput { tokens, gates, pre_activation, hidden })
        .collect()
}

fn rows_part(problem: &Problem<'_>, part: &TokenPart, grad: &[f32], output: PartOutput<'_>) {
    let (c, f) = (problem.columns(), problem.d_hidden);
    let mut scratch = Scratch::default();
    let slices = output.gates.into_iter().zip(output.pre_activation).zip(output.hidden);
    for (segment, ((gates, z), hidden)) in part.segments.iter().zip(slices) {
        for block in blocks(segment) {
            let local = block.rows.start - segment.rows.start..block.rows.end - segment.rows.start;
            let rows = BackwardRows {
                pre_activation: &mut z[local.start * c..local.end * c],
                hidden: &mut hidden[local.start * f..local.end * f],
                grad_gates: &mut gates[local],
            };
            rows_block(problem, &block, grad, rows, &mut scratch, !output.tokens.is_empty());
            if !output.tokens.is_empty() {
                add_to_tokens(problem, &block, &scratch.grad_tokens, part.tokens.start, output.tokens);
            }
        }
    }
}

/// Gradients of gates and pre-activation, the gated activations, and in `scratch` the gradient of the gathered tokens.
fn rows_block(
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
