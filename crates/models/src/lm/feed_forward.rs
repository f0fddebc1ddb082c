//! The feed-forward half of a block: one dense network, or experts.

use burn::module::{Initializer, Module};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use default_moe::{DefaultMoeOutput, DefaultVectors};
use moe_kernels::MoeBackend;
use moe_layers::{DenseFeedForward, DenseFeedForwardConfig, Moe, MoeOutput};

use super::attention::Positions;
use super::{LmConfig, LmMoeConfig, MoeLayerOutput};

/// Exactly one of `dense` and `moe` is there; as fields rather than an enum they give parameters readable paths.
#[derive(Module, Debug)]
pub struct FeedForward<B: Backend> {
    /// The dense network, in a layer without experts.
    pub dense: Option<DenseFeedForward<B>>,
    /// The experts and their router.
    pub moe: Option<Moe<B>>,
    /// What stands in for experts that a token did not choose, beside `moe` in a model of
    /// [`RouterKind::Default`](super::RouterKind::Default).
    pub default_vectors: Option<DefaultVectors<B>>,
}

impl<B: MoeBackend> FeedForward<B> {
    /// The block of layer `layer`, counted from 0.
    pub(crate) fn new(config: &LmConfig, layer: usize, device: &B::Device) -> Self {
        if !config.is_moe_layer(layer) {
            return Self { dense: Some(init_dense(config, device)), moe: None, default_vectors: None };
        }
        Self::with_experts(config, init_moe(config, device), device)
    }

    /// The block of a layer with the experts of `moe`.
    pub(super) fn with_experts(config: &LmConfig, moe: Moe<B>, device: &B::Device) -> Self {
        let LmMoeConfig { num_experts, default, .. } = &config.moe;
        let vectors = || default.init(*num_experts, config.d_model, device);
        Self { dense: None, moe: Some(moe), default_vectors: config.moe.has_default_vectors().then(vectors) }
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
    ) -> (Tensor<B, 2>, Option<MoeLayerOutput<B>>) {
        match (&self.dense, &self.moe) {
            (Some(dense), _) => (dense.forward(x), None),
            (None, Some(moe)) => {
                let ([tokens, width], [batch, len]) = (x.dims(), positions.shape());
                let (output, routed) = self.forward_moe(moe, x.reshape([batch, len, width]), layer, positions);
                (output.reshape([tokens, width]), Some(routed))
            }
            (None, None) => unreachable!("a feed-forward block is made with one of the two"),
        }
    }

    fn forward_moe(
        &self,
        moe: &Moe<B>,
        x: Tensor<B, 3>,
        layer: usize,
        positions: &Positions<B>,
    ) -> (Tensor<B, 3>, MoeLayerOutput<B>) {
        let Some(vectors) = &self.default_vectors else {
            let MoeOutput { output, routing, losses } = moe.forward_ids(x, positions.ids());
            return (output, MoeLayerOutput { layer, routing, losses, default_update: None, default_energy: None });
        };
        let DefaultMoeOutput { output, routing, losses, update, energy } = vectors.forward(moe, x);
        (output, MoeLayerOutput { layer, routing, losses, default_update: update, default_energy: energy })
    }
}

fn init_dense<B: MoeBackend>(config: &LmConfig, device: &B::Device) -> DenseFeedForward<B> {
    let mut dense = DenseFeedForwardConfig::new(config.d_model, config.d_hidden)
        .with_activation(config.activation)
        .with_initializer(Initializer::Normal { mean: 0.0, std: config.init_std })
        .init(device);
    dense.w_out = residual(config).init(dense.w_out.dims(), device);
    dense
}

fn init_moe<B: MoeBackend>(config: &LmConfig, device: &B::Device) -> Moe<B> {
    let mut moe: Moe<B> = config.moe_layer().init(device);
    moe.experts.w_out = residual(config).init(moe.experts.w_out.dims(), device);
    if let Some(shared) = &mut moe.shared {
        shared.w_out = residual(config).init(shared.w_out.dims(), device);
    }
    moe
}

/// For matrices whose product is added to the residual stream.
fn residual(config: &LmConfig) -> Initializer {
    Initializer::Normal { mean: 0.0, std: config.residual_std() }
}
