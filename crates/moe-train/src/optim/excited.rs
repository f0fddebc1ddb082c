//! Excitation ([Shaier, 2026](https://arxiv.org/abs/2602.21798)) of the experts of a model, where it is configured.
//!
//! The method is the crate `excitation-optim`; here is where its counts come from and which parameters it scales.

use burn::module::{AutodiffModule, ParamId};
use burn::optim::{GradientsParams, LearningRate, MultiGradientsParams, Optimizer};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use excitation_optim::{
    Exciter, ExpertLayer, ExpertLayers, FindExperts, Grads, LayerFactors, ScaleChange, register_counts,
};
use moe_kernels::{AutodiffMoeBackend, MoeBackend, scale_change};
use moe_layers::{Experts, Moe};
use moe_models::lm::{Lm, MoeLayerOutput};
use moe_models::vit::Vit;

use super::{Freeze, LmOptimizer};
use crate::config::OptimConfig;
use crate::learner::LearnerLm;
use crate::model::HasExperts;

/// Finds the experts of a model: their stacked weights and biases. Everything else has factor 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModelExperts;

impl<B: Backend> FindExperts<Lm<B>> for ModelExperts {
    fn find(&self, lm: &Lm<B>, found: &mut ExpertLayers) {
        find_in(lm, found);
    }
}

impl<B: Backend> FindExperts<Vit<B>> for ModelExperts {
    fn find(&self, vit: &Vit<B>, found: &mut ExpertLayers) {
        find_in(vit, found);
    }
}

fn find_in<B: Backend>(model: &impl HasExperts<B>, found: &mut ExpertLayers) {
    for (layer, moe) in model.moe_layers() {
        experts_of(found.layer(layer_name(layer), counts_id(moe)), &moe.experts);
    }
}

impl<B: Backend> FindExperts<LearnerLm<B>> for ModelExperts {
    fn find(&self, model: &LearnerLm<B>, found: &mut ExpertLayers) {
        for ((layer, moe), counts) in model.lm.moe_layers().into_iter().zip(&model.counts) {
            experts_of(found.layer(layer_name(layer), counts), &moe.experts);
        }
    }
}

fn layer_name(layer: usize) -> String {
    format!("blocks.{layer}.feed_forward.moe")
}

/// Where the counts of a layer are registered: an id made of its experts', as no parameter of the model is without a
/// gradient. Burn's accumulator drops what belongs to no parameter, so the counts are registered after it.
fn counts_id<B: Backend>(moe: &Moe<B>) -> ParamId {
    ParamId::from(!moe.experts.w_in.id.val())
}

fn experts_of<B: Backend>(layer: &mut ExpertLayer, experts: &Experts<B>) {
    layer.stacked(&experts.w_in).stacked(&experts.w_out);
    for bias in [&experts.b_in, &experts.b_out].into_iter().flatten() {
        layer.stacked(bias);
    }
}

/// Counts of the experts of every MoE layer, summed over the micro-batches of a step, on the device.
pub struct ExpertLoads<B: Backend> {
    /// Counts `[E]` and tokens of every layer.
    layers: Vec<(Tensor<B, 1>, usize)>,
}

impl<B: Backend> Default for ExpertLoads<B> {
    fn default() -> Self {
        Self { layers: Vec::new() }
    }
}

impl<I: MoeBackend> ExpertLoads<I> {
    /// Adds the routing of one micro-batch.
    pub fn add<B: AutodiffMoeBackend<InnerBackend = I>>(&mut self, layers: &[MoeLayerOutput<B>]) {
        let new = layers.iter().map(|output| (output.routing.demand().inner().float(), output.routing.num_tokens()));
        if self.layers.is_empty() {
            self.layers = new.collect();
            return;
        }
        for ((counts, tokens), (new, more)) in self.layers.iter_mut().zip(new) {
            *counts = counts.clone() + new;
            *tokens += more;
        }
    }

    /// Registers them with the gradients of the step, for [`ModelExperts`].
    pub fn register<B: Backend>(self, model: &impl HasExperts<B>, grads: &mut GradientsParams) {
        for ((_, moe), (counts, tokens)) in model.moe_layers().into_iter().zip(self.layers) {
            register_counts(grads, counts_id(moe), counts, tokens);
        }
    }
}

/// Changes scaled by [`scale_change`], on a CPU in one pass; the same bits as [`BurnOps`](excitation_optim::BurnOps).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OnePass;

impl<I: MoeBackend> ScaleChange<I> for OnePass {
    fn scale_change<const D: usize>(
        &self,
        old: Tensor<I, D>,
        new: Tensor<I, D>,
        factors: Tensor<I, 1>,
        axis: usize,
    ) -> Tensor<I, D> {
        scale_change(old, new, factors, axis)
    }
}

