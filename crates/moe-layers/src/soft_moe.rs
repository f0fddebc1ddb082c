//! Soft MoE: experts work on averages of tokens, tokens get averages of what comes out.

use burn::config::Config;
use burn::module::{Initializer, Module, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn::tensor::{Int, TensorData};
use moe_kernels::{ExpertPlan, MoeBackend, divide_rows, linear, softmax_rows, sum_dim};

use crate::router::scores::routing_dtype;
use crate::{Activation, Experts, ExpertsConfig};

/// Keeps the length of a zero vector from being zero.
const TINY: f64 = 1e-12;

/// Configuration to create a [`SoftMoe`] using the [init function](SoftMoeConfig::init).
#[derive(Config, Debug)]
pub struct SoftMoeConfig {
    /// Width of a token, `D`.
    pub d_model: usize,
    /// Width inside an expert, `F`.
    pub d_hidden: usize,
    /// Number of experts, `E`.
    pub num_experts: usize,
    /// Slots of each expert, `P`. A layer costs what a dense one does on `E P` tokens a sequence. Default: 1
    #[config(default = 1)]
    pub slots_per_expert: usize,
    /// Inside the experts. Default: GELU (the paper's)
    #[config(default = "Activation::Gelu")]
    pub activation: Activation,
    /// Whether the experts have biases. Default: true (the paper's)
    #[config(default = true)]
    pub bias: bool,
    /// How slots and experts start. Default: uniform in `+-1 / sqrt(fan in)`, as burn's `Linear`
    #[config(default = "crate::experts::default_initializer()")]
    pub initializer: Initializer,
}

impl SoftMoeConfig {
    /// Creates the layer on `device`.
    ///
    /// # Panics
    ///
    /// Panics when a size is zero.
    pub fn init<B: Backend>(&self, device: &B::Device) -> SoftMoe<B> {
        assert!(self.slots_per_expert > 0, "SoftMoeConfig: slots_per_expert must be at least 1");
        let experts = ExpertsConfig::new(self.num_experts, self.d_model, self.d_hidden)
            .with_activation(self.activation)
            .with_bias(self.bias)
            .with_initializer(self.initializer.clone());
        let slots = self.num_experts * self.slots_per_expert;
        SoftMoe {
            slots: self.initializer.init_with([self.d_model, slots], Some(self.d_model), Some(slots), device),
            scale: Initializer::Ones.init([1], device),
            experts: experts.init(device),
            slots_per_expert: self.slots_per_expert,
        }
    }
}

/// A layer of experts that work on averages of tokens, which get averages of what comes out: Soft MoE
/// ([Puigcerver et al., 2023](https://arxiv.org/abs/2308.00951), section 2.1). Created by [`SoftMoeConfig`].
///
/// Each of `E` experts has `P` slots. With `L = l2(X) (scale l2(Phi))` of a sequence `X` `[S, D]` (eq. 1 and the normalisation of section
/// 2.3), the slots are `softmax of L over the tokens`-weighted averages of them; each expert works on its own slots; a token's output is the
/// `softmax of L over the slots`-weighted average of theirs. Nothing is chosen and nothing dropped, every expert does the same work, and
/// all is differentiable.
///
/// **Not for causal models**: a slot is an average over the whole sequence.
#[derive(Module, Debug)]
pub struct SoftMoe<B: Backend> {
    /// `Phi`, `[D, E P]`: what each slot looks for; those of an expert lie side by side.
    pub slots: Param<Tensor<B, 2>>,
    /// Of the normalised slots, `[1]`, 1 at the start.
    pub scale: Param<Tensor<B, 1>>,
    /// The feed-forward networks.
    pub experts: Experts<B>,
    slots_per_expert: usize,
}

impl<B: MoeBackend> SoftMoe<B> {
    /// # Shapes
    ///
    /// - input: `[B, S, D]`; sequences do not mix
    /// - output: `[B, S, D]`, dtype of the input; the weights are computed in f32
    ///
    /// # Panics
    ///
    /// Panics when the last dimension is not `D`, and when `B` or `S` is 0.
    pub fn forward(&self, input: Tensor<B, 3>) -> Tensor<B, 3> {
        let ([batch, len, d_model], dtype) = (input.dims(), input.dtype());
        let slots = self.slots.dims()[1];
        assert_eq!(d_model, self.slots.dims()[0], "SoftMoe: input [B, S, D] must have D = {}", self.slots.dims()[0]);
        assert!(batch > 0 && len > 0, "SoftMoe: input [B, S, D] must not be empty, got [{batch}, {len}, {d_model}]");
        let logits = self.logits(input.clone().reshape([batch * len, d_model])).reshape([batch, len, slots]);

        let over_tokens = softmax_rows(logits.clone().swap_dims(1, 2).reshape([batch * slots, len]));
        let over_slots = softmax_rows(logits.reshape([batch * len, slots]));
        let average = over_tokens.reshape([batch, slots, len]).cast(dtype).matmul(input);
        let output = self.run_experts(average);
        over_slots.reshape([batch, len, slots]).cast(dtype).matmul(output)
    }

    /// `[B S, E P]` in f32.
    fn logits(&self, tokens: Tensor<B, 2>) -> Tensor<B, 2> {
        let dtype = routing_dtype(tokens.dtype());
        let slots = unit_rows(self.slots.val().cast(dtype).transpose()).transpose();
        let scale = self.scale.val().cast(dtype).reshape([1, 1]);
        let [_, columns] = slots.dims();
        let scale = linear(scale, Tensor::ones([1, columns], (&slots.device(), dtype)));
        let products = linear(unit_rows(tokens.cast(dtype)), slots);
        let [rows, _] = products.dims();
        let ones = Tensor::ones([rows, 1], (&products.device(), dtype));
        products * linear(ones, scale)
    }

    /// Each expert on its slots of all sequences, `[B, E P, D]` to the same.
    fn run_experts(&self, slots: Tensor<B, 3>) -> Tensor<B, 3> {
        let ([batch, _, d_model], p) = (slots.dims(), self.slots_per_expert);
        let experts = self.experts.num_experts();
        let by_expert = slots.reshape([batch, experts, p * d_model]).swap_dims(0, 1);
        let rows = by_expert.reshape([experts * batch * p, d_model]);
        let owners: Vec<i32> = (0..experts * batch * p).map(|row| (row / (batch * p)) as i32).collect();
        let owners = Tensor::<B, 2, Int>::from_data(TensorData::new(owners, [experts * batch * p, 1]), &rows.device());
        let output = self.experts.forward(rows, &ExpertPlan::new(owners, experts));
        let output = output.reshape([experts, batch, p * d_model]).swap_dims(0, 1);
        output.reshape([batch, experts * p, d_model])
    }
}

/// Rows divided by their lengths.
fn unit_rows<B: MoeBackend>(rows: Tensor<B, 2>) -> Tensor<B, 2> {
    let lengths = (sum_dim(rows.clone().powi_scalar(2), 1) + TINY).sqrt();
    divide_rows(rows, lengths)
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::tensor::{Distribution, Tolerance};

    use super::*;

    const TOLERANCE: f32 = 1e-5;

    fn layer(slots_per_expert: usize) -> SoftMoe<Flex> {
        SoftMoeConfig::new(6, 9, 3).with_slots_per_expert(slots_per_expert).init(&Default::default())
    }

    fn input(batch: usize, len: usize) -> Tensor<Flex, 3> {
        Tensor::random([batch, len, 6], Distribution::Normal(0.0, 1.0), &Default::default())
    }

    #[test]
    fn sequences_do_not_mix() {
        let (layer, input) = (layer(2), input(3, 5));
        let together = layer.forward(input.clone());
        for i in 0..3 {
            let alone = layer.forward(input.clone().slice(i..i + 1));
            let found = together.clone().slice(i..i + 1).into_data();
            found.assert_approx_eq::<f32>(&alone.into_data(), Tolerance::rel_abs(TOLERANCE, TOLERANCE));
        }
    }

    #[test]
    fn the_order_of_tokens_does_not_matter() {
        let (layer, input) = (layer(2), input(1, 5));
        let order = Tensor::from_data([4i64, 2, 0, 1, 3], &Default::default());
        let shuffled = layer.forward(input.clone().select(1, order.clone())).into_data();
        let expected = layer.forward(input).select(1, order).into_data();
        shuffled.assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(TOLERANCE, TOLERANCE));
    }

    #[test]
    #[should_panic(expected = "slots_per_expert must be at least 1")]
    fn no_slot_panics() {
        layer(0);
    }

    #[test]
    #[should_panic(expected = "must have D = 6")]
    fn tokens_of_another_width_panic() {
        layer(1).forward(Tensor::ones([1, 2, 5], &Default::default()));
    }

    #[test]
    #[should_panic(expected = "must not be empty")]
    fn an_empty_sequence_panics() {
        layer(1).forward(Tensor::ones([1, 0, 6], &Default::default()));
    }

    #[test]
    #[should_panic(expected = "must not be empty, got [0, 2, 6]")]
    fn an_empty_batch_panics() {
        layer(1).forward(Tensor::ones([0, 2, 6], &Default::default()));
    }

    #[test]
    #[should_panic(expected = "no size may be zero")]
    fn a_zero_width_panics() {
        SoftMoeConfig::new(6, 0, 3).init::<Flex>(&Default::default());
    }
}
