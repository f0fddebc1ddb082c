//! Shared experts: a dense network beside the routed ones, which every token passes through.

use burn::config::Config;
use burn::module::{Initializer, Module, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use moe_kernels::{MoeBackend, linear};

use super::{Activation, activate, default_initializer};

/// Configuration to create [`SharedExperts`] using the [init function](SharedExpertsConfig::init).
#[derive(Config, Debug)]
pub struct SharedExpertsConfig {
    /// Width of a token, `D`.
    pub d_model: usize,
    /// Width of all shared experts together: `n` of them of width `F` are one network of width `n F`.
    pub d_hidden: usize,
    /// Between the two products. Default: SwiGLU
    #[config(default = "Activation::SwiGlu")]
    pub activation: Activation,
    /// Whether a token weighs what it gets from them. Default: false, they count in full
    #[config(default = false)]
    pub gate: bool,
    /// How the matrices start. Default: uniform in `+-1 / sqrt(fan in)`, as burn's `Linear`
    #[config(default = "default_initializer()")]
    pub initializer: Initializer,
}

impl SharedExpertsConfig {
    /// Creates the experts on `device`.
    ///
    /// # Panics
    ///
    /// Panics when a size is zero.
    pub fn init<B: Backend>(&self, device: &B::Device) -> SharedExperts<B> {
        let (d, f) = (self.d_model, self.d_hidden);
        assert!(d > 0 && f > 0, "SharedExpertsConfig: no size may be zero, got D = {d}, F = {f}");
        let matrix = |rows, columns| self.initializer.init_with([rows, columns], Some(rows), Some(columns), device);
        SharedExperts {
            w_in: matrix(d, self.activation.columns(f)),
            w_out: matrix(f, d),
            gate: self.gate.then(|| matrix(d, 1)),
            activation: self.activation,
        }
    }
}

/// Experts that serve every token and that no router chooses (DeepSeekMoE,
/// [Dai et al., 2024](https://arxiv.org/abs/2401.06066)): `sigmoid(x gate) * (activation(x W_in) W_out)`. The gate is
/// Qwen2-MoE's ([Yang et al., 2024](https://arxiv.org/abs/2407.10671)); DeepSeek's models have none. Created by
/// [`SharedExpertsConfig`].
#[derive(Module, Debug)]
pub struct SharedExperts<B: Backend> {
    /// `[D, 2F]` for SwiGLU, gate columns first; otherwise `[D, F]`.
    pub w_in: Param<Tensor<B, 2>>,
    /// `[F, D]`.
    pub w_out: Param<Tensor<B, 2>>,
    /// `[D, 1]`.
    pub gate: Option<Param<Tensor<B, 2>>>,
    #[module(skip)]
    activation: Activation,
}

impl<B: MoeBackend> SharedExperts<B> {
    /// # Shapes
    ///
    /// - tokens: `[T, D]`
    /// - output: `[T, D]`, dtype of the tokens
    ///
    /// # Panics
    ///
    /// Panics when the tokens are not of width `D`.
    pub fn forward(&self, tokens: Tensor<B, 2>) -> Tensor<B, 2> {
        if tokens.dims()[0] == 0 {
            return tokens;
        }
        let dtype = tokens.dtype();
        let project = |x, weight: &Param<Tensor<B, 2>>| linear(x, weight.val().cast(dtype));
        let output = project(activate(self.activation, project(tokens.clone(), &self.w_in)), &self.w_out);
        match &self.gate {
            None => output,
            Some(gate) => output * sigmoid(project(tokens, gate)),
        }
    }
}

/// By the hyperbolic tangent: burn's portable sigmoid rounds f64 to f32.
fn sigmoid<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    ((x * 0.5).tanh() + 1.0) * 0.5
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;

    use super::*;

    #[test]
    fn a_gate_is_there_when_asked_for() {
        let gate = |on| SharedExpertsConfig::new(4, 6).with_gate(on).init::<Flex>(&Default::default()).gate;
        assert!(gate(false).is_none());
        assert_eq!(gate(true).expect("it is on").dims(), [4, 1]);
    }

    #[test]
    #[should_panic(expected = "no size may be zero")]
    fn a_zero_width_panics() {
        SharedExpertsConfig::new(4, 0).init::<Flex>(&Default::default());
    }

    #[test]
    #[should_panic(expected = "disagree on I")]
    fn tokens_of_another_width_panic() {
        let shared = SharedExpertsConfig::new(4, 6).init::<Flex>(&Default::default());
        shared.forward(Tensor::ones([2, 3], &Default::default()));
    }
}
