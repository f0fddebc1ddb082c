//! One optimizer step: micro-batches, their gradients, the check that all is finite, clipping, the update.

use std::rc::Rc;

use burn::module::AutodiffModule;
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use excitation_optim::{FindExperts, LayerFactors};
use moe_kernels::{AutodiffMoeBackend, with_threads_awake};
use moe_layers::ranks::among_ranks;
use moe_models::lm::{Lm, LmLoss};
use moe_models::vit::Vit;

use super::default_updates::DefaultUpdates;
use super::exchange::exchanged_gradients;
use super::router_loads::RouterLoads;
use crate::config::TrainConfig;
use crate::evaluate::RoutingTotals;
use crate::images::VitTrainConfig;
use crate::model::{Learns, Trainable};
use crate::optim::{ExpertLoads, Freeze, LmOptimizer, ModelExperts, OptionallyExcited, clip_to, global_norm};
use crate::parallel::{Group, Packed, RankError};
use crate::run::LayerRecord;

/// The optimizer of a model, a language model unless `M` says otherwise.
pub type Optim<B, M = Lm<B>> = OptionallyExcited<LmOptimizer<M, B>>;

/// A model with the optimizer that trains it. A step takes both by value: the update can then free each old weight and
/// gradient as soon as its successor exists.
///
/// A language model unless `M` says otherwise.
pub struct Trainee<B: AutodiffMoeBackend, M: AutodiffModule<B> = Lm<B>> {
    /// The model.
    pub model: M,
    /// Its optimizer, with what that remembers of earlier steps.
    pub optim: Optim<B, M>,
}

/// How to take one step.
pub struct StepSettings {
    /// Learning rate of this step.
    pub lr: f64,
    /// Largest global norm of the gradients, 0 = any.
    pub clip_norm: f64,
    /// Whether to read the routing statistics.
    pub with_stats: bool,
}

/// What a step measured before it changed the model. Losses are means over the micro-batches.
pub struct StepOutcome {
    /// Nats per token, or per image.
    pub cross_entropy: f64,
    /// Balance loss, not weighted, summed over the layers.
    pub balance: f64,
    /// Router z-loss, not weighted, summed over the layers.
    pub z: f64,
    /// Global norm of the gradients before clipping.
    pub grad_norm: f64,
    /// Statistics of the MoE layers over the micro-batches; empty unless asked for.
    pub layers: Vec<LayerRecord>,
}

