//! Token-choice top-K routing.

use burn::config::Config;
use burn::module::{Initializer, Module, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use moe_kernels::{MoeBackend, softmax_rows, top_k};

use super::scores::{check_top_k, check_width, logits, normalize, routing_dtype};
use crate::Routing;

/// Configuration to create a [`TopKRouter`] using the [init function](TopKRouterConfig::init).
#[derive(Config, Debug)]
pub struct TopKRouterConfig {
    /// Width of a token, `D`.
    pub d_model: usize,
    /// Number of experts, `E`.
    pub num_experts: usize,
    /// Experts kept per token, `K`.
    pub top_k: usize,
    /// Divide the kept probabilities by their sum (Mixtral); otherwise they keep their softmax values (OLMoE,
    /// Default MoE). Default: false
    #[config(default = false)]
    pub normalize_gates: bool,
    /// How the weight `[D, E]` starts. Default: uniform in `+-1 / sqrt(D)`, as burn's `Linear`
    #[config(default = "crate::experts::default_initializer()")]
    pub initializer: Initializer,
}

impl TopKRouterConfig {
    /// Creates the router on `device`.
    ///
    /// # Panics
    ///
    /// Panics unless `1 <= top_k <= num_experts`.
    pub fn init<B: Backend>(&self, device: &B::Device) -> TopKRouter<B> {
        check_top_k("TopKRouterConfig", self.top_k, self.num_experts);
        let shape = [self.d_model, self.num_experts];
        let fans = (Some(self.d_model), Some(self.num_experts));
        TopKRouter {
            weight: self.initializer.init_with(shape, fans.0, fans.1, device),
            top_k: self.top_k,
            normalize_gates: self.normalize_gates,
        }
    }
}

/// Keeps the `K` most probable experts of each token ([Shazeer et al., 2017](https://arxiv.org/abs/1701.06538), eq. 3 to 5, without the
/// noise, with the softmax taken over all experts first). Created by [`TopKRouterConfig`].
#[derive(Module, Debug)]
pub struct TopKRouter<B: Backend> {
    /// Scores of a token are `x W`: `[D, E]`.
    pub weight: Param<Tensor<B, 2>>,
    top_k: usize,
    normalize_gates: bool,
}

impl<B: MoeBackend> TopKRouter<B> {
    /// Chooses `K` experts for every token; the lower expert index wins a tie.
    ///
    /// Computed in f32 whatever the dtype of the tokens (in f64 if they are f64).
    ///
    /// # Shapes
    ///
    /// - tokens: `[T, D]`
    /// - output: gates `[T, K]` in `[0, 1]`, largest first; they sum to 1 if normalised
    ///
    /// # Panics
    ///
    /// Panics when the tokens do not have width `D`.
    pub fn forward(&self, tokens: Tensor<B, 2>) -> Routing<B> {
        check_width("TopKRouter", &tokens, &self.weight);
        let (dtype, device) = (routing_dtype(tokens.dtype()), tokens.device());
        if tokens.dims()[0] == 0 {
            return Routing::empty(self.weight.dims()[1], self.top_k, dtype, &device);
        }
        let logits = logits(tokens, &self.weight);
        let probs = softmax_rows(logits.clone());
        let (gates, experts) = top_k(probs.clone(), self.top_k);
        let gates = if self.normalize_gates { normalize(gates) } else { gates };
        Routing::new(logits, probs, gates, experts)
    }
}

impl<B: Backend> TopKRouter<B> {
    /// Whether the gates of a token are divided by their sum.
    pub fn normalizes_gates(&self) -> bool {
        self.normalize_gates
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::tensor::{DType, TensorData, Tolerance};

    use super::*;

    /// A router whose logits are the tokens themselves.
    fn identity(num_experts: usize, top_k: usize, normalize_gates: bool) -> TopKRouter<Flex> {
        let device = Default::default();
        let config = TopKRouterConfig::new(num_experts, num_experts, top_k).with_normalize_gates(normalize_gates);
        let mut router = config.init(&device);
        router.weight = Param::from_tensor(Tensor::eye(num_experts, &device));
        router
    }

    fn route(router: &TopKRouter<Flex>, logits: [[f32; 4]; 1]) -> (TensorData, Vec<i64>) {
        let routing = router.forward(Tensor::from_data(logits, &Default::default()));
        (routing.gates.into_data(), routing.experts.into_data().iter::<i64>().collect())
    }

    #[test]
    fn gates_are_softmax_values_over_all_experts() {
        let (gates, experts) = route(&identity(4, 2, false), [[0.0, 2f32.ln(), 0.0, 4f32.ln()]]);
        assert_eq!(experts, [3, 1]);
        gates.assert_approx_eq::<f32>(&TensorData::from([[0.5, 0.25]]), Tolerance::relative(1e-5));
    }

    #[test]
    fn normalised_gates_sum_to_one_and_equal_the_softmax_over_the_kept() {
        let (gates, experts) = route(&identity(4, 2, true), [[0.0, 2f32.ln(), 0.0, 4f32.ln()]]);
        assert_eq!(experts, [3, 1]);
        let expected = TensorData::from([[2.0 / 3.0, 1.0 / 3.0]]);
        gates.assert_approx_eq::<f32>(&expected, Tolerance::relative(1e-5));
    }

    #[test]
    fn the_lower_index_wins_a_tie() {
        let (_, experts) = route(&identity(4, 3, false), [[1.0, 3.0, 1.0, 1.0]]);
        assert_eq!(experts, [1, 0, 2]);
    }

    #[test]
    fn routing_is_f32_for_bf16_tokens() {
        let router = TopKRouterConfig::new(8, 4, 2).init::<Flex>(&Default::default());
        let tokens = Tensor::<Flex, 2>::ones([3, 8], &Default::default()).cast(DType::BF16);
        let routing = router.forward(tokens);
        assert_eq!((routing.logits.dtype(), routing.gates.dtype()), (DType::F32, DType::F32));
    }

    #[test]
    #[should_panic(expected = "top_k = 5 must be in 1..=4")]
    fn more_experts_per_token_than_experts_panics() {
        TopKRouterConfig::new(8, 4, 5).init::<Flex>(&Default::default());
    }

    #[test]
    #[should_panic(expected = "must have D = 8, got 6")]
    fn tokens_of_another_width_panic() {
        let router = TopKRouterConfig::new(8, 4, 2).init::<Flex>(&Default::default());
        router.forward(Tensor::ones([3, 6], &Default::default()));
    }

    #[test]
    #[should_panic(expected = "top_k = 0 must be in 1..=4")]
    fn no_expert_per_token_panics() {
        TopKRouterConfig::new(8, 4, 0).init::<Flex>(&Default::default());
    }
}
