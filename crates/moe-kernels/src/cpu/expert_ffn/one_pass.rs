//! The backward pass where the parts divide the rows by experts only: each block of rows goes through all products while it is in a core's
//! caches, and nothing that belongs to a row but the gradient of its gate is written to memory.
//!
//! An expert whose rows lie in several parts has a sum in each of them. Parts are cut from all rows in order, so that there are fewer such
//! sums beside the first than there are parts.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::backward::{Gradients, Needs};
use super::forward::{add_to_tokens, blocks};
use super::rows::{self, rows_block};
use super::segments::{Part, Segment, Split, add_numbers, cut};
use super::{Problem, gather, resize};
use crate::cpu::gated::BackwardRows;
use crate::cpu::gemm::{Mat, MatMut, Onto, gemm, gemm_unset};
use crate::cpu::unset::{Unset, fill, written};
use crate::host_plan::HostPlan;

/// What the parts add to the gradient of one stack of parameters.
struct Stack {
    /// Numbers of one expert; none when the gradient is not wanted.
    size: usize,
    /// The gradient.
    numbers: Unset,
    /// Sums of the parts that do not hold an expert's first row, one after the other.
    extra: Unset,
}

/// A sum that holds nothing before the first product or row is added.
struct Sum<'a> {
    slots: &'a mut [MaybeUninit<f32>],
    is_set: bool,
}

/// The sums that one segment adds to, in the order of [`Gradients`].
type Sums<'a> = [Sum<'a>; 4];

/// What one part writes.
struct PartOutput<'a> {
    tokens: &'a mut [MaybeUninit<f32>],
    /// Of each segment.
    gates: Vec<&'a mut [f32]>,
    /// Of each segment.
    parameters: Vec<Sums<'a>>,
}

/// Buffers of one thread.
#[derive(Default)]
struct Scratch {
    rows: rows::Scratch,
    pre_activation: Vec<f32>,
    hidden: Vec<f32>,
    tokens: Vec<f32>,
}

/// `split` has one range of tokens; the rest is as in [`backward`](super::backward).
pub(super) fn one_pass(
    problem: &Problem<'_>,
    split: &Split,
    pre_activation: &[f32],
    grad: &[f32],
    needs: Needs,
) -> Gradients {
    let (d, f, c, plan) = (problem.d_model, problem.d_hidden, problem.columns(), problem.plan);
    let width = if needs.tokens { d } else { 0 };
    let tokens_len = problem.num_tokens() * width;
    let extra_len = split.extra_len(tokens_len);
    let (mut tokens, mut extra) = (Unset::new(tokens_len), Unset::new(extra_len));
    let mut gates = vec![0.0; plan.num_served()];
    let bias = |is_wanted: bool, bias: Option<&[f32]>| is_wanted && bias.is_some();
    let mut stacks = [
        (needs.w_in, d * c),
        (needs.w_out, f * d),
        (bias(needs.b_in, problem.b_in), c),
        (bias(needs.b_out, problem.b_out), d),
    ]
    .map(|(is_wanted, size)| Stack::new(if is_wanted { size } else { 0 }, plan, split));

    let sums = split.accumulators(tokens.slots(tokens_len), extra.slots(extra_len), width);
    let mut places = stacks.each_mut().map(|stack| stack.places(plan, split).into_iter());
    let outputs =
        sums.into_iter().zip(cut(&mut gates, 1, &split.parts)).zip(&split.parts).map(|((tokens, gates), part)| {
            let parameters =
                part.segments.iter().map(|_| places.each_mut().map(|places| places.next().expect("one each")));
            PartOutput { tokens, gates, parameters: parameters.collect() }
        });
    let work: Vec<_> = split.parts.iter().zip(outputs).collect();
    work.into_par_iter().for_each(|(part, output)| part_pass(problem, part, pre_activation, grad, output, needs));

    // SAFETY: the accumulators are all numbers of the tokens and of `extra`, and each part has filled what is its own.
    let (mut tokens, extra) = unsafe { (tokens.assume_set(tokens_len), extra.assume_set(extra_len)) };
    split.add_extra(&mut tokens, &extra, width);
    // SAFETY: every segment has a row, and with its first block it has written every slot of its sums.
    let [w_in, w_out, b_in, b_out] = stacks.map(|stack| unsafe { stack.total(plan, split) });
    Gradients { tokens, gates: plan.by_slot(&gates), w_in, w_out, b_in, b_out }
}

fn part_pass(
    problem: &Problem<'_>,
    part: &Part,
    pre_activation: &[f32],
    grad: &[f32],
    output: PartOutput<'_>,
    needs: Needs,
) {
    let (f, c) = (problem.d_hidden, problem.columns());
    let mut scratch = Scratch::default();
    let token_sums = fill(output.tokens, 0.0);
    for ((segment, gates), mut sums) in part.segments.iter().zip(output.gates).zip(output.parameters) {
        for block in blocks(segment) {
            let Scratch { rows, pre_activation: z, hidden, .. } = &mut scratch;
            z.clear();
            z.extend_from_slice(&pre_activation[block.rows.start * c..block.rows.end * c]);
            let local = block.rows.start - segment.rows.start..block.rows.end - segment.rows.start;
            let hidden = resize(hidden, block.rows.len() * f);
            let output = BackwardRows { pre_activation: z, hidden, grad_gates: &mut gates[local] };
            rows_block(problem, &block, grad, output, rows, needs.tokens);
            if needs.tokens {
                add_to_tokens(problem, &block, &scratch.rows.grad_tokens, part.tokens.start, token_sums);
            }
            add_parameters(problem, &block, &mut scratch, &mut sums);
        }
    }
}

