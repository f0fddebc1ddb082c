//! From utilization to factors: the formulas.
//!
//! Everything stays on the device: no value is read on the host.

use burn::tensor::backend::Backend;
use burn::tensor::{Bool, DType, Int, Tensor, TensorData};

use crate::permutation::permutation;
use crate::{Control, ExcitationConfig, Variant};

/// How much of a batch each expert of one layer got. `E` experts.
#[derive(Clone, Debug)]
pub struct Utilization<B: Backend> {
    /// `n_i`, tokens that chose expert `i`, `[E]`.
    pub counts: Tensor<B, 1>,
    /// `T`, tokens, `[1]`, where it is known.
    pub tokens: Option<Tensor<B, 1>>,
}

/// Which random draw is meant; only [`Control::RandomBoost`] looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    /// Step, counted from 0.
    pub step: u64,
    /// Position of the layer in the module.
    pub layer: usize,
}

impl<B: Backend> Utilization<B> {
    /// Takes what was registered as a gradient apart, in f32: counts `[E]`, or `[E + 1]` with the number of tokens last.
    ///
    /// # Panics
    ///
    /// Panics on any other length.
    pub(crate) fn from_registered(registered: Tensor<B, 1>, num_experts: usize, name: &str) -> Self {
        let registered = registered.cast(DType::F32);
        let [found] = registered.dims();
        assert!(
            found == num_experts || found == num_experts + 1,
            "the counts of expert layer `{name}` must be [E] or [E + 1] with the number of tokens last, \
             E = {num_experts} being the length of the expert axis; got [{found}]"
        );
        let tokens = (found > num_experts).then(|| registered.clone().narrow(0, num_experts, 1));
        Self { counts: registered.narrow(0, 0, num_experts), tokens }
    }

    /// `[1]`: whether the counts are finite, none negative and not all zero, and the tokens, where known, above zero.
    fn is_valid(&self) -> Tensor<B, 1, Bool> {
        let counts = is_positive(self.counts.clone().sum());
        let none_negative = self.counts.clone().lower_elem(0.0).any().bool_not();
        let valid = counts.bool_and(none_negative);
        match &self.tokens {
            Some(tokens) => valid.bool_and(is_positive(tokens.clone())),
            None => valid,
        }
    }

    /// `max_j n_j + min_j n_j - n_i`.
    fn inverted(self) -> Self {
        let ends = self.counts.clone().max() + self.counts.clone().min();
        Self { counts: ends - self.counts, ..self }
    }
}

/// Elementwise, false for NaN and infinity.
fn is_positive<B: Backend>(x: Tensor<B, 1>) -> Tensor<B, 1, Bool> {
    x.clone().greater_elem(0.0).bool_and(x.lower_elem(f32::INFINITY))
}

impl ExcitationConfig {
    /// The factors of one layer.
    ///
    /// All of them are 1 when the counts are all zero, when one of them is not finite or negative, and when a factor
    /// is not finite.
    ///
    /// # Shapes
    ///
    /// - utilization: counts `[E]`, tokens `[1]`
    /// - output: `[E]`, f32, 0 or more
    ///
    /// # Panics
    ///
    /// Panics when [`Variant::ExpDiff`] is asked for, with a `gamma` above 0, and the number of tokens is not known.
    pub fn factors<B: Backend>(&self, utilization: Utilization<B>, draw: Draw) -> Tensor<B, 1> {
        let valid = utilization.is_valid();
        let num_experts = utilization.counts.dims();
        let ones = utilization.counts.ones_like();
        if self.is_neutral() {
            return ones;
        }
        let phi = self.weakened(self.capped(self.controlled(utilization, draw)), draw.step);
        let valid = valid.bool_and(is_positive(phi.clone().sum()));
        ones.mask_where(valid.expand(num_experts), phi)
    }

    /// Whether every factor is 1 whatever the utilization.
    pub(crate) fn is_neutral(&self) -> bool {
        self.gamma == 0.0
    }

    fn controlled<B: Backend>(&self, utilization: Utilization<B>, draw: Draw) -> Tensor<B, 1> {
        match self.control {
            None => self.phi(utilization),
            Some(Control::Inverted) => self.phi(utilization.inverted()),
            Some(Control::GlobalExp) => {
                let phi = self.phi(utilization);
                phi.clone().mean().expand(phi.dims())
            }
            Some(Control::RandomBoost) => shuffled(self.phi(utilization), self.seed, draw),
        }
    }

    /// The variant's formula; not finite when the counts are all zero.
    fn phi<B: Backend>(&self, utilization: Utilization<B>) -> Tensor<B, 1> {
        match self.variant {
            Variant::ZeroSum => zero_sum(utilization.counts, self.gamma),
            Variant::PositiveSum => zero_sum(utilization.counts, self.gamma).clamp_min(1.0),
            Variant::ExpDiff => exp_diff(utilization, self.gamma),
        }
    }

    fn capped<B: Backend>(&self, phi: Tensor<B, 1>) -> Tensor<B, 1> {
        match self.cap {
            Some(cap) => phi.clamp_max(cap),
            None => phi,
        }
    }

    fn weakened<B: Backend>(&self, phi: Tensor<B, 1>, step: u64) -> Tensor<B, 1> {
        let strength = self.strength(step);
        if strength < 1.0 { (phi - 1.0) * strength + 1.0 } else { phi }
    }
}

/// `u_i^gamma / mean_j(u_j^gamma)`. Any scale of `u` gives the same; the largest is brought to 1, so that no power
/// overflows.
fn zero_sum<B: Backend>(counts: Tensor<B, 1>, gamma: f64) -> Tensor<B, 1> {
    let largest = counts.clone().max();
    let powers = (counts / largest).powf_scalar(gamma);
    powers.clone() / powers.mean()
}

/// `exp(gamma * (n_i - mean_j n_j) / T)`: differences of counts are exact, and equal counts give exactly 1.
fn exp_diff<B: Backend>(utilization: Utilization<B>, gamma: f64) -> Tensor<B, 1> {
    let Utilization { counts, tokens } = utilization;
    let tokens = tokens.expect("ExpDiff needs the number of tokens: register counts [E + 1] with it last");
    let difference = counts.clone() - counts.mean();
    (difference / tokens * gamma).exp()
}

fn shuffled<B: Backend>(phi: Tensor<B, 1>, seed: u64, draw: Draw) -> Tensor<B, 1> {
    let order = permutation(phi.dims()[0], [seed, draw.step, draw.layer as u64]);
    let order = TensorData::from(order.as_slice());
    let device = phi.device();
    phi.select(0, Tensor::<B, 1, Int>::from_data(order, &device))
}

#[cfg(test)]
#[path = "modulation_tests.rs"]
mod tests;
