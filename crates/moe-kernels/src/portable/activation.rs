//! SwiGLU and GELU, each with an exact gradient computed from its input.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor, activation};

use super::{unwrap, wrap};

pub(crate) fn swiglu<B: Backend>(input: FloatTensor<B>) -> FloatTensor<B> {
    let [gate, up] = halves(wrap::<B, 2>(input));
    unwrap(sigmoid(gate.clone()) * gate * up)
}

/// With `s = sigmoid(g)`: `d silu(g)/dg = s + g * s * (1 - s)`.
pub(crate) fn swiglu_backward<B: Backend>(input: FloatTensor<B>, grad: FloatTensor<B>) -> FloatTensor<B> {
    let ([gate, up], grad) = (halves(wrap::<B, 2>(input)), wrap::<B, 2>(grad));
    let sigmoid = sigmoid(gate.clone());
    let silu = gate * sigmoid.clone();

    let slope = sigmoid.clone() + silu.clone() * (sigmoid.neg() + 1.0);
    let grad_gate = grad.clone() * up * slope;
    unwrap(Tensor::cat(vec![grad_gate, grad * silu], 1))
}

pub(crate) fn gelu<B: Backend>(input: FloatTensor<B>) -> FloatTensor<B> {
    let input = wrap::<B, 2>(input);
    let (dtype, input) = (input.dtype(), wide(input));
    unwrap((normal_cdf(input.clone()) * input).cast(dtype))
}

/// `d gelu(x)/dx = cdf(x) + x * exp(-x^2 / 2) / sqrt(2 pi)`.
pub(crate) fn gelu_backward<B: Backend>(input: FloatTensor<B>, grad: FloatTensor<B>) -> FloatTensor<B> {
    let (input, grad) = (wrap::<B, 2>(input), wrap::<B, 2>(grad));
    let (dtype, input, grad) = (input.dtype(), wide(input), wide(grad));
    let density = (input.clone() * input.clone() * -0.5).exp() / (2.0 * PI).sqrt();
    let slope = normal_cdf(input.clone()) + input * density;
    unwrap((slope * grad).cast(dtype))
}

/// In f32 at least: in half precision `1 + erf` of a negative number would be mostly rounding.
fn wide<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    match x.dtype() {
        DType::F16 | DType::BF16 => x.cast(DType::F32),
        _ => x,
    }
}

fn normal_cdf<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    ((x * FRAC_1_SQRT_2).erf() + 1.0) * 0.5
}

/// burn's own, except in f64, which burn's portable body rounds to f32.
fn sigmoid<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    match x.dtype() {
        DType::F64 => (x.neg().exp() + 1.0).recip(),
        _ => activation::sigmoid(x),
    }
}

fn halves<B: Backend>(input: Tensor<B, 2>) -> [Tensor<B, 2>; 2] {
    let [rows, width] = input.dims();
    let half = width / 2;
    [input.clone().slice([0..rows, 0..half]), input.slice([0..rows, half..width])]
}
