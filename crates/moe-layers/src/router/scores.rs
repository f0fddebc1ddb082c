//! What routers have in common: a linear map in f32, and a few functions of its output.

use burn::module::Param;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, activation};
use moe_kernels::{MoeBackend, divide_rows, linear, sum_dim};

/// Routing is f32 whatever the tokens are; f64 if they are.
pub(crate) fn routing_dtype(tokens: DType) -> DType {
    if tokens == DType::F64 { DType::F64 } else { DType::F32 }
}

/// # Panics
///
/// Panics when the tokens do not have the width of `weight` `[D, E]`, also when there are none.
pub(super) fn check_width<B: Backend>(router: &str, tokens: &Tensor<B, 2>, weight: &Param<Tensor<B, 2>>) {
    let ([_, width], [d_model, _]) = (tokens.dims(), weight.dims());
    assert_eq!(width, d_model, "{router}: tokens [T, D] must have D = {d_model}, got {width}");
}

/// `x W` in the dtype of routing, `[T, E]`.
pub(super) fn logits<B: MoeBackend>(tokens: Tensor<B, 2>, weight: &Param<Tensor<B, 2>>) -> Tensor<B, 2> {
    let dtype = routing_dtype(tokens.dtype());
    linear(tokens.cast(dtype), weight.val().cast(dtype))
}

/// Keeps a sum of gates from being zero, as DeepSeek-V3's published code does.
pub(crate) const TINY: f64 = 1e-20;

/// Rows divided by their sums; zeros stay zeros.
pub(super) fn normalize<B: MoeBackend>(rows: Tensor<B, 2>) -> Tensor<B, 2> {
    let sums = sum_dim(rows.clone(), 1) + TINY;
    divide_rows(rows, sums)
}

/// burn's, but in f64 by the hyperbolic tangent, as burn's portable sigmoid rounds to f32.
pub(crate) fn sigmoid<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    match x.dtype() {
        DType::F64 => ((x * 0.5).tanh() + 1.0) * 0.5,
        _ => activation::sigmoid(x),
    }
}

/// Whether this is a training pass, by the rule of burn's dropout: on a backend with gradients it is.
pub(super) fn is_training<B: Backend>(device: &B::Device) -> bool {
    B::ad_enabled(device)
}

/// # Panics
///
/// Panics unless `1 <= top_k <= num_experts`.
pub(super) fn check_top_k(router: &str, top_k: usize, num_experts: usize) {
    assert!(
        (1..=num_experts).contains(&top_k),
        "{router}: top_k = {top_k} must be in 1..={num_experts}, the number of experts"
    );
}
