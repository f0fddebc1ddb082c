//! One transformer block.

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use moe_kernels::MoeBackend;

use super::attention::{Attention, Positions};
use super::cache::LayerCache;
use super::feed_forward::FeedForward;
use super::norm::Norm;
use super::{LmConfig, MoeLayerOutput};

/// `x + attention(norm(x))`, then `x + feed_forward(norm(x))`.
#[derive(Module, Debug)]
pub struct Block<B: Backend> {
    /// Before attention.
    pub attention_norm: Norm<B>,
    /// Mixes tokens.
    pub attention: Attention<B>,
    /// Before the feed-forward block.
    pub feed_forward_norm: Norm<B>,
    /// Works on each token by itself.
    pub feed_forward: FeedForward<B>,
}

impl<B: MoeBackend> Block<B> {
    /// Layer `layer`, counted from 0.
    pub(crate) fn new(config: &LmConfig, layer: usize, device: &B::Device) -> Self {
        Self {
            attention_norm: Norm::new(config, device),
            attention: Attention::new(config, device),
            feed_forward_norm: Norm::new(config, device),
            feed_forward: FeedForward::new(&config.feed_forward(layer), device),
        }
    }

    /// # Shapes
    ///
    /// - x: `[B * S, D]`; `layer` is where in the model it is
    /// - output: `[B * S, D]`, and what the router did where there is one
    pub(crate) fn forward(
        &self,
        x: Tensor<B, 2>,
        layer: usize,
        positions: &Positions<B>,
        cache: Option<&mut LayerCache<B>>,
    ) -> (Tensor<B, 2>, Option<MoeLayerOutput<B>>) {
        let mixed = self.attention.forward(self.attention_norm.forward(x.clone()), positions, cache);
        let x = x + mixed;
        let ([tokens, width], [batch, len]) = (x.dims(), positions.shape());
        let normed = self.feed_forward_norm.forward(x.clone()).reshape([batch, len, width]);
        let (output, routed) = self.feed_forward.forward(normed, layer, Some(positions.ids()));
        (x + output.reshape([tokens, width]), routed)
    }
}
