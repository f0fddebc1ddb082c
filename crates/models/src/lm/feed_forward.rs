//! The feed-forward half of a block: one dense network, or experts.

use burn::module::{Initializer, Module};
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};
use default_moe::{DefaultMoeOutput, DefaultOptions, DefaultVectors};
use moe_kernels::MoeBackend;
use moe_layers::{Activation, DenseFeedForward, DenseFeedForwardConfig, Moe, MoeConfig, MoeOutput};

use super::MoeLayerOutput;

/// Exactly one of `dense` and `moe` is there; as fields rather than an enum they give parameters readable paths.
#[derive(Module, Debug)]
pub struct FeedForward<B: Backend> {
    /// The dense network, in a layer without experts.
    pub dense: Option<DenseFeedForward<B>>,
    /// The experts and their router.
    pub moe: Option<Moe<B>>,
    /// What stands in for experts that a token did not choose, beside `moe` where the configuration
    /// [has them](super::LmMoeConfig::has_default_vectors).
    pub default_vectors: Option<DefaultVectors<B>>,
}

/// What a feed-forward block is made from.
pub(crate) struct FeedForwardSpec<'a> {
    /// `D`.
    pub(crate) d_model: usize,
    /// `F` of a dense block.
    pub(crate) d_hidden: usize,
    /// Of a dense block.
    pub(crate) activation: Activation,
    /// Standard deviation of the initial matrices.
    pub(crate) std: f64,
    /// That of the matrices whose product is added to the residual stream.
    pub(crate) residual_std: f64,
    /// Experts, where the block has some: the layer, and what may stand in for them.
    pub(crate) moe: Option<(MoeConfig, Option<&'a DefaultOptions>)>,
}

impl<B: MoeBackend> FeedForward<B> {
    pub(crate) fn new(spec: &FeedForwardSpec<'_>, device: &B::Device) -> Self {
        match &spec.moe {
            Some((moe, default)) => Self::with_experts(init_moe(spec, moe, device), *default, device),
            None => Self { dense: Some(init_dense(spec, device)), moe: None, default_vectors: None },
        }
    }

    /// The block with the experts of `moe`, and default vectors where there are options for them.
    pub(super) fn with_experts(moe: Moe<B>, default: Option<&DefaultOptions>, device: &B::Device) -> Self {
        let [num_experts, d_model] = [moe.experts.num_experts(), moe.experts.d_model()];
        let default_vectors = default.map(|default| default.init(num_experts, d_model, device));
        Self { dense: None, moe: Some(moe), default_vectors }
    }

    /// # Shapes
    ///
    /// - x: `[B, S, D]`; `layer` is where in the model it is
    /// - ids: `[B * S]`, those of the tokens, where they have any
    /// - output: `[B, S, D]`, and what the router did where there is one
    pub(crate) fn forward(
        &self,
        x: Tensor<B, 3>,
        layer: usize,
        ids: Option<Tensor<B, 1, Int>>,
    ) -> (Tensor<B, 3>, Option<MoeLayerOutput<B>>) {
        match (&self.dense, &self.moe) {
            (Some(dense), _) => {
                let [batch, len, width] = x.dims();
                (dense.forward(x.reshape([batch * len, width])).reshape([batch, len, width]), None)
            }
            (None, Some(moe)) => {
                let (output, routed) = self.forward_moe(moe, x, layer, ids);
                (output, Some(routed))
            }
            (None, None) => unreachable!("a feed-forward block is made with one of the two"),
        }
    }

    fn forward_moe(
        &self,
        moe: &Moe<B>,
        x: Tensor<B, 3>,
        layer: usize,
        ids: Option<Tensor<B, 1, Int>>,
    ) -> (Tensor<B, 3>, MoeLayerOutput<B>) {
        if let Some(vectors) = &self.default_vectors {
            let DefaultMoeOutput { output, routing, losses, update, energy } = vectors.forward(moe, x);
            return (output, MoeLayerOutput { layer, routing, losses, default_update: update, default_energy: energy });
        }
        let MoeOutput { output, routing, losses } = match ids {
            Some(ids) => moe.forward_ids(x, ids),
            None => moe.forward(x),
        };
        (output, MoeLayerOutput { layer, routing, losses, default_update: None, default_energy: None })
    }
}

fn init_dense<B: MoeBackend>(spec: &FeedForwardSpec<'_>, device: &B::Device) -> DenseFeedForward<B> {
    let mut dense = DenseFeedForwardConfig::new(spec.d_model, spec.d_hidden)
        .with_activation(spec.activation)
        .with_initializer(normal(spec.std))
        .init(device);
    dense.w_out = normal(spec.residual_std).init(dense.w_out.dims(), device);
    dense
}

fn init_moe<B: MoeBackend>(spec: &FeedForwardSpec<'_>, moe: &MoeConfig, device: &B::Device) -> Moe<B> {
    let mut moe: Moe<B> = moe.init(device);
    moe.experts.w_out = normal(spec.residual_std).init(moe.experts.w_out.dims(), device);
    if let Some(shared) = &mut moe.shared {
        shared.w_out = normal(spec.residual_std).init(shared.w_out.dims(), device);
    }
    moe
}

fn normal(std: f64) -> Initializer {
    Initializer::Normal { mean: 0.0, std }
}
