//! The backward pass: key/value heads in parallel, each with all queries that look at it.

use multiversion::multiversion;
use rayon::prelude::*;

use super::super::gemm::{Mat, MatMut, Onto, gemm};
use super::super::lanes::sum;
use super::channels::ChannelsOutside;
use super::{AttentionShape, BLOCK, Inputs, weigh_again};

/// What the forward pass left, and the gradient of its output.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Saved<'a> {
    /// `[B, S, H, A]`.
    pub(crate) output: &'a [f32],
    /// `[B, S, H]`.
    pub(crate) lse: &'a [f32],
    /// `[B, S, H, A]`.
    pub(crate) grad: &'a [f32],
}

/// Gradients of query, key and value, written over zeros into slices of their shapes. No size is 0.
pub(crate) fn attention_backward(shape: &AttentionShape, inputs: Inputs<'_>, saved: Saved<'_>, grads: [&mut [f32]; 3]) {
    let outside = [inputs.key, inputs.value].map(|rows| ChannelsOutside::new(shape, rows));
    let heads: Vec<HeadGrads> = (0..shape.batch * shape.kv_heads)
        .into_par_iter()
        .map(|i| HeadGrads::new(shape, inputs, &outside, saved, [i / shape.kv_heads, i % shape.kv_heads]))
        .collect();
    let [query, key, value] = grads;
    interleave(&heads, shape.kv_heads, shape.queries, query, |head| &head.query);
    interleave(&heads, shape.kv_heads, shape.keys, key, |head| &head.key);
    interleave(&heads, shape.kv_heads, shape.keys, value, |head| &head.value);
}

/// `B * C` parts `[len, N]` become `[B, len, C, N]`.
fn interleave(
    heads: &[HeadGrads],
    kv_heads: usize,
    len: usize,
    output: &mut [f32],
    part: impl Fn(&HeadGrads) -> &[f32] + Sync,
) {
    let width = output.len() / heads.len() / len;
    output.par_chunks_mut(kv_heads * width).enumerate().with_min_len(BLOCK).for_each(|(row, output)| {
        let (batch, position) = (row / len, row % len);
        for (output, head) in output.chunks_exact_mut(width).zip(&heads[batch * kv_heads..]) {
            output.copy_from_slice(&part(head)[position * width..][..width]);
        }
    });
}

/// The gradients that belong to one key/value head of one sequence.
struct HeadGrads {
    /// `[S, G * A]`, of the `G = H / C` query heads.
    query: Vec<f32>,
    /// `[P, A]`.
    key: Vec<f32>,
    /// `[P, A]`.
    value: Vec<f32>,
}

/// Two blocks of `[rows, columns]`.
#[derive(Default)]
struct Scratch {
    weights: Vec<f32>,
    grads: Vec<f32>,
}

impl HeadGrads {
    fn new(
        shape: &AttentionShape,
        inputs: Inputs<'_>,
        outside: &[ChannelsOutside<'_>; 2],
        saved: Saved<'_>,
        [batch, kv_head]: [usize; 2],
    ) -> Self {
        let (group, width) = (shape.heads / shape.kv_heads, shape.width);
        let mut grads = Self {
            query: vec![0.0; shape.queries * group * width],
            key: vec![0.0; shape.keys * width],
            value: vec![0.0; shape.keys * width],
        };
        let mut scratch = Scratch::default();
        for head in kv_head * group..(kv_head + 1) * group {
            for first in (0..shape.queries).step_by(BLOCK) {
                grads.add_block(shape, inputs, outside, saved, [batch, head, first], &mut scratch);
            }
        }
        grads
    }

    /// With weights `W`, scores `s = scale * q k^T`, output `o` and its gradient `g`: `dv = W^T g`, `ds = W * (g v^T - g .
    /// o)`, `dq = scale * ds k`, `dk = scale * ds^T q`.
    fn add_block(
        &mut self,
        shape: &AttentionShape,
        inputs: Inputs<'_>,
        [keys_outside, values_outside]: &[ChannelsOutside<'_>; 2],
        saved: Saved<'_>,
        [batch, head, first]: [usize; 3],
        scratch: &mut Scratch,
    ) {
        let (width, group) = (shape.width, shape.heads / shape.kv_heads);
        let (kv_head, rows) = (head / group, BLOCK.min(shape.queries - first));
        let columns = shape.visible(first + rows - 1);
        let query_rows = |data| shape.query_rows(data, batch, head, first, rows);
        let (queries, grad) = (query_rows(inputs.query), query_rows(saved.grad));
        let keys = shape.key_rows(inputs.key, batch, kv_head, columns);
        scratch.weights.resize(rows * columns, 0.0);
        scratch.grads.resize(rows * columns, 0.0);
        let Scratch { weights, grads } = scratch;

        gemm(MatMut::new(weights, rows, columns), Onto::Overwrite, queries, keys_outside.head(batch, kv_head, columns));
        let [mut lse, mut along] = [[0.0; BLOCK]; 2];
        let start = (batch * shape.queries + first) * shape.heads + head;
        row_numbers(shape, saved, start, &mut lse[..rows], &mut along[..rows]);
        weigh_again(shape, first, weights, &lse[..rows]);
        gemm(MatMut::new(&mut self.value, columns, width), Onto::Add, Mat::new(weights, rows, columns).t(), grad);

        gemm(MatMut::new(grads, rows, columns), Onto::Overwrite, grad, values_outside.head(batch, kv_head, columns));
        scores_backward(shape.scale, weights, &along[..rows], grads);
        let scores_grad = Mat::new(grads, rows, columns);
        let query_row = group * width;
        let query = &mut self.query[first * query_row + head % group * width..];
        gemm(MatMut::strided(query, rows, width, query_row), Onto::Overwrite, scores_grad, keys);
        gemm(MatMut::new(&mut self.key, columns, width), Onto::Add, scores_grad.t(), queries);
    }
}

/// Log-sum-exp, and `g . o`, of the rows of one head; `start` is the first row's number.
#[multiversion(targets = "simd")]
fn row_numbers(shape: &AttentionShape, saved: Saved<'_>, start: usize, lse: &mut [f32], along: &mut [f32]) {
    for (i, (lse, along)) in lse.iter_mut().zip(along).enumerate() {
        let at = start + i * shape.heads;
        let row = at * shape.width..(at + 1) * shape.width;
        *lse = saved.lse[at];
        *along = sum([&saved.grad[row.clone()], &saved.output[row]], |[g, o]| g * o);
    }
}

/// Gradients of the weights become those of the scores.
#[multiversion(targets = "simd")]
fn scores_backward(scale: f32, weights: &[f32], along: &[f32], grads: &mut [f32]) {
    let columns = weights.len() / along.len();
    let rows = grads.chunks_exact_mut(columns).zip(weights.chunks_exact(columns)).zip(along);
    for ((grads, weights), along) in rows {
        for (g, &w) in grads.iter_mut().zip(weights) {
            *g = scale * w * (*g - along);
        }
    }
}
