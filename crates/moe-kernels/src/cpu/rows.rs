//! Tokens to rows sorted by expert and back, as gathers: each output row belongs to one thread.

use rayon::prelude::*;

use super::lanes::sum;
use crate::host_plan::HostPlan;

/// Output rows that a thread takes at a time.
const BLOCK_ROWS: usize = 64;

/// `tokens` `[T, D]` to `[R, D]`.
pub(crate) fn dispatch(plan: &HostPlan, tokens: &[f32], width: usize) -> Vec<f32> {
    let mut rows = vec![0.0; plan.num_rows() * width];
    by_row(&mut rows, width, |row, out| {
        let token = plan.token_of_row[row] as usize;
        out.copy_from_slice(&tokens[token * width..(token + 1) * width]);
    });
    rows
}

/// `rows` `[R, D]` to `[T, D]`: the sum over the `K` rows of a token, each times its gate, if there are gates `[T, K]`.
pub(crate) fn combine(plan: &HostPlan, rows: &[f32], gates: Option<&[f32]>, top_k: usize, width: usize) -> Vec<f32> {
    let row_of_slot = plan.row_of_slot();
    let mut output = vec![0.0; row_of_slot.len() / top_k * width];
    by_row(&mut output, width, |token, out| {
        for slot in token * top_k..(token + 1) * top_k {
            let (row, gate) = (row_of_slot[slot] as usize, gates.map_or(1.0, |gates| gates[slot]));
            for (y, x) in out.iter_mut().zip(&rows[row * width..(row + 1) * width]) {
                *y += gate * x;
            }
        }
    });
    output
}

/// Gradient of [`combine`] for the rows: `grad` `[T, D]` to `[R, D]`.
pub(crate) fn combine_backward_rows(plan: &HostPlan, grad: &[f32], gates: &[f32], width: usize) -> Vec<f32> {
    let mut rows = vec![0.0; plan.num_rows() * width];
    by_row(&mut rows, width, |row, out| {
        let (token, gate) = (plan.token_of_row[row] as usize, gates[plan.slot_of_row[row] as usize]);
        for (x, g) in out.iter_mut().zip(&grad[token * width..(token + 1) * width]) {
            *x = gate * g;
        }
    });
    rows
}

/// Gradient of [`combine`] for the gates: `grad` `[T, D]` and `rows` `[R, D]` to `[T, K]`.
pub(crate) fn combine_backward_gates(plan: &HostPlan, grad: &[f32], rows: &[f32], width: usize) -> Vec<f32> {
    let mut gates = vec![0.0; plan.num_rows()];
    by_row(&mut gates, 1, |row, out| {
        let token = plan.token_of_row[row] as usize;
        let (grad, row) = (&grad[token * width..(token + 1) * width], &rows[row * width..(row + 1) * width]);
        out[0] = sum([grad, row], |[g, x]| g * x);
    });
    plan.by_slot(&gates)
}

/// Calls `write` with the number and the slice of every row of `output`.
fn by_row(output: &mut [f32], width: usize, write: impl Fn(usize, &mut [f32]) + Sync) {
    let blocks = output.par_chunks_mut(BLOCK_ROWS * width).enumerate();
    blocks.for_each(|(block, rows)| {
        for (i, row) in rows.chunks_exact_mut(width).enumerate() {
            write(block * BLOCK_ROWS + i, row);
        }
    });
}
