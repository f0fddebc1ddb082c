//! Root-mean-square and layer normalisation of rows.
//!
//! With `n = (x - mean) * inverse` and `h = grad * gamma`: `dx = inverse * (h - mean(h) - n * mean(h n))`, where root
//! mean square normalisation has neither `mean`.

use burn::tensor::Tensor;
use burn::tensor::ops::FloatTensor;

use super::reduce::{mean_dim, sum_dim};
use super::{accumulator, unwrap, wrap};
use crate::MoeBackend;

pub(crate) fn norm<B: MoeBackend>(
    x: FloatTensor<B>,
    gamma: FloatTensor<B>,
    beta: Option<FloatTensor<B>>,
    epsilon: f64,
) -> FloatTensor<B> {
    let x = wrap::<B, 2>(x);
    let (dtype, stats) = (x.dtype(), accumulator(x.dtype()));
    let row = |channels: FloatTensor<B>| wrap::<B, 1>(channels).cast(stats).unsqueeze::<2>();
    let (normal, _) = normalize(x.cast(stats), beta.is_some(), epsilon);
    let y = normal * row(gamma);
    unwrap(match beta {
        Some(beta) => (y + row(beta)).cast(dtype),
        None => y.cast(dtype),
    })
}

/// Gradients of `x`, `gamma` and `beta`, the last one meaningless unless `center`.
pub(crate) fn norm_backward<B: MoeBackend>(
    x: FloatTensor<B>,
    gamma: FloatTensor<B>,
    center: bool,
    epsilon: f64,
    grad: FloatTensor<B>,
) -> [FloatTensor<B>; 3] {
    let (x, gamma, grad) = (wrap::<B, 2>(x), wrap::<B, 1>(gamma), wrap::<B, 2>(grad));
    let (dtype, gain_dtype, stats) = (x.dtype(), gamma.dtype(), accumulator(x.dtype()));
    let grad = grad.cast(stats);
    let (normal, inverse) = normalize(x.cast(stats), center, epsilon);

    let scaled = grad.clone() * gamma.cast(stats).unsqueeze::<2>();
    let along = mean_dim(scaled.clone() * normal.clone(), 1);
    let level = if center { scaled.clone() - mean_dim(scaled, 1) } else { scaled };
    let dx = (level - normal.clone() * along) * inverse;
    let sum = |rows: Tensor<B, 2>| unwrap(sum_dim(rows, 0).squeeze_dim::<1>(0).cast(gain_dtype));
    [unwrap(dx.cast(dtype)), sum(grad.clone() * normal), sum(grad)]
}

/// `(x - mean) * inverse` and `inverse` `[T, 1]`.
fn normalize<B: MoeBackend>(x: Tensor<B, 2>, center: bool, epsilon: f64) -> (Tensor<B, 2>, Tensor<B, 2>) {
    let x = if center { x.clone() - mean_dim(x, 1) } else { x };
    let inverse = mean_dim(x.clone().square(), 1).add_scalar(epsilon).sqrt().recip();
    (x * inverse.clone(), inverse)
}
