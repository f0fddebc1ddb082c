//! Excitation ([Shaier, 2026](https://arxiv.org/abs/2602.21798)) of the experts of a model, where it is configured.
//!
//! The method is the crate `excitation-optim`; here is where its counts come from and which parameters it scales.

use burn::module::{AutodiffModule, ParamId};
use burn::optim::{GradientsParams, LearningRate, MultiGradientsParams, Optimizer};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use excitation_optim::{
    Exciter, ExpertLayer, ExpertLayers, FindExperts, Grads, LayerFactors, ScalingOptimizer, register_counts,
};
use moe_kernels::{AutodiffMoeBackend, MoeBackend};
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

    /// Puts what `exchange` returns in the place of the counts of every layer: their mean over ranks of as many tokens.
    pub(crate) fn exchange(&mut self, exchange: &mut dyn FnMut(Tensor<I, 1>) -> Tensor<I, 1>) {
        self.layers.iter_mut().for_each(|(counts, _)| *counts = exchange(counts.clone()));
    }

    /// Registers them with the gradients of the step, for [`ModelExperts`].
    pub fn register<B: Backend>(self, model: &impl HasExperts<B>, grads: &mut GradientsParams) {
        for ((_, moe), (counts, tokens)) in model.moe_layers().into_iter().zip(self.layers) {
            register_counts(grads, counts_id(moe), counts, tokens);
        }
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
        O: ScalingOptimizer<M, B>,
        ModelExperts: FindExperts<M>,
    {
        let mut grads = grads.into();
        match &mut grads {
            Grads::Single(grads) => self.freeze.drop_gradients(&module, grads),
            Grads::Multi(all) => all.grads.iter_mut().for_each(|(grads, _)| self.freeze.drop_gradients(&module, grads)),
        }
        match (&mut self.exciter, grads) {
            (Some(exciter), grads) => exciter.step_inside(&mut self.inner, lr, module, grads),
            (None, Grads::Single(grads)) => (self.inner.step(lr, module, grads), Vec::new()),
            (None, Grads::Multi(grads)) => (self.inner.step_multi(lr, module, grads), Vec::new()),
        }
    }
}

impl<M, B, O> Optimizer<M, B> for OptionallyExcited<O>
where
    M: AutodiffModule<B>,
    B: AutodiffMoeBackend,
    O: ScalingOptimizer<M, B>,
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
    use burn::module::Module;
    use burn::optim::AdamWConfig;
    use burn::tensor::backend::DeviceOps;
    use excitation_optim::{ExcitationConfig, Variant};

    use super::*;
    use crate::optim::groups::testing::{AD, Probe, gradients};
    use crate::optim::{AdamW, DecayGroups, FusedAdamW};

    const LR: f64 = 0.1;
    const ADAMW: FusedAdamW = FusedAdamW { beta_1: 0.9, beta_2: 0.99, epsilon: 1e-8, weight_decay: 0.5 };

    fn optimizer() -> LmOptimizer<Probe<AD>, AD> {
        DecayGroups::new(ADAMW.into(), FusedAdamW { weight_decay: 0.0, ..ADAMW }.into())
    }

    /// Its three experts, with their biases or without.
    fn find(with_bias: bool) -> impl Fn(&Probe<AD>, &mut ExpertLayers) + Clone {
        move |probe: &Probe<AD>, found: &mut ExpertLayers| {
            let layer = found.layer("probe", counts_of(probe));
            layer.stacked(&probe.w_in);
            if with_bias {
                layer.stacked(&probe.b_in);
            }
        }
    }

    fn counts_of(probe: &Probe<AD>) -> ParamId {
        ParamId::from(!probe.w_in.id.val())
    }

    /// Gradients of a step with counts of the three experts.
    fn with_counts(probe: &Probe<AD>, step: usize) -> GradientsParams {
        let mut grads = gradients(probe, 0.3 + step as f64);
        let counts = Tensor::<_, 1>::from_floats([2.0, 0.0, 5.0 + step as f32], &Default::default());
        register_counts::<<AD as burn::tensor::backend::AutodiffBackend>::InnerBackend>(
            &mut grads,
            counts_of(probe),
            counts,
            7 + step,
        );
        grads
    }

    fn numbers(probe: &Probe<AD>) -> Vec<Vec<f32>> {
        let values = [
            probe.w_in.val().flatten::<1>(0, 2),
            probe.b_in.val().flatten(0, 1),
            probe.mixer.weight.val().flatten(0, 1),
        ];
        values.map(|tensor| tensor.into_data().to_vec().expect("parameters are f32")).to_vec()
    }

    /// Steps of an optimizer that scales its own change, and of the same one whose change is scaled from outside.
    fn inside_and_outside(config: ExcitationConfig, with_bias: bool, several_devices: bool) {
        let [mut inside, mut outside] = [(); 2].map(|()| Exciter::new(config.clone(), find(with_bias)));
        let (mut scaling, mut scaled) = (optimizer(), optimizer());
        let mut probe = Probe::<AD>::new();
        let mut expected = probe.clone();
        let before = numbers(&probe);
        for step in 0..4 {
            let grads = |probe: &Probe<AD>| -> Grads {
                let grads = with_counts(probe, step);
                match several_devices {
                    true => MultiGradientsParams { grads: vec![(grads, DeviceOps::id(&probe.devices()[0]))] }.into(),
                    false => grads.into(),
                }
            };
            let (found, wanted) = (grads(&probe), grads(&expected));
            probe = inside.step_inside(&mut scaling, LR, probe, found).0;
            expected = outside.step(&mut scaled, LR, expected, wanted).0;
            assert_eq!(numbers(&probe), numbers(&expected), "step {step}");
        }
        assert_ne!(numbers(&probe), before);
    }

    #[test]
    fn scaling_inside_the_optimizer_gives_the_bits_of_scaling_its_change() {
        for variant in [Variant::ZeroSum, Variant::PositiveSum] {
            let config = ExcitationConfig::new().with_variant(variant).with_gamma(1.5);
            inside_and_outside(config.clone(), true, false);
            inside_and_outside(config.clone(), true, true);
            inside_and_outside(config.with_unscaled_decay(Some(f64::from(ADAMW.weight_decay))), false, false);
        }
    }

    #[test]
    fn without_strength_the_steps_are_those_of_burn() {
        let burn = || {
            let config = AdamWConfig::new().with_beta_1(0.9).with_beta_2(0.99).with_epsilon(1e-8);
            config.with_weight_decay(0.5).init::<AD, Probe<AD>>()
        };
        let mut exciter = Exciter::new(ExcitationConfig::new().with_gamma(0.0), find(true));
        let (mut plain, mut ours) = (burn(), AdamW::<Probe<AD>, AD>::from(ADAMW));
        let mut probe = Probe::<AD>::new();
        let mut expected = probe.clone();
        for step in 0..3 {
            let grads = with_counts(&probe, step);
            probe = exciter.step_inside(&mut ours, LR, probe, grads).0;
            let grads = gradients(&expected, 0.3 + step as f64);
            expected = plain.step(LR, expected, grads);
            assert_eq!(numbers(&probe), numbers(&expected));
        }
    }
}
