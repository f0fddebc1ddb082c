//! The numbers of one AdamW step.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

/// What one step of AdamW ([Loshchilov and Hutter, 2019](https://arxiv.org/abs/1711.05101)) is told.
///
/// The numbers have the types that burn's `AdamW` keeps them in, so that both round alike.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWStep {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment, in `0..1`.
    pub beta_1: f32,
    /// Decay of the second moment, in `0..1`.
    pub beta_2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Decoupled decay: a parameter loses `lr * weight_decay` of itself.
    pub weight_decay: f32,
    /// This step counted from 1.
    pub time: usize,
    /// The gradient is multiplied by this first; 1 unless it is to be clipped.
    pub grad_factor: f64,
}

impl AdamWStep {
    /// What is left of a parameter after its decay, `1 - lr * weight_decay`.
    pub(crate) fn decay(&self) -> f64 {
        1.0 - self.lr * f64::from(self.weight_decay)
    }

    /// `1 - beta^time` of both moments, which start at zero.
    pub(crate) fn corrections(&self) -> [f32; 2] {
        [self.beta_1, self.beta_2].map(|beta| 1.0 - beta.powi(self.time as i32))
    }
}

/// How much of its change each slice of a parameter keeps.
#[derive(Clone, Debug)]
pub struct ChangeScale<B: Backend> {
    /// `[E]`, one factor for each slice along `axis`, or `[1]`, for all of the parameter; in its dtype.
    pub factors: Tensor<B, 1>,
    /// The axis of the slices.
    pub axis: usize,
    /// Whether decoupled decay is made in full, whatever the factor.
    pub spares_decay: bool,
}

/// A [`ChangeScale`] for the numbers of a parameter in their order.
#[derive(Clone, Debug)]
pub struct RunScale<F> {
    /// The factors `[E]`, which apply to runs of numbers over and over.
    pub factors: F,
    /// Numbers in a run; those of the parameter are a multiple of `E * run`.
    pub run: usize,
    /// Whether decoupled decay is made in full, whatever the factor.
    pub spares_decay: bool,
}
