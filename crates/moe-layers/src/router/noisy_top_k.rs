//! Noisy top-K: exploration by noise on the logits while training.

use burn::config::Config;
use burn::module::{Initializer, Module, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{Distribution, Tensor};
use moe_kernels::{MoeBackend, softmax_rows, top_k};

use super::RouterConfig;
use super::scores::{check_width, is_training, logits, normalize, routing_dtype};
use crate::Routing;
use crate::routing::RouterNoise;

/// Added to a learned deviation, so that some noise is left to tell experts apart \[ours\].
const LEAST: f64 = 1e-2;

/// `log(1 + exp(x))`; burn's overflows. `(x + |x|) / 2` rather than a ReLU, whose slope at 0, where the learned weight starts, would be 0.
fn softplus<B: MoeBackend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    let size = x.clone().abs();
    (x + size.clone()) * 0.5 + (size.neg().exp() + 1.0).log()
}

/// What only a [`NoisyTopKRouter`] has.
#[derive(Config, Debug, PartialEq)]
pub struct NoisyTopKOptions {
    /// Standard deviation `sigma` of the noise in units of `1 / E` (V-MoE: 1). `None`: learned for every token and expert
    /// (Shazeer). Default: `None`
    pub noise_std: Option<f64>,
}

/// Adds noise to the logits in training passes ([Shazeer et al., 2017](https://arxiv.org/abs/1701.06538), eq. 3 to 5; constant noise:
/// [Riquelme et al., 2021](https://arxiv.org/abs/2106.05974), appendix A). Created by [`RouterConfig`].
///
/// `H = x W_g + epsilon * sigma` with `epsilon ~ N(0, 1)`; the `K` largest of a token are chosen and weighed by their softmax. Shazeer learns
/// `sigma = softplus(x W_noise)`, here plus 0.01 \[ours\], and takes the softmax over the chosen ones, which is the softmax over all divided by the sum of
/// the chosen (`normalize_gates`); V-MoE has `sigma = 1 / E` and does not divide.
#[derive(Module, Debug)]
pub struct NoisyTopKRouter<B: Backend> {
    /// `W_g`, `[D, E]`.
    pub weight: Param<Tensor<B, 2>>,
    /// `W_noise`, `[D, E]`, zero at the start; there when the noise is learned.
    pub noise_weight: Option<Param<Tensor<B, 2>>>,
    noise_std: f64,
    top_k: usize,
    normalize_gates: bool,
}

impl NoisyTopKOptions {
    pub(super) fn init<B: Backend>(&self, base: &RouterConfig, device: &B::Device) -> NoisyTopKRouter<B> {
        let std = self.noise_std.unwrap_or(0.0);
        assert!(std.is_finite() && std >= 0.0, "NoisyTopKOptions: noise_std = {std} must be finite and at least 0");
        let learned = || Initializer::Zeros.init([base.d_model, base.num_experts], device);
        NoisyTopKRouter {
            weight: base.init_weight(device),
            noise_weight: self.noise_std.is_none().then(learned),
            noise_std: std / base.num_experts as f64,
            top_k: base.top_k,
            normalize_gates: base.normalize_gates,
        }
    }
}

impl<B: MoeBackend> NoisyTopKRouter<B> {
    /// Chooses `K` experts for every token, in a training pass by noisy logits.
    ///
    /// [`probs`](Routing::probs) are the softmax without noise, as V-MoE's importance loss wants it; gates and
    /// [`scores`](Routing::scores) are with it, and so is what V-MoE's balance loss reads
    /// ([`GShard`](crate::BalanceConvention::GShard)).
    ///
    /// # Shapes
    ///
    /// - tokens: `[T, D]`
    ///
    /// # Panics
    ///
    /// Panics when the tokens do not have width `D`.
    pub fn forward(&self, tokens: Tensor<B, 2>) -> Routing<B> {
        check_width("NoisyTopKRouter", &tokens, &self.weight);
        let (dtype, device) = (routing_dtype(tokens.dtype()), tokens.device());
        if tokens.dims()[0] == 0 {
            return Routing::empty(self.weight.dims()[1], self.top_k, dtype, &device);
        }
        let clean = logits(tokens.clone(), &self.weight);
        let noise = is_training::<B>(&device).then(|| self.noise(tokens, &clean));
        let noisy = noise.as_ref().map_or_else(|| clean.clone(), |noise| noise.logits.clone());
        let scores = softmax_rows(noisy);
        let probs = if noise.is_some() { softmax_rows(clean.clone()) } else { scores.clone() };
        let (gates, experts) = top_k(scores.clone(), self.top_k);
        let gates = if self.normalize_gates { normalize(gates) } else { gates };
        Routing { scores, noise, ..Routing::new(clean, probs, gates, experts) }
    }

    fn noise(&self, tokens: Tensor<B, 2>, clean: &Tensor<B, 2>) -> RouterNoise<B> {
        let (shape, options) = (clean.dims(), (&clean.device(), clean.dtype()));
        let std = match &self.noise_weight {
            Some(weight) => softplus(logits(tokens, weight)) + LEAST,
            None => Tensor::full(shape, self.noise_std, options),
        };
        let epsilon = Tensor::random(shape, Distribution::Normal(0.0, 1.0), options);
        RouterNoise { logits: clean.clone() + epsilon * std.clone(), std }
    }
}

