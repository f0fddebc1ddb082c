//! The factors of a step for whoever scales changes by them.

use std::collections::HashMap;

use burn::module::{AutodiffModule, ParamId};
use burn::optim::{LearningRate, Optimizer};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Tensor};

use crate::Grads;
use crate::layers::{Member, Part};

/// An optimizer that scales its own change while it makes it. That spares the copy of the parameters and the second pass over them with which
/// [`Excitation`](crate::Excitation) scales the change of any other optimizer; see [`Exciter::step_inside`](crate::Exciter::step_inside).
pub trait ScalingOptimizer<M: AutodiffModule<B>, B: AutodiffBackend>: Optimizer<M, B> {
    /// [`Optimizer::step`] or [`Optimizer::step_multi`] of which the parameters of experts keep their factor's part:
    /// `old + phi * (new - old)` \[S\]. A factor of 1 must leave `new` as it is, bit for bit; what the optimizer remembers is that of the whole
    /// step.
    fn step_scaled(&mut self, lr: LearningRate, module: M, grads: Grads, factors: &ExpertFactors<B::InnerBackend>)
    -> M;
}

/// The factors of a step, by parameter.
#[derive(Clone, Debug)]
pub struct ExpertFactors<I: Backend> {
    pub(crate) members: HashMap<ParamId, Member>,
    /// `[E]` of each layer.
    pub(crate) layers: Vec<Tensor<I, 1>>,
    pub(crate) spares_decay: bool,
}

/// Those of one parameter.
#[derive(Clone, Debug)]
pub struct ParamFactors<I: Backend> {
    /// `[E]`, a `phi` for each slice along `axis`, or `[1]`, for all of the parameter.
    pub factors: Tensor<I, 1>,
    /// The axis of the experts.
    pub axis: usize,
}

impl<I: Backend> ExpertFactors<I> {
    /// The factors of a parameter, on its device and in its dtype; `None` if it is no expert's.
    pub fn of(&self, id: ParamId, device: &I::Device, dtype: DType) -> Option<ParamFactors<I>> {
        let &Member { layer, part } = self.members.get(&id)?;
        let factors = self.layers[layer].clone().to_device(device).cast(dtype);
        Some(match part {
            Part::Axis(axis) => ParamFactors { factors, axis },
            Part::Whole(expert) => ParamFactors { factors: factors.narrow(0, expert, 1), axis: 0 },
        })
    }

    /// Whether decoupled weight decay is to be made in full, see
    /// [`ExcitationConfig::unscaled_decay`](crate::ExcitationConfig::unscaled_decay).
    pub fn spares_decay(&self) -> bool {
        self.spares_decay
    }
}
