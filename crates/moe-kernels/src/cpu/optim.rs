//! The optimizer's passes over all parameters.

use multiversion::multiversion;
use rayon::prelude::*;

use super::lanes::sum;
use crate::{AdamWStep, RunScale};

/// Numbers that a thread takes at a time, of each tensor: 64 KiB. Also the unit of the sum of squares, so that it does
/// not depend on the number of threads.
const BLOCK: usize = 1 << 14;

/// Updates parameter and moments in place, in one pass; run by run, by as much of the change as `scale` says.
pub(crate) fn adamw(
    param: &mut [f32],
    grad: &[f32],
    moments: [&mut [f32]; 2],
    step: &AdamWStep,
    scale: Option<RunScale<&[f32]>>,
) {
    let (numbers, [first, second]) = (Numbers::new(step), moments);
    let blocks = param.par_chunks_mut(BLOCK).zip(grad.par_chunks(BLOCK));
    let blocks = blocks.zip(first.par_chunks_mut(BLOCK)).zip(second.par_chunks_mut(BLOCK));
    let Some(RunScale { factors, run, spares_decay }) = scale else {
        return blocks.for_each(|(((p, g), m), v)| adamw_block(p, g, m, v, numbers));
    };
    let missing: Vec<f32> = factors.iter().map(|factor| 1.0 - factor).collect();
    let undone = Undone { missing: &missing, run, decay: if spares_decay { numbers.decay } else { 1.0 } };
    let blocks = blocks.enumerate();
    blocks.for_each(|(block, (((p, g), m), v))| scaled_block(p, g, m, v, numbers, undone, block * BLOCK));
}

/// The numbers of a step in f32.
#[derive(Clone, Copy)]
struct Numbers {
    grad: f32,
    decay: f32,
    lr: f32,
    beta: [f32; 2],
    correction: [f32; 2],
    epsilon: f32,
}

impl Numbers {
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

/// The parameter after the step and its moments, in the order of operations of burn's own AdamW, rounding for rounding.
#[inline(always)]
fn stepped(p: f32, g: f32, m: &mut f32, v: &mut f32, n: Numbers) -> f32 {
    let g = g * n.grad;
    *m = *m * n.beta[0] + g * (1.0 - n.beta[0]);
    *v = *v * n.beta[1] + g * g * (1.0 - n.beta[1]);
    let delta = (*m / n.correction[0]) / ((*v / n.correction[1]).sqrt() + n.epsilon);
    p * n.decay - delta * n.lr
}

#[multiversion(targets = "simd")]
fn adamw_block(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], n: Numbers) {
    for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
        *p = stepped(*p, g, m, v, n);
    }
}

/// The part of a change that a factor takes back.
#[derive(Clone, Copy)]
struct Undone<'a> {
    /// 1 - factor of each run, over and over.
    missing: &'a [f32],
    run: usize,
    /// What is left of a parameter before the change that is scaled.
    decay: f32,
}

impl Undone<'_> {
    /// `new + (old - new) * (1 - factor)`, which is `old + factor * (new - old)` and leaves `new` as it is where the factor is 1.
    #[inline(always)]
    fn applied(self, old: f32, new: f32, missing: f32) -> f32 {
        new + (old * self.decay - new) * missing
    }
}

/// The numbers from `start` on.
#[multiversion(targets = "simd")]
fn scaled_block(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], n: Numbers, undone: Undone<'_>, start: usize) {
    let Undone { missing, run, .. } = undone;
    let (mut at, len) = (0, p.len());
    while at < len {
        let place = start + at;
        let slice = place / run % missing.len();
        // A run of one number has its neighbours' factors beside it.
        let end = if run == 1 { at + missing.len() - slice } else { at + run - place % run }.min(len);
        let numbers = p[at..end].iter_mut().zip(&g[at..end]).zip(&mut m[at..end]).zip(&mut v[at..end]);
        if run == 1 {
            for ((((p, &g), m), v), &missing) in numbers.zip(&missing[slice..]) {
                *p = undone.applied(*p, stepped(*p, g, m, v, n), missing);
            }
        } else {
            for (((p, &g), m), v) in numbers {
                *p = undone.applied(*p, stepped(*p, g, m, v, n), missing[slice]);
            }
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