/// An optimizer that is excited if its configuration says so. Its record is that of `inner` either way.
#[derive(Clone, Debug)]
pub struct OptionallyExcited<O> {
    inner: O,
    exciter: Option<Exciter<ModelExperts>>,
    freeze: Freeze,
}

impl<M: AutodiffModule<B>, B: AutodiffMoeBackend> OptionallyExcited<LmOptimizer<M, B>> {
    /// AdamW, excitation and frozen parameters as configured; [`seeded`](Self::seeded) sets the seed of random controls, 0 until then.
    ///
    /// # Panics
    ///
    /// Panics when there is excitation and `gamma` makes no sense.
    pub fn adamw(config: &OptimConfig) -> Self {
        let exciter = config.excitation(0).map(|config| Exciter::new(config, ModelExperts));
        Self { inner: LmOptimizer::adamw(config), exciter, freeze: Freeze::new(&config.freeze) }
    }
}

impl<O> OptionallyExcited<O> {
    /// With this seed for random controls.
    pub fn seeded(mut self, seed: u64) -> Self {
        let seeded =
            |exciter: Exciter<ModelExperts>| Exciter::new(exciter.config().clone().with_seed(seed), ModelExperts);
        self.exciter = self.exciter.map(seeded);
        self
    }

    /// Goes on after `step` steps.
    pub fn starting_at(mut self, step: usize) -> Self {
        self.exciter = self.exciter.map(|exciter| exciter.starting_at(step as u64));
        self
    }

    /// What it does not train.
    pub fn frozen(&self) -> &Freeze {
        &self.freeze
    }

    /// Whether counts must be registered with the gradients.
    pub fn is_excited(&self) -> bool {
        self.exciter.is_some()
    }

    /// [`Optimizer::step`] that also returns the factors of every layer, none without excitation.
    ///
    /// # Panics
    ///
    /// As [`Exciter::step`] where there is excitation: when counts are missing.
    pub fn step_with_factors<M, B>(
        &mut self,
        lr: LearningRate,
        module: M,
        grads: impl Into<Grads>,
    ) -> (M, Vec<LayerFactors<B::InnerBackend>>)
    where
        M: AutodiffModule<B>,
        B: AutodiffMoeBackend,
        O: Optimizer<M, B>,
        ModelExperts: FindExperts<M>,
    {
        let mut grads = grads.into();
        match &mut grads {
            Grads::Single(grads) => self.freeze.drop_gradients(&module, grads),
            Grads::Multi(all) => all.grads.iter_mut().for_each(|(grads, _)| self.freeze.drop_gradients(&module, grads)),
        }
        match (&mut self.exciter, grads) {
            (Some(exciter), grads) => exciter.step_scaling_by(&OnePass, &mut self.inner, lr, module, grads),
            (None, Grads::Single(grads)) => (self.inner.step(lr, module, grads), Vec::new()),
            (None, Grads::Multi(grads)) => (self.inner.step_multi(lr, module, grads), Vec::new()),
        }
    }
}

impl<M, B, O> Optimizer<M, B> for OptionallyExcited<O>
where
    M: AutodiffModule<B>,
    B: AutodiffMoeBackend,
    O: Optimizer<M, B>,
    ModelExperts: FindExperts<M>,
{
    type Record = O::Record;

    fn step(&mut self, lr: LearningRate, module: M, grads: GradientsParams) -> M {
        self.step_with_factors(lr, module, grads).0
    }

    fn step_multi(&mut self, lr: LearningRate, module: M, grads: MultiGradientsParams) -> M {
        self.step_with_factors(lr, module, grads).0
    }

    fn to_record(&self) -> Self::Record {
        self.inner.to_record()
    }

    fn load_record(self, record: Self::Record) -> Self {
        Self { inner: self.inner.load_record(record), ..self }
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::tensor::Distribution;
    use excitation_optim::BurnOps;

    use super::*;

    #[test]
    fn one_pass_gives_the_bits_of_the_operations_of_burn() {
        let device = Default::default();
        let random = || Tensor::<Flex, 3>::random([5, 33, 17], Distribution::Normal(0.0, 1.0), &device);
        let factors = |count| Tensor::<Flex, 1>::random([count], Distribution::Uniform(0.0, 4.0), &device);
        let (old, new) = (random(), random());
        for (count, axis) in [(5, 0), (33, 1), (17, 2), (1, 0)] {
            let factors = factors(count);
            let found = OnePass.scale_change(old.clone(), new.clone(), factors.clone(), axis);
            let expected = BurnOps.scale_change(old.clone(), new.clone(), factors, axis);
            assert_eq!(found.into_data(), expected.into_data(), "axis {axis}");
        }
    }
}
