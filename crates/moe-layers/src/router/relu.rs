//! ReLU routing: a gate is the ReLU of a logit, and who has one is a matter of training.

use burn::config::Config;
use burn::module::{Module, Param, ParamId};
use burn::tensor::Tensor;
use burn::tensor::activation::relu;
use burn::tensor::backend::Backend;
use moe_kernels::{MoeBackend, sum_dim};

use super::members::route_members;
use super::scores::{check_width, logits, normalize, routing_dtype};
use super::{ExpertLoad, RouterConfig};
use crate::Routing;
use crate::ranks::mean_over_ranks;

/// Least and largest weight of the L1 loss: at 0 or infinity it could never come back \[ours\].
const L1_RANGE: (f64, f64) = (1e-20, 1e10);

/// What only a [`ReluRouter`] has.
#[derive(Config, Debug, PartialEq)]
pub struct ReluOptions {
    /// Weight of the L1 loss at the start, `lambda_0`. Default: 1e-8 (the paper's)
    #[config(default = 1e-8)]
    pub l1_coef: f64,
    /// By which a step multiplies or divides it, `alpha`, at least 1. Default: 1.2 (the paper's)
    #[config(default = 1.2)]
    pub l1_rate: f64,
}

impl ReluOptions {
    /// What is out of range.
    ///
    /// # Errors
    ///
    /// Says which field is wrong and what it may be.
    pub fn validate(&self) -> Result<(), String> {
        match self.l1_coef.is_finite() && self.l1_coef >= 0.0 && self.l1_rate.is_finite() && self.l1_rate >= 1.0 {
            true => Ok(()),
            false => {
                Err(format!("l1_coef = {} must be at least 0, l1_rate = {} at least 1", self.l1_coef, self.l1_rate))
            }
        }
    }

    pub(super) fn init<B: Backend>(&self, base: &RouterConfig, device: &B::Device) -> ReluRouter<B> {
        if let Err(error) = self.validate() {
            panic!("ReluOptions: {error}");
        }
        let coef = Tensor::<B, 1>::full([1], self.l1_coef, device);
        ReluRouter {
            weight: base.init_weight(device),
            l1_coef: Param::initialized(ParamId::new(), coef.set_require_grad(false)),
            l1_rate: self.l1_rate,
            top_k: base.top_k,
        }
    }
}

/// Weighs experts by `relu(x w_e)` (ReMoE, [Wang et al., 2025](https://arxiv.org/abs/2412.14711)). Created by [`RouterConfig`].
///
/// Nothing is ranked, so routing is continuous: an expert comes and goes at gate zero. How many experts a token has is held near
/// `K` on average by an L1 loss, whose weight adapts: after each step it is multiplied by `alpha` if there are too many, and
/// divided by it if there are too few (eq. 7). The loss counts an expert's gates `f_e` times, where `f_e` is its load over the even
/// one, so that it balances too (eq. 10):
///
/// `L = lambda / T * sum_t sum_e f_e relu(x_t w_e)`, `f_e = E / (K T) * sum_t 1[relu(x_t w_e) > 0]`.
///
/// Ours: each layer has a `lambda` of its own, which follows its own number of experts, and the losses of layers add up. The paper has
/// one for the model, which follows the mean, and divides the sum by the number of layers.
#[derive(Module, Debug)]
pub struct ReluRouter<B: Backend> {
    /// `[D, E]`.
    pub weight: Param<Tensor<B, 2>>,
    /// `lambda`, `[1]`: without a gradient, saved with the module, moved by [`absorb`](Self::absorb) alone.
    pub l1_coef: Param<Tensor<B, 1>>,
    l1_rate: f64,
    top_k: usize,
}

impl<B: MoeBackend> ReluRouter<B> {
    /// Each token has the experts of which its ReLU is above zero; there may be none.
    ///
    /// Reads one number from the device: how many experts a token has at most. [`probs`](Routing::probs) are the gates divided by
    /// their sum; all zero for a token without experts.
    ///
    /// # Shapes
    ///
    /// - tokens: `[T, D]`
    /// - output: `K` is that number; see [`Routing::partial`]
    ///
    /// # Panics
    ///
    /// Panics when the tokens do not have width `D`.
    pub fn forward(&self, tokens: Tensor<B, 2>) -> Routing<B> {
        check_width("ReluRouter", &tokens, &self.weight);
        let (dtype, device) = (routing_dtype(tokens.dtype()), tokens.device());
        if tokens.dims()[0] == 0 {
            return Routing::empty(self.weight.dims()[1], self.top_k, dtype, &device);
        }
        let logits = logits(tokens, &self.weight);
        let scores = relu(logits.clone());
        let probs = normalize(scores.clone());
        let members = logits.clone().detach().greater_elem(0.0);
        route_members(logits, probs, scores, members)
    }

    /// The weighted L1 loss of a decision, `[1]`; zero for an empty batch.
    pub fn l1_loss(&self, routing: &Routing<B>) -> Tensor<B, 1> {
        let dtype = routing.scores.dtype();
        let coef = self.l1_coef.val().set_require_grad(false).cast(dtype);
        let tokens = routing.num_tokens() as f64;
        if tokens == 0.0 {
            return coef.zeros_like();
        }
        let even = self.top_k as f64 * tokens / routing.num_experts() as f64;
        let load = mean_over_ranks(routing.counts().float().cast(dtype) / even);
        let gates = sum_dim(routing.scores.clone(), 0).squeeze_dim::<1>(0) / tokens;
        (load * gates).sum() * coef
    }
}

