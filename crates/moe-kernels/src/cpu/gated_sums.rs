//! Activations of an expert's rows, each times its gate, and their sum over the rows, each times its share: in one pass.

use multiversion::multiversion;

use super::exp::{normal, sigmoid};
use super::gated::relu;
use crate::Activation;

/// `hidden = gate * activation(z)` as [`gated_values`](super::gated::gated_values) computes it, and
/// `sums += share * activation(z)`: `z` `[n, C]`, `gates` and `shares` `[n]`, `hidden` `[n, F]`, `sums` `[F]`.
pub(super) fn gated_values_summing(
    activation: Activation,
    z: &[f32],
    gates: &[f32],
    shares: &[f32],
    hidden: &mut [f32],
    sums: &mut [f32],
) {
    let rows = Rows { z, gates, shares };
    match activation {
        Activation::SwiGlu => of_halves(&rows, hidden, sums),
        Activation::Gelu => of_gelu(&rows, hidden, sums),
        Activation::Relu => of_relu(&rows, hidden, sums),
    }
}

struct Rows<'a> {
    z: &'a [f32],
    gates: &'a [f32],
    shares: &'a [f32],
}

#[multiversion(targets = "simd")]
fn of_gelu(rows: &Rows<'_>, hidden: &mut [f32], sums: &mut [f32]) {
    of_each(rows, hidden, sums, |z| z * normal(z).0);
}

#[multiversion(targets = "simd")]
fn of_relu(rows: &Rows<'_>, hidden: &mut [f32], sums: &mut [f32]) {
    of_each(rows, hidden, sums, relu);
}

#[inline(always)]
fn of_each(rows: &Rows<'_>, hidden: &mut [f32], sums: &mut [f32], value: impl Fn(f32) -> f32) {
    let f = sums.len();
    let weights = rows.gates.iter().zip(rows.shares);
    for ((z, (&gate, &share)), a) in rows.z.chunks_exact(f).zip(weights).zip(hidden.chunks_exact_mut(f)) {
        for ((a, sum), &z) in a.iter_mut().zip(&mut *sums).zip(z) {
            let value = value(z);
            *a = gate * value;
            *sum += share * value;
        }
    }
}

#[multiversion(targets = "simd")]
fn of_halves(rows: &Rows<'_>, hidden: &mut [f32], sums: &mut [f32]) {
    let f = sums.len();
    let weights = rows.gates.iter().zip(rows.shares);
    for ((z, (&gate, &share)), a) in rows.z.chunks_exact(2 * f).zip(weights).zip(hidden.chunks_exact_mut(f)) {
        let (z, up) = z.split_at(f);
        for (((a, sum), &z), &up) in a.iter_mut().zip(&mut *sums).zip(z).zip(up) {
            let value = z * sigmoid(z) * up;
            *a = gate * value;
            *sum += share * value;
        }
    }
}
