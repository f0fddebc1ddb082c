//! One network that every token passes through: a block without experts, or the shared experts beside routed ones.

use burn::config::Config;
use burn::module::{Initializer, Module, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use moe_kernels::{MoeBackend, linear};

use super::{Activation, activate, default_initializer};

/// Configuration to create a [`DenseFeedForward`] using the [init function](DenseFeedForwardConfig::init).
#[derive(Config, Debug)]
pub struct DenseFeedForwardConfig {
    /// Width of a token, `D`.
    pub d_model: usize,
    /// Width inside, `F`.
    pub d_hidden: usize,
    /// Between the two products. Default: SwiGLU
    #[config(default = "Activation::SwiGlu")]
    pub activation: Activation,
    /// How the matrices start. Default: uniform in `+-1 / sqrt(fan in)`, as burn's `Linear`
    #[config(default = "default_initializer()")]
    pub initializer: Initializer,
}

impl DenseFeedForwardConfig {
    /// Creates the network on `device`.
    ///
    /// # Panics
    ///
    /// Panics when a size is zero.
    pub fn init<B: Backend>(&self, device: &B::Device) -> DenseFeedForward<B> {
        let (d, f) = (self.d_model, self.d_hidden);
        assert!(d > 0 && f > 0, "DenseFeedForwardConfig: no size may be zero, got D = {d}, F = {f}");
        let matrix = |rows, columns| self.initializer.init_with([rows, columns], Some(rows), Some(columns), device);
        DenseFeedForward {
            w_in: matrix(d, self.activation.columns(f)),
            w_out: matrix(f, d),
            activation: self.activation,
        }
    }
}

/// `activation(x W_in) W_out`: two matrices around an activation, laid out like one expert. Created by
/// [`DenseFeedForwardConfig`].
#[derive(Module, Debug)]
pub struct DenseFeedForward<B: Backend> {
    /// `[D, 2F]` for SwiGLU, gate columns first; otherwise `[D, F]`.
    pub w_in: Param<Tensor<B, 2>>,
    /// `[F, D]`.
    pub w_out: Param<Tensor<B, 2>>,
    #[module(skip)]
    activation: Activation,
}

impl<B: Backend> DenseFeedForward<B> {
    /// The network of weights that there are, of two `Linear`s of burn's without biases for instance. Gate and up projection of a SwiGLU
    /// become one matrix by `Tensor::cat(vec![gate, up], 1)`.
    ///
    /// # Shapes
    ///
    /// - w_in: `[D, 2F]` for SwiGLU, gate columns first; otherwise `[D, F]`
    /// - w_out: `[F, D]`
    ///
    /// # Panics
    ///
    /// Panics when they are not of such shapes.
    pub fn from_weights(w_in: Tensor<B, 2>, w_out: Tensor<B, 2>, activation: Activation) -> Self {
        let ([rows, columns], [f, d]) = (w_in.dims(), w_out.dims());
        assert!(
            [rows, columns] == [d, activation.columns(f)],
            "DenseFeedForward::from_weights: w_in is [{rows}, {columns}], which must be [{d}, {}] beside w_out [{f}, {d}]",
            activation.columns(f),
        );
        Self { w_in: Param::from_tensor(w_in), w_out: Param::from_tensor(w_out), activation }
    }

    /// Its sizes and activation.
    pub fn config(&self) -> DenseFeedForwardConfig {
        let [f, d] = self.w_out.dims();
        DenseFeedForwardConfig::new(d, f).with_activation(self.activation)
    }

    /// Between the two products.
    pub fn activation(&self) -> Activation {
        self.activation
    }
}

impl<B: MoeBackend> DenseFeedForward<B> {
    /// # Shapes
    ///
    /// - tokens: `[T, D]`
    /// - output: `[T, D]`, dtype of the tokens
    ///
    /// # Panics
    ///
    /// Panics when the tokens are not of width `D`.
    pub fn forward(&self, tokens: Tensor<B, 2>) -> Tensor<B, 2> {
        project(activate(self.activation, project(tokens, &self.w_in)), &self.w_out)
    }
}

/// `x` times a weight, in the dtype of `x`.
///
/// # Shapes
///
/// - x: `[T, I]`
/// - weight: `[I, O]`
/// - output: `[T, O]`
///
/// # Panics
///
/// Panics when the two disagree on `I`.
pub fn project<B: MoeBackend>(x: Tensor<B, 2>, weight: &Param<Tensor<B, 2>>) -> Tensor<B, 2> {
    let weight = weight.val().cast(x.dtype());
    linear(x, weight)
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;

    use super::*;

    #[test]
    #[should_panic(expected = "no size may be zero")]
    fn a_zero_width_panics() {
        DenseFeedForwardConfig::new(4, 0).init::<Flex>(&Default::default());
    }

    #[test]
    fn weights_of_linears_make_the_same_network() {
        use burn::nn::LinearConfig;
        use burn::tensor::activation::silu;
        let device = Default::default();
        let linear = |i, o| LinearConfig::new(i, o).with_bias(false).init::<Flex>(&device);
        let (gate, up, down) = (linear(4, 6), linear(4, 6), linear(6, 4));
        let w_in = Tensor::cat(vec![gate.weight.val(), up.weight.val()], 1);
        let dense = DenseFeedForward::from_weights(w_in, down.weight.val(), Activation::SwiGlu);
        let x = Tensor::random([5, 4], burn::tensor::Distribution::Default, &device);
        let expected = down.forward(silu(gate.forward(x.clone())) * up.forward(x.clone()));
        dense
            .forward(x)
            .into_data()
            .assert_approx_eq::<f32>(&expected.into_data(), burn::tensor::Tolerance::absolute(1e-6));
        let config = dense.config();
        assert_eq!((config.d_model, config.d_hidden, config.activation), (4, 6, Activation::SwiGlu));
    }

    #[test]
    #[should_panic(expected = "w_in is [4, 6], which must be [4, 12] beside w_out [6, 4]")]
    fn weights_of_other_shapes_panic() {
        let device = Default::default();
        let (w_in, w_out) = (Tensor::<Flex, 2>::ones([4, 6], &device), Tensor::ones([6, 4], &device));
        DenseFeedForward::from_weights(w_in, w_out, Activation::SwiGlu);
    }

    #[test]
    #[should_panic(expected = "disagree on I")]
    fn tokens_of_another_width_panic() {
        let dense = DenseFeedForwardConfig::new(4, 6).init::<Flex>(&Default::default());
        dense.forward(Tensor::ones([2, 3], &Default::default()));
    }

    #[test]
    #[should_panic(expected = "no size may be zero, got D = 0, F = 6")]
    fn tokens_without_width_panic() {
        DenseFeedForwardConfig::new(0, 6).init::<Flex>(&Default::default());
    }
}
