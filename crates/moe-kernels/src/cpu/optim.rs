//! The optimizer's passes over all parameters.

use multiversion::multiversion;
use rayon::prelude::*;

use super::lanes::sum;
use crate::AdamWStep;

/// Numbers that a thread takes at a time, of each tensor: 64 KiB. Also the unit of the sum of squares, so that it does
/// not depend on the number of threads.
const BLOCK: usize = 1 << 14;

/// Updates parameter and moments in place, in one pass.
pub(crate) fn adamw(param: &mut [f32], grad: &[f32], moments: [&mut [f32]; 2], step: &AdamWStep) {
    let (factors, [first, second]) = (Factors::new(step), moments);
    let blocks = param.par_chunks_mut(BLOCK).zip(grad.par_chunks(BLOCK));
    let blocks = blocks.zip(first.par_chunks_mut(BLOCK)).zip(second.par_chunks_mut(BLOCK));
    blocks.for_each(|(((p, g), m), v)| adamw_block(p, g, m, v, factors));
}

/// The numbers of a step in f32.
#[derive(Clone, Copy)]
struct Factors {
    grad: f32,
    decay: f32,
    lr: f32,
    beta: [f32; 2],
    correction: [f32; 2],
    epsilon: f32,
}

impl Factors {
    fn new(step: &AdamWStep) -> Self {
        Self {
            grad: step.grad_factor as f32,
            decay: step.decay() as f32,
            lr: step.lr as f32,
            beta: [step.beta_1, step.beta_2],
            correction: step.corrections(),
            epsilon: step.epsilon,
        }
    }
}

/// In the order of operations of burn's own AdamW, rounding for rounding.
#[multiversion(targets = "simd")]
fn adamw_block(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], f: Factors) {
    for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
        let g = g * f.grad;
        *m = *m * f.beta[0] + g * (1.0 - f.beta[0]);
        *v = *v * f.beta[1] + g * g * (1.0 - f.beta[1]);
        let delta = (*m / f.correction[0]) / ((*v / f.correction[1]).sqrt() + f.epsilon);
        *p = *p * f.decay - delta * f.lr;
    }
}

/// `new += (old - new) * (1 - factor)` in place, in one pass: runs of `run` numbers have the `factors` over and over.
pub(crate) fn scale_change(old: &[f32], new: &mut [f32], factors: &[f32], run: usize) {
    let missing: Vec<f32> = factors.iter().map(|factor| 1.0 - factor).collect();
    let blocks = new.par_chunks_mut(BLOCK).zip(old.par_chunks(BLOCK)).enumerate();
    blocks.for_each(|(block, (new, old))| scale_block(old, new, &missing, run, block * BLOCK));
}

/// The numbers from `start` on.
#[multiversion(targets = "simd")]
fn scale_block(old: &[f32], new: &mut [f32], missing: &[f32], run: usize, start: usize) {
    let (mut at, len) = (0, new.len());
    while at < len {
        let place = start + at;
        let slice = place / run % missing.len();
        // A run of one number has its neighbours' factors beside it.
        let end = if run == 1 { at + missing.len() - slice } else { at + run - place % run }.min(len);
        let numbers = new[at..end].iter_mut().zip(&old[at..end]);
        if run == 1 {
            numbers.zip(&missing[slice..]).for_each(|((new, &old), &missing)| *new += (old - *new) * missing);
        } else {
            let missing = missing[slice];
            numbers.for_each(|(new, &old)| *new += (old - *new) * missing);
        }
        at = end;
    }
}

/// `sum_i x_i^2`: blocks in f32, their sums in f64.
pub(crate) fn sum_of_squares(x: &[f32]) -> f64 {
    let blocks: Vec<f32> = x.par_chunks(BLOCK).map(squares_of_block).collect();
    blocks.into_iter().map(f64::from).sum()
}

#[multiversion(targets = "simd")]
fn squares_of_block(x: &[f32]) -> f32 {
    sum([x], |[x]| x * x)
}
