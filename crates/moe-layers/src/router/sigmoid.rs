//! Sigmoid scores, selection bias and groups.

use burn::config::Config;
use burn::module::{Module, Param, ParamId};
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};
use moe_kernels::{MoeBackend, chosen, sum_dim, top_k, unchosen};

use super::scores::{check_width, logits, normalize, routing_dtype, sigmoid};
use super::{ExpertLoad, RouterConfig};
use crate::Routing;

/// What only a [`SigmoidRouter`] has.
#[derive(Config, Debug, PartialEq)]
pub struct SigmoidOptions {
    /// How far a step moves the selection bias of an expert, `gamma`; 0 leaves the bias at zero. Default: 0.001 (DeepSeek-V3)
    #[config(default = 0.001)]
    pub rate: f64,
    /// Subtract their mean from the moves of a step, so that the biases keep theirs (torchtitan); DeepSeek-V3 does not.
    /// Default: false
    #[config(default = false)]
    pub centered: bool,
    /// Groups that the experts form, a divisor of `E`. Default: 1 (DeepSeek-V3: 8)
    #[config(default = 1)]
    pub groups: usize,
    /// Groups that a token chooses from. Default: 1 (DeepSeek-V3: 4)
    #[config(default = 1)]
    pub top_groups: usize,
    /// Factor of the gates. Default: 1 (DeepSeek-V3: 2.5)
    #[config(default = 1.0)]
    pub scale: f64,
}

impl SigmoidOptions {
    /// What contradicts itself, for `num_experts` of which a token has `top_k`.
    ///
    /// # Errors
    ///
    /// Says which field is wrong and what it may be.
    pub fn validate(&self, num_experts: usize, top_k: usize) -> Result<(), String> {
        let Self { groups, top_groups, .. } = *self;
        if groups == 0 || !num_experts.is_multiple_of(groups) {
            return Err(format!("groups = {groups} must divide the number of experts, {num_experts}"));
        }
        if !(1..=groups).contains(&top_groups) {
            return Err(format!("top_groups = {top_groups} must be in 1..={groups}, the number of groups"));
        }
        let eligible = num_experts / groups * top_groups;
        if top_k > eligible {
            return Err(format!("top_k = {top_k} is more than the {eligible} experts of {top_groups} groups"));
        }
        if !(self.rate.is_finite() && self.rate >= 0.0 && self.scale.is_finite() && self.scale > 0.0) {
            return Err(format!("rate = {} must be at least 0, and scale = {} above it", self.rate, self.scale));
        }
        Ok(())
    }

    pub(super) fn init<B: Backend>(&self, base: &RouterConfig, device: &B::Device) -> SigmoidRouter<B> {
        if let Err(error) = self.validate(base.num_experts, base.top_k) {
            panic!("SigmoidOptions: {error}");
        }
        let zeros = Tensor::<B, 1>::zeros([base.num_experts], device);
        SigmoidRouter {
            weight: base.init_weight(device),
            selection_bias: Param::initialized(ParamId::new(), zeros.set_require_grad(false)),
            options: self.clone(),
            top_k: base.top_k,
            normalize_gates: base.normalize_gates,
        }
    }
}

/// Chooses by biased sigmoid scores: DeepSeek-V3's balance without an auxiliary loss
/// ([DeepSeek-AI, 2024](https://arxiv.org/abs/2412.19437), eq. 12 to 16; [Wang et al., 2024](https://arxiv.org/abs/2408.15664)).
/// Created by [`RouterConfig`].
///
/// `s_te = sigmoid(x_t w_e)`. The `K` experts with the largest `s_te + b_e` are chosen; a gate is `s_te` without the bias, divided by
/// the sum over the chosen if `normalize_gates`, times `scale`. After a step [`absorb`](Self::absorb) moves the bias of every expert by
/// `rate` towards an even load.
///
/// With groups (of `E / groups` experts that lie side by side), a token first chooses the `top_groups` of them whose two best
/// experts have the largest sum of biased scores, then its experts among theirs.
#[derive(Module, Debug)]
pub struct SigmoidRouter<B: Backend> {
    /// `[D, E]`.
    pub weight: Param<Tensor<B, 2>>,
    /// `b`, `[E]`: zero at the start, without a gradient, saved with the module, moved by [`absorb`](Self::absorb) alone.
    pub selection_bias: Param<Tensor<B, 1>>,
    #[module(skip)]
    options: SigmoidOptions,
    top_k: usize,
    normalize_gates: bool,
}

