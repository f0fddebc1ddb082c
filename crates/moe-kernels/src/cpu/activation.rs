//! SwiGLU and GELU in one pass over memory, blocks in parallel, with the widest vectors this processor has.

use multiversion::multiversion;
use rayon::prelude::*;

use super::exp::{normal, sigmoid};

/// Numbers of the input that a thread takes at a time: 64 KiB, which stay in its cache.
const BLOCK: usize = 1 << 14;

/// `silu(z[.., ..F]) * z[.., F..]`: `input` `[R, 2F]`, `output` `[R, F]`, `F = d_hidden > 0`.
pub(crate) fn swiglu(input: &[f32], output: &mut [f32], d_hidden: usize) {
    let rows = block_rows(d_hidden);
    let blocks = output.par_chunks_mut(rows * d_hidden).zip(input.par_chunks(rows * 2 * d_hidden));
    blocks.for_each(|(output, input)| forward_rows(input, output, d_hidden));
}

/// Gradient of [`swiglu`]: `input` `[R, 2F]`, `grad` `[R, F]`, `output` `[R, 2F]`.
pub(crate) fn swiglu_backward(input: &[f32], grad: &[f32], output: &mut [f32], d_hidden: usize) {
    let rows = block_rows(d_hidden);
    let blocks = output.par_chunks_mut(rows * 2 * d_hidden).zip(input.par_chunks(rows * 2 * d_hidden));
    let blocks = blocks.zip(grad.par_chunks(rows * d_hidden));
    blocks.for_each(|((output, input), grad)| backward_rows(input, grad, output, d_hidden));
}

/// `x * cdf(x)`.
pub(crate) fn gelu(input: &[f32], output: &mut [f32]) {
    let blocks = output.par_chunks_mut(BLOCK).zip(input.par_chunks(BLOCK));
    blocks.for_each(|(output, input)| gelu_block(input, output));
}

/// Gradient of [`gelu`].
pub(crate) fn gelu_backward(input: &[f32], grad: &[f32], output: &mut [f32]) {
    let blocks = output.par_chunks_mut(BLOCK).zip(input.par_chunks(BLOCK)).zip(grad.par_chunks(BLOCK));
    blocks.for_each(|((output, input), grad)| gelu_block_backward(input, grad, output));
}

#[multiversion(targets = "simd")]
fn gelu_block(input: &[f32], output: &mut [f32]) {
    for (y, &x) in output.iter_mut().zip(input) {
        *y = x * normal(x).0;
    }
}

#[multiversion(targets = "simd")]
fn gelu_block_backward(input: &[f32], grad: &[f32], output: &mut [f32]) {
    for ((dx, &x), &dy) in output.iter_mut().zip(input).zip(grad) {
        let (cdf, density) = normal(x);
        *dx = dy * (cdf + x * density);
    }
}

fn block_rows(d_hidden: usize) -> usize {
    (BLOCK / (2 * d_hidden)).max(1)
}

#[multiversion(targets = "simd")]
fn forward_rows(input: &[f32], output: &mut [f32], d_hidden: usize) {
    for (z, y) in input.chunks_exact(2 * d_hidden).zip(output.chunks_exact_mut(d_hidden)) {
        let (gate, up) = z.split_at(d_hidden);
        for ((y, &g), &u) in y.iter_mut().zip(gate).zip(up) {
            *y = g * sigmoid(g) * u;
        }
    }
}

/// With `s = sigmoid(g)`: `d silu(g)/dg = s + g * s * (1 - s)`.
#[multiversion(targets = "simd")]
fn backward_rows(input: &[f32], grad: &[f32], output: &mut [f32], d_hidden: usize) {
    let width = 2 * d_hidden;
    let rows = input.chunks_exact(width).zip(grad.chunks_exact(d_hidden)).zip(output.chunks_exact_mut(width));
    for ((z, dy), dz) in rows {
        let ((gate, up), (d_gate, d_up)) = (z.split_at(d_hidden), dz.split_at_mut(d_hidden));
        let inputs = gate.iter().zip(up).zip(dy);
        for ((d_gate, d_up), ((&g, &u), &d)) in d_gate.iter_mut().zip(d_up).zip(inputs) {
            let s = sigmoid(g);
            *d_gate = d * u * (s + g * s * (1.0 - s));
            *d_up = d * g * s;
        }
    }
}
