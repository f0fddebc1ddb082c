//! The decision of a router: the only value that passes from it to dispatch, losses and statistics.

use burn::tensor::{DType, Int, Tensor, TensorData};
use moe_kernels::{ExpertPlan, MoeBackend};

/// Which experts each token goes to, with what weight.
#[derive(Debug, Clone)]
pub struct Routing<B: MoeBackend> {
    /// Router scores before the softmax, `[T, E]`, f32.
    pub logits: Tensor<B, 2>,
    /// Probabilities over all experts, `[T, E]`, f32; rows sum to 1.
    pub probs: Tensor<B, 2>,
    /// Weights of the chosen experts, `[T, K]`, f32, largest first.
    pub gates: Tensor<B, 2>,
    /// Chosen experts, `[T, K]`, distinct within a row.
    pub experts: Tensor<B, 2, Int>,
    /// The slots sorted by expert.
    pub plan: ExpertPlan<B>,
}

impl<B: MoeBackend> Routing<B> {
    /// Puts a decision together and sorts its slots by expert.
    ///
    /// # Shapes
    ///
    /// - logits, probs: `[T, E]`
    /// - gates, experts: `[T, K]`
    ///
    /// # Panics
    ///
    /// Panics when the shapes disagree.
    pub fn new(logits: Tensor<B, 2>, probs: Tensor<B, 2>, gates: Tensor<B, 2>, experts: Tensor<B, 2, Int>) -> Self {
        let [num_tokens, num_experts] = probs.dims();
        assert_eq!(logits.dims(), probs.dims(), "Routing: logits and probs must both be [T, E]");
        assert_eq!(gates.dims(), experts.dims(), "Routing: gates and experts must both be [T, K]");
        assert_eq!(gates.dims()[0], num_tokens, "Routing: gates [T, K] and probs [T, E] disagree on T");
        let plan = ExpertPlan::new(experts.clone(), num_experts);
        Self { logits, probs, gates, experts, plan }
    }

    /// The decision about no tokens: `T = 0`. Most backends cannot compute it, since some op of theirs fails on an empty
    /// tensor.
    pub fn empty(num_experts: usize, top_k: usize, dtype: DType, device: &B::Device) -> Self {
        let scores = Tensor::zeros([0, num_experts], (device, dtype));
        let gates = Tensor::zeros([0, top_k], (device, dtype));
        let experts = Tensor::from_data(TensorData::new(Vec::<i32>::new(), [0, top_k]), device);
        Self::new(scores.clone(), scores, gates, experts)
    }

    /// Number of tokens, `T`.
    pub fn num_tokens(&self) -> usize {
        self.plan.num_tokens()
    }

    /// Number of experts, `E`.
    pub fn num_experts(&self) -> usize {
        self.plan.num_experts()
    }

    /// Experts per token, `K`.
    pub fn top_k(&self) -> usize {
        self.plan.top_k()
    }

    /// Slots that each expert serves, `[E]`: exact integers that sum to `T * K`.
    pub fn counts(&self) -> Tensor<B, 1, Int> {
        self.plan.counts()
    }
}