impl<B: Backend> NoisyTopKRouter<B> {
    /// Whether the gates of a token are divided by their sum.
    pub fn normalizes_gates(&self) -> bool {
        self.normalize_gates
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::{Autodiff, Flex};

    use super::*;
    use crate::router::{Router, RouterRule};

    type AD = Autodiff<Flex>;

    fn router<B: MoeBackend>(noise_std: Option<f64>) -> NoisyTopKRouter<B> {
        normalizing(false, noise_std)
    }

    fn normalizing<B: MoeBackend>(normalize: bool, noise_std: Option<f64>) -> NoisyTopKRouter<B> {
        let rule = RouterRule::NoisyTopK(NoisyTopKOptions { noise_std });
        let config = RouterConfig::new(6, 4, 2).with_rule(rule).with_normalize_gates(normalize);
        match config.init(&Default::default()) {
            Router::NoisyTopK(router) => router,
            other => panic!("not the router that was asked for: {other:?}"),
        }
    }

    fn tokens<B: Backend>(count: usize) -> Tensor<B, 2> {
        Tensor::random([count, 6], Distribution::Normal(0.0, 1.0), &Default::default())
    }

    #[test]
    fn evaluation_has_no_noise() {
        let router = router::<Flex>(Some(4.0));
        let routing = router.forward(tokens(9));
        assert!(routing.noise.is_none());
        routing.scores.into_data().assert_eq(&softmax_rows(routing.logits).into_data(), true);
    }

    /// Against a sort of the noisy logits of each token.
    #[test]
    fn a_training_pass_chooses_and_weighs_by_the_noisy_logits() {
        const TOLERANCE: f64 = 1e-5;
        for normalize in [false, true] {
            let routing = normalizing::<AD>(normalize, Some(4.0)).forward(tokens(33));
            let host = |tensor: Tensor<AD, 2>| tensor.into_data().iter::<f64>().collect::<Vec<_>>();
            let noisy = host(routing.noise.expect("a training pass").logits);
            let chosen: Vec<usize> = routing.experts.into_data().iter::<i64>().map(|expert| expert as usize).collect();
            let (gates, clean) = (host(routing.gates), host(routing.logits));
            let mut other_choices = 0;
            for (t, row) in noisy.chunks(4).enumerate() {
                let best = |row: &[f64]| {
                    let mut order = [0, 1, 2, 3];
                    order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
                    order[..2].to_vec()
                };
                let expected = best(row);
                other_choices += usize::from(expected != best(&clean[4 * t..4 * t + 4]));
                assert_eq!(chosen[2 * t..2 * t + 2], expected);
                let mass = |experts: &[usize]| experts.iter().map(|&e| row[e].exp()).sum::<f64>();
                let whole = if normalize { mass(&expected) } else { mass(&[0, 1, 2, 3]) };
                for (gate, &expert) in gates[2 * t..].iter().zip(&expected) {
                    let expected = row[expert].exp() / whole;
                    assert!((gate - expected).abs() < TOLERANCE * expected, "{gate} instead of {expected}");
                }
            }
            assert!(other_choices > 0, "a choice that the noise does not change tells nothing");
        }
    }

    #[test]
    fn noise_has_the_deviation_that_is_asked_for() {
        /// Of the standard deviation of 4000 draws: about five of its own deviations.
        const TOLERANCE: f64 = 0.06;
        for (std, expected) in [(Some(2.0), 2.0 / 4.0), (None, 2f64.ln() + LEAST)] {
            // softplus(0) = ln 2 as the learned weight starts at zero.
            let routing = router::<AD>(std).forward(tokens(1000));
            let noise = routing.noise.expect("a training pass").logits - routing.logits;
            let found = noise.powi_scalar(2).mean().sqrt().into_data().iter::<f64>().next().expect("one number");
            assert!((found - expected).abs() < TOLERANCE * expected, "{found} instead of {expected}");
        }
    }

    #[test]
    fn the_noise_learns_from_the_output() {
        let router = router::<AD>(None);
        let grads = router.forward(tokens(20)).gates.sum().backward();
        let weight = router.noise_weight.expect("learned");
        let grad = weight.grad(&grads).expect("tracked");
        assert!(grad.abs().sum().into_scalar() > 0.0);
    }

    #[test]
    fn softplus_neither_overflows_nor_vanishes() {
        let device = Default::default();
        let x = Tensor::<AD, 2>::from_data([[-100.0, 0.0, 100.0f32]], &device).require_grad();
        let y = softplus(x.clone());
        let slopes = x.grad(&y.clone().sum().backward()).expect("tracked").into_data();
        let tolerance = burn::tensor::Tolerance::rel_abs(1e-6, 1e-6);
        y.into_data().assert_approx_eq::<f32>(&[[0.0, 2f32.ln(), 100.0]].into(), tolerance);
        slopes.assert_approx_eq::<f32>(&[[0.0, 0.5, 1.0f32]].into(), tolerance);
    }

    #[test]
    #[should_panic(expected = "noise_std = -1")]
    fn a_negative_deviation_panics() {
        router::<Flex>(Some(-1.0));
    }
}
