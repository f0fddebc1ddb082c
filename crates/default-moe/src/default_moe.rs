//! The layer: a Mixture-of-Experts layer and its default vectors.

use burn::config::Config;
use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use moe_kernels::MoeBackend;
use moe_layers::{Moe, MoeConfig};

use crate::{DefaultMoeOutput, DefaultOptions, DefaultUpdate, DefaultVectors, Evaluation};

/// Configuration to create a [`DefaultMoe`] using the [init function](DefaultMoeConfig::init).
#[derive(Config, Debug)]
pub struct DefaultMoeConfig {
    /// The layer: sizes, router, experts, losses.
    pub moe: MoeConfig,
    /// Its default vectors. Default: those of the paper's final method
    #[config(default = "DefaultOptions::new()")]
    pub options: DefaultOptions,
}

impl DefaultMoeConfig {
    /// Creates the layer on `device`. Its router and experts start as those of a [`Moe`] of the same configuration would:
    /// the vectors draw no random number.
    ///
    /// # Panics
    ///
    /// Panics as [`MoeConfig::init`] does, unless `0 <= beta < 1`, and where the vectors have no meaning under the router's rule:
    /// [`default_vectors_error`](moe_layers::RouterRule::default_vectors_error).
    pub fn init<B: Backend>(&self, device: &B::Device) -> DefaultMoe<B> {
        if let Some(error) = self.moe.router.default_vectors_error() {
            panic!("DefaultMoeConfig: {error}");
        }
        DefaultMoe {
            moe: self.moe.init(device),
            vectors: self.options.init(self.moe.num_experts, self.moe.d_model, device),
        }
    }
}

/// A Mixture-of-Experts layer whose router gets the gradient of a dense one, approximately. Created by
/// [`DefaultMoeConfig`].
///
/// Any [`Moe`] becomes one: put the two fields together.
#[derive(Module, Debug)]
pub struct DefaultMoe<B: Backend> {
    /// Router, experts and auxiliary losses.
    pub moe: Moe<B>,
    /// What stands in for the experts that a token did not choose.
    pub vectors: DefaultVectors<B>,
}

impl<B: MoeBackend> DefaultMoe<B> {
    /// Trains on a backend with gradients, evaluates on one without: [`DefaultVectors::forward`].
    ///
    /// # Shapes
    ///
    /// - input: `[.., D]`, any leading dimensions; they are the `T` tokens
    /// - output: the shape and dtype of the input
    ///
    /// # Panics
    ///
    /// As [`DefaultVectors::forward`].
    pub fn forward<const N: usize>(&self, input: Tensor<B, N>) -> DefaultMoeOutput<B, N> {
        self.vectors.forward(&self.moe, input)
    }

    /// Moves the vectors: once per training step, [`DefaultVectors::absorb`].
    ///
    /// # Panics
    ///
    /// Panics when the update is of another shape.
    pub fn absorb(&mut self, update: &DefaultUpdate<B>) {
        self.vectors.absorb(update);
    }

    /// The same layer, evaluated in another way.
    pub fn with_evaluation(mut self, evaluation: Evaluation) -> Self {
        self.vectors = self.vectors.with_evaluation(evaluation);
        self
    }
}
