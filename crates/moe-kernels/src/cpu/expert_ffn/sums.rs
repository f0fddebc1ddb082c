//! The forward pass with what each expert put out over the batch.
//!
//! Each part sums the activations of its rows while they are in registers; the sum of a segment then goes through the expert's second
//! matrix once, while that is in the caches. The order of a sum is that of the parts and, within one, of the rows.

use std::mem::MaybeUninit;

use multiversion::multiversion;

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
    let (experts, d, f) = (problem.plan.num_experts(), problem.d_model, problem.d_hidden);
    let part = |_: &_| PartSums {
        shares,
        row_shares: Vec::new(),
        hidden: vec![0.0; f],
        share: 0.0,
        outputs: vec![0.0; experts * d],
    };
    let parts = run(problem, Some(pre_activation), output, part);
    Sums { outputs: add_parts(parts), shares: total_shares(problem, shares) }
}

/// What one thread sums up.
struct PartSums<'a> {
    /// `[T, K]`.
    shares: &'a [f32],
    /// Those of a block's rows.
    row_shares: Vec<f32>,
    /// `share * activation(..)` summed over the rows of a segment, `[F]`.
    hidden: Vec<f32>,
    /// The shares of a segment.
    share: f32,
    /// `share * (activation(..) W_out + b_out)` summed over the rows of each expert, `[E, D]`.
    outputs: Vec<f32>,
}

impl Activate for PartSums<'_> {
    fn activate(&mut self, problem: &Problem<'_>, block: &Segment, z: &[f32], gates: &[f32], hidden: &mut [f32]) {
        let slots = &problem.plan.slot_of_row[block.rows.clone()];
        self.row_shares.clear();
        self.row_shares.extend(slots.iter().map(|&slot| self.shares[slot as usize]));
        self.share += self.row_shares.iter().sum::<f32>();
        gated_values_summing(problem.activation, z, gates, &self.row_shares, hidden, &mut self.hidden);
    }

    /// Brings the sum of the segment's activations through the second matrix.
    fn end_segment(&mut self, problem: &Problem<'_>, expert: usize) {
        let d = problem.d_model;
        let output = &mut self.outputs[expert * d..(expert + 1) * d];
        let rows = self.hidden.iter().copied().zip(problem.w_out(expert).chunks_exact(d));
        let bias = problem.b_out(expert).map(|bias| (self.share, bias));
        rows.chain(bias).for_each(|(factor, row)| add_scaled(output, factor, row));
        self.hidden.fill(0.0);
        self.share = 0.0;
    }
}

fn add_parts(parts: Vec<PartSums<'_>>) -> Vec<f32> {
    let mut parts = parts.into_iter().map(|part| part.outputs);
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

#[multiversion(targets = "simd")]
fn add_scaled(sum: &mut [f32], factor: f32, row: &[f32]) {
    for (sum, x) in sum.iter_mut().zip(row) {
        *sum += factor * x;
    }
}
