//! Root-mean-square and layer normalisation.
//!
//! Computed in f32 whatever the activations' dtype, then cast back: one op each, see [`moe_kernels::rms_norm`].

use burn::module::{Initializer, Module, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use moe_kernels::{MoeBackend, layer_norm, rms_norm};

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
        let (width, epsilon) = (config.d_model, config.norm_eps);
        match config.norm {
            NormKind::Rms => Self::rms(width, epsilon, device),
            NormKind::Layer => Self::layer(width, epsilon, device),
        }
    }

    /// Layer normalisation over `width` channels.
    pub(crate) fn layer(width: usize, epsilon: f64, device: &B::Device) -> Self {
        Self { beta: Some(Initializer::Zeros.init([width], device)), ..Self::rms(width, epsilon, device) }
    }

    /// Root-mean-square normalisation over `width` channels.
    pub(crate) fn rms(width: usize, epsilon: f64, device: &B::Device) -> Self {
        Self { gamma: Initializer::Ones.init([width], device), beta: None, epsilon }
    }
}

impl<B: MoeBackend> Norm<B> {
    /// # Shapes
    ///
    /// - x: `[.., D]`, any float dtype
    /// - output: `[.., D]`, same dtype
    ///
    /// # Panics
    ///
    /// Panics when the last dimension is not `D`.
    pub fn forward<const N: usize>(&self, x: Tensor<B, N>) -> Tensor<B, N> {
        let shape = x.dims();
        let rows = x.reshape([shape[..N - 1].iter().product(), shape[N - 1]]);
        let gamma = self.gamma.val();
        let y = match &self.beta {
            None => rms_norm(rows, gamma, self.epsilon),
            Some(beta) => layer_norm(rows, gamma, beta.val(), self.epsilon),
        };
        y.reshape(shape)
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::nn::{LayerNormConfig, RmsNormConfig};
    use burn::tensor::{DType, Distribution, Tolerance};

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

    #[test]
    #[should_panic(expected = "rms_norm: x [T, D] and its gain or shift [D] disagree on D")]
    fn another_width_panics() {
        Norm::<Flex>::rms(6, 1e-5, &Default::default()).forward(input());
    }
}
