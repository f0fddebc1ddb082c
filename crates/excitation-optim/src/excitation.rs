//! The wrapper that is an optimizer itself.

use burn::module::AutodiffModule;
use burn::optim::{GradientsParams, LearningRate, MultiGradientsParams, Optimizer};
use burn::tensor::backend::AutodiffBackend;

use crate::{ByModule, Exciter, FindExperts};

/// An optimizer whose step is scaled for every expert by a factor that follows from the expert's utilization. Created by
/// [`ExcitationConfig::init`](crate::ExcitationConfig::init) around any optimizer of burn.
///
/// It goes wherever an optimizer goes. Its record is the inner optimizer's: what one saved, the other loads. The number
/// of steps is not part of it, see [`Exciter::starting_at`].
#[derive(Clone, Debug)]
pub struct Excitation<O, F = ByModule> {
    /// The optimizer whose change is scaled.
    pub inner: O,
    /// The scaling.
    pub exciter: Exciter<F>,
}

impl<O, F> Excitation<O, F> {
    /// An exciter with the optimizer it drives.
    pub fn new(inner: O, exciter: Exciter<F>) -> Self {
        Self { inner, exciter }
    }

    /// Continues after `step` steps, see [`Exciter::starting_at`].
    pub fn starting_at(mut self, step: u64) -> Self {
        self.exciter = self.exciter.starting_at(step);
        self
    }
}

impl<M, B, O, F> Optimizer<M, B> for Excitation<O, F>
where
    M: AutodiffModule<B>,
    B: AutodiffBackend,
    O: Optimizer<M, B>,
    F: FindExperts<M> + Send + Clone,
{
    type Record = O::Record;

    /// # Panics
    ///
    /// As [`Exciter::step`].
    fn step(&mut self, lr: LearningRate, module: M, grads: GradientsParams) -> M {
        self.exciter.step(&mut self.inner, lr, module, grads).0
    }

    /// # Panics
    ///
    /// As [`Exciter::step`].
    fn step_multi(&mut self, lr: LearningRate, module: M, grads: MultiGradientsParams) -> M {
        self.exciter.step(&mut self.inner, lr, module, grads).0
    }

    fn to_record(&self) -> Self::Record {
        self.inner.to_record()
    }

    fn load_record(self, record: Self::Record) -> Self {
        Self { inner: self.inner.load_record(record), ..self }
    }
}
