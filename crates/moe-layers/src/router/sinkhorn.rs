//! Sinkhorn routing: a balanced assignment while training.

use burn::config::Config;
use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use moe_kernels::{MoeBackend, chosen, linear, softmax_rows, top_k};

use super::RouterConfig;
use super::scores::{check_width, is_training, logits, normalize, routing_dtype, sigmoid};
use crate::Routing;

/// Keeps a scale finite where all of a row or column is zero.
const TINY: f64 = 1e-8;

/// What only a [`SinkhornRouter`] has.
#[derive(Config, Debug, PartialEq)]
pub struct SinkhornOptions {
    /// Times that rows and columns are scaled; a fixed number, so that nothing is read from the device. Default: 16
    #[config(default = 16)]
    pub iterations: usize,
}

/// Balances a training batch by Sinkhorn's iteration (S-BASE, [Clark et al., 2022](https://arxiv.org/abs/2202.01169), section 3.1;
/// Megatron-LM). Created by [`RouterConfig`].
///
/// A training pass scales the rows and columns of `exp(logits)` in turn until every token has mass `1 / T` and every expert
/// `1 / E`, and chooses the `K` experts of a token with the most of it; nothing is learned through that. Other passes choose by the
/// logits. So in training a choice depends on the whole batch, in a causal model also on later tokens; in other passes it does not. Gates are the sigmoid of the logit for `K = 1`, the softmax over all experts otherwise, as in Megatron-LM.
#[derive(Module, Debug)]
pub struct SinkhornRouter<B: Backend> {
    /// `[D, E]`.
    pub weight: Param<Tensor<B, 2>>,
    iterations: usize,
    top_k: usize,
    normalize_gates: bool,
}

impl SinkhornOptions {
    pub(super) fn init<B: Backend>(&self, base: &RouterConfig, device: &B::Device) -> SinkhornRouter<B> {
        assert!(self.iterations > 0, "SinkhornOptions: iterations must be at least 1");
        SinkhornRouter {
            weight: base.init_weight(device),
            iterations: self.iterations,
            top_k: base.top_k,
            normalize_gates: base.normalize_gates,
        }
    }
}

impl<B: MoeBackend> SinkhornRouter<B> {
    /// Chooses `K` experts for every token, in a training pass by the balanced assignment of the batch.
    ///
    /// # Shapes
    ///
    /// - tokens: `[T, D]`
    ///
    /// # Panics
    ///
    /// Panics when the tokens do not have width `D`.
    pub fn forward(&self, tokens: Tensor<B, 2>) -> Routing<B> {
        check_width("SinkhornRouter", &tokens, &self.weight);
        let (dtype, device) = (routing_dtype(tokens.dtype()), tokens.device());
        if tokens.dims()[0] == 0 {
            return Routing::empty(self.weight.dims()[1], self.top_k, dtype, &device);
        }
        let logits = logits(tokens, &self.weight);
        let probs = softmax_rows(logits.clone());
        let ranked = match is_training::<B>(&device) {
            true => sinkhorn(logits.clone().detach(), self.iterations),
            false => logits.clone().detach(),
        };
        let (_, experts) = top_k(ranked, self.top_k);
        let scores = if self.top_k == 1 { sigmoid(logits.clone()) } else { probs.clone() };
        let gates = chosen(scores.clone(), experts.clone());
        let gates = if self.normalize_gates { normalize(gates) } else { gates };
        Routing { scores, ..Routing::new(logits, probs, gates, experts) }
    }
}

impl<B: Backend> SinkhornRouter<B> {
    /// Whether the gates of a token are divided by their sum.
    pub fn normalizes_gates(&self) -> bool {
        self.normalize_gates
    }
}

