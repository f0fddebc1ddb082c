//! The forward pass: blocks of queries in parallel.

use multiversion::multiversion;
use rayon::prelude::*;

use super::super::gemm::{MatMut, Onto, gemm};
use super::channels::ChannelsOutside;
use super::{AttentionShape, BLOCK, Inputs, weigh};

/// Writes the output `[B, S, H, A]` and the log-sum-exp of the scores `[B, S, H]`. No size is 0.
pub(crate) fn attention(shape: &AttentionShape, inputs: Inputs<'_>, output: &mut [f32], lse: &mut [f32]) {
    let (heads, row) = (shape.heads, shape.heads * shape.width);
    let keys = ChannelsOutside::new(shape, inputs.key);
    let sequences = output.par_chunks_mut(shape.query_len()).zip(lse.par_chunks_mut(shape.queries * heads));
    sequences.enumerate().for_each(|(batch, (output, lse))| {
        let blocks = output.par_chunks_mut(BLOCK * row).zip(lse.par_chunks_mut(BLOCK * heads));
        blocks.enumerate().for_each_init(Vec::new, |scores, (block, (output, lse))| {
            for head in 0..heads {
                one_block(shape, inputs, &keys, [batch, head, block * BLOCK], scores, output, lse);
            }
        });
    });
}

/// One head of a block of queries from `first` on: `output` `[rows, H, A]`, `lse` `[rows, H]`.
fn one_block(
    shape: &AttentionShape,
    inputs: Inputs<'_>,
    keys: &ChannelsOutside<'_>,
    [batch, head, first]: [usize; 3],
    scores: &mut Vec<f32>,
    output: &mut [f32],
    lse: &mut [f32],
) {
    let (kv_head, rows) = (head * shape.kv_heads / shape.heads, lse.len() / shape.heads);
    let columns = shape.visible(first + rows - 1);
    scores.resize(rows * columns, 0.0);
    let queries = shape.query_rows(inputs.query, batch, head, first, rows);
    let keys = keys.head(batch, kv_head, columns);
    gemm(MatMut::new(scores, rows, columns), Onto::Overwrite, queries, keys);

    let mut sums = [(0.0, 0.0); BLOCK];
    weigh(shape, first, scores, &mut sums[..rows]);

    let (width, row) = (shape.width, shape.heads * shape.width);
    let values = shape.key_rows(inputs.value, batch, kv_head, columns);
    let weights = super::Mat::new(scores, rows, columns);
    let output = &mut output[head * width..];
    gemm(MatMut::strided(output, rows, width, row), Onto::Overwrite, weights, values);
    for (i, (row_lse, _)) in sums[..rows].iter().enumerate() {
        lse[i * shape.heads + head] = *row_lse;
    }
    divide(&sums[..rows], output, [width, row]);
}

/// The first `width` numbers of every row times its factor.
#[multiversion(targets = "simd")]
fn divide(sums: &[(f32, f32)], output: &mut [f32], [width, row]: [usize; 2]) {
    for (i, (_, inverse)) in sums.iter().enumerate() {
        for y in &mut output[i * row..][..width] {
            *y *= inverse;
        }
    }
}