impl<B: MoeBackend> SigmoidRouter<B> {
    /// Chooses `K` experts for every token; the lower index wins a tie.
    ///
    /// [`scores`](Routing::scores) are the sigmoids, [`probs`](Routing::probs) these divided by their sum over all experts (eq. 19).
    ///
    /// # Shapes
    ///
    /// - tokens: `[T, D]`
    ///
    /// # Panics
    ///
    /// Panics when the tokens do not have width `D`.
    pub fn forward(&self, tokens: Tensor<B, 2>) -> Routing<B> {
        check_width("SigmoidRouter", &tokens, &self.weight);
        let (dtype, device) = (routing_dtype(tokens.dtype()), tokens.device());
        if tokens.dims()[0] == 0 {
            return Routing::empty(self.weight.dims()[1], self.top_k, dtype, &device);
        }
        let logits = logits(tokens, &self.weight);
        let scores = sigmoid(logits.clone());
        let probs = normalize(scores.clone());
        let experts = self.choose(scores.clone().detach());
        let gates = self.gates(chosen(scores.clone(), experts.clone()));
        Routing { scores, ..Routing::new(logits, probs, gates, experts) }
    }

    /// Indices `[T, K]` from the scores `[T, E]`.
    fn choose(&self, scores: Tensor<B, 2>) -> Tensor<B, 2, Int> {
        let bias = self.selection_bias.val().set_require_grad(false).cast(scores.dtype());
        let biased = scores + bias.unsqueeze::<2>();
        let eligible = if self.options.groups > 1 { self.within_groups(biased) } else { biased };
        top_k(eligible, self.top_k).1
    }

    /// The biased scores with minus infinity outside a token's groups.
    fn within_groups(&self, biased: Tensor<B, 2>) -> Tensor<B, 2> {
        let ([tokens, experts], groups) = (biased.dims(), self.options.groups);
        let size = experts / groups;
        let (best, _) = top_k(biased.clone().reshape([tokens * groups, size]), size.min(2));
        let (_, kept) = top_k(sum_dim(best, 1).reshape([tokens, groups]), self.options.top_groups);
        let ones = Tensor::ones([tokens, groups], (&biased.device(), biased.dtype()));
        let outside = unchosen(ones, kept).greater_elem(0.0);
        let outside = outside.reshape([tokens, groups, 1]).repeat_dim(2, size).reshape([tokens, experts]);
        biased.mask_fill(outside, f32::NEG_INFINITY)
    }

    fn gates(&self, scores: Tensor<B, 2>) -> Tensor<B, 2> {
        let gates = if self.normalize_gates { normalize(scores) } else { scores };
        gates * self.options.scale
    }
}

impl<B: Backend> SigmoidRouter<B> {
    /// Moves the selection bias, once per training step: `b_e += rate * sign(mean load - load of e)`.
    ///
    /// # Panics
    ///
    /// Panics when the load is not of `E` experts.
    pub fn absorb(&mut self, load: &ExpertLoad<B>) {
        let bias = self.selection_bias.val().set_require_grad(false);
        assert_eq!(load.counts.dims(), bias.dims(), "SigmoidRouter: the load must be of as many experts");
        let counts = load.counts.clone().cast(bias.dtype());
        let move_by = (counts.clone().mean().expand(counts.dims()) - counts).sign();
        let mean = move_by.clone().mean().expand(move_by.dims());
        let move_by = if self.options.centered { move_by - mean } else { move_by };
        let moved = (bias + move_by * self.options.rate).set_require_grad(false);
        self.selection_bias = self.selection_bias.clone().map(|_| moved);
    }

    /// Whether the gates of a token are divided by their sum.
    pub fn normalizes_gates(&self) -> bool {
        self.normalize_gates
    }

