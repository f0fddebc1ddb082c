//! Causal self-attention with grouped queries.
//!
//! Written out instead of `burn::tensor::module::attention`, which under autodiff is the same products
//! with two more passes over the scores and a mask made in every layer, and which would make validation (fused) differ
//! from training (not fused) in the last bits. Three things keep the passes few:
//! - the scale `1 / sqrt(A)` is part of the rotary table of the queries;
//! - the mask is added to rows of `S * S` scores, one contiguous row for all heads;
//! - the softmax is divided by its sum after the product with the values, on `[.., A]` instead of `[.., S]`.

use burn::module::{Initializer, Module, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{Bool, DType, Tensor};

use super::cache::LayerCache;
use super::norm::Norm;
use super::rotary::{Rotary, RotaryTable};
use super::{LmConfig, QkNorm};

/// Queries of `H` heads look at keys and values of `C` heads; query head `h` uses key/value head `h * C / H`
/// ([Ainslie et al., 2023](https://arxiv.org/abs/2305.13245)).
#[derive(Module, Debug)]
pub struct Attention<B: Backend> {
    /// `[D, H * A]`.
    pub query: Param<Tensor<B, 2>>,
    /// `[D, C * A]`.
    pub key: Param<Tensor<B, 2>>,
    /// `[D, C * A]`.
    pub value: Param<Tensor<B, 2>>,
    /// `[H * A, D]`.
    pub output: Param<Tensor<B, 2>>,
    /// Over `A` or `H * A` channels, the gain's width says which.
    pub query_norm: Option<Norm<B>>,
    /// Over `A` or `C * A` channels.
    pub key_norm: Option<Norm<B>>,
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
}

/// What all layers of one forward pass share.
#[derive(Debug, Clone)]
pub(crate) struct Positions<B: Backend> {
    /// `B`.
    batch: usize,
    /// `S`.
    len: usize,
    /// Position of the first token; those before it are in the cache.
    start: usize,
    query_rotary: RotaryTable<B>,
    key_rotary: RotaryTable<B>,
    /// `[1, S * (start + S)]` f32: 0, or minus infinity where the key is later than the query. `None` for `S = 1`.
    mask: Option<Tensor<B, 2>>,
}

impl<B: Backend> Positions<B> {
    /// `batch` sequences of `len` tokens that continue `start` earlier ones.
    pub(crate) fn new(config: &LmConfig, rotary: &Rotary<B>, [batch, len]: [usize; 2], start: usize) -> Self {
        let scale = (config.head_width() as f64).sqrt().recip();
        let query_rotary = rotary.table(start, len, config.num_heads, scale);
        let key_rotary = rotary.table(start, len, config.kv_heads(), 1.0);
        let mask = (len > 1).then(|| causal_mask(len, start, &rotary.device()));
        Self { batch, len, start, query_rotary, key_rotary, mask }
    }
}

fn causal_mask<B: Backend>(len: usize, start: usize, device: &B::Device) -> Tensor<B, 2> {
    let shape = [len, start + len];
    let later = Tensor::<B, 2, Bool>::tril_mask(shape, start as i64, device);
    let mask = Tensor::<B, 2>::zeros(shape, (device, DType::F32)).mask_fill(later, f32::NEG_INFINITY);
    mask.reshape([1, len * (start + len)])
}

impl<B: Backend> Attention<B> {
    pub(crate) fn new(config: &LmConfig, device: &B::Device) -> Self {
        let (heads, kv_heads, head_dim) = (config.num_heads, config.kv_heads(), config.head_width());
        let (d_model, epsilon) = (config.d_model, config.norm_eps);
        let matrix = |rows, columns, std| Initializer::Normal { mean: 0.0, std }.init([rows, columns], device);
        let norm = |heads: usize| match config.qk_norm {
            QkNorm::None => None,
            QkNorm::PerHead => Some(Norm::rms(head_dim, epsilon, device)),
            QkNorm::Full => Some(Norm::rms(heads * head_dim, epsilon, device)),
        };
        Self {
            query: matrix(d_model, heads * head_dim, config.init_std),
            key: matrix(d_model, kv_heads * head_dim, config.init_std),
            value: matrix(d_model, kv_heads * head_dim, config.init_std),
            output: matrix(heads * head_dim, d_model, config.residual_std()),
            query_norm: norm(heads),
            key_norm: norm(kv_heads),
            num_heads: heads,
            num_kv_heads: kv_heads,
            head_dim,
        }
    }

    /// # Shapes
    ///
    /// - x: `[B * S, D]`
    /// - output: `[B * S, D]`
    pub(crate) fn forward(
        &self,
        x: Tensor<B, 2>,
        positions: &Positions<B>,
        cache: Option<&mut LayerCache<B>>,
    ) -> Tensor<B, 2> {
        let query = normalize(&self.query_norm, project(x.clone(), &self.query));
        let key = normalize(&self.key_norm, project(x.clone(), &self.key));
        let query = positions.query_rotary.apply(query);
        let key = positions.key_rotary.apply(key);
        let value = project(x, &self.value);

        let new = [key, value].map(|new| self.split_kv_heads(new, positions));
        let [keys, values] = match cache {
            Some(cache) => cache.extend(positions.start, new),
            None => new,
        };
        let mixed = attend(self.group_queries(query, positions), keys, values, &positions.mask);
        project(self.merge_heads(mixed, positions), &self.output)
    }

    /// `[B * S, C * A]` to `[B, S, C, A]`.
    fn split_kv_heads(&self, x: Tensor<B, 2>, positions: &Positions<B>) -> Tensor<B, 4> {
        x.reshape([positions.batch, positions.len, self.num_kv_heads, self.head_dim])
    }

    /// `[B * S, H * A]` to `[B, C, (H / C) * S, A]`: the query heads of one key/value head become rows of one product,
    /// so keys and values are never repeated.
    fn group_queries(&self, x: Tensor<B, 2>, positions: &Positions<B>) -> Tensor<B, 4> {
        let (batch, len, kv_heads) = (positions.batch, positions.len, self.num_kv_heads);
        let group = self.num_heads / kv_heads;
        if group == 1 {
            return self.split_kv_heads(x, positions).swap_dims(1, 2);
        }
        let grouped = x.reshape([batch, len, kv_heads, group, self.head_dim]).permute([0, 2, 3, 1, 4]);
        grouped.reshape([batch, kv_heads, group * len, self.head_dim])
    }

    /// `[B, C, (H / C) * S, A]` to `[B * S, H * A]`.
    fn merge_heads(&self, x: Tensor<B, 4>, positions: &Positions<B>) -> Tensor<B, 2> {
        let (batch, len) = (positions.batch, positions.len);
        let by_token = x.reshape([batch, self.num_heads, len, self.head_dim]).swap_dims(1, 2);
        by_token.reshape([batch * len, self.num_heads * self.head_dim])
    }
}

/// `x` times a weight, in the dtype of `x`.
pub(crate) fn project<B: Backend>(x: Tensor<B, 2>, weight: &Param<Tensor<B, 2>>) -> Tensor<B, 2> {
    let weight = weight.val().cast(x.dtype());
    x.matmul(weight)
}

/// Normalises groups of as many channels as the norm has.
fn normalize<B: Backend>(norm: &Option<Norm<B>>, x: Tensor<B, 2>) -> Tensor<B, 2> {
    let Some(norm) = norm else { return x };
    let [tokens, channels] = x.dims();
    let [width] = norm.gamma.dims();
    norm.forward(x.reshape([tokens * channels / width, width])).reshape([tokens, channels])
}

/// Softmax-weighted mean of the values, the scores' softmax in f32.
///
/// # Shapes
///
/// - query: `[B, C, G * S, A]`, scaled
/// - keys, values: `[B, P, C, A]`
/// - mask: `[1, S * P]`
/// - output: `[B, C, G * S, A]`
fn attend<B: Backend>(
    query: Tensor<B, 4>,
    keys: Tensor<B, 4>,
    values: Tensor<B, 4>,
    mask: &Option<Tensor<B, 2>>,
) -> Tensor<B, 4> {
    let dtype = query.dtype();
    let scores = query.matmul(keys.permute([0, 2, 3, 1])).cast(DType::F32);
    let scores = add_mask(scores, mask);
    let largest = scores.clone().detach().max_dim(3);
    let weights = (scores - largest).exp();
    let sums = weights.clone().sum_dim(3);
    let mixed = weights.cast(dtype).matmul(values.swap_dims(1, 2));
    mixed * sums.recip().cast(dtype)
}

fn add_mask<B: Backend>(scores: Tensor<B, 4>, mask: &Option<Tensor<B, 2>>) -> Tensor<B, 4> {
    let Some(mask) = mask else { return scores };
    let shape = scores.dims();
    let [_, row] = mask.dims();
    let rows = shape.iter().product::<usize>() / row;
    (scores.reshape([rows, row]) + mask.clone()).reshape(shape)
}