/// `diag(r) exp(logits) diag(c)` after `iterations` in which `r` and then `c` are set so that rows sum to `1 / T` and columns to
/// `1 / E`, `[T, E]`.
///
/// # Shapes
///
/// - logits: `[T, E]`, a constant: the choice has no gradient
///
/// # Panics
///
/// Panics when there are no tokens or no experts.
pub fn sinkhorn<B: MoeBackend>(logits: Tensor<B, 2>, iterations: usize) -> Tensor<B, 2> {
    let [tokens, experts] = logits.dims();
    assert!(tokens > 0 && experts > 0, "sinkhorn: logits [T, E] must not be empty, got [{tokens}, {experts}]");
    // The largest of a row only changes its scale.
    let mass = (logits.clone() - top_k(logits, 1).0).exp();
    let mut columns = Tensor::<B, 2>::ones([1, experts], (&mass.device(), mass.dtype()));
    let mut rows = Tensor::<B, 2>::ones([tokens, 1], (&mass.device(), mass.dtype()));
    for _ in 0..iterations {
        rows = ((linear(mass.clone(), columns.reshape([experts, 1])) + TINY) * tokens as f64).recip();
        columns = ((linear(rows.clone().reshape([1, tokens]), mass.clone()) + TINY) * experts as f64).recip();
    }
    mass * rows * columns
}

#[cfg(test)]
mod tests {
    use burn::backend::{Autodiff, Flex};
    use burn::tensor::Distribution;

    use super::*;
    use crate::RoutingStats;
    use crate::router::{Router, RouterRule};

    #[test]
    fn rows_and_columns_have_equal_mass() {
        const TOLERANCE: f32 = 1e-3;
        let logits = Tensor::<Flex, 2>::random([24, 6], Distribution::Normal(0.0, 2.0), &Default::default());
        let mass = sinkhorn(logits, 50);
        let sums = |dim| mass.clone().sum_dim(dim).into_data().to_vec::<f32>().expect("f32");
        assert!(sums(1).iter().all(|sum| (sum * 24.0 - 1.0).abs() < TOLERANCE));
        assert!(sums(0).iter().all(|sum| (sum * 6.0 - 1.0).abs() < TOLERANCE));
    }

    /// Two by two has a closed form: with `q = sqrt(ad / bc)` the balanced matrix is `[[q, 1], [1, q]] / (2 (1 + q))`.
    #[test]
    fn two_tokens_and_two_experts_match_the_closed_form() {
        const TOLERANCE: f32 = 1e-4;
        let (a, b, c, d) = (1.0f32, -0.5, 0.25, 0.75);
        let mass = sinkhorn(Tensor::<Flex, 2>::from_data([[a, b], [c, d]], &Default::default()), 60);
        let q = ((a + d - b - c) / 2.0).exp();
        let expected = [q, 1.0, 1.0, q].map(|x| x / (2.0 * (1.0 + q)));
        for (found, expected) in mass.into_data().to_vec::<f32>().expect("f32").into_iter().zip(expected) {
            assert!((found - expected).abs() < TOLERANCE, "{found} instead of {expected}");
        }
    }

    #[test]
    #[should_panic(expected = "sinkhorn: logits [T, E] must not be empty, got [2, 0]")]
    fn no_experts_panic() {
        sinkhorn(Tensor::<Flex, 2>::zeros([2, 0], &Default::default()), 1);
    }

    #[test]
    #[should_panic(expected = "sinkhorn: logits [T, E] must not be empty, got [0, 2]")]
    fn no_tokens_panic() {
        sinkhorn(Tensor::<Flex, 2>::zeros([0, 2], &Default::default()), 1);
    }

    #[test]
    fn training_is_balanced_where_the_logits_are_not() {
        fn router<B: MoeBackend>() -> SinkhornRouter<B> {
            let rule = RouterRule::Sinkhorn(SinkhornOptions::new().with_iterations(50));
            let config = RouterConfig::new(4, 4, 1).with_rule(rule);
            let Router::Sinkhorn(mut router) = config.init(&Default::default()) else { panic!("another router") };
            router.weight = Param::from_tensor(Tensor::eye(4, &Default::default()));
            router
        }
        // Every token prefers expert 0.
        let noise = Tensor::<Flex, 2>::random([400, 4], Distribution::Normal(0.0, 1.0), &Default::default());
        let preference = Tensor::<Flex, 1>::from_data([4.0, 0.0, 0.0, 0.0], &Default::default());
        let tokens = noise + preference.unsqueeze();
        let load = |routing: &Routing<Flex>| RoutingStats::from_routing(routing).load_ratio;
        let evaluation = load(&router::<Flex>().forward(tokens.clone()));
        let training = router::<Autodiff<Flex>>().forward(Tensor::from_inner(tokens));
        let training = RoutingStats::from_routing(&training).load_ratio;
        assert!(evaluation > 3.5 && training < 1.5, "load ratios {evaluation} and {training}");
    }
}