impl<B: Backend> ReluRouter<B> {
    /// Moves the weight of the L1 loss, once per training step: up when tokens had more than `K` experts on average, down when
    /// they had fewer.
    ///
    /// # Panics
    ///
    /// Panics when the load is not of `E` experts.
    pub fn absorb(&mut self, load: &ExpertLoad<B>) {
        let (found, expected) = (load.counts.dims()[0], self.weight.dims()[1]);
        assert_eq!(found, expected, "ReluRouter: the load must be of as many experts");
        let coef = self.l1_coef.val().set_require_grad(false);
        let wanted = load.tokens.clone() * self.top_k as f64;
        let direction = (load.counts.clone().sum() - wanted).sign().cast(coef.dtype());
        let moved = coef * (direction * self.l1_rate.ln()).exp();
        let moved = moved.clamp(L1_RANGE.0, L1_RANGE.1);
        self.l1_coef = self.l1_coef.clone().map(|_| moved.set_require_grad(false));
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::{Autodiff, Flex};
    use burn::tensor::Tolerance;

    use super::*;
    use crate::router::load::tests::load;
    use crate::router::{Router, RouterRule};

    const TOLERANCE: f32 = 1e-5;

    /// A router whose logits are the tokens themselves.
    fn identity<B: MoeBackend>(num_experts: usize, top_k: usize, options: ReluOptions) -> ReluRouter<B> {
        let (device, rule) = (Default::default(), RouterRule::Relu(options));
        let config = RouterConfig::new(num_experts, num_experts, top_k).with_rule(rule);
        let Router::Relu(mut router) = config.init(&device) else { panic!("not the router that was asked for") };
        router.weight = Param::from_tensor(Tensor::eye(num_experts, &device));
        router
    }

    #[test]
    fn a_gate_is_the_relu_of_its_logit() {
        let router = identity::<Flex>(3, 1, ReluOptions::new());
        let tokens = [[0.5, -1.0, 2.0], [-1.0, -2.0, -3.0], [0.0, 0.25, 0.0f32]];
        let routing = router.forward(Tensor::from_data(tokens, &Default::default()));
        let experts: Vec<i64> = routing.experts.to_data().iter::<i64>().collect();
        assert_eq!(experts, [2, 0, 3, 3, 1, 3]);
        routing.gates.to_data().assert_eq(&[[2.0, 0.5], [0.0, 0.0], [0.25, 0.0f32]].into(), true);
        assert_eq!(routing.counts().into_data().iter::<i64>().collect::<Vec<_>>(), [1, 1, 1]);
        let probs = [[0.2, 0.0, 0.8], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0f32]];
        routing.probs.into_data().assert_approx_eq::<f32>(&probs.into(), Tolerance::relative(TOLERANCE));
    }

    #[test]
    fn the_l1_loss_and_its_gradient_match_a_computation_by_hand() {
        let router = identity::<Autodiff<Flex>>(3, 2, ReluOptions::new().with_l1_coef(0.5));
        let tokens = [[0.5, -1.0, 2.0], [0.25, 0.5, -1.0f32]];
        let tokens = Tensor::from_data(tokens, &Default::default()).require_grad();
        let loss = router.l1_loss(&router.forward(tokens.clone()));
        // f = 3 / (2 * 2) * (2, 1, 1); mean gates (0.375, 0.25, 1).
        let expected = 0.5 * 0.75 * (2.0 * 0.375 + 0.25 + 1.0f32);
        let grads = loss.backward();
        loss.into_data().assert_approx_eq::<f32>(&[expected].into(), Tolerance::relative(TOLERANCE));
        let grad = tokens.grad(&grads).expect("tracked").into_data();
        let expected = [[0.375, 0.0, 0.1875], [0.375, 0.1875, 0.0f32]];
        grad.assert_approx_eq::<f32>(&expected.into(), Tolerance::relative(TOLERANCE));
    }

    #[test]
    fn the_weight_of_the_loss_follows_the_number_of_experts() {
        let mut router = identity::<Flex>(4, 2, ReluOptions::new().with_l1_coef(1.0).with_l1_rate(2.0));
        let mut after = |counts: [f32; 4]| {
            router.absorb(&load(&counts, 3.0));
            router.l1_coef.val().into_scalar()
        };
        let found = [after([3.0, 3.0, 1.0, 0.0]), after([3.0, 3.0, 0.0, 0.0]), after([1.0, 1.0, 0.0, 0.0])];
        for (found, expected) in found.into_iter().zip([2.0, 2.0, 1.0]) {
            assert!((found - expected).abs() < TOLERANCE * expected, "{found} instead of {expected}");
        }
        let least = (0..200).map(|_| after([0.0; 4])).last().expect("200 steps");
        assert!(least > 0.0 && after([9.0; 4]) > least, "it comes back from {least}");
    }

    #[test]
    #[should_panic(expected = "l1_rate = 0.5 at least 1")]
    fn a_rate_below_one_panics() {
        identity::<Flex>(4, 2, ReluOptions::new().with_l1_rate(0.5));
    }

    #[test]
    #[should_panic(expected = "l1_coef = -1 must be at least 0")]
    fn a_negative_weight_panics() {
        identity::<Flex>(4, 2, ReluOptions::new().with_l1_coef(-1.0));
    }
}
