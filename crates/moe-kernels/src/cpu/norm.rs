//! Root-mean-square and layer normalisation of rows, one pass each way.

use pulp::Arch;
use rayon::prelude::*;

use super::lanes::sum;

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

/// `x` and `y` are `[T, D]`, `D > 0`.
pub(crate) fn norm(x: &[f32], spec: NormSpec<'_>, y: &mut [f32]) {
    let (arch, block) = (Arch::new(), ROWS * spec.gamma.len());
    let blocks = y.par_chunks_mut(block).zip(x.par_chunks(block));
    blocks.for_each(|(y, x)| arch.dispatch(|| forward_rows(x, spec, y)));
}

/// Gradient of [`norm`]: writes that of `x` `[T, D]` into `dx`, returns those of gain and shift, `[2D]`.
pub(crate) fn norm_backward(x: &[f32], spec: NormSpec<'_>, grad: &[f32], dx: &mut [f32]) -> Vec<f32> {
    let (arch, width) = (Arch::new(), spec.gamma.len());
    let block = ROWS * width;
    let mut partial = vec![0.0; x.len().div_ceil(block) * 2 * width];
    let blocks = dx.par_chunks_mut(block).zip(x.par_chunks(block)).zip(grad.par_chunks(block));
    blocks
        .zip(partial.par_chunks_mut(2 * width))
        .for_each(|(((dx, x), grad), partial)| arch.dispatch(|| backward_rows(x, spec, grad, dx, partial)));
    sum_blocks(&partial, 2 * width)
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

#[inline(always)]
fn forward_rows(x: &[f32], spec: NormSpec<'_>, y: &mut [f32]) {
    let width = spec.gamma.len();
    for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
        let (mean, inverse) = statistics(x, spec);
        match spec.beta {
            None => {
                for ((y, &x), &gamma) in y.iter_mut().zip(x).zip(spec.gamma) {
                    *y = x * inverse * gamma;
                }
            }
            Some(beta) => {
                for (((y, &x), &gamma), &beta) in y.iter_mut().zip(x).zip(spec.gamma).zip(beta) {
                    *y = (x - mean) * inverse * gamma + beta;
                }
            }
        }
    }
}

/// With `n = (x - mean) * inverse` and `h = grad * gamma`: `dx = inverse * (h - mean(h) - n * mean(h n))`, where root
/// mean square normalisation has no `mean(h)`; `dgamma = sum grad * n`, `dbeta = sum grad`.
#[inline(always)]
fn backward_rows(x: &[f32], spec: NormSpec<'_>, grad: &[f32], dx: &mut [f32], partial: &mut [f32]) {
    let (gamma, width) = (spec.gamma, spec.gamma.len());
    let (dgamma, dbeta) = partial.split_at_mut(width);
    let rows = x.chunks_exact(width).zip(grad.chunks_exact(width)).zip(dx.chunks_exact_mut(width));
    for ((x, grad), dx) in rows {
        let (mean, inverse) = statistics(x, spec);
        let mean_h = if spec.beta.is_some() { sum([grad, gamma], |[g, c]| g * c) / width as f32 } else { 0.0 };
        let along = sum([grad, gamma, x], |[g, c, x]| g * c * ((x - mean) * inverse)) / width as f32;
        for (((dx, &x), &g), &c) in dx.iter_mut().zip(x).zip(grad).zip(gamma) {
            *dx = inverse * (g * c - mean_h - (x - mean) * inverse * along);
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