/// Adds what a block of rows contributes to the gradients of its expert's parameters.
fn add_parameters(problem: &Problem<'_>, block: &Segment, scratch: &mut Scratch, sums: &mut Sums<'_>) {
    let (n, d, f, c) = (block.rows.len(), problem.d_model, problem.d_hidden, problem.columns());
    let [w_in, w_out, b_in, b_out] = sums;
    let (grad, grad_z) = (Mat::new(&scratch.rows.grad, n, d), Mat::new(&scratch.pre_activation, n, c));
    if w_in.is_wanted() {
        let tokens = &problem.plan.token_of_row[block.rows.clone()];
        gather(problem.tokens, d, 0..d, tokens, &mut scratch.tokens);
        w_in.add_product(Mat::new(&scratch.tokens, n, d).t(), grad_z);
    }
    if w_out.is_wanted() {
        w_out.add_product(Mat::new(&scratch.hidden[..n * f], n, f).t(), grad);
    }
    if b_in.is_wanted() {
        scratch.pre_activation.chunks_exact(c).for_each(|row| b_in.add_row(1.0, row));
    }
    if b_out.is_wanted() {
        let rows = scratch.rows.gates.iter().zip(scratch.rows.grad.chunks_exact(d));
        rows.for_each(|(&gate, row)| b_out.add_row(gate, row));
    }
}

impl Stack {
    fn new(size: usize, plan: &HostPlan, split: &Split) -> Self {
        let continued = continued(plan, split).count();
        Self { size, numbers: Unset::new(plan.num_experts() * size), extra: Unset::new(continued * size) }
    }

    /// The sum of each segment, part after part; those of idle experts are set to zero.
    fn places(&mut self, plan: &HostPlan, split: &Split) -> Vec<Sum<'_>> {
        let segments = || split.parts.iter().flat_map(|part| &part.segments);
        let sum = |slots| Sum { slots, is_set: false };
        if self.size == 0 {
            return segments().map(|_| sum(&mut [])).collect();
        }
        let extra_len = continued(plan, split).count() * self.size;
        let mut extra = self.extra.slots(extra_len).chunks_exact_mut(self.size);
        let experts = self.numbers.slots(plan.num_experts() * self.size).chunks_exact_mut(self.size).enumerate();
        let (busy, idle): (Vec<_>, Vec<_>) = experts.partition(|(expert, _)| !plan.rows_of(*expert).is_empty());
        idle.into_par_iter().for_each(|(_, slots)| _ = fill(slots, 0.0));
        let mut busy = busy.into_iter().map(|(_, slots)| slots);
        let place = |segment: &Segment| {
            let slots = if segment.is_first_of_expert(plan) { busy.next() } else { extra.next() };
            sum(slots.expect("as many as there are segments"))
        };
        segments().map(place).collect()
    }

    /// The gradient of all experts, the sums of a part after those of the parts before it.
    ///
    /// # Safety
    ///
    /// Every slot of every [place](Self::places) must have been written.
    unsafe fn total(self, plan: &HostPlan, split: &Split) -> Vec<f32> {
        let (size, experts) = (self.size, plan.num_experts());
        let continued: Vec<_> = continued(plan, split).collect();
        // SAFETY: the places are all slots of busy experts and of `extra`; those of idle ones were filled.
        let (mut numbers, extra) =
            unsafe { (self.numbers.assume_set(experts * size), self.extra.assume_set(continued.len() * size)) };
        for (expert, sum) in continued.into_iter().zip(extra.chunks_exact(size.max(1))) {
            add_numbers(&mut numbers[expert * size..(expert + 1) * size], sum);
        }
        numbers
    }
}

/// Experts of the segments that go on where another part has begun.
fn continued<'a>(plan: &'a HostPlan, split: &'a Split) -> impl Iterator<Item = usize> + 'a {
    let segments = split.parts.iter().flat_map(|part| &part.segments);
    segments.filter(|segment| !segment.is_first_of_expert(plan)).map(|segment| segment.expert)
}

impl Sum<'_> {
    fn is_wanted(&self) -> bool {
        !self.slots.is_empty()
    }

    fn add_product(&mut self, lhs: Mat<'_>, rhs: Mat<'_>) {
        if !self.is_set {
            gemm_unset(self.slots, lhs, rhs);
            self.is_set = true;
            return;
        }
        let [rows, columns] = [lhs.shape()[0], rhs.shape()[1]];
        gemm(MatMut::new(self.numbers(), rows, columns), Onto::Add, lhs, rhs);
    }

    fn add_row(&mut self, factor: f32, row: &[f32]) {
        self.numbers().iter_mut().zip(row).for_each(|(sum, x)| *sum += factor * x);
    }

    fn numbers(&mut self) -> &mut [f32] {
        if !self.is_set {
            self.is_set = true;
            return fill(self.slots, 0.0);
        }
        // SAFETY: the slots are set, all of them: by a product, or with zeros.
        unsafe { written(self.slots) }
    }
}
