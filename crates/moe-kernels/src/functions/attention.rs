//! Causal attention.

use burn::tensor::Tensor;

use super::{primitive, tensor};
use crate::MoeBackend;

/// Softmax-weighted mean of the values that are not later than the query:
/// `y_i = sum_j softmax_j(scale * q_i . k_j) v_j`, `j <= P - S + i`.
///
/// The queries are the last `S` of `P` positions; query head `h` uses key/value head `h * C / H`
/// ([Ainslie et al., 2023](https://arxiv.org/abs/2305.13245)). The softmax is computed in f32 (f64 for f64). Kept for the
/// backward pass are the inputs, the output and one number per query and head; never the scores.
///
/// # Shapes
///
/// - query: `[B, S, H, A]`
/// - key, value: `[B, P, C, A]`, dtype of the query
/// - output: `[B, S, H, A]`
///
/// # Panics
///
/// Panics when a size is 0, `S > P`, `H` is not a multiple of `C`, shapes or dtypes disagree, or `scale` is not positive.
pub fn causal_attention<B: MoeBackend>(
    query: Tensor<B, 4>,
    key: Tensor<B, 4>,
    value: Tensor<B, 4>,
    scale: f64,
) -> Tensor<B, 4> {
    let ([batch, len, heads, width], [_, positions, kv_heads, _]) = (query.dims(), key.dims());
    assert!(
        query.shape().num_elements() > 0 && kv_heads > 0,
        "causal_attention: no size may be 0, got query {:?}",
        query.dims()
    );
    assert_eq!(key.dims(), [batch, positions, kv_heads, width], "causal_attention: query and key disagree on B or A");
    assert_eq!(key.dims(), value.dims(), "causal_attention: key and value must have one shape");
    assert!(len <= positions, "causal_attention: {len} queries need as many keys, got {positions}");
    assert!(heads.is_multiple_of(kv_heads), "causal_attention: H = {heads} must be a multiple of C = {kv_heads}");
    assert!(scale > 0.0, "causal_attention: scale must be positive, got {scale}");
    let dtypes = [key.dtype(), value.dtype()];
    assert_eq!(dtypes, [query.dtype(); 2], "causal_attention: query, key and value must have one dtype");
    let [output, _] = B::moe_causal_attention(primitive(query), primitive(key), primitive(value), scale);
    tensor(output)
}
