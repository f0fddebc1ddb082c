//! One transformer block.

use burn::module::{Initializer, Module};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use moe_kernels::MoeBackend;
use moe_layers::{SoftMoe, SoftMoeConfig};

use super::{VitAttention, VitConfig};
use crate::lm::{FeedForward, MoeLayerOutput, Norm};

/// `x + attention(norm(x))`, then `x + feed_forward(norm(x))`.
#[derive(Module, Debug)]
pub struct VitBlock<B: Backend> {
    /// Before attention.
    pub attention_norm: Norm<B>,
    /// Mixes tokens.
    pub attention: VitAttention<B>,
    /// Before the feed-forward block.
    pub feed_forward_norm: Norm<B>,
    /// Dense, or routed experts; `None` where `soft` is there.
    pub feed_forward: Option<FeedForward<B>>,
    /// Experts on averages of tokens.
    pub soft: Option<SoftMoe<B>>,
}

impl<B: MoeBackend> VitBlock<B> {
    /// Layer `layer`, counted from 0.
    pub(super) fn new(config: &VitConfig, layer: usize, device: &B::Device) -> Self {
        let norm = || Norm::layer(config.d_model, config.norm_eps, device);
        let soft = config.soft(layer);
        Self {
            attention_norm: norm(),
            attention: VitAttention::new(config, device),
            feed_forward_norm: norm(),
            feed_forward: soft.is_none().then(|| FeedForward::new(&config.feed_forward(layer), device)),
            soft: soft.map(|soft| init_soft(config, &soft, device)),
        }
    }

    /// # Shapes
    ///
    /// - x: `[B, S, D]`; `layer` is where in the model it is
    /// - output: `[B, S, D]`, and what the router did where there is one
    pub(super) fn forward(&self, x: Tensor<B, 3>, layer: usize) -> (Tensor<B, 3>, Option<MoeLayerOutput<B>>) {
        let x = x.clone() + self.attention.forward(self.attention_norm.forward(x));
        let normed = self.feed_forward_norm.forward(x.clone());
        let (output, routed) = match (&self.feed_forward, &self.soft) {
            (Some(feed_forward), _) => feed_forward.forward(normed, layer, None),
            (None, Some(soft)) => (soft.forward(normed), None),
            (None, None) => unreachable!("a block is made with one of the two"),
        };
        (x + output, routed)
    }
}

fn init_soft<B: MoeBackend>(config: &VitConfig, soft: &SoftMoeConfig, device: &B::Device) -> SoftMoe<B> {
    let normal = |std| Initializer::Normal { mean: 0.0, std };
    let mut soft: SoftMoe<B> = soft.clone().with_initializer(normal(config.init_std)).init(device);
    soft.experts.w_out = normal(config.residual_std()).init(soft.experts.w_out.dims(), device);
    soft
}
