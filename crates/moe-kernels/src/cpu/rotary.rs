//! Rotation of pairs of channels by an angle that depends on the position.

use multiversion::multiversion;
use rayon::prelude::*;

/// Numbers that a thread takes at a time: 64 KiB.
const BLOCK: usize = 1 << 14;

/// Cosines and sines of `S` positions, `[S, A / 2]` each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Angles<'a> {
    pub(crate) cos: &'a [f32],
    pub(crate) sin: &'a [f32],
    /// Width of a head, `A`, even.
    pub(crate) head_dim: usize,
    /// 1, or -1 to turn back.
    pub(crate) direction: f32,
}

/// Rotates `x` `[B, S, H, A]` in place; `row = H * A > 0` numbers belong to one position.
pub(crate) fn rotate(x: &mut [f32], row: usize, angles: Angles<'_>) {
    let rows = (BLOCK / row).max(1);
    x.par_chunks_mut(rows * row).enumerate().for_each(|(block, x)| rotate_rows(x, row, block * rows, angles));
}

/// Rows from number `first` on.
#[multiversion(targets = "simd")]
fn rotate_rows(x: &mut [f32], row: usize, first: usize, angles: Angles<'_>) {
    let len = angles.cos.len() * 2 / angles.head_dim;
    for (i, x) in x.chunks_exact_mut(row).enumerate() {
        rotate_row(x, (first + i) % len, angles);
    }
}

#[inline(always)]
fn rotate_row(row: &mut [f32], position: usize, angles: Angles<'_>) {
    let half = angles.head_dim / 2;
    let cos = &angles.cos[position * half..][..half];
    let sin = &angles.sin[position * half..][..half];
    for head in row.chunks_exact_mut(2 * half) {
        let (first, second) = head.split_at_mut(half);
        for (((a, b), &c), &s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            let s = s * angles.direction;
            (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
        }
    }
}
