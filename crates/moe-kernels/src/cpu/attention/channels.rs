//! Keys and values with the channels outside.
//!
//! A product of queries with keys sums over the channels. Where they lie side by side in a key, the product has to turn
//! every key around, again for every block of queries; turned around once, it runs at the full rate.

use rayon::prelude::*;

use super::super::gemm::Mat;
use super::super::transpose::transpose;
use super::AttentionShape;

/// Queries from which on turning pays: each product reads a key once, turning reads and writes it.
const MIN_QUERIES: usize = 16;

/// Keys or values `[B, P, C, A]`, each head's turned to `[A, P]` if that pays.
pub(super) struct ChannelsOutside<'a> {
    shape: &'a AttentionShape,
    rows: &'a [f32],
    /// `[B, C, A, P]`, or empty.
    turned: Vec<f32>,
}

impl<'a> ChannelsOutside<'a> {
    pub(super) fn new(shape: &'a AttentionShape, rows: &'a [f32]) -> Self {
        let mut turned = vec![0.0; if shape.queries < MIN_QUERIES { 0 } else { rows.len() }];
        let heads = turned.par_chunks_mut(shape.width * shape.keys).enumerate();
        heads.for_each(|(i, out)| turn(shape, rows, [i / shape.kv_heads, i % shape.kv_heads], out));
        Self { shape, rows, turned }
    }

    /// The first `columns` keys of a head, `[A, columns]`.
    pub(super) fn head(&self, batch: usize, kv_head: usize, columns: usize) -> Mat<'_> {
        let Self { shape, rows, turned } = self;
        if turned.is_empty() {
            return shape.key_rows(rows, batch, kv_head, columns).t();
        }
        let start = (batch * shape.kv_heads + kv_head) * shape.width * shape.keys;
        Mat::strided(&turned[start..], shape.width, columns, shape.keys)
    }
}

/// One head to `out` `[A, P]`.
fn turn(shape: &AttentionShape, rows: &[f32], [batch, kv_head]: [usize; 2], out: &mut [f32]) {
    let head = &rows[batch * shape.key_len() + kv_head * shape.width..];
    transpose(head, [shape.keys, shape.width], shape.kv_heads * shape.width, out);
}
