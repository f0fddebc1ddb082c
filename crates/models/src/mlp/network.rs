//! The network, its settings and what a pass yields.

use burn::config::Config;
use burn::module::{Initializer, Module};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::relu;
use burn::tensor::backend::Backend;
use burn::tensor::{Bool, Tensor};
use moe_kernels::MoeBackend;

use super::keep_top;

/// How the weights of the network start.
#[derive(Config, Debug, Copy, PartialEq, Eq)]
pub enum HiddenInit {
    /// Weights and biases uniform in `+-1 / sqrt(fan in)`: the default of burn's `Linear` and of PyTorch's.
    Framework,
    /// Weights normal with variance `2 / fan in` ([He et al., 2015](https://arxiv.org/abs/1502.01852)).
    He,
}

/// Configuration to create a [`TopKMlp`] using the [init function](TopKMlpConfig::init). Which of the two
/// initialisations the paper used is not known, and it decides much: report both.
#[derive(Config, Debug)]
pub struct TopKMlpConfig {
    /// Width of a sample.
    pub d_input: usize,
    /// Number of classes.
    pub num_classes: usize,
    /// Hidden layers. Default: 4
    #[config(default = 4)]
    pub num_hidden: usize,
    /// Units of a hidden layer, its experts, `E`. Default: 128
    #[config(default = 128)]
    pub d_hidden: usize,
    /// Units of a layer that survive for a sample, `K`. Default: 13, which is 90 % sparsity of 128
    #[config(default = 13)]
    pub top_k: usize,
    /// Whether every hidden layer but the first adds its input to its output. Default: false
    #[config(default = false)]
    pub skips: bool,
    /// How the weights start. Default: Framework
    #[config(default = "HiddenInit::Framework")]
    pub initializer: HiddenInit,
}

impl TopKMlpConfig {
    /// Keeps the share `1 - sparsity` of the units, rounded, and at least one.
    pub fn with_sparsity(self, sparsity: f64) -> Self {
        let kept = (1.0 - sparsity) * self.d_hidden as f64;
        let top_k = (kept.round() as usize).max(1);
        self.with_top_k(top_k)
    }

    /// Creates the network on `device`.
    ///
    /// # Panics
    ///
    /// Panics unless `1 <= top_k <= d_hidden` and no size is zero.
    pub fn init<B: Backend>(&self, device: &B::Device) -> TopKMlp<B> {
        let Self { d_input, num_classes, num_hidden, d_hidden, top_k, .. } = *self;
        assert!(
            d_input > 0 && num_classes > 0 && num_hidden > 0,
            "TopKMlpConfig: no size may be zero, got d_input = {d_input}, num_classes = {num_classes}, \
             num_hidden = {num_hidden}"
        );
        assert!((1..=d_hidden).contains(&top_k), "TopKMlpConfig: top_k = {top_k} must be in 1..={d_hidden}, d_hidden");
        let inputs = |layer| if layer == 0 { d_input } else { d_hidden };
        TopKMlp {
            hidden: (0..num_hidden).map(|layer| self.linear(inputs(layer), d_hidden, device)).collect(),
            output: self.linear(d_hidden, num_classes, device),
            top_k,
            skips: self.skips,
        }
    }

    fn linear<B: Backend>(&self, inputs: usize, outputs: usize, device: &B::Device) -> Linear<B> {
        let linear = LinearConfig::new(inputs, outputs);
        match self.initializer {
            HiddenInit::Framework => linear.init(device),
            HiddenInit::He => {
                let weights = Initializer::KaimingNormal { gain: std::f64::consts::SQRT_2, fan_out_only: false };
                let mut linear = linear.with_initializer(weights).init(device);
                linear.bias = Some(Initializer::Zeros.init([outputs], device));
                linear
            }
        }
    }
}

/// A classifier whose hidden layers keep `K` units per sample. Created by [`TopKMlpConfig`].
#[derive(Module, Debug)]
pub struct TopKMlp<B: Backend> {
    /// The hidden layers; unit `i` of one is column `i` of its weight and element `i` of its bias.
    pub hidden: Vec<Linear<B>>,
    /// From the last hidden layer to the classes.
    pub output: Linear<B>,
    /// Units that survive for a sample, `K`.
    pub top_k: usize,
    skips: bool,
}

/// Result of [`TopKMlp::forward`]. `T` samples, `E` units of a hidden layer.
#[derive(Debug, Clone)]
pub struct TopKMlpOutput<B: Backend> {
    /// Unnormalised log-probabilities, `[T, num_classes]`.
    pub logits: Tensor<B, 2>,
    /// For every hidden layer, which units survived for which sample, `[T, E]`. A unit among the `K` largest that is zero
    /// after ReLU did not survive \[D\].
    pub survived: Vec<Tensor<B, 2, Bool>>,
}

impl<B: Backend> TopKMlpOutput<B> {
    /// For every hidden layer, for how many samples each unit survived, `[E]`: its utilization times `T`.
    pub fn counts(&self) -> Vec<Tensor<B, 1>> {
        let count = |survived: &Tensor<B, 2, Bool>| survived.clone().float().sum_dim(0).squeeze_dim(0);
        self.survived.iter().map(count).collect()
    }
}

impl<B: MoeBackend> TopKMlp<B> {
    /// ReLU, then the `K` largest activations of every sample, in each hidden layer.
    ///
    /// # Shapes
    ///
    /// - samples: `[T, d_input]`
    ///
    /// # Panics
    ///
    /// Panics when the samples have another width.
    pub fn forward(&self, samples: Tensor<B, 2>) -> TopKMlpOutput<B> {
        let ([_, found], [expected, _]) = (samples.dims(), self.hidden[0].weight.dims());
        assert_eq!(found, expected, "TopKMlp: samples must be [T, d_input]");
        let mut survived = Vec::with_capacity(self.hidden.len());
        let mut x = samples;
        for (layer, linear) in self.hidden.iter().enumerate() {
            let kept = keep_top(relu(linear.forward(x.clone())), self.top_k);
            survived.push(kept.clone().greater_elem(0.0));
            x = if self.skips && layer > 0 { x + kept } else { kept };
        }
        TopKMlpOutput { logits: self.output.forward(x), survived }
    }
}
