//! The step around the inner optimizer's step.

use std::collections::HashMap;

use burn::module::{AutodiffModule, ParamId};
use burn::optim::{LearningRate, Optimizer};
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};

use crate::grads::Grads;
use crate::layers::Member;
use crate::modulation::{Draw, Utilization};
use crate::slices::{Snapshot, check_members};
use crate::{ByModule, ExcitationConfig, ExpertFactors, ExpertLayers, FindExperts, ScalingOptimizer};

/// Excitation without an optimizer of its own: [`Excitation`](crate::Excitation) holds one and the optimizer it drives.
/// On its own it is for a loop that keeps its optimizer as it is, and that wants to see the factors.
///
/// It remembers the number of steps it took, for the warm-up and for [`RandomBoost`](crate::Control::RandomBoost), and
/// nothing per parameter.
#[derive(Clone, Debug)]
pub struct Exciter<F = ByModule> {
    config: ExcitationConfig,
    finder: F,
    step: u64,
}

/// The factors that a step used for one layer.
#[derive(Clone, Debug)]
pub struct LayerFactors<B: Backend> {
    /// The layer's name, from [`ExpertLayers::layer`].
    pub name: String,
    /// `phi`, `[E]`, f32, not yet read from the device.
    pub factors: Tensor<B, 1>,
}

impl<F> Exciter<F> {
    /// # Panics
    ///
    /// Panics when the settings make no sense, see [`ExcitationConfig::fault`].
    pub fn new(config: ExcitationConfig, finder: F) -> Self {
        if let Some(fault) = config.fault() {
            panic!("ExcitationConfig: {fault}");
        }
        Self { config, finder, step: 0 }
    }

    /// Continues after `step` steps. The record of the optimizer does not hold their number, because it is the inner
    /// optimizer's; warm-up and random controls need it.
    pub fn starting_at(mut self, step: u64) -> Self {
        self.step = step;
        self
    }

    /// The settings.
    pub fn config(&self) -> &ExcitationConfig {
        &self.config
    }

    /// Steps `inner` and scales what it changed about each expert by the expert's factor; returns the factors too.
    ///
    /// # Panics
    ///
    /// Panics when no expert layer is found or a layer names no parameter, a parameter is named twice or is not part of
    /// the module, a layer has no counts in `grads` or they do not fit its expert axis, and as
    /// [`ExcitationConfig::factors`]. Panics when counts belong to no layer, if they are under the id of a parameter of
    /// the module that is a vector of another length, as [`ExpertCounts`](crate::ExpertCounts) is.
    pub fn step<M, B, O>(
        &mut self,
        inner: &mut O,
        lr: LearningRate,
        module: M,
        grads: impl Into<Grads>,
    ) -> (M, Vec<LayerFactors<B::InnerBackend>>)
    where
        M: AutodiffModule<B>,
        B: AutodiffBackend,
        O: Optimizer<M, B>,
        F: FindExperts<M>,
    {
        let (grads, layers, factors) = self.prepared(&module, grads.into());
        let named = factors.named(&layers);
        let module = if self.config.is_neutral() {
            grads.step(inner, lr, module)
        } else {
            self.excite(inner, lr, module, grads, &factors)
        };
        (module, named)
    }

    /// [`step`](Self::step) of an optimizer that scales its own change. There is no transient copy of the experts, so
    /// `low_memory` has no meaning here.
    ///
    /// # Panics
    ///
    /// As there.
    pub fn step_inside<M, B, O>(
        &mut self,
        inner: &mut O,
        lr: LearningRate,
        module: M,
        grads: impl Into<Grads>,
    ) -> (M, Vec<LayerFactors<B::InnerBackend>>)
    where
        M: AutodiffModule<B>,
        B: AutodiffBackend,
        O: ScalingOptimizer<M, B>,
        F: FindExperts<M>,
    {
        let (grads, layers, factors) = self.prepared(&module, grads.into());
        let module = if self.config.is_neutral() {
            grads.step(inner, lr, module)
        } else {
            inner.step_scaled(lr, module, grads, &factors)
        };
        (module, factors.named(&layers))
    }

