//! Updates that travel with the gradients.
//!
//! Who trains with burn's `Learner`, over several devices or with an all-reduce of gradients has no place of their own to
//! merge updates. They need none: registered as the "gradient" of the vectors they belong to, updates are summed by
//! everything that sums gradients (burn's accumulator, its step over several devices, its all-reduce; a reduction by the
//! mean serves as well), and [`Absorbing`] takes them out before the optimizer sees them.
//!
//! ```
//! # use burn::backend::{Autodiff, Flex};
//! # use burn::tensor::{Distribution, Tensor};
//! # use default_moe::{DefaultMoeConfig, DefaultMoe};
//! # use moe_layers::MoeConfig;
//! use burn::optim::{GradientsAccumulator, GradientsParams, Optimizer, SgdConfig};
//! use default_moe::optimizer::{Absorbing, register};
//!
//! # type B = Autodiff<Flex>;
//! # let device = Default::default();
//! # let layer = DefaultMoeConfig::new(MoeConfig::new(8, 16, 4, 1)).init::<B>(&device);
//! # let batches = [0, 1].map(|_| Tensor::<B, 2>::random([5, 8], Distribution::Default, &device));
//! let mut optimizer = Absorbing::new(SgdConfig::new().init());
//! let mut accumulator = GradientsAccumulator::new();
//! for batch in batches {
//!     let out = layer.forward(batch);
//!     let mut gradients = GradientsParams::from_grads(out.output.mean().backward(), &layer);
//!     register(&layer, out.update, &mut gradients);
//!     accumulator.accumulate(&layer, gradients);
//! }
//! let layer: DefaultMoe<B> = optimizer.step(0.1, layer, accumulator.grads());
//! ```

use burn::module::{AutodiffModule, Module};
use burn::optim::{GradientsParams, LearningRate, MultiGradientsParams, Optimizer};
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};

use crate::{DefaultMoe, DefaultUpdate, DefaultVectors, Evaluation};

/// A module with layers that have default vectors.
pub trait HasDefaultVectors<B: Backend> {
    /// The vectors of all its layers, in the order of their updates.
    fn default_vectors(&self) -> Vec<&DefaultVectors<B>>;

    /// The same, to change.
    fn default_vectors_mut(&mut self) -> Vec<&mut DefaultVectors<B>>;

    /// Moves the vectors of all layers, once per training step. `updates` are those of its passes, merged over micro-batches,
    /// in the order of the layers; none for a module without default vectors.
    ///
    /// # Panics
    ///
    /// Panics unless there is one update for each layer with default vectors.
    fn absorb_updates(&mut self, updates: &[DefaultUpdate<B>]) {
        let layers = self.default_vectors_mut();
        assert_eq!(layers.len(), updates.len(), "there must be one update for each layer with default vectors");
        layers.into_iter().zip(updates).for_each(|(vectors, update)| vectors.absorb(update));
    }

    /// Sets what the vectors of all layers do where there are no gradients.
    fn set_evaluation(&mut self, evaluation: Evaluation) {
        let layers = self.default_vectors_mut();
        layers.into_iter().for_each(|vectors| *vectors = vectors.clone().with_evaluation(evaluation));
    }

    /// Sets whether passes [measure](DefaultVectors::with_measuring) how much of a layer's output comes from its vectors.
    fn set_measuring(&mut self, measuring: bool) {
        let layers = self.default_vectors_mut();
        layers.into_iter().for_each(|vectors| *vectors = vectors.clone().with_measuring(measuring));
    }
}

impl<B: Backend> HasDefaultVectors<B> for DefaultMoe<B> {
    fn default_vectors(&self) -> Vec<&DefaultVectors<B>> {
        vec![&self.vectors]
    }

    fn default_vectors_mut(&mut self) -> Vec<&mut DefaultVectors<B>> {
        vec![&mut self.vectors]
    }
}

/// Puts the updates of one pass through `module`, in the order of its layers, into `gradients`.
///
/// # Panics
///
/// Panics unless there is one update for each layer.
pub fn register<B: AutodiffBackend>(
    module: &impl HasDefaultVectors<B>,
    updates: impl IntoIterator<Item = DefaultUpdate<B>>,
    gradients: &mut GradientsParams,
) {
    let (layers, updates) = (module.default_vectors(), updates.into_iter().collect::<Vec<_>>());
    assert_eq!(layers.len(), updates.len(), "register: there must be one update for each layer with default vectors");
    for (vectors, update) in layers.into_iter().zip(updates) {
        gradients.register::<B::InnerBackend, 2>(vectors.values.id, update.into_matrix().inner());
    }
}

/// An optimizer that absorbs [registered](register) updates, once, and then takes its own step as it would without them.
#[derive(Clone, Debug)]
pub struct Absorbing<O> {
    inner: O,
}

impl<O> Absorbing<O> {
    /// Around `inner`, whose record stays what it is.
    pub fn new(inner: O) -> Self {
        Self { inner }
    }
}

