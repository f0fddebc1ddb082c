//! The feed-forward half of a block: one dense network, or experts.

use burn::module::{Initializer, Module, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use moe_kernels::MoeBackend;
use moe_layers::{Activation, Moe, activate};

use super::attention::project;
use super::{LmConfig, MoeLayerOutput};

/// Exactly one of `dense` and `moe` is there; as fields rather than an enum they give parameters readable paths.
#[derive(Module, Debug)]
pub struct FeedForward<B: Backend> {
    /// The dense network, in a layer without experts.
    pub dense: Option<DenseFeedForward<B>>,
    /// The experts and their router.
    pub moe: Option<Moe<B>>,
}

/// Two matrices around an activation, laid out like one expert.
#[derive(Module, Debug)]
pub struct DenseFeedForward<B: Backend> {
    /// `[D, 2F]` for SwiGLU, gates first, else `[D, F]`.
    pub w_in: Param<Tensor<B, 2>>,
    /// `[F, D]`.
    pub w_out: Param<Tensor<B, 2>>,
    #[module(skip)]
    activation: Activation,
}

impl<B: MoeBackend> FeedForward<B> {
    /// The block of layer `layer`, counted from 0.
    pub(crate) fn new(config: &LmConfig, layer: usize, device: &B::Device) -> Self {
        if config.is_moe_layer(layer) {
            Self { dense: None, moe: Some(init_moe(config, device)) }
        } else {
            Self { dense: Some(DenseFeedForward::new(config, device)), moe: None }
        }
    }

    /// # Shapes
    ///
    /// - x: `[T, D]`; `layer` is where in the model it is
    /// - output: `[T, D]`, and what the router did where there is one
    pub(crate) fn forward(&self, x: Tensor<B, 2>, layer: usize) -> (Tensor<B, 2>, Option<MoeLayerOutput<B>>) {
        match (&self.dense, &self.moe) {
            (Some(dense), _) => (dense.forward(x), None),
            (None, Some(moe)) => {
                let result = moe.forward(x);
                (result.output, Some(MoeLayerOutput { layer, routing: result.routing, losses: result.losses }))
            }
            (None, None) => unreachable!("a feed-forward block is made with one of the two"),
        }
    }
}

fn init_moe<B: MoeBackend>(config: &LmConfig, device: &B::Device) -> Moe<B> {
    let mut moe: Moe<B> = config.moe.layer(config.d_model, config.init_std).init(device);
    let shape = [config.moe.num_experts, config.moe.d_hidden, config.d_model];
    moe.experts.w_out = Initializer::Normal { mean: 0.0, std: config.residual_std() }.init(shape, device);
    moe
}

impl<B: MoeBackend> DenseFeedForward<B> {
    fn new(config: &LmConfig, device: &B::Device) -> Self {
        let (d_model, d_hidden, activation) = (config.d_model, config.d_hidden, config.activation);
        let matrix = |rows, columns, std| Initializer::Normal { mean: 0.0, std }.init([rows, columns], device);
        Self {
            w_in: matrix(d_model, activation.columns(d_hidden), config.init_std),
            w_out: matrix(d_hidden, d_model, config.residual_std()),
            activation,
        }
    }

    /// # Shapes
    ///
    /// - x: `[T, D]`
    /// - output: `[T, D]`
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        project(activate(self.activation, project(x, &self.w_in)), &self.w_out)
    }
}
