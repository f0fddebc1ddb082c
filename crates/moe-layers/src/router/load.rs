//! How much each expert was wanted over a step: a sum, like everything that several batches or devices find out together.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use moe_kernels::MoeBackend;

use crate::Routing;

/// Counts of the experts' slots over the tokens of a step. Loads of micro-batches, devices and ranks add up.
#[derive(Debug, Clone)]
pub struct ExpertLoad<B: Backend> {
    /// Slots of each expert, `[E]`, as floats: exact up to `2^24`.
    pub counts: Tensor<B, 1>,
    /// Tokens that were routed.
    pub tokens: usize,
}

impl<B: MoeBackend> ExpertLoad<B> {
    /// That of one decision.
    pub fn of(routing: &Routing<B>) -> Self {
        Self { counts: routing.demand().float(), tokens: routing.num_tokens() }
    }
}

impl<B: Backend> ExpertLoad<B> {
    /// That of both batches together.
    ///
    /// # Panics
    ///
    /// Panics when they differ in `E`.
    pub fn merge(self, other: Self) -> Self {
        assert_eq!(self.counts.dims(), other.counts.dims(), "ExpertLoad: two loads must be of as many experts");
        Self { counts: self.counts + other.counts, tokens: self.tokens + other.tokens }
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;

    use super::*;

    fn load(counts: &[f32], tokens: usize) -> ExpertLoad<Flex> {
        let counts = burn::tensor::TensorData::from(counts);
        ExpertLoad { counts: Tensor::from_data(counts, &Default::default()), tokens }
    }

    #[test]
    fn merged_loads_are_sums() {
        let merged = load(&[1.0, 3.0], 2).merge(load(&[0.0, 5.0], 3));
        merged.counts.into_data().assert_eq(&[1.0, 8.0f32].into(), true);
        assert_eq!(merged.tokens, 5);
    }

    #[test]
    #[should_panic(expected = "as many experts")]
    fn loads_of_different_layers_do_not_merge() {
        load(&[1.0], 1).merge(load(&[1.0, 2.0], 1));
    }
}
