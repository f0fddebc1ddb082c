//! Root-mean-square and layer normalisation of rows, one pass each way.

use std::mem::MaybeUninit;

use multiversion::multiversion;
use rayon::prelude::*;

use super::lanes::sum;
use super::unset::Unset;

/// Rows of one partial sum of the gradients of gain and shift: the same on any number of threads.
const ROWS: usize = 64;

/// What is done to every row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NormSpec<'a> {
    /// Gain, `[D]`.
    pub(crate) gamma: &'a [f32],
    /// Shift, `[D]`: with it the mean is taken out first.
    pub(crate) beta: Option<&'a [f32]>,
    /// Added to the mean square or variance.
    pub(crate) epsilon: f32,
}

/// `x` and the result are `[T, D]`, `D > 0`.
pub(crate) fn norm(x: &[f32], spec: NormSpec<'_>) -> Vec<f32> {
    let mut y = Unset::new(x.len());
    let block = ROWS * spec.gamma.len();
    let blocks = y.slots(x.len()).par_chunks_mut(block).zip(x.par_chunks(block));
    blocks.for_each(|(y, x)| forward_rows(x, spec, y));
    // SAFETY: the blocks are all rows, and every number of a row was written.
    unsafe { y.assume_set(x.len()) }
}

/// Gradients of [`norm`]: that of `x` `[T, D]`, and those of gain and shift, `[2D]`.
pub(crate) fn norm_backward(x: &[f32], spec: NormSpec<'_>, grad: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let mut dx = Unset::new(x.len());
    let width = spec.gamma.len();
    let block = ROWS * width;
    let mut partial = vec![0.0; x.len().div_ceil(block) * 2 * width];
    let blocks = dx.slots(x.len()).par_chunks_mut(block).zip(x.par_chunks(block)).zip(grad.par_chunks(block));
    blocks
        .zip(partial.par_chunks_mut(2 * width))
        .for_each(|(((dx, x), grad), partial)| backward_rows(x, spec, grad, dx, partial));
    // SAFETY: the blocks are all rows, and every number of a row was written.
    (unsafe { dx.assume_set(x.len()) }, sum_blocks(&partial, 2 * width))
}

fn sum_blocks(partial: &[f32], width: usize) -> Vec<f32> {
    let mut total = vec![0.0; width];
    for block in partial.chunks_exact(width) {
        for (total, part) in total.iter_mut().zip(block) {
            *total += part;
        }
    }
    total
}

#[multiversion(targets = "simd")]
fn forward_rows(x: &[f32], spec: NormSpec<'_>, y: &mut [MaybeUninit<f32>]) {
    let width = spec.gamma.len();
    for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
        let (mean, inverse) = statistics(x, spec);
        match spec.beta {
            None => {
                for ((y, &x), &gamma) in y.iter_mut().zip(x).zip(spec.gamma) {
                    y.write(x * inverse * gamma);
                }
            }
            Some(beta) => {
                for (((y, &x), &gamma), &beta) in y.iter_mut().zip(x).zip(spec.gamma).zip(beta) {
                    y.write((x - mean) * inverse * gamma + beta);
                }
            }
        }
    }
}

/// With `n = (x - mean) * inverse` and `h = grad * gamma`: `dx = inverse * (h - mean(h) - n * mean(h n))`, where root
/// mean square normalisation has no `mean(h)`; `dgamma = sum grad * n`, `dbeta = sum grad`.
#[multiversion(targets = "simd")]
fn backward_rows(x: &[f32], spec: NormSpec<'_>, grad: &[f32], dx: &mut [MaybeUninit<f32>], partial: &mut [f32]) {
    let (gamma, width) = (spec.gamma, spec.gamma.len());
    let (dgamma, dbeta) = partial.split_at_mut(width);
    let rows = x.chunks_exact(width).zip(grad.chunks_exact(width)).zip(dx.chunks_exact_mut(width));
    for ((x, grad), dx) in rows {
        let (mean, inverse) = statistics(x, spec);
        let mean_h = if spec.beta.is_some() { sum([grad, gamma], |[g, c]| g * c) / width as f32 } else { 0.0 };
        let along = sum([grad, gamma, x], |[g, c, x]| g * c * ((x - mean) * inverse)) / width as f32;
        for (((dx, &x), &g), &c) in dx.iter_mut().zip(x).zip(grad).zip(gamma) {
            dx.write(inverse * (g * c - mean_h - (x - mean) * inverse * along));
        }
        for ((dgamma, &x), &g) in dgamma.iter_mut().zip(x).zip(grad) {
            *dgamma += g * ((x - mean) * inverse);
        }
        if spec.beta.is_some() {
            for (dbeta, &g) in dbeta.iter_mut().zip(grad) {
                *dbeta += g;
            }
        }
    }
}

/// Mean (0 without a shift) and the reciprocal of the root of the mean square around it.
#[inline(always)]
fn statistics(x: &[f32], spec: NormSpec<'_>) -> (f32, f32) {
    let width = x.len() as f32;
    let mean = if spec.beta.is_some() { sum([x], |[x]| x) / width } else { 0.0 };
    let square = sum([x], |[x]| (x - mean) * (x - mean)) / width;
    (mean, 1.0 / (square + spec.epsilon).sqrt())
}