impl<M, B, O> Optimizer<M, B> for Absorbing<O>
where
    M: AutodiffModule<B> + HasDefaultVectors<B>,
    B: AutodiffBackend,
    O: Optimizer<M, B>,
{
    type Record = O::Record;

    fn step(&mut self, lr: LearningRate, mut module: M, mut grads: GradientsParams) -> M {
        absorb(&mut module, |vectors| grads.remove::<B::InnerBackend, 2>(vectors.values.id));
        self.inner.step(lr, module, grads)
    }

    fn step_multi(&mut self, lr: LearningRate, mut module: M, mut grads: MultiGradientsParams) -> M {
        absorb(&mut module, |vectors| grads.remove::<B::InnerBackend, 2>(vectors.values.id).map(|(sum, _)| sum));
        self.inner.step_multi(lr, module, grads)
    }

    fn to_record(&self) -> Self::Record {
        self.inner.to_record()
    }

    fn load_record(self, record: Self::Record) -> Self {
        Self { inner: self.inner.load_record(record) }
    }
}

fn absorb<B: AutodiffBackend>(
    module: &mut impl HasDefaultVectors<B>,
    mut take: impl FnMut(&DefaultVectors<B>) -> Option<Tensor<B::InnerBackend, 2>>,
) {
    for vectors in module.default_vectors_mut() {
        if let Some(matrix) = take(vectors) {
            let device = vectors.devices().remove(0);
            vectors.absorb(&DefaultUpdate::from_matrix(Tensor::from_inner(matrix)).to_device(&device));
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::{Autodiff, Flex};
    use burn::optim::{GradientsAccumulator, SgdConfig};
    use burn::tensor::backend::DeviceOps;
    use burn::tensor::{Distribution, TensorData};
    use moe_layers::MoeConfig;

    use super::*;
    use crate::DefaultMoeConfig;

    type B = Autodiff<Flex>;

    fn layer() -> DefaultMoe<B> {
        let layer = DefaultMoeConfig::new(MoeConfig::new(4, 6, 3, 1)).init::<B>(&Default::default());
        let _ = layer.clone().num_params();
        layer
    }

    fn batch(tokens: usize) -> Tensor<B, 2> {
        Tensor::random([tokens, 4], Distribution::Normal(0.0, 1.0), &Default::default())
    }

    /// Gradients with the update among them, and the update.
    fn pass(layer: &DefaultMoe<B>, batch: Tensor<B, 2>) -> (GradientsParams, DefaultUpdate<B>) {
        let out = layer.forward(batch);
        let update = out.update.expect("training");
        let mut grads = GradientsParams::from_grads(out.output.sum().backward(), layer);
        register(layer, [update.clone()], &mut grads);
        (grads, update)
    }

    fn values(layer: &DefaultMoe<B>) -> [TensorData; 3] {
        let moe = &layer.moe;
        [
            layer.vectors.values.to_data(),
            moe.router.weight().expect("a learned router").to_data(),
            moe.experts.w_out.to_data(),
        ]
    }

    /// What absorbing by hand and the bare optimizer make of it.
    fn by_hand(mut layer: DefaultMoe<B>, update: DefaultUpdate<B>, mut grads: GradientsParams) -> DefaultMoe<B> {
        grads.remove::<Flex, 2>(layer.vectors.values.id).expect("registered");
        layer.absorb(&update);
        SgdConfig::new().init().step(0.1, layer, grads)
    }

    #[test]
    fn a_step_is_that_of_the_bare_optimizer_and_one_absorption() {
        let layer = layer();
        let batch = batch(9);
        let (grads, update) = pass(&layer, batch.clone());
        let expected = by_hand(layer.clone(), update, pass(&layer, batch).0);
        let found = Absorbing::new(SgdConfig::new().init()).step(0.1, layer, grads);
        for (found, expected) in values(&found).iter().zip(&values(&expected)) {
            found.assert_eq(expected, true);
        }
    }

    #[test]
    fn accumulated_gradients_carry_the_merged_update() {
        let layer = layer();
        let ((first, a), (second, b)) = (pass(&layer, batch(5)), pass(&layer, batch(8)));
        let mut accumulator = GradientsAccumulator::new();
        accumulator.accumulate(&layer, first);
        accumulator.accumulate(&layer, second);
        let expected = layer.vectors.updated(&a.merge(b)).into_data();
        let stepped: DefaultMoe<B> = Absorbing::new(SgdConfig::new().init()).step(0.1, layer, accumulator.grads());
        stepped.vectors.values.to_data().assert_eq(&expected, true);
    }

    #[test]
    fn gradients_of_several_devices_carry_the_merged_update() {
        let layer = layer();
        let device = layer.devices()[0].id();
        let ((first, a), (second, b)) = (pass(&layer, batch(5)), pass(&layer, batch(8)));
        let grads = MultiGradientsParams { grads: vec![(first, device), (second, device)] };
        let expected = layer.vectors.updated(&a.merge(b)).into_data();
        let stepped: DefaultMoe<B> = Absorbing::new(SgdConfig::new().init()).step_multi(0.1, layer, grads);
        stepped.vectors.values.to_data().assert_eq(&expected, false);
    }

    #[test]
    fn without_an_update_nothing_is_absorbed() {
        let layer = layer();
        let before = layer.vectors.values.to_data();
        let stepped: DefaultMoe<B> = Absorbing::new(SgdConfig::new().init()).step(0.1, layer, GradientsParams::new());
        stepped.vectors.values.to_data().assert_eq(&before, true);
    }

    #[test]
    #[should_panic(expected = "one update for each layer")]
    fn a_missing_update_panics() {
        register(&layer(), None, &mut GradientsParams::new());
    }
}
