//! Softmax, log-sum-exp and cross entropy of rows.

use multiversion::multiversion;
use rayon::prelude::*;

use super::exp::exp;
use super::lanes::{map_sum, max, sum};

/// Numbers that a thread takes at a time: 64 KiB.
const BLOCK: usize = 1 << 14;

fn block_rows(width: usize) -> usize {
    (BLOCK / width).max(1)
}

/// `rows` `[T, V]` become their softmax, `V = width > 0`.
pub(crate) fn softmax(rows: &mut [f32], width: usize) {
    rows.par_chunks_mut(block_rows(width) * width).for_each(|rows| softmax_block(rows, width));
}

#[multiversion(targets = "simd")]
fn softmax_block(rows: &mut [f32], width: usize) {
    for row in rows.chunks_exact_mut(width) {
        scaled_softmax(row, 1.0);
    }
}

/// One row becomes `factor * softmax(row)`; returns its log-sum-exp.
#[inline(always)]
fn scaled_softmax(row: &mut [f32], factor: f32) -> f32 {
    let largest = max(row);
    let sum = map_sum(row, |x| exp(x - largest));
    let scale = factor / sum;
    for p in row {
        *p *= scale;
    }
    largest + sum.ln()
}

/// Gradient of the softmax from its output: `grad` `[T, V]` becomes `y * (grad - sum(y * grad))`.
pub(crate) fn softmax_backward(output: &[f32], grad: &mut [f32], width: usize) {
    let block = block_rows(width) * width;
    let blocks = grad.par_chunks_mut(block).zip(output.par_chunks(block));
    blocks.for_each(|(grad, output)| softmax_backward_block(output, grad, width));
}

#[multiversion(targets = "simd")]
fn softmax_backward_block(output: &[f32], grad: &mut [f32], width: usize) {
    for (g, y) in grad.chunks_exact_mut(width).zip(output.chunks_exact(width)) {
        let along = sum([g, y], |[g, y]| g * y);
        for (g, &y) in g.iter_mut().zip(y) {
            *g = y * (*g - along);
        }
    }
}

/// `output[t] = log sum_v exp(rows[t, v])`.
pub(crate) fn log_sum_exp(rows: &[f32], output: &mut [f32], width: usize) {
    let block = block_rows(width);
    let blocks = output.par_chunks_mut(block).zip(rows.par_chunks(block * width));
    blocks.for_each(|(output, rows)| log_sum_exp_block(rows, output, width));
}

#[multiversion(targets = "simd")]
fn log_sum_exp_block(rows: &[f32], output: &mut [f32], width: usize) {
    for (out, row) in output.iter_mut().zip(rows.chunks_exact(width)) {
        let largest = max(row);
        *out = largest + sum([row], |[x]| exp(x - largest)).ln();
    }
}

/// Gradient of [`log_sum_exp`]: `rows` become `grad[t] * softmax(rows[t])`.
pub(crate) fn log_sum_exp_backward(rows: &mut [f32], grad: &[f32], width: usize) {
    let block = block_rows(width);
    let blocks = rows.par_chunks_mut(block * width).zip(grad.par_chunks(block));
    blocks.for_each(|(rows, grad)| log_sum_exp_backward_block(rows, grad, width));
}

#[multiversion(targets = "simd")]
fn log_sum_exp_backward_block(rows: &mut [f32], grad: &[f32], width: usize) {
    for (row, &g) in rows.chunks_exact_mut(width).zip(grad) {
        scaled_softmax(row, g);
    }
}

/// `output[t] = log sum_v exp(logits[t, v]) - logits[t, targets[t]]`.
pub(crate) fn cross_entropy(logits: &[f32], targets: &[usize], output: &mut [f32], width: usize) {
    log_sum_exp(logits, output, width);
    for ((out, logits), &target) in output.iter_mut().zip(logits.chunks_exact(width)).zip(targets) {
        *out -= logits[target];
    }
}

/// Gradient of [`cross_entropy`]: `logits` become `grad[t] * (softmax(logits[t]) - onehot(targets[t]))`.
pub(crate) fn cross_entropy_backward(logits: &mut [f32], targets: &[usize], grad: &[f32], width: usize) {
    log_sum_exp_backward(logits, grad, width);
    for ((row, &target), &g) in logits.chunks_exact_mut(width).zip(targets).zip(grad) {
        row[target] -= g;
    }
}
