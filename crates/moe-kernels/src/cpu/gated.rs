//! Activations of an expert's rows, each row times its gate, forward and backward in one pass over memory.

use multiversion::multiversion;

use super::exp::{normal, sigmoid};
use super::lanes::sum;
use crate::Activation;

/// `hidden = gate * activation(z)`: `z` `[n, C]`, `gates` `[n]`, `hidden` `[n, F]`.
pub(super) fn gated_values(activation: Activation, z: &[f32], gates: &[f32], hidden: &mut [f32], d_hidden: usize) {
    let rows = Rows { z, gates, d_hidden };
    match activation {
        Activation::SwiGlu => values_of_halves(&rows, hidden),
        Activation::Gelu => gelu_values(&rows, hidden),
        Activation::Relu => relu_values(&rows, hidden),
    }
}

/// What [`gated_backward`] reads and writes, beside the gradient it is given.
pub(super) struct BackwardRows<'a> {
    /// `z`, `[n, C]`: overwritten with its gradient.
    pub(super) pre_activation: &'a mut [f32],
    /// `gate * activation(z)`, `[n, F]`: written.
    pub(super) hidden: &'a mut [f32],
    /// Gradient of the gates, `[n]`: written.
    pub(super) grad_gates: &'a mut [f32],
}

/// Gradients from `grad_hidden` `[n, F]`, the gradient of `gate * activation(z)`.
pub(super) fn gated_backward(
    activation: Activation,
    grad_hidden: &[f32],
    gates: &[f32],
    rows: &mut BackwardRows<'_>,
    d_hidden: usize,
) {
    match activation {
        Activation::SwiGlu => backward_of_halves(grad_hidden, gates, rows, d_hidden),
        Activation::Gelu => gelu_backward(grad_hidden, gates, rows, d_hidden),
        Activation::Relu => relu_backward(grad_hidden, gates, rows, d_hidden),
    }
}

/// `max(z, 0)`, but a NaN stays one; so it does as a slope, which is that of no number.
#[inline(always)]
pub(super) fn relu(z: f32) -> f32 {
    if z < 0.0 { 0.0 } else { z }
}

struct Rows<'a> {
    z: &'a [f32],
    gates: &'a [f32],
    d_hidden: usize,
}

#[multiversion(targets = "simd")]
fn gelu_values(rows: &Rows<'_>, hidden: &mut [f32]) {
    values(rows, hidden, |z| z * normal(z).0);
}

#[multiversion(targets = "simd")]
fn relu_values(rows: &Rows<'_>, hidden: &mut [f32]) {
    values(rows, hidden, relu);
}

#[inline(always)]
fn values(rows: &Rows<'_>, hidden: &mut [f32], value: impl Fn(f32) -> f32) {
    let f = rows.d_hidden;
    for ((z, &gate), a) in rows.z.chunks_exact(f).zip(rows.gates).zip(hidden.chunks_exact_mut(f)) {
        for (a, &z) in a.iter_mut().zip(z) {
            *a = gate * value(z);
        }
    }
}

#[multiversion(targets = "simd")]
fn values_of_halves(rows: &Rows<'_>, hidden: &mut [f32]) {
    let f = rows.d_hidden;
    for ((z, &gate), a) in rows.z.chunks_exact(2 * f).zip(rows.gates).zip(hidden.chunks_exact_mut(f)) {
        let (z, up) = z.split_at(f);
        for ((a, &z), &up) in a.iter_mut().zip(z).zip(up) {
            *a = gate * (z * sigmoid(z) * up);
        }
    }
}

#[multiversion(targets = "simd")]
fn gelu_backward(grad_hidden: &[f32], gates: &[f32], rows: &mut BackwardRows<'_>, f: usize) {
    backward(grad_hidden, gates, rows, f, |z| {
        let (cdf, density) = normal(z);
        (z * cdf, cdf + z * density)
    });
}

#[multiversion(targets = "simd")]
fn relu_backward(grad_hidden: &[f32], gates: &[f32], rows: &mut BackwardRows<'_>, f: usize) {
    backward(grad_hidden, gates, rows, f, |z| (relu(z), if z > 0.0 { 1.0 } else { relu(z) }));
}

/// `curve` gives value and slope of the activation.
#[inline(always)]
fn backward(
    grad_hidden: &[f32],
    gates: &[f32],
    rows: &mut BackwardRows<'_>,
    f: usize,
    curve: impl Fn(f32) -> (f32, f32),
) {
    let output =
        rows.pre_activation.chunks_exact_mut(f).zip(rows.hidden.chunks_exact_mut(f)).zip(&mut *rows.grad_gates);
    for (((z, a), grad_gate), (da, &gate)) in output.zip(grad_hidden.chunks_exact(f).zip(gates)) {
        for ((z, a), &da) in z.iter_mut().zip(&mut *a).zip(da) {
            let (value, slope) = curve(*z);
            *a = value;
            *z = gate * da * slope;
        }
        *grad_gate = sum([a, da], |[a, da]| a * da);
        scale(a, gate);
    }
}

/// With `s = sigmoid(z)`: `d silu(z)/dz = s + z * s * (1 - s)`.
#[multiversion(targets = "simd")]
fn backward_of_halves(grad_hidden: &[f32], gates: &[f32], rows: &mut BackwardRows<'_>, f: usize) {
    let output = rows.pre_activation.chunks_exact_mut(2 * f).zip(rows.hidden.chunks_exact_mut(f));
    let output = output.zip(&mut *rows.grad_gates);
    for (((z, a), grad_gate), (da, &gate)) in output.zip(grad_hidden.chunks_exact(f).zip(gates)) {
        let (z, up) = z.split_at_mut(f);
        for (((z, up), a), &da) in z.iter_mut().zip(up).zip(&mut *a).zip(da) {
            let (s, da_gated) = (sigmoid(*z), gate * da);
            let silu = *z * s;
            *a = silu * *up;
            *z = da_gated * *up * (s + silu * (1.0 - s));
            *up = da_gated * silu;
        }
        *grad_gate = sum([a, da], |[a, da]| a * da);
        scale(a, gate);
    }
}

#[inline(always)]
fn scale(row: &mut [f32], factor: f32) {
    for x in row {
        *x *= factor;
    }
}