    /// The gradients without the counts, and the factors that follow from these.
    fn prepared<M, B>(&mut self, module: &M, mut grads: Grads) -> (Grads, ExpertLayers, ExpertFactors<B::InnerBackend>)
    where
        M: AutodiffModule<B>,
        B: AutodiffBackend,
        F: FindExperts<M>,
    {
        let layers = self.layers(module);
        let members = layers.members();
        check_members(module, &members);
        let utilization = take_utilization::<B::InnerBackend>(&layers, |id| grads.remove(id));
        grads.check_shapes(module);
        let factors = self.next_factors(members, utilization);
        (grads, layers, factors)
    }

    pub(crate) fn layers<M>(&self, module: &M) -> ExpertLayers
    where
        F: FindExperts<M>,
    {
        let mut found = ExpertLayers::default();
        self.finder.find(module, &mut found);
        found
    }

    /// The factors of every layer in this step, which is counted.
    pub(crate) fn next_factors<I: Backend>(
        &mut self,
        members: HashMap<ParamId, Member>,
        utilization: Vec<Utilization<I>>,
    ) -> ExpertFactors<I> {
        let step = self.step;
        self.step += 1;
        let layers = utilization.into_iter().enumerate();
        let layers =
            layers.map(|(layer, utilization)| self.config.factors(utilization, Draw { step, layer })).collect();
        ExpertFactors { members, layers, spares_decay: self.config.unscaled_decay.is_some() }
    }

    /// What the inner optimizer multiplies parameters by as decay, where the factor is to leave that out.
    pub(crate) fn decay(&self, lr: LearningRate) -> Option<f64> {
        self.config.unscaled_decay.map(|weight_decay| 1.0 - lr * weight_decay)
    }

    fn excite<M, B, O>(
        &self,
        inner: &mut O,
        lr: LearningRate,
        module: M,
        mut grads: Grads,
        factors: &ExpertFactors<B::InnerBackend>,
    ) -> M
    where
        M: AutodiffModule<B>,
        B: AutodiffBackend,
        O: Optimizer<M, B>,
    {
        if !self.config.low_memory {
            let before = Snapshot::take(&module, &factors.members, self.decay(lr));
            return before.scale_change(grads.step(inner, lr, module), factors);
        }
        let each = grads.take_each(&module, &factors.members);
        let module = grads.step(inner, lr, module);
        each.into_iter().fold(module, |module, (id, grads)| {
            let member = HashMap::from([(id, factors.members[&id])]);
            let before = Snapshot::take(&module, &member, self.decay(lr));
            before.scale_change(grads.step(inner, lr, module), factors)
        })
    }
}

/// Takes the counts of every layer out of the gradients.
///
/// # Panics
///
/// Panics when a layer has none or they do not fit its experts.
pub(crate) fn take_utilization<I: Backend>(
    layers: &ExpertLayers,
    mut remove: impl FnMut(ParamId) -> Option<Tensor<I, 1>>,
) -> Vec<Utilization<I>> {
    let take = |layer: &crate::ExpertLayer| {
        let registered = remove(layer.counts()).unwrap_or_else(|| {
            panic!("expert layer `{}` has no counts: register them with the gradients in every step", layer.name())
        });
        Utilization::from_registered(registered, layer.num_experts(), layer.name())
    };
    layers.iter().map(take).collect()
}

impl<I: Backend> ExpertFactors<I> {
    fn named(&self, layers: &ExpertLayers) -> Vec<LayerFactors<I>> {
        let pairs = layers.iter().zip(&self.layers);
        pairs.map(|(layer, factors)| LayerFactors { name: layer.name().into(), factors: factors.clone() }).collect()
    }
}