    /// Factor of the gates.
    pub fn scale(&self) -> f64 {
        self.options.scale
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::tensor::{TensorData, Tolerance};

    use super::*;
    use crate::router::load::tests::load;
    use crate::router::{Router, RouterRule};

    const TOLERANCE: f32 = 1e-5;

    /// A router whose logits are the tokens themselves.
    fn identity(num_experts: usize, top_k: usize, options: SigmoidOptions, normalize: bool) -> SigmoidRouter<Flex> {
        let (device, rule) = (Default::default(), RouterRule::Sigmoid(options));
        let config = RouterConfig::new(num_experts, num_experts, top_k).with_normalize_gates(normalize).with_rule(rule);
        let Router::Sigmoid(mut router) = config.init(&device) else { panic!("not the router that was asked for") };
        router.weight = Param::from_tensor(Tensor::eye(num_experts, &device));
        router
    }

    fn experts(routing: &Routing<Flex>) -> Vec<i64> {
        routing.experts.to_data().iter::<i64>().collect()
    }

    fn set_bias(router: &mut SigmoidRouter<Flex>, bias: &[f32]) {
        let bias = Tensor::from_data(TensorData::from(bias), &Default::default());
        router.selection_bias = router.selection_bias.clone().map(|_| bias);
    }

    #[test]
    fn the_bias_decides_who_is_chosen_and_not_with_what_weight() {
        let mut router = identity(3, 1, SigmoidOptions::new(), false);
        set_bias(&mut router, &[0.0, 0.0, 0.9]);
        let routing = router.forward(Tensor::from_data([[3f32.ln(), 0.0, -(3f32.ln())]], &Default::default()));
        // Scores 3/4, 1/2 and 1/4; the last one wins with 1.15.
        assert_eq!(experts(&routing), [2]);
        routing.gates.into_data().assert_approx_eq::<f32>(&[[0.25]].into(), Tolerance::relative(TOLERANCE));
    }

    #[test]
    fn normalised_gates_sum_to_the_scale() {
        let router = identity(3, 2, SigmoidOptions::new().with_scale(2.5), true);
        let routing = router.forward(Tensor::from_data([[3f32.ln(), 0.0, -(3f32.ln())]], &Default::default()));
        assert_eq!(experts(&routing), [0, 1]);
        routing.gates.into_data().assert_approx_eq::<f32>(&[[1.5, 1.0]].into(), Tolerance::relative(TOLERANCE));
    }

    #[test]
    fn a_token_stays_within_its_best_groups() {
        let options = SigmoidOptions::new().with_groups(3).with_top_groups(2);
        let router = identity(6, 3, options, false);
        // Sums of the two best: -4, 1, 1.5. The best expert of all is in the group that loses.
        let routing = router.forward(Tensor::from_data([[5.0, -9.0, 0.5, 0.5, 3.0, -1.5f32]], &Default::default()));
        let score = |x: f64| 1.0 / (1.0 + (-x).exp());
        assert!(score(5.0) + score(-9.0) < score(0.5) * 2.0 && score(5.0) > score(3.0));
        assert_eq!(experts(&routing), [4, 2, 3]);
    }

    /// By one of the best experts, by all three or without the bias, the second group would win.
    #[test]
    fn a_group_is_worth_its_two_best_biased_scores() {
        let mut router = identity(6, 2, SigmoidOptions::new().with_groups(2), false);
        set_bias(&mut router, &[0.3, 0.0, 0.0, 0.0, 0.0, 0.0]);
        let scores = [[0.4, 0.6, 0.05, 0.8, 0.4, 0.4f32]];
        let logits = scores.map(|row| row.map(|score| (score / (1.0 - score)).ln()));
        let routing = router.forward(Tensor::from_data(logits, &Default::default()));
        assert_eq!(experts(&routing), [0, 1]);
        routing.gates.into_data().assert_approx_eq::<f32>(&[[0.4, 0.6]].into(), Tolerance::relative(TOLERANCE));
    }

    #[test]
    fn absorbing_moves_the_bias_towards_an_even_load() {
        let bias = |router: &SigmoidRouter<Flex>| router.selection_bias.to_data();
        let mut plain = identity(4, 1, SigmoidOptions::new().with_rate(0.5), false);
        plain.absorb(&load(&[5.0, 1.0, 2.0, 0.0], 8.0));
        bias(&plain).assert_eq(&[-0.5, 0.5, 0.0, 0.5].into(), false);
        let mut centered = identity(4, 1, SigmoidOptions::new().with_rate(0.5).with_centered(true), false);
        centered.absorb(&load(&[5.0, 1.0, 2.0, 0.0], 8.0));
        bias(&centered).assert_eq(&[-0.625, 0.375, -0.125, 0.375].into(), false);
    }

    #[test]
    #[should_panic(expected = "groups = 4 must divide")]
    fn groups_that_do_not_divide_the_experts_panic() {
        identity(6, 1, SigmoidOptions::new().with_groups(4), false);
    }

    #[test]
    #[should_panic(expected = "top_k = 3 is more than the 2 experts of 1 groups")]
    fn more_experts_than_the_groups_have_panic() {
        identity(6, 3, SigmoidOptions::new().with_groups(3), false);
    }

    #[test]
    #[should_panic(expected = "top_groups = 2 must be in 1..=1")]
    fn more_groups_of_a_token_than_groups_panic() {
        identity(6, 1, SigmoidOptions::new().with_top_groups(2), false);
    }

    #[test]
    #[should_panic(expected = "rate = -1 must be at least 0")]
    fn a_negative_rate_panics() {
        identity(6, 1, SigmoidOptions::new().with_rate(-1.0), false);
    }
}