/// The first quantity of a step found to be infinite or NaN, by name.
#[derive(Debug)]
pub struct NotFinite(pub &'static str);

/// Why a step among ranks was not made.
#[derive(Debug)]
pub enum StepError {
    /// Something is infinite or NaN, on every rank.
    NotFinite(NotFinite),
    /// Ranks do not reach each other.
    Ranks(RankError),
}

impl From<NotFinite> for StepError {
    fn from(found: NotFinite) -> Self {
        Self::NotFinite(found)
    }
}

impl From<RankError> for StepError {
    fn from(error: RankError) -> Self {
        Self::Ranks(error)
    }
}

impl<B: AutodiffMoeBackend> Trainee<B> {
    /// A model at the start of its training, which depends on the config alone: its weights on `config.train.seed`.
    ///
    /// # Panics
    ///
    /// Panics when `config.model` contradicts itself, and as [`OptionallyExcited::adamw`](crate::optim::OptionallyExcited::adamw);
    /// [`TrainConfig::validate`] finds that first.
    pub fn new(config: &TrainConfig, device: &B::Device) -> Self {
        B::seed(device, config.train.seed);
        let model = config.model.init::<B>(device).with_dtype(config.train.dtype.into());
        Self { model, optim: Optim::<B>::adamw(&config.optim).seeded(config.train.seed) }
    }
}

impl<B: AutodiffMoeBackend> Trainee<B, Vit<B>> {
    /// A model at the start of its training, which depends on the config alone: its weights on `config.train.seed`.
    ///
    /// # Panics
    ///
    /// Panics when `config.model` contradicts itself, and as [`OptionallyExcited::adamw`](crate::optim::OptionallyExcited::adamw);
    /// [`VitTrainConfig::validate`] finds that first.
    pub fn new_vit(config: &VitTrainConfig, device: &B::Device) -> Self {
        B::seed(device, config.train.seed);
        let model = config.model.init::<B>(device);
        Self { model, optim: Optim::<B, _>::adamw(&config.optim).seeded(config.train.seed) }
    }
}

impl<B: AutodiffMoeBackend, M: AutodiffModule<B>> Trainee<B, M> {
    /// A copy on `device`, equal in all that a step depends on. What the optimizer remembers follows with its next step.
    pub(super) fn copy_to(&self, device: &B::Device) -> Self {
        Self { model: self.model.clone().fork(device), optim: self.optim.clone() }
    }
}

impl<B, M> Trainee<B, M>
where
    B: AutodiffMoeBackend,
    M: Trainable<B>,
    ModelExperts: FindExperts<M>,
{
    /// Takes one step on `batches`, the micro-batches, all of one size.
    ///
    /// Every micro-batch weighs `1 / n`, so the cross-entropy part of the gradient is that of one batch made of all of
    /// them. The balance loss is not linear in the tokens: it is that of each micro-batch, averaged.
    ///
    /// Default vectors move once, by what all micro-batches found out; each micro-batch itself uses them as it alone moves
    /// them.
    ///
    /// The device is read once, for the losses and the norm together, and again for statistics when asked for.
    ///
    /// # Errors
    ///
    /// A loss or norm that is not finite; the update is then not made.
    ///
    /// # Panics
    ///
    /// Panics when there is no batch.
    pub fn step(
        self,
        batches: impl ExactSizeIterator<Item = <M as Learns<B>>::Batch>,
        settings: &StepSettings,
        device: &B::Device,
    ) -> Result<(Self, StepOutcome), NotFinite> {
        let stepped = with_threads_awake::<B, _>(|| self.take_step(None, batches, settings, device));
        stepped.map_err(|error| match error {
            StepError::NotFinite(found) => found,
            StepError::Ranks(_) => unreachable!("there is one rank"),
        })
    }

    /// [`step`](Self::step) on the rows that are this rank's. `batches` are whole on every rank; the step, and what it measured, is that of all
    /// rows, and every rank makes it alike.
    ///
    /// # Errors
    ///
    /// As [`step`](Self::step), and when a rank does not answer; the update is then not made.
    ///
    /// # Panics
    ///
    /// As [`step`](Self::step), and when the rows of a batch cannot be split evenly.
    pub fn step_among(
        self,
        group: &Rc<Group<B>>,
        batches: impl ExactSizeIterator<Item = <M as Learns<B>>::Batch>,
        settings: &StepSettings,
        device: &B::Device,
    ) -> Result<(Self, StepOutcome), StepError> {
        self.take_step(Some(group), batches, settings, device)
    }

    fn take_step(
        mut self,
        group: Option<&Rc<Group<B>>>,
        batches: impl ExactSizeIterator<Item = <M as Learns<B>>::Batch>,
        settings: &StepSettings,
        device: &B::Device,
    ) -> Result<(Self, StepOutcome), StepError> {
        let micro_batches = batches.len();
        assert!(micro_batches > 0, "Trainee: a step needs at least one micro-batch");
        self.model.set_measuring(settings.with_stats);
        let mut gathered = Gathered::new(settings.with_stats);
        gathered.loads = self.optim.is_excited().then(ExpertLoads::default);
        gathered.router_loads = self.model.absorbs_loads().then(RouterLoads::default);
        gathered.freeze = self.optim.frozen().clone();
        for batch in batches {
            match group {
                None => gathered.add(&self.model, &batch, micro_batches, device),
                Some(group) => {
                    let own = M::part_of(&batch, group.rank(), group.num_ranks());
                    among_ranks::<B, _>(group.clone(), || gathered.add(&self.model, &own, micro_batches, device));
                }
            }
        }
        let mut grads = gathered.grads.grads();
        if let Some(group) = group {
            grads = gathered.share(&self.model, grads, group)?;
        }
        let (loads, router_loads) = (gathered.loads.take(), gathered.router_loads.take());
        let (updates, mut outcome) = gathered.finish(&self.model, &grads);
        outcome.check_finite()?;
        updates.absorb_into(&mut self.model);
        if let Some(loads) = router_loads {
            loads.absorb_into(&mut self.model);
        }
        let mut grads = clip_to(&self.model, grads, outcome.grad_norm, settings.clip_norm);
        if let Some(loads) = loads {
            loads.register(&self.model, &mut grads);
        }
        let factors;
        (self.model, factors) = self.optim.step_with_factors(settings.lr, self.model, grads);
        outcome.note_factors(factors);
        Ok((self, outcome))
    }
}

impl StepOutcome {
    /// Reads the factors into the records of the layers, of which there are none or as many.
    fn note_factors<I: Backend>(&mut self, factors: Vec<LayerFactors<I>>) {
        for (layer, factors) in self.layers.iter_mut().zip(factors) {
            layer.factors = factors.factors.into_data().iter::<f64>().collect();
        }
    }

    fn check_finite(&self) -> Result<(), NotFinite> {
        let named = [
            ("loss", self.cross_entropy),
            ("balance loss", self.balance),
            ("router z-loss", self.z),
            ("gradient norm", self.grad_norm),
        ];
        match named.iter().find(|(_, value)| !value.is_finite()) {
            Some((name, _)) => Err(NotFinite(name)),
            None => Ok(()),
        }
    }
}

/// Gradients and measurements, gathered over the micro-batches of a step.
struct Gathered<B: AutodiffMoeBackend, M> {
    grads: GradientsAccumulator<M>,
    /// `[3]` per micro-batch, on the device: its share of cross-entropy, balance loss and z-loss.
    losses: Vec<Tensor<B::InnerBackend, 1>>,
    updates: DefaultUpdates<B>,
    totals: Option<RoutingTotals>,
    /// For an optimizer that looks at them.
    loads: Option<ExpertLoads<B::InnerBackend>>,
    /// For routers that balance themselves.
    router_loads: Option<RouterLoads<B>>,
    /// What gets no gradient.
    freeze: Freeze,
}

impl<B: AutodiffMoeBackend, M: Trainable<B>> Gathered<B, M> {
    fn new(with_stats: bool) -> Self {
        Self {
            grads: GradientsAccumulator::new(),
            losses: Vec::new(),
            updates: DefaultUpdates::default(),
            totals: with_stats.then(RoutingTotals::default),
            loads: None,
            router_loads: None,
            freeze: Freeze::default(),
        }
    }

    /// Forward and backward of one of `micro_batches` micro-batches.
    fn add(&mut self, model: &M, batch: &<M as Learns<B>>::Batch, micro_batches: usize, device: &B::Device) {
        let share = 1.0 / micro_batches as f64;
        let LmLoss { total, cross_entropy, balance, z, layers } = model.loss_of(batch, device);
        let losses = Tensor::cat(vec![cross_entropy.inner(), balance.inner(), z.inner()], 0);
        self.losses.push(losses.mul_scalar(share));
        if let Some(totals) = &mut self.totals {
            totals.add(&layers);
        }
        if let Some(loads) = &mut self.loads {
            loads.add(&layers);
        }
        if let Some(loads) = &mut self.router_loads {
            loads.add(&layers);
        }
        self.updates.add(layers);
        let grads = total.mul_scalar(share).backward();
        let mut grads = GradientsParams::from_grads(grads, model);
        self.freeze.drop_gradients(model, &mut grads);
        self.grads.accumulate(model, grads);
    }

    /// Makes gradients and all that was gathered those of all ranks; the updates of default vectors are so already.
    fn share(&mut self, model: &M, grads: GradientsParams, group: &Group<B>) -> Result<GradientsParams, RankError> {
        let losses = std::mem::take(&mut self.losses).into_iter().reduce(|sum, next| sum + next);
        self.losses = losses.into_iter().collect();
        let mut packed = Packed::new();
        let num_ranks = group.num_ranks();
        let grads = self.exchanged(model, grads, num_ranks, &mut |tensor| packed.give(tensor, group));
        if let Some(totals) = &self.totals {
            totals.vectors::<B::InnerBackend>(&model.devices()[0]).into_iter().for_each(|vector| packed.push(vector));
        }
        let mut packed = packed.exchange(group)?;
        let grads = self.exchanged(model, grads, num_ranks, &mut |tensor| packed.take(tensor));
        if let Some(totals) = &mut self.totals {
            totals.set_vectors(|| packed.pop(), num_ranks);
        }
        Ok(grads)
    }

    /// Puts what `exchange` returns in the place of every vector that ranks share.
    fn exchanged(
        &mut self,
        model: &M,
        grads: GradientsParams,
        num_ranks: usize,
        exchange: &mut dyn FnMut(Tensor<B::InnerBackend, 1>) -> Tensor<B::InnerBackend, 1>,
    ) -> GradientsParams {
        let grads = exchanged_gradients(model, grads, exchange);
        self.losses.iter_mut().for_each(|losses| *losses = exchange(losses.clone()));
        if let Some(loads) = &mut self.loads {
            loads.exchange(exchange);
        }
        if let Some(loads) = &mut self.router_loads {
            loads.exchange(num_ranks, exchange);
        }
        self.updates.exchange_energy(exchange);
        grads
    }

    /// The merged updates of default vectors, and the measurements in one read (and another for the statistics of default vectors).
    fn finish(self, model: &M, grads: &GradientsParams) -> (DefaultUpdates<B>, StepOutcome) {
        let [cross_entropy, balance, z, grad_norm] = read_scalars(model, grads, self.losses);
        let mut outcome = StepOutcome {
            cross_entropy,
            balance,
            z,
            grad_norm,
            layers: self.totals.map(RoutingTotals::into_records).unwrap_or_default(),
        };
        self.updates.write_stats(model, &mut outcome.layers);
        (self.updates, outcome)
    }
}

/// Reads the summed losses `[3]` and the norm of the gradients from the device together.
fn read_scalars<B: AutodiffMoeBackend, M: AutodiffModule<B>>(
    model: &M,
    grads: &GradientsParams,
    losses: Vec<Tensor<B::InnerBackend, 1>>,
) -> [f64; 4] {
    let losses = losses.into_iter().reduce(|sum, next| sum + next);
    let scalars: Vec<_> = losses.into_iter().chain(global_norm(model, grads)).collect();
    let data = Tensor::cat(scalars, 0).into_data();
    let values: Vec<f64> = data.iter::<f64>().collect();
    values.try_into().expect("a step has at least one micro-batch and one parameter")
}

#[cfg(test)]
mod tests;
