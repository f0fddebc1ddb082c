//! The default vectors of a model: moved by a training step, switched in evaluation.

use burn::tensor::backend::Backend;
use default_moe::optimizer::HasDefaultVectors;
use default_moe::{DefaultUpdate, DefaultVectors, Evaluation};

use super::Lm;

impl<B: Backend> HasDefaultVectors<B> for Lm<B> {
    fn default_vectors(&self) -> Vec<&DefaultVectors<B>> {
        self.blocks.iter().filter_map(|block| block.feed_forward.default_vectors.as_ref()).collect()
    }

    fn default_vectors_mut(&mut self) -> Vec<&mut DefaultVectors<B>> {
        self.blocks.iter_mut().filter_map(|block| block.feed_forward.default_vectors.as_mut()).collect()
    }
}

impl<B: Backend> Lm<B> {
    /// Moves the default vectors of all layers, once per training step. `updates` are those of its passes
    /// ([`MoeLayerOutput::default_update`](super::MoeLayerOutput::default_update)), merged over micro-batches, in the order of
    /// the layers; none for a model without default vectors.
    ///
    /// # Panics
    ///
    /// Panics unless there is one update for each layer with default vectors.
    pub fn absorb(&mut self, updates: &[DefaultUpdate<B>]) {
        let layers = self.default_vectors_mut();
        assert_eq!(layers.len(), updates.len(), "Lm: there must be one update for each layer with default vectors");
        for (vectors, update) in layers.into_iter().zip(updates) {
            vectors.absorb(update);
        }
    }

    /// The same model, whose default vectors act in another way where there are no gradients.
    pub fn with_evaluation(mut self, evaluation: Evaluation) -> Self {
        self.each(|vectors| vectors.with_evaluation(evaluation));
        self
    }

    /// Whether passes measure how much of a layer's output comes from its default vectors.
    pub fn measure(&mut self, measuring: bool) {
        self.each(|vectors| vectors.with_measuring(measuring));
    }

    fn each(&mut self, change: impl Fn(DefaultVectors<B>) -> DefaultVectors<B>) {
        for vectors in self.default_vectors_mut() {
            *vectors = change(vectors.clone());
        }
    }
}
