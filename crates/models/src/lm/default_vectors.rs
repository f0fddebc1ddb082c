//! The default vectors of a model.

use burn::tensor::backend::Backend;
use default_moe::DefaultVectors;
use default_moe::optimizer::HasDefaultVectors;

use super::Lm;

impl<B: Backend> HasDefaultVectors<B> for Lm<B> {
    fn default_vectors(&self) -> Vec<&DefaultVectors<B>> {
        self.blocks.iter().filter_map(|block| block.feed_forward.default_vectors.as_ref()).collect()
    }

    fn default_vectors_mut(&mut self) -> Vec<&mut DefaultVectors<B>> {
        self.blocks.iter_mut().filter_map(|block| block.feed_forward.default_vectors.as_mut()).collect()
    }
}
