//! Self-attention of every token with every other.

use burn::module::{Initializer, Module, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use moe_kernels::{MoeBackend, softmax_rows};
use moe_layers::project;

use super::VitConfig;

/// `H` heads of queries, keys and values; no biases, no mask. Created with a [`Vit`](super::Vit).
#[derive(Module, Debug)]
pub struct VitAttention<B: Backend> {
    /// `[D, D]`.
    pub query: Param<Tensor<B, 2>>,
    /// `[D, D]`.
    pub key: Param<Tensor<B, 2>>,
    /// `[D, D]`.
    pub value: Param<Tensor<B, 2>>,
    /// `[D, D]`.
    pub output: Param<Tensor<B, 2>>,
    num_heads: usize,
}

impl<B: Backend> VitAttention<B> {
    pub(super) fn new(config: &VitConfig, device: &B::Device) -> Self {
        let d = config.d_model;
        let matrix = |std| Initializer::Normal { mean: 0.0, std }.init([d, d], device);
        Self {
            query: matrix(config.init_std),
            key: matrix(config.init_std),
            value: matrix(config.init_std),
            output: matrix(config.residual_std()),
            num_heads: config.num_heads,
        }
    }
}

impl<B: MoeBackend> VitAttention<B> {
    /// # Shapes
    ///
    /// - x: `[B, S, D]`
    /// - output: `[B, S, D]`
    pub(super) fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let [batch, len, width] = x.dims();
        let (heads, tokens) = (self.num_heads, x.reshape([batch * len, width]));
        let by_head = |weight| {
            let projected: Tensor<B, 2> = project(tokens.clone(), weight);
            projected.reshape([batch, len, heads, width / heads]).swap_dims(1, 2)
        };
        let (query, key, value) = (by_head(&self.query), by_head(&self.key), by_head(&self.value));
        let scale = ((width / heads) as f64).sqrt().recip();
        let scores = (query * scale).matmul(key.swap_dims(2, 3)).reshape([batch * heads * len, len]);
        let mixed = softmax_rows(scores).reshape([batch, heads, len, len]).matmul(value);
        let mixed = mixed.swap_dims(1, 2).reshape([batch * len, width]);
        project(mixed, &self.output).reshape([batch, len, width])
    }
}
