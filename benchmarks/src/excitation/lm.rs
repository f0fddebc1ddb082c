//! A language model of `moe-train`.

use burn::optim::{GradientsParams, Optimizer};
use excitation_optim::{ExcitationConfig, Exciter};
use moe_models::lm::{Lm, LmLoss, MoeLayerOutput};
use moe_train::backend::{Device, Training};
use moe_train::config::TrainConfig;
use moe_train::data::Batch;
use moe_train::optim::{ExpertLoads, LmOptimizer, ModelExperts, clip_global_norm};

use super::sides::{Factors, Side};
use super::{LR, excitations, seeded};
use crate::data::bytes;

/// Without excitation, with it, and with it in low-memory mode.
pub(super) fn sides<'a>(config: &TrainConfig, device: &'a Device) -> [LmSide<'a>; 3] {
    excitations().map(|excitation| LmSide::new(config, excitation, device))
}

pub(super) struct LmSide<'a> {
    /// Empty only while a step is taken.
    model: Option<Lm<Training>>,
    optimizer: LmOptimizer<Lm<Training>, Training>,
    exciter: Option<Exciter<ModelExperts>>,
    /// Those of the step, and what the routers decided.
    gradients: Option<(GradientsParams, Vec<MoeLayerOutput<Training>>)>,
    batch: Batch,
    clip_norm: f64,
    device: &'a Device,
}

impl<'a> LmSide<'a> {
    fn new(config: &TrainConfig, excitation: Option<ExcitationConfig>, device: &'a Device) -> Self {
        seeded(device);
        Self {
            model: Some(config.model.init(device)),
            optimizer: LmOptimizer::adamw(&config.optim),
            exciter: excitation.map(|excitation| Exciter::new(excitation, ModelExperts)),
            gradients: None,
            batch: bytes(config),
            clip_norm: config.optim.clip_norm,
            device,
        }
    }

    fn model(&self) -> &Lm<Training> {
        self.model.as_ref().expect("a model between steps")
    }
}

impl Side for LmSide<'_> {
    fn tokens(&self) -> usize {
        self.batch.inputs.len()
    }

    fn expert_bytes(&self) -> u64 {
        let moes = self.model().blocks.iter().filter_map(|block| block.feed_forward.moe.as_ref());
        let numbers =
            moes.map(|moe| moe.experts.w_in.shape().num_elements() + moe.experts.w_out.shape().num_elements());
        4 * numbers.sum::<usize>() as u64
    }

    fn gradients(&mut self) {
        let (inputs, targets) = self.batch.to_tensors::<Training>(self.device);
        let LmLoss { total, layers, .. } = self.model().loss(inputs, targets);
        let grads = GradientsParams::from_grads(total.backward(), self.model());
        let (grads, _) = clip_global_norm(self.model(), grads, self.clip_norm);
        self.gradients = Some((grads, layers));
    }

    fn optimize(&mut self) -> Factors {
        let model = self.model.take().expect("a model between steps");
        let (mut grads, layers) = self.gradients.take().expect("gradients were made");
        let (model, factors) = match &mut self.exciter {
            None => (self.optimizer.step(LR, model, grads), Vec::new()),
            Some(exciter) => {
                let mut loads = ExpertLoads::default();
                loads.add(&layers);
                loads.register(&model, &mut grads);
                exciter.step_inside(&mut self.optimizer, LR, model, grads)
            }
        };
        self.model = Some(model);
        factors
    }
}
