//! A dense language model becomes one with experts ([Komatsuzaki et al., 2022](https://arxiv.org/abs/2212.05055)).
//!
//! Embedding, normalisation, attention, output matrix and the feed-forward blocks of layers that stay dense are copied; the experts of
//! the others are made by [`moe_layers::upcycle`], which says when the function stays the same: with
//! [`Upcycling::Copy`](moe_layers::upcycle::Upcycling::Copy) and `normalize_gates`, and neither default vectors nor a capacity. Training
//! then goes on from the dense model's loss.

use burn::module::Module;
use moe_kernels::MoeBackend;
use moe_layers::DenseFeedForwardConfig;
use moe_layers::upcycle::{Upcycling, segments, upcycle};
use thiserror::Error;

use super::model::DrawNow;
use super::{Block, FeedForward, Lm, LmConfig, LmConfigError};

/// Why a dense model does not become one of a configuration.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum UpcycleError {
    /// The configuration is not a model.
    #[error(transparent)]
    Config(#[from] LmConfigError),
    /// The two models differ in more than experts.
    #[error(
        "{field} is {dense} in the dense model and {wanted} in the one with experts; set it to {dense}: only moe_layers, \
         the moe table and init_std may differ"
    )]
    Differs {
        /// The field.
        field: &'static str,
        /// The dense model's value.
        dense: String,
        /// The other's.
        wanted: String,
    },
    /// A layer has no dense network to start from.
    #[error("layer {layer} of the model has experts already; upcycle a model whose moe_layers = \"none\"")]
    HasExperts {
        /// The layer, counted from 0.
        layer: usize,
    },
    /// The experts cannot be made of the dense network.
    #[error("the moe table does not fit the dense network: {0}")]
    Experts(String),
}

impl LmConfig {
    /// The model of this configuration that goes on where `dense` is: its experts are made of the dense feed-forward blocks, all else is
    /// copied, activations' dtype included.
    ///
    /// What is copied keeps its parameters' ids, so that an optimizer that trained `dense` goes on with the moments it has for
    /// them. The routers are drawn from the device's random generator, and nothing else with
    /// [`Upcycling::Copy`].
    ///
    /// # Errors
    ///
    /// Returns an error when this is not a model, differs from `dense` in a field that is not about experts, `dense` has experts already, or
    /// its feed-forward blocks do not make up the experts: [`segments`].
    ///
    /// ```no_run
    /// use burn::backend::Flex;
    /// use moe_layers::upcycle::Upcycling;
    /// use moe_models::checkpoint::HfCheckpoint;
    /// use moe_models::lm::{Lm, LmMoeConfig, MoeLayers};
    ///
    /// let dense: Lm<Flex> = HfCheckpoint::open("Llama-3.2-1B")?.load(&Default::default())?;
    /// let moe = LmMoeConfig::new(8, 2, dense.config().d_hidden).with_normalize_gates(true);
    /// let config = dense.config().clone().with_moe_layers(MoeLayers::All).with_moe(moe);
    /// let model = config.upcycle(&dense, Upcycling::Copy)?; // the logits of `dense`
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn upcycle<B: MoeBackend>(&self, dense: &Lm<B>, method: Upcycling) -> Result<Lm<B>, UpcycleError> {
        self.check_upcycling(&dense.config, method)?;
        let blocks = dense.blocks.iter().enumerate().map(|(layer, block)| self.upcycle_block(layer, block, method));
        let model = Lm { blocks: blocks.collect(), config: self.clone(), ..dense.clone() };
        model.visit(&mut DrawNow);
        Ok(model)
    }

    /// Whether [`upcycle`](Self::upcycle) can make the model of one of `dense`, which needs no weights.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn check_upcycling(&self, dense: &Self, method: Upcycling) -> Result<(), UpcycleError> {
        self.validate()?;
        self.check_same(dense)?;
        if let Some(layer) = (0..dense.num_layers).find(|&layer| dense.is_moe_layer(layer)) {
            return Err(UpcycleError::HasExperts { layer });
        }
        if self.num_moe_layers() > 0 {
            let network = DenseFeedForwardConfig::new(dense.d_model, dense.d_hidden).with_activation(dense.activation);
            segments(&network, &self.moe_layer(), method).map_err(UpcycleError::Experts)?;
        }
        Ok(())
    }

    fn upcycle_block<B: MoeBackend>(&self, layer: usize, block: &Block<B>, method: Upcycling) -> Block<B> {
        if !self.is_moe_layer(layer) {
            return block.clone();
        }
        let dense = block.feed_forward.dense.as_ref().expect("a model without experts has it in every layer");
        let device = dense.w_in.device();
        let moe = upcycle(dense, &self.moe_layer(), method, &device);
        let feed_forward = FeedForward::with_experts(moe, self.moe.default_options(), &device);
        Block { feed_forward, ..block.clone() }
    }

    /// Compares what both models must have in common.
    fn check_same(&self, dense: &Self) -> Result<(), UpcycleError> {
        same("vocab_size", dense.vocab_size, self.vocab_size)?;
        same("d_model", dense.d_model, self.d_model)?;
        same("num_layers", dense.num_layers, self.num_layers)?;
        same("num_heads", dense.num_heads, self.num_heads)?;
        same("d_hidden", dense.d_hidden, self.d_hidden)?;
        same("max_seq_len", dense.max_seq_len, self.max_seq_len)?;
        same("num_kv_heads", dense.kv_heads(), self.kv_heads())?;
        same("head_dim", dense.head_width(), self.head_width())?;
        same("activation", dense.activation, self.activation)?;
        same("norm", dense.norm, self.norm)?;
        same("norm_eps", dense.norm_eps, self.norm_eps)?;
        same("rope_theta", dense.rope_theta, self.rope_theta)?;
        same("rope_scaling", dense.rope_scaling, self.rope_scaling)?;
        same("qk_norm", dense.qk_norm, self.qk_norm)?;
        same("tie_embeddings", dense.tie_embeddings, self.tie_embeddings)
    }
}

fn same<T: PartialEq + std::fmt::Debug>(field: &'static str, dense: T, wanted: T) -> Result<(), UpcycleError> {
    if dense == wanted {
        return Ok(());
    }
    Err(UpcycleError::Differs { field, dense: format!("{dense:?}"), wanted: format!("{wanted:?}") })
}
