//! `y_t = sum_k gate_tk * (activation(x_t W_in + b_in) W_out + b_out)` with the weights of expert `(t, k)`.

use std::mem::MaybeUninit;

use multiversion::multiversion;
use rayon::prelude::*;

use super::segments::{Part, Segment, Split, cut};
use super::{Problem, gather, resize};
use crate::cpu::gated::gated_values;
use crate::cpu::gemm::{Mat, MatMut, Onto, gemm, gemm_unset};
use crate::cpu::unset::{Unset, fill, repeat, written};

/// Rows that are taken through the network together: their copies stay in a core's cache.
const BLOCK_ROWS: usize = 1024;

/// Writes every slot of `output` `[T, D]` and, when asked, of the pre-activation `[R, C]`.
pub(crate) fn forward(
    problem: &Problem<'_>,
    pre_activation: Option<&mut [MaybeUninit<f32>]>,
    output: &mut [MaybeUninit<f32>],
) {
    run(problem, pre_activation, output, |_| ());
}

/// What a part does with activations beside using them.
pub(super) trait Activate {
    /// `hidden = gate * activation(z)` for the rows of `block`.
    fn activate(&mut self, problem: &Problem<'_>, block: &Segment, z: &[f32], gates: &[f32], hidden: &mut [f32]);

    /// Called after the last block of a segment of this expert, whose weights are in the caches still.
    fn end_segment(&mut self, _problem: &Problem<'_>, _expert: usize) {}
}

impl Activate for () {
    fn activate(&mut self, problem: &Problem<'_>, _: &Segment, z: &[f32], gates: &[f32], hidden: &mut [f32]) {
        gated_values(problem.activation, z, gates, hidden, problem.d_hidden);
    }
}

/// [`forward`] with an `activate` for each part, which are returned in the order of the parts.
pub(super) fn run<A: Activate + Send>(
    problem: &Problem<'_>,
    pre_activation: Option<&mut [MaybeUninit<f32>]>,
    output: &mut [MaybeUninit<f32>],
    activate: impl Fn(&Part) -> A + Sync,
) -> Vec<A> {
    let split = Split::new(problem.plan, problem.num_tokens(), rayon::current_num_threads());
    let parts = &split.parts;
    let kept = match pre_activation {
        Some(buffer) => cut(buffer, problem.columns(), parts).into_iter().map(Some).collect(),
        None => parts.iter().map(|_| None).collect::<Vec<_>>(),
    };
    let extra_len = split.extra_len(output.len());
    let mut extra = Unset::new(extra_len);
    let outputs = split.accumulators(&mut *output, extra.slots(extra_len), problem.d_model);
    let work: Vec<_> = parts.iter().zip(kept).zip(outputs).collect();
    let forward = |((part, kept), output)| {
        let mut activate = activate(part);
        forward_part(problem, part, kept, fill(output, 0.0), &mut activate);
        activate
    };
    let activates = work.into_par_iter().map(forward).collect();
    // SAFETY: the parts cover both, and each has filled what is its own.
    let (output, extra) = unsafe { (written(output), extra.assume_set(extra_len)) };
    split.add_extra(output, &extra, problem.d_model);
    activates
}

/// Buffers of one thread.
#[derive(Default)]
struct Scratch {
    tokens: Vec<f32>,
    gates: Vec<f32>,
    pre_activation: Vec<f32>,
    hidden: Vec<f32>,
    output: Vec<f32>,
}

fn forward_part(
    problem: &Problem<'_>,
    part: &Part,
    kept: Option<Vec<&mut [MaybeUninit<f32>]>>,
    output: &mut [f32],
    activate: &mut impl Activate,
) {
    let mut scratch = Scratch::default();
    let first_token = part.tokens.start;
    let mut kept = kept.map(Vec::into_iter);
    for segment in &part.segments {
        let mut kept = kept.as_mut().map(|kept| kept.next().expect("as many pieces as segments"));
        for block in blocks(segment) {
            let kept = kept.as_mut().map(|kept| {
                let (piece, rest) = std::mem::take(kept).split_at_mut(block.rows.len() * problem.columns());
                *kept = rest;
                piece
            });
            forward_block(problem, &block, kept, &mut scratch, activate);
            add_to_tokens(problem, &block, &scratch.output, first_token, output);
            if let Some(bias) = problem.b_out(block.expert) {
                add_bias(problem, &block, bias, &scratch.gates, first_token, output);
            }
        }
        activate.end_segment(problem, segment.expert);
    }
}

/// A segment in pieces of at most [`BLOCK_ROWS`] rows, nearly equal.
pub(super) fn blocks(segment: &Segment) -> impl Iterator<Item = Segment> + use<> {
    let (expert, rows) = (segment.expert, segment.rows.clone());
    let count = rows.len().div_ceil(BLOCK_ROWS);
    let boundary = move |i: usize| rows.start + i * rows.len() / count;
    (0..count).map(move |i| Segment { expert, rows: boundary(i)..boundary(i + 1) })
}

/// Leaves `gate * activation(..) W_out` of the block's rows in `scratch.output`.
fn forward_block(
    problem: &Problem<'_>,
    block: &Segment,
    kept: Option<&mut [MaybeUninit<f32>]>,
    scratch: &mut Scratch,
    activate: &mut impl Activate,
) {
    let (n, d, f, c) = (block.rows.len(), problem.d_model, problem.d_hidden, problem.columns());
    gather(problem.tokens, d, 0..d, &problem.plan.token_of_row[block.rows.clone()], &mut scratch.tokens);
    problem.gates_of(block.rows.clone(), &mut scratch.gates);

    scratch.pre_activation.clear();
    scratch.pre_activation.reserve(n * c);
    let z = kept.unwrap_or_else(|| &mut scratch.pre_activation.spare_capacity_mut()[..n * c]);
    let z = first_product(z, &scratch.tokens, problem.w_in(block.expert), problem.b_in(block.expert), [n, d, c]);

    let hidden = resize(&mut scratch.hidden, n * f);
    activate.activate(problem, block, z, &scratch.gates, hidden);
    let output = MatMut::new(resize(&mut scratch.output, n * d), n, d);
    gemm(output, Onto::Overwrite, Mat::new(hidden, n, f), Mat::new(problem.w_out(block.expert), f, d));
}

/// `tokens W_in + b_in` in the slots `[n, C]`.
fn first_product<'a>(
    slots: &'a mut [MaybeUninit<f32>],
    tokens: &[f32],
    w_in: &[f32],
    b_in: Option<&[f32]>,
    [n, d, c]: [usize; 3],
) -> &'a mut [f32] {
    let (tokens, w_in) = (Mat::new(tokens, n, d), Mat::new(w_in, d, c));
    let Some(bias) = b_in else { return gemm_unset(slots, tokens, w_in) };
    let rows = repeat(slots, bias);
    gemm(MatMut::new(rows, n, c), Onto::Add, tokens, w_in);
    rows
}

