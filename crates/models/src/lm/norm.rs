//! Root-mean-square and layer normalisation.
//!
//! Computed in f32 whatever the activations' dtype, then cast back. burn's own layers are not used because they want
//! the input in the gain's dtype, and because under autodiff their division by the root costs two more passes over
//! the tokens than the product with its reciprocal does.

use burn::module::{Initializer, Module, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};

use super::{LmConfig, NormKind};

/// Normalises the last dimension to mean square 1 (or mean 0 and variance 1), then scales and shifts.
#[derive(Module, Debug)]
pub struct Norm<B: Backend> {
    /// Gain of every channel, `[D]`, 1 at the start.
    pub gamma: Param<Tensor<B, 1>>,
    /// Shift of every channel, `[D]`, 0 at the start. Present in layer normalisation only, which it makes this one.
    pub beta: Option<Param<Tensor<B, 1>>>,
    epsilon: f64,
}

impl<B: Backend> Norm<B> {
    /// The kind and epsilon of `config`, over `d_model` channels.
    pub(crate) fn new(config: &LmConfig, device: &B::Device) -> Self {
        let norm = Self::rms(config.d_model, config.norm_eps, device);
        let beta = match config.norm {
            NormKind::Rms => None,
            NormKind::Layer => Some(Initializer::Zeros.init([config.d_model], device)),
        };
        Self { beta, ..norm }
    }

    /// Root-mean-square normalisation over `width` channels.
    pub(crate) fn rms(width: usize, epsilon: f64, device: &B::Device) -> Self {
        Self { gamma: Initializer::Ones.init([width], device), beta: None, epsilon }
    }

    /// # Shapes
    ///
    /// - x: `[.., D]`, any float dtype
    /// - output: `[.., D]`, same dtype
    pub fn forward<const N: usize>(&self, x: Tensor<B, N>) -> Tensor<B, N> {
        let dtype = x.dtype();
        let x = self.center(x.cast(DType::F32));
        let inverse_root = x.clone().square().mean_dim(N - 1).add_scalar(self.epsilon).sqrt().recip();
        let y = x * inverse_root * self.gamma.val().unsqueeze();
        self.shift(y).cast(dtype)
    }

    fn center<const N: usize>(&self, x: Tensor<B, N>) -> Tensor<B, N> {
        if self.beta.is_none() {
            return x;
        }
        let mean = x.clone().mean_dim(N - 1);
        x - mean
    }

    fn shift<const N: usize>(&self, y: Tensor<B, N>) -> Tensor<B, N> {
        match &self.beta {
            Some(beta) => y + beta.val().unsqueeze(),
            None => y,
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::nn::{LayerNormConfig, RmsNormConfig};
    use burn::tensor::{Distribution, Tolerance};

    use super::*;

    const REL: f32 = 1e-5;
    const ABS: f32 = 1e-6;

    fn input() -> Tensor<Flex, 3> {
        Tensor::random([2, 3, 8], Distribution::Normal(0.5, 2.0), &Default::default())
    }

    #[test]
    fn rms_matches_burn() {
        let device = Default::default();
        let ours = Norm::<Flex>::rms(8, 1e-5, &device);
        let theirs = RmsNormConfig::new(8).init::<Flex>(&device);
        let x = input();
        let expected = theirs.forward(x.clone()).into_data();
        ours.forward(x).into_data().assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(REL, ABS));
    }

    #[test]
    fn layer_matches_burn() {
        let device = Default::default();
        let config = LmConfig::new(2, 8, 1, 1, 1, 1).with_norm(NormKind::Layer);
        let ours = Norm::<Flex>::new(&config, &device);
        let theirs = LayerNormConfig::new(8).init::<Flex>(&device);
        let x = input();
        let expected = theirs.forward(x.clone()).into_data();
        ours.forward(x).into_data().assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(REL, ABS));
    }

    #[test]
    fn bf16_is_the_f32_result_rounded_once() {
        let norm = Norm::<Flex>::rms(8, 1e-5, &Default::default());
        let x = input().cast(DType::BF16);
        let expected = norm.forward(x.clone().cast(DType::F32)).cast(DType::BF16);
        let output = norm.forward(x);
        assert_eq!(output.dtype(), DType::BF16);
        assert_eq!(output.into_data(), expected.into_data());
    }
}
