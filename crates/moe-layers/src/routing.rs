//! The decision of a router: the only value that passes from it to dispatch, losses and statistics.

use burn::tensor::{DType, Int, Tensor, TensorData};
use moe_kernels::{ExpertPlan, MoeBackend};

/// Which experts each token goes to, with what weight.
#[derive(Debug, Clone)]
pub struct Routing<B: MoeBackend> {
    /// Router scores before the softmax, `[T, E]`, f32.
    pub logits: Tensor<B, 2>,
    /// Probabilities over all experts, `[T, E]`, f32: the scores made to sum to 1, so zero for a token without experts. Losses and
    /// statistics read them.
    pub probs: Tensor<B, 2>,
    /// What a gate is read from, `[T, E]`, f32: the probabilities, if the router does not say otherwise.
    pub scores: Tensor<B, 2>,
    /// Weights of the chosen experts, `[T, K]`, f32, largest first unless a bias or a balance had a say in the choice.
    pub gates: Tensor<B, 2>,
    /// Chosen experts, `[T, K]`, distinct within a row; `E` is nobody.
    pub experts: Tensor<B, 2, Int>,
    /// The slots sorted by expert.
    pub plan: ExpertPlan<B>,
    /// The noise of a training pass, where the router has some.
    pub noise: Option<RouterNoise<B>>,
    /// Counts `[E]` of the experts as they were chosen, where a [capacity](crate::dispatch::Capacity) may have dropped some.
    pub before_capacity: Option<Tensor<B, 1, Int>>,
}

/// The noise that a router added to its logits.
#[derive(Debug, Clone)]
pub struct RouterNoise<B: MoeBackend> {
    /// Logits with noise, `[T, E]`.
    pub logits: Tensor<B, 2>,
    /// Standard deviation of the noise, `[T, E]`.
    pub std: Tensor<B, 2>,
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
    /// Panics when the shapes disagree, and as [`ExpertPlan::new`].
    pub fn new(logits: Tensor<B, 2>, probs: Tensor<B, 2>, gates: Tensor<B, 2>, experts: Tensor<B, 2, Int>) -> Self {
        let plan = ExpertPlan::new(experts.clone(), probs.dims()[1]);
        Self::with_plan(logits, probs, gates, experts, plan)
    }

    /// [`new`](Self::new) where tokens may have fewer than `K` experts: the expert of a slot that nobody serves is `E`, and its gate
    /// is zero.
    ///
    /// # Panics
    ///
    /// Panics when the shapes disagree, and as [`ExpertPlan::partial`].
    pub fn partial(logits: Tensor<B, 2>, probs: Tensor<B, 2>, gates: Tensor<B, 2>, experts: Tensor<B, 2, Int>) -> Self {
        let plan = ExpertPlan::partial(experts.clone(), probs.dims()[1]);
        Self::with_plan(logits, probs, gates, experts, plan)
    }

    fn with_plan(
        logits: Tensor<B, 2>,
        probs: Tensor<B, 2>,
        gates: Tensor<B, 2>,
        experts: Tensor<B, 2, Int>,
        plan: ExpertPlan<B>,
    ) -> Self {
        assert_eq!(logits.dims(), probs.dims(), "Routing: logits and probs must both be [T, E]");
        assert_eq!(gates.dims(), experts.dims(), "Routing: gates and experts must both be [T, K]");
        assert_eq!(gates.dims()[0], probs.dims()[0], "Routing: gates [T, K] and probs [T, E] disagree on T");
        Self { logits, scores: probs.clone(), probs, gates, experts, plan, noise: None, before_capacity: None }
    }

    /// The decision about no tokens: `T = 0`. Most backends cannot compute it, since some op of theirs fails on an empty
    /// tensor.
    pub fn empty(num_experts: usize, top_k: usize, dtype: DType, device: &B::Device) -> Self {
        // From data: Fusion may put an empty tensor that it is to fill, and one of a single number, into one kernel, which then runs
        // for no number at all.
        let empty = |width| Tensor::from_data(TensorData::new(Vec::<f32>::new(), [0, width]), (device, dtype));
        let (scores, gates) = (empty(num_experts), empty(top_k));
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

    /// Slots that each expert serves, `[E]`: exact integers. They sum to `T * K` where every slot is served.
    pub fn counts(&self) -> Tensor<B, 1, Int> {
        self.plan.counts()
    }

    /// Slots in which each expert was chosen, `[E]`: the [counts](Self::counts), and those that a capacity dropped.
    pub fn demand(&self) -> Tensor<B, 1, Int> {
        self.before_capacity.clone().unwrap_or_else(|| self.counts())
    }
}
