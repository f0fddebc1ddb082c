//! Grouped matrix products: every expert's rows with its own matrix, blocks of rows or of columns in parallel.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::gemm::{Mat, gemm_unset};
use super::unset::{Unset, fill};
use crate::host_plan::HostPlan;

/// Rows of one product: below a few hundred, packing the matrix again costs more than a thread gains.
const BLOCK_ROWS: usize = 512;
/// Rows of one piece of an outer product.
const BLOCK_HEIGHT: usize = 256;

/// `rows` `[R, I]` times the matrix of their expert out of `weight`: `[E, I, O]`, or `[E, O, I]` if `transposed`.
pub(crate) fn grouped_matmul(
    plan: &HostPlan,
    rows: &[f32],
    weight: &[f32],
    [d_in, d_out]: [usize; 2],
    transposed: bool,
) -> Vec<f32> {
    let matrix = |expert: usize| {
        let matrix = &weight[expert * d_in * d_out..(expert + 1) * d_in * d_out];
        if transposed { Mat::new(matrix, d_out, d_in).t() } else { Mat::new(matrix, d_in, d_out) }
    };
    let len = plan.num_rows() * d_out;
    let mut output = Unset::new(len);
    let mut rest = output.slots(len);
    let mut work = Vec::new();
    for expert in 0..plan.num_experts() {
        let served = plan.rows_of(expert);
        for start in served.clone().step_by(BLOCK_ROWS) {
            let block = start..served.end.min(start + BLOCK_ROWS);
            let (slots, tail) = rest.split_at_mut(block.len() * d_out);
            rest = tail;
            work.push((expert, block, slots));
        }
    }
    fill(rest, 0.0);
    work.into_par_iter().for_each(|(expert, block, slots)| {
        let rows = Mat::new(&rows[block.start * d_in..block.end * d_in], block.len(), d_in);
        gemm_unset(slots, rows, matrix(expert));
    });
    // SAFETY: the blocks are the served rows in order, and a product was written to each; the others were filled.
    unsafe { output.assume_set(len) }
}

/// `lhs` `[R, I]` transposed times `rhs` `[R, O]`, expert by expert: `[E, I, O]`, zero for an idle expert.
pub(crate) fn grouped_outer(plan: &HostPlan, lhs: &[f32], rhs: &[f32], [d_in, d_out]: [usize; 2]) -> Vec<f32> {
    let len = plan.num_experts() * d_in * d_out;
    let mut output = Unset::new(len);
    let pieces = output.slots(len).chunks_mut((d_in * d_out).max(1)).enumerate();
    let work: Vec<_> = pieces.flat_map(|(expert, matrix)| matrix_pieces(expert, matrix, d_out)).collect();
    work.into_par_iter().for_each(|(expert, first, slots)| {
        let (served, height) = (plan.rows_of(expert), slots.len() / d_out);
        if served.is_empty() {
            fill(slots, 0.0);
            return;
        }
        let lhs = Mat::strided(&lhs[served.start * d_in + first..], served.len(), height, d_in);
        let rhs = Mat::new(&rhs[served.start * d_out..served.end * d_out], served.len(), d_out);
        gemm_unset(slots, lhs.t(), rhs);
    });
    // SAFETY: the pieces cover all matrices, and each was written.
    unsafe { output.assume_set(len) }
}

/// One expert's matrix in pieces of [`BLOCK_HEIGHT`] rows: expert, first row, slots.
fn matrix_pieces(
    expert: usize,
    matrix: &mut [MaybeUninit<f32>],
    d_out: usize,
) -> impl Iterator<Item = (usize, usize, &mut [MaybeUninit<f32>])> {
    let pieces = matrix.chunks_mut(BLOCK_HEIGHT * d_out).enumerate();
    pieces.map(move |(i, slots)| (expert, i * BLOCK_HEIGHT, slots))
}