/// Adds each row `[D]` to its token; `output` starts at `first_token`.
pub(super) fn add_to_tokens(
    problem: &Problem<'_>,
    block: &Segment,
    rows: &[f32],
    first_token: usize,
    output: &mut [f32],
) {
    add_rows(&problem.plan.token_of_row[block.rows.clone()], rows, problem.d_model, first_token, output);
}

/// Adds each row of `d` numbers to the token it belongs to.
#[multiversion(targets = "simd")]
fn add_rows(token_of_row: &[u32], rows: &[f32], d: usize, first_token: usize, output: &mut [f32]) {
    for (row, &token) in rows.chunks_exact(d).zip(token_of_row) {
        let start = (token as usize - first_token) * d;
        for (y, x) in output[start..start + d].iter_mut().zip(row) {
            *y += x;
        }
    }
}

fn add_bias(
    problem: &Problem<'_>,
    block: &Segment,
    bias: &[f32],
    gates: &[f32],
    first_token: usize,
    output: &mut [f32],
) {
    let d = problem.d_model;
    for (gate, &token) in gates.iter().zip(&problem.plan.token_of_row[block.rows.clone()]) {
        let start = (token as usize - first_token) * d;
        for (y, b) in output[start..start + d].iter_mut().zip(bias) {
            *y += gate * b;
        }
    }
}
