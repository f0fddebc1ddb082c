//! The whole grouped feed-forward network of a layer on slices, forward and backward.
//!
//! Each thread gets as many rows as any other, however skewed the routing is: a [`Part`](segments::Part) of a
//! [`Split`](segments::Split). Since the rows of an expert are sorted by token, those of a part are one run in every
//! expert, a [`Segment`](segments::Segment). A part walks over its experts in order and adds each result to its tokens at
//! once, in numbers of its own. So no two threads write to one place, and for a given number of threads the order of
//! every sum is fixed.
//!
//! `R` is the number of rows that are served here: in a partial plan fewer than there are slots.

mod backward;
mod forward;
mod one_pass;
mod rows;
mod segments;
mod sums;
mod weights;

pub(crate) use backward::{Needs, backward};
pub(crate) use forward::forward;
pub(crate) use sums::forward_summing;

use std::ops::Range;

use crate::Activation;
use crate::host_plan::HostPlan;

/// Inputs of the op. Letters as in the crate's docs; `C` is `2F` for SwiGLU, otherwise `F`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Problem<'a> {
    /// `D`.
    pub(crate) d_model: usize,
    /// `F`.
    pub(crate) d_hidden: usize,
    /// Between the two products.
    pub(crate) activation: Activation,
    /// Who serves whom.
    pub(crate) plan: &'a HostPlan,
    /// `[T, D]`.
    pub(crate) tokens: &'a [f32],
    /// `[T, K]`.
    pub(crate) gates: &'a [f32],
    /// `[E, D, C]`.
    pub(crate) w_in: &'a [f32],
    /// `[E, F, D]`.
    pub(crate) w_out: &'a [f32],
    /// `[E, C]`.
    pub(crate) b_in: Option<&'a [f32]>,
    /// `[E, D]`.
    pub(crate) b_out: Option<&'a [f32]>,
}

impl<'a> Problem<'a> {
    /// Columns of the first product, `C`.
    pub(crate) fn columns(&self) -> usize {
        self.activation.columns(self.d_hidden)
    }

    /// `T`.
    pub(crate) fn num_tokens(&self) -> usize {
        self.tokens.len() / self.d_model
    }

    fn w_in(&self, expert: usize) -> &'a [f32] {
        part(self.w_in, expert, self.d_model * self.columns())
    }

    fn w_out(&self, expert: usize) -> &'a [f32] {
        part(self.w_out, expert, self.d_hidden * self.d_model)
    }

    fn b_in(&self, expert: usize) -> Option<&'a [f32]> {
        self.b_in.map(|bias| part(bias, expert, self.columns()))
    }

    fn b_out(&self, expert: usize) -> Option<&'a [f32]> {
        self.b_out.map(|bias| part(bias, expert, self.d_model))
    }

    /// Gates of a run of rows, one each.
    fn gates_of(&self, rows: Range<usize>, out: &mut Vec<f32>) {
        out.clear();
        out.extend(self.plan.slot_of_row[rows].iter().map(|&slot| self.gates[slot as usize]));
    }
}

/// The `i`-th of the parts of `len` numbers that `stack` consists of.
fn part(stack: &[f32], i: usize, len: usize) -> &[f32] {
    &stack[i * len..(i + 1) * len]
}

/// Copies columns `columns` of the token of each row from `source` `[T, width]`.
fn gather(source: &[f32], width: usize, columns: Range<usize>, token_of_row: &[u32], out: &mut Vec<f32>) {
    out.clear();
    for &token in token_of_row {
        let start = token as usize * width;
        out.extend_from_slice(&source[start + columns.start..start + columns.end]);
    }
}

/// Sets the length of a scratch buffer whose contents do not matter.
fn resize(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}
