//! Second pass of the backward: the gradients of the experts' own parameters.

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::{Needs, Problem, gather};
use crate::cpu::gemm::{Mat, gemm_unset};
use crate::cpu::unset::{Unset, fill};

/// Gradients of the parameters, in their shapes; empty where not wanted.
pub(super) struct WeightGradients {
    pub(super) w_in: Vec<f32>,
    pub(super) w_out: Vec<f32>,
    pub(super) b_in: Vec<f32>,
    pub(super) b_out: Vec<f32>,
}

/// Pieces of work for each thread, when the load is even.
const SHARES_PER_THREAD: usize = 8;
/// Height of a piece at least: a matrix product of fewer rows runs at a lower rate.
const MIN_SHARE_HEIGHT: usize = 64;

#[derive(Clone, Copy)]
enum Matrix {
    In,
    Out,
}

/// Rows `range` of the gradient of one expert's matrix, written to `out`.
struct Share<'a> {
    matrix: Matrix,
    expert: usize,
    range: Range<usize>,
    out: &'a mut [MaybeUninit<f32>],
}

/// Buffers of one thread.
#[derive(Default)]
struct Scratch {
    gathered: Vec<f32>,
}

/// From the gradient of the pre-activation `[R, C]`, the gated activations `[R, F]` and the gradient of the output
/// `[T, D]`.
pub(super) fn weights_pass(
    problem: &Problem<'_>,
    grad_z: &[f32],
    hidden: &[f32],
    grad: &[f32],
    needs: Needs,
) -> WeightGradients {
    let (d, f, c) = (problem.d_model, problem.d_hidden, problem.columns());
    let w_in_len = if needs.w_in { problem.w_in.len() } else { 0 };
    let w_out_len = if needs.w_out { problem.w_out.len() } else { 0 };
    let (mut w_in, mut w_out) = (Unset::new(w_in_len), Unset::new(w_out_len));
    let mut work = Vec::new();
    push_shares(problem, Matrix::In, [d, c], w_in.slots(w_in_len), &mut work);
    push_shares(problem, Matrix::Out, [f, d], w_out.slots(w_out_len), &mut work);
    work.into_par_iter().for_each_init(Scratch::default, |scratch, share| match share.matrix {
        Matrix::In => w_in_share(problem, grad_z, share, scratch),
        Matrix::Out => w_out_share(problem, hidden, grad, share, scratch),
    });
    // SAFETY: the shares of a busy expert cover its matrix, and each was overwritten with a product; the matrix of an
    // idle expert was filled with zeros.
    let (w_in, w_out) = unsafe { (w_in.assume_set(w_in_len), w_out.assume_set(w_out_len)) };
    let b_in = if needs.b_in { b_in(problem, grad_z) } else { Vec::new() };
    let b_out = if needs.b_out { b_out(problem, grad) } else { Vec::new() };
    WeightGradients { w_in, w_out, b_in, b_out }
}

/// Divides `stack`, matrices of `height` rows one for each expert, into shares; those of idle experts become zero.
fn push_shares<'a>(
    problem: &Problem<'_>,
    matrix: Matrix,
    [height, width]: [usize; 2],
    stack: &'a mut [MaybeUninit<f32>],
    work: &mut Vec<Share<'a>>,
) {
    let threads = rayon::current_num_threads();
    for (expert, mut rest) in stack.chunks_exact_mut(height * width).enumerate() {
        let load = problem.plan.rows_of(expert).len();
        if load == 0 {
            fill(rest, 0.0);
            continue;
        }
        let wanted = (load * SHARES_PER_THREAD * threads).div_ceil(problem.plan.num_served());
        let count = if threads == 1 { 1 } else { wanted.min(height / MIN_SHARE_HEIGHT).max(1) };
        for i in 0..count {
            let range = i * height / count..(i + 1) * height / count;
            let (out, tail) = rest.split_at_mut(range.len() * width);
            rest = tail;
            work.push(Share { matrix, expert, range, out });
        }
    }
}

