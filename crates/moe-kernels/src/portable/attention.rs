//! Causal attention written out: all scores at once, masked, `[B, C, G * S, P]` with the `G = H / C` query heads of one
//! key/value head as rows of one product, so that keys and values are never repeated.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Bool, Tensor};

use super::reduce::{max_dim, sum_dim};
use super::{accumulator, matmul, unwrap, wrap};
use crate::MoeBackend;

pub(crate) fn causal_attention<B: MoeBackend>(
    [query, key, value]: [FloatTensor<B>; 3],
    scale: f64,
) -> [FloatTensor<B>; 2] {
    let (query, key, value) = (wrap::<B, 4>(query), wrap::<B, 4>(key), wrap::<B, 4>(value));
    let ([batch, len, heads, _], dtype, kv_heads) = (query.dims(), query.dtype(), key.dims()[2]);
    let scores = scores(group(query, kv_heads), key, len, scale);
    let largest = max_dim(scores.clone(), 3);
    let weights = (scores - largest.clone()).exp();
    let sums = sum_dim(weights.clone(), 3);
    let mixed = matmul(weights.cast(dtype), value.swap_dims(1, 2)) * sums.clone().recip().cast(dtype);
    let lse = (sums.log() + largest).reshape([batch, heads, len]).swap_dims(1, 2);
    [unwrap(ungroup(mixed, len)), unwrap(lse)]
}

pub(crate) fn causal_attention_backward<B: MoeBackend>(
    [query, key, value]: [FloatTensor<B>; 3],
    [output, lse]: [FloatTensor<B>; 2],
    scale: f64,
    grad: FloatTensor<B>,
) -> [FloatTensor<B>; 3] {
    let (query, key, value) = (wrap::<B, 4>(query), wrap::<B, 4>(key), wrap::<B, 4>(value));
    let ([batch, len, heads, _], dtype, kv_heads) = (query.dims(), query.dtype(), key.dims()[2]);
    let stats = accumulator(dtype);
    let (query, grad) = (group(query, kv_heads), group(wrap::<B, 4>(grad), kv_heads));
    let output = group(wrap::<B, 4>(output), kv_heads);
    let lse = wrap::<B, 3>(lse).swap_dims(1, 2).reshape([batch, kv_heads, heads / kv_heads * len, 1]);

    let weights = (scores(query.clone(), key.clone(), len, scale) - lse).exp();
    let grad_weights = matmul(grad.clone(), value.permute([0, 2, 3, 1])).cast(stats);
    // The sum over a row of `weights * grad_weights` is that of `grad * output` as well, which are fewer numbers. Where the output was rounded it is not:
    // the gradients of the scores of a row would no longer cancel as they should.
    let along = if dtype == stats {
        sum_dim(grad.clone() * output, 3)
    } else {
        sum_dim(weights.clone() * grad_weights.clone(), 3)
    };
    let grad_scores = (weights.clone() * (grad_weights - along)).mul_scalar(scale).cast(dtype);

    let grad_value = matmul(weights.cast(dtype).swap_dims(2, 3), grad).swap_dims(1, 2);
    let grad_key = matmul(grad_scores.clone().swap_dims(2, 3), query).swap_dims(1, 2);
    let grad_query = ungroup(matmul(grad_scores, key.swap_dims(1, 2)), len);
    [unwrap(grad_query), unwrap(grad_key), unwrap(grad_value)]
}

/// Scores `[B, C, G * S, P]` in the accumulator's dtype, minus infinity where the key is later than the query.
fn scores<B: MoeBackend>(query: Tensor<B, 4>, key: Tensor<B, 4>, len: usize, scale: f64) -> Tensor<B, 4> {
    let stats = accumulator(query.dtype());
    let scores = matmul(query, key.permute([0, 2, 3, 1])).cast(stats).mul_scalar(scale);
    if len == 1 {
        return scores;
    }
    let ([batch, kv_heads, rows, keys], device) = (scores.dims(), scores.device());
    let later = Tensor::<B, 2, Bool>::tril_mask([len, keys], (keys - len) as i64, &device);
    let heads = [batch * kv_heads * rows / len, len, keys];
    let later = later.unsqueeze::<3>().expand(heads);
    scores.reshape(heads).mask_fill(later, f32::NEG_INFINITY).reshape([batch, kv_heads, rows, keys])
}

/// `[B, S, H, A]` to `[B, C, G * S, A]`.
fn group<B: Backend>(x: Tensor<B, 4>, kv_heads: usize) -> Tensor<B, 4> {
    let [batch, len, heads, width] = x.dims();
    x.swap_dims(1, 2).reshape([batch, kv_heads, heads / kv_heads * len, width])
}

/// `[B, C, G * S, A]` to `[B, S, H, A]`.
fn ungroup<B: Backend>(x: Tensor<B, 4>, len: usize) -> Tensor<B, 4> {
    let [batch, kv_heads, rows, width] = x.dims();
    x.reshape([batch, kv_heads * rows / len, len, width]).swap_dims(1, 2)
}
