//! How much each expert was wanted over a step: a sum, like everything that several batches or devices find out together.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use moe_kernels::MoeBackend;

use crate::Routing;

/// Counts of the experts' slots over the tokens of a step. Loads of micro-batches, devices and ranks add up.
///
/// What routers make of one ([`Router::absorb`](super::Router::absorb)) is the same for all its multiples, so an all-reduce may
/// as well average.
#[derive(Debug, Clone)]
#[must_use = "routers move only when a step absorbs its load"]
pub struct ExpertLoad<B: Backend> {
    /// Slots in which each expert was chosen, `[E]`, as floats: exact up to `2^24`.
    pub counts: Tensor<B, 1>,
    /// Tokens that were routed, `[1]`.
    pub tokens: Tensor<B, 1>,
}

impl<B: MoeBackend> ExpertLoad<B> {
    /// That of one decision.
    pub fn of(routing: &Routing<B>) -> Self {
        let counts = routing.demand().float();
        let tokens = Tensor::full([1], routing.num_tokens() as f64, (&counts.device(), counts.dtype()));
        Self { counts, tokens }
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

    /// Counts and, last, tokens: `[E + 1]`, one tensor to all-reduce.
    pub fn into_vector(self) -> Tensor<B, 1> {
        Tensor::cat(vec![self.counts, self.tokens], 0)
    }

    /// The inverse of [`into_vector`](Self::into_vector).
    ///
    /// # Panics
    ///
    /// Panics when the vector is empty.
    pub fn from_vector(vector: Tensor<B, 1>) -> Self {
        let [len] = vector.dims();
        assert!(len > 0, "ExpertLoad: a vector [E + 1] has at least one number");
        Self { counts: vector.clone().slice(0..len - 1), tokens: vector.slice(len - 1..len) }
    }

    /// Moves it to `device`, where another device's load is to be merged with it.
    pub fn to_device(self, device: &B::Device) -> Self {
        Self { counts: self.counts.to_device(device), tokens: self.tokens.to_device(device) }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use burn::backend::Flex;
    use burn::tensor::TensorData;

    use super::*;

    /// With these counts.
    pub(in crate::router) fn load(counts: &[f32], tokens: f32) -> ExpertLoad<Flex> {
        let device = Default::default();
        let counts = Tensor::from_data(TensorData::from(counts), &device);
        ExpertLoad { counts, tokens: Tensor::from_data([tokens], &device) }
    }

    #[test]
    fn merged_loads_are_sums() {
        let merged = load(&[1.0, 3.0], 2.0).merge(load(&[0.0, 5.0], 3.0));
        merged.into_vector().into_data().assert_eq(&[1.0, 8.0, 5.0f32].into(), true);
    }

    #[test]
    fn the_vector_holds_everything() {
        let back = ExpertLoad::from_vector(load(&[1.0, 3.0], 2.0).into_vector());
        back.counts.into_data().assert_eq(&[1.0, 3.0f32].into(), true);
        back.tokens.into_data().assert_eq(&[2.0f32].into(), true);
    }

    #[test]
    #[should_panic(expected = "at least one number")]
    fn an_empty_vector_panics() {
        let _ = ExpertLoad::<Flex>::from_vector(Tensor::from_data(TensorData::from([0f32; 0]), &Default::default()));
    }

    #[test]
    #[should_panic(expected = "as many experts")]
    fn loads_of_different_layers_do_not_merge() {
        let _ = load(&[1.0], 1.0).merge(load(&[1.0, 2.0], 1.0));
    }
}