/// `x^T dz`, rows `range` of `[D, C]`.
fn w_in_share(problem: &Problem<'_>, grad_z: &[f32], share: Share<'_>, scratch: &mut Scratch) {
    let (d, c, height) = (problem.d_model, problem.columns(), share.range.len());
    let served = problem.plan.rows_of(share.expert);
    gather(problem.tokens, d, share.range, &problem.plan.token_of_row[served.clone()], &mut scratch.gathered);
    let tokens = Mat::new(&scratch.gathered, served.len(), height);
    let grad_z = Mat::new(&grad_z[served.start * c..served.end * c], served.len(), c);
    gemm_unset(share.out, tokens.t(), grad_z);
}

/// `(gate * a)^T dy`, rows `range` of `[F, D]`.
fn w_out_share(problem: &Problem<'_>, hidden: &[f32], grad: &[f32], share: Share<'_>, scratch: &mut Scratch) {
    let (d, f, height) = (problem.d_model, problem.d_hidden, share.range.len());
    let served = problem.plan.rows_of(share.expert);
    gather(grad, d, 0..d, &problem.plan.token_of_row[served.clone()], &mut scratch.gathered);
    let hidden = &hidden[served.start * f + share.range.start..];
    let hidden = Mat::strided(hidden, served.len(), height, f);
    let grad = Mat::new(&scratch.gathered, served.len(), d);
    gemm_unset(share.out, hidden.t(), grad);
}

/// Sum of `dz` over the rows of each expert, `[E, C]`.
fn b_in(problem: &Problem<'_>, grad_z: &[f32]) -> Vec<f32> {
    let Some(bias) = problem.b_in else { return Vec::new() };
    let (mut sums, c) = (vec![0.0; bias.len()], problem.columns());
    sums.par_chunks_exact_mut(c).enumerate().for_each(|(expert, sum)| {
        for row in problem.plan.rows_of(expert) {
            add_scaled(sum, 1.0, &grad_z[row * c..(row + 1) * c]);
        }
    });
    sums
}

/// Sum of `gate * dy` over the rows of each expert, `[E, D]`.
fn b_out(problem: &Problem<'_>, grad: &[f32]) -> Vec<f32> {
    let Some(bias) = problem.b_out else { return Vec::new() };
    let (mut sums, d, plan) = (vec![0.0; bias.len()], problem.d_model, problem.plan);
    sums.par_chunks_exact_mut(d).enumerate().for_each(|(expert, sum)| {
        for row in plan.rows_of(expert) {
            let (token, gate) = (plan.token_of_row[row] as usize, problem.gates[plan.slot_of_row[row] as usize]);
            add_scaled(sum, gate, &grad[token * d..(token + 1) * d]);
        }
    });
    sums
}

fn add_scaled(sum: &mut [f32], factor: f32, row: &[f32]) {
    for (sum, x) in sum.iter_mut().zip(row) {
        *sum += factor * x;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Activation;
    use crate::host_plan::HostPlan;

    #[test]
    fn only_the_gradients_that_are_wanted_are_computed() {
        let (plan, ones) = (HostPlan::new(&[0, 0], 1, 1), [1.0; 4]);
        let problem = Problem {
            d_model: 2,
            d_hidden: 2,
            activation: Activation::Relu,
            plan: &plan,
            tokens: &ones,
            gates: &ones[..2],
            w_in: &ones,
            w_out: &ones,
            b_in: Some(&ones[..2]),
            b_out: Some(&ones[..2]),
        };
        let frozen = Needs { tokens: false, w_in: false, w_out: false, b_in: false, b_out: false };
        let lengths = |needs| {
            let found = weights_pass(&problem, &ones, &ones, &ones, needs);
            [found.w_in.len(), found.w_out.len(), found.b_in.len(), found.b_out.len()]
        };
        assert_eq!(lengths(frozen), [0; 4]);
        assert_eq!(lengths(Needs { w_in: true, ..frozen }), [4, 0, 0, 0]);
        assert_eq!(lengths(Needs { w_out: true, ..frozen }), [0, 4, 0, 0]);
        assert_eq!(lengths(Needs { b_in: true, ..frozen }), [0, 0, 2, 0]);
        assert_eq!(lengths(Needs { b_out: true, ..frozen }), [0, 0, 0, 2]);
    }
}
