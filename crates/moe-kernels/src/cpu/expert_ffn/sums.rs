//! The forward pass with what each expert put out over the batch.
//!
//! Each part sums the activations of its rows while they are in registers; an expert's sum then goes through its second
//! matrix once. The order of a sum is that of the parts and, within one, of the rows.

use std::mem::MaybeUninit;

use multiversion::multiversion;
use rayon::prelude::*;

use super::Problem;
use super::forward::{Activate, run};
use super::segments::Segment;
use crate::cpu::gated_sums::gated_values_summing;

/// Sums over the rows of each expert.
#[derive(Debug)]
pub(crate) struct Sums {
    /// `share * (activation(..) W_out + b_out)`, `[E, D]`.
    pub(crate) outputs: Vec<f32>,
    /// Of the shares, `[E]`.
    pub(crate) shares: Vec<f32>,
}

/// Writes what [`forward`](super::forward) writes; `shares` is `[T, K]`.
pub(crate) fn forward_summing(
    problem: &Problem<'_>,
    shares: &[f32],
    pre_activation: &mut [MaybeUninit<f32>],
    output: &mut [MaybeUninit<f32>],
) -> Sums {
    let (experts, f) = (problem.plan.num_experts(), problem.d_hidden);
    let part = |_: &_| HiddenSums { shares, row_shares: Vec::new(), hidden: vec![0.0; experts * f] };
    let parts = run(problem, Some(pre_activation), output, part);
    let shares = total_shares(problem, shares);
    Sums { outputs: through_w_out(problem, &add_parts(parts), &shares), shares }
}

/// What one thread sums up.
struct HiddenSums<'a> {
    /// `[T, K]`.
    shares: &'a [f32],
    /// Those of a block's rows.
    row_shares: Vec<f32>,
    /// `share * activation(..)` summed over the rows of each expert, `[E, F]`.
    hidden: Vec<f32>,
}

impl Activate for HiddenSums<'_> {
    fn activate(&mut self, problem: &Problem<'_>, block: &Segment, z: &[f32], gates: &[f32], hidden: &mut [f32]) {
        let f = problem.d_hidden;
        let slots = &problem.plan.slot_of_row[block.rows.clone()];
        self.row_shares.clear();
        self.row_shares.extend(slots.iter().map(|&slot| self.shares[slot as usize]));
        let sums = &mut self.hidden[block.expert * f..(block.expert + 1) * f];
        gated_values_summing(problem.activation, z, gates, &self.row_shares, hidden, sums);
    }
}

fn add_parts(parts: Vec<HiddenSums<'_>>) -> Vec<f32> {
    let mut parts = parts.into_iter().map(|part| part.hidden);
    let mut total = parts.next().unwrap_or_default();
    for part in parts {
        total.iter_mut().zip(part).for_each(|(total, x)| *total += x);
    }
    total
}

fn total_shares(problem: &Problem<'_>, shares: &[f32]) -> Vec<f32> {
    let plan = problem.plan;
    let of_expert = |expert| plan.slot_of_row[plan.rows_of(expert)].iter().map(|&slot| shares[slot as usize]).sum();
    (0..plan.num_experts()).map(of_expert).collect()
}

/// `hidden W_out + share * b_out` for the sums of each expert: `[E, F]` to `[E, D]`; zero for an idle one.
fn through_w_out(problem: &Problem<'_>, hidden: &[f32], shares: &[f32]) -> Vec<f32> {
    let (d, f) = (problem.d_model, problem.d_hidden);
    let mut outputs = vec![0.0; shares.len() * d];
    outputs.par_chunks_exact_mut(d).enumerate().for_each(|(expert, output)| {
        if problem.plan.rows_of(expert).is_empty() {
            return;
        }
        let (hidden, w_out) = (&hidden[expert * f..(expert + 1) * f], problem.w_out(expert));
        let rows = hidden.iter().copied().zip(w_out.chunks_exact(d));
        let bias = problem.b_out(expert).map(|bias| (shares[expert], bias));
        rows.chain(bias).for_each(|(factor, row)| add_scaled(output, factor, row));
    });
    outputs
}

#[multiversion(targets = "simd")]
fn add_scaled(sum: &mut [f32], factor: f32, row: &[f32]) {
    for (sum, x) in sum.iter_mut().zip(row) {
        *sum += factor * x;
    }
}
