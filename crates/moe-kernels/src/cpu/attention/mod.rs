//! Causal attention in blocks of queries: a block of scores is made, used and forgotten while it is in the cache.
//!
//! Keys later than a block's last query are never touched. Kept for the backward pass is one number per query and head,
//! the log-sum-exp of its scores, from which the block's weights are made again ([Dao et al.,
//! 2022](https://arxiv.org/abs/2205.14135), without the blocks of keys: a row of scores fits the cache).

mod backward;
mod channels;
mod forward;

pub(crate) use self::Inputs as AttentionInputs;
pub(crate) use backward::{Saved as AttentionSaved, attention_backward};
pub(crate) use forward::attention;

use multiversion::multiversion;

use super::exp::exp;
use super::gemm::Mat;
use super::lanes::{map_sum, max};

/// Queries of a block.
const BLOCK: usize = 64;

/// Sizes of one attention; query `i` sees keys `0..=keys - queries + i`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionShape {
    /// Sequences, `B`.
    pub(crate) batch: usize,
    /// Queries of a sequence, `S`.
    pub(crate) queries: usize,
    /// Keys of a sequence, `P >= S`.
    pub(crate) keys: usize,
    /// Query heads, `H`.
    pub(crate) heads: usize,
    /// Key/value heads, `C`, a divisor of `H`.
    pub(crate) kv_heads: usize,
    /// Width of a head, `A`.
    pub(crate) width: usize,
    /// Factor of the scores, positive.
    pub(crate) scale: f32,
}

/// The numbers of one attention.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inputs<'a> {
    /// `[B, S, H, A]`.
    pub(crate) query: &'a [f32],
    /// `[B, P, C, A]`.
    pub(crate) key: &'a [f32],
    /// `[B, P, C, A]`.
    pub(crate) value: &'a [f32],
}

impl AttentionShape {
    /// Numbers of one sequence of queries, `S * H * A`.
    pub(crate) fn query_len(&self) -> usize {
        self.queries * self.heads * self.width
    }

    fn key_len(&self) -> usize {
        self.keys * self.kv_heads * self.width
    }

    /// Keys that query `i` sees.
    fn visible(&self, i: usize) -> usize {
        self.keys - self.queries + i + 1
    }

    /// Query rows `first..first + rows` of one head out of `[B, S, H, A]`.
    fn query_rows<'a>(&self, data: &'a [f32], batch: usize, head: usize, first: usize, rows: usize) -> Mat<'a> {
        let row = self.heads * self.width;
        let start = batch * self.query_len() + first * row + head * self.width;
        Mat::strided(&data[start..], rows, self.width, row)
    }

    /// The first `rows` keys (or values) of one key/value head out of `[B, P, C, A]`.
    fn key_rows<'a>(&self, data: &'a [f32], batch: usize, kv_head: usize, rows: usize) -> Mat<'a> {
        let row = self.kv_heads * self.width;
        Mat::strided(&data[batch * self.key_len() + kv_head * self.width..], rows, self.width, row)
    }
}

/// Scores become weights that still lack their division: `exp(scale * (score - max))`, 0 for keys that are not visible.
/// Writes `(log-sum-exp, 1 / sum)` of every row.
#[multiversion(targets = "simd")]
fn weigh(shape: &AttentionShape, first: usize, scores: &mut [f32], sums: &mut [(f32, f32)]) {
    let columns = scores.len() / sums.len();
    for (i, (row, out)) in scores.chunks_exact_mut(columns).zip(sums.iter_mut()).enumerate() {
        let (seen, hidden) = row.split_at_mut(shape.visible(first + i));
        let largest = max(seen);
        let sum = map_sum(seen, |x| exp(shape.scale * (x - largest)));
        hidden.fill(0.0);
        *out = (shape.scale * largest + sum.ln(), 1.0 / sum);
    }
}

/// Scores become weights with the help of the rows' log-sum-exp.
#[multiversion(targets = "simd")]
fn weigh_again(shape: &AttentionShape, first: usize, scores: &mut [f32], lse: &[f32]) {
    let columns = scores.len() / lse.len();
    for (i, (row, &lse)) in scores.chunks_exact_mut(columns).zip(lse).enumerate() {
        let (seen, hidden) = row.split_at_mut(shape.visible(first + i));
        for x in seen {
            *x = exp(shape.scale * *x - lse);
        }
        hidden.fill(0.0);
    }
}
