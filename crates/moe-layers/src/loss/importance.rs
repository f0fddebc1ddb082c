//! Importance and load: how unevenly experts are weighed, and how unevenly they would be chosen.

use std::f64::consts::SQRT_2;

use burn::tensor::{Bool, Tensor};
use moe_kernels::{MoeBackend, linear, sum_dim, top_k, unchosen};
use serde::{Deserialize, Serialize};

use super::{one_hot, zero};
use crate::Routing;
use crate::ranks::with_mean_over_ranks;
use crate::router::scores::TINY;
use crate::routing::RouterNoise;

/// What [`importance_loss`] and [`load_loss`] sum over the tokens.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum ImportanceConvention {
    /// Importance: the softmax without noise over all experts. Load: with the `K`-th largest noisy logit of a token as the threshold of all
    /// its experts. V-MoE ([Riquelme et al., 2021](https://arxiv.org/abs/2106.05974), appendix A).
    #[default]
    #[serde(rename = "vmoe")]
    VMoe,
    /// Importance: the gates, zero for who is not chosen (eq. 6). Load: with the `K`-th largest noisy logit of the other experts as the
    /// threshold of an expert (eq. 8 to 10). [Shazeer et al., 2017](https://arxiv.org/abs/1701.06538); the gates are the paper's
    /// with `normalize_gates`.
    Shazeer,
}

/// How unevenly the experts are weighed: `(std / mean)^2` over the experts of their importance, `[1]`, f32; 0 when even, and for an empty
/// batch ([Shazeer et al., 2017](https://arxiv.org/abs/1701.06538), eq. 6 and 7).
///
/// The importance of an expert is a sum over the tokens of what the convention says. The variance is that of the `E` numbers themselves,
/// not an estimate.
pub fn importance_loss<B: MoeBackend>(routing: &Routing<B>, convention: ImportanceConvention) -> Tensor<B, 1> {
    if routing.num_tokens() == 0 {
        return zero(routing);
    }
    let importance = match convention {
        ImportanceConvention::VMoe => sum_dim(routing.probs.clone(), 0),
        ImportanceConvention::Shazeer => gates_of_experts(routing),
    };
    squared_variation(with_mean_over_ranks(importance.squeeze_dim(0)))
}

/// The gates of every expert summed over the tokens, `[1, E]`.
fn gates_of_experts<B: MoeBackend>(routing: &Routing<B>) -> Tensor<B, 2> {
    let slots = routing.num_tokens() * routing.top_k();
    let experts = one_hot(routing.experts.clone().reshape([slots, 1]), routing);
    // A product, so that its gradient is one too.
    linear(routing.gates.clone().reshape([1, slots]), experts)
}

/// How unevenly the experts would be chosen: `(std / mean)^2` over the experts of their mean probability to be among the `K` best if the
/// noise of each were drawn once more, `[1]`, f32; 0 when even, for an empty batch, and for a decision without noise, whose choice has no
/// gradient ([Shazeer et al., 2017](https://arxiv.org/abs/1701.06538), eq. 8 to 11).
///
/// That probability is `Phi((logit_te - threshold_te) / sigma_te)`, with a threshold by the convention. Where `K = E`, all experts are
/// chosen whatever the noise: Shazeer's probability is then 1 and the loss 0, V-MoE's measures the distance from the least noisy logit.
///
/// The deviation must be above zero: noise of none decides nothing.
pub fn load_loss<B: MoeBackend>(routing: &Routing<B>, convention: ImportanceConvention) -> Tensor<B, 1> {
    let Some(noise) = routing.noise.as_ref().filter(|_| routing.num_tokens() > 0) else { return zero(routing) };
    let thresholds = match convention {
        ImportanceConvention::VMoe => kth_largest(noise, routing.top_k()),
        ImportanceConvention::Shazeer if routing.top_k() == routing.num_experts() => return zero(routing),
        ImportanceConvention::Shazeer => kth_largest_of_others(noise, routing.top_k()),
    };
    let distance = (routing.logits.clone() - thresholds) / (noise.std.clone() * SQRT_2);
    let probability = (distance.erf() + 1.0) * 0.5;
    squared_variation(with_mean_over_ranks(sum_dim(probability, 0).squeeze_dim(0)))
}

/// The `k`-th largest noisy logit of a token, once for each expert, `[T, E]`.
fn kth_largest<B: MoeBackend>(noise: &RouterNoise<B>, k: usize) -> Tensor<B, 2> {
    let [tokens, experts] = noise.logits.dims();
    let (best, _) = top_k(noise.logits.clone(), k);
    let kth = best.slice([0..tokens, k - 1..k]);
    // A product, so that its gradient is one too.
    let ones = Tensor::ones([1, experts], (&kth.device(), kth.dtype()));
    linear(kth, ones)
}

/// The `k`-th largest noisy logit among the other experts of a token, for each expert, `[T, E]`: for one of the `k` best that of the one
/// after them. There must be one.
fn kth_largest_of_others<B: MoeBackend>(noise: &RouterNoise<B>, k: usize) -> Tensor<B, 2> {
    kth_largest(noise, k).mask_where(among_best(noise, k), kth_largest(noise, k + 1))
}

/// Whether an expert has one of the `k` largest noisy logits of a token, `[T, E]`.
fn among_best<B: MoeBackend>(noise: &RouterNoise<B>, k: usize) -> Tensor<B, 2, Bool> {
    let logits = noise.logits.clone().detach();
    let (_, best) = top_k(logits.clone(), k);
    unchosen(logits.ones_like(), best).equal_elem(0.0)
}

/// `(std / mean)^2` of `[E]`, as `[1]`: the same for all multiples of the numbers; 0 where all are.
///
/// From the distances from the mean: the mean square less the squared mean is all rounding where the numbers are nearly even.
fn squared_variation<B: MoeBackend>(x: Tensor<B, 1>) -> Tensor<B, 1> {
    let [count] = x.dims();
    let mean = x.clone().sum() / count as f64;
    let ones = Tensor::ones([1, count], (&x.device(), x.dtype()));
    let means = linear(mean.clone().reshape([1, 1]), ones).reshape([count]);
    let variance = (x - means).powi_scalar(2).sum() / count as f64;
    variance / (mean.powi_scalar(2) + TINY)
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use burn::backend::{Autodiff, Flex};
    use burn::tensor::backend::Backend;
    use burn::tensor::{Int, TensorData};

    use super::ImportanceConvention::{Shazeer, VMoe};
    use super::*;
    use crate::ranks::{Ranks, among_ranks};
    use crate::{BalanceConvention, load_balance_loss};

    type F = Flex;

    fn scalar(loss: Tensor<F, 1>) -> f64 {
        loss.into_data().iter::<f64>().next().expect("one number")
    }

    fn matrix<const N: usize>(rows: [[f32; 3]; N]) -> Tensor<F, 2> {
        Tensor::from_data(rows, &Default::default())
    }

    /// Probabilities and what is expected are those of V-MoE's tests of its router (google-research/vmoe, Apache-2.0).
    fn vmoe_routing() -> Routing<F> {
        let probs = matrix([[0.5, 0.4, 0.1], [0.3, 0.3, 0.4], [0.1, 0.2, 0.7], [0.8, 0.2, 0.0]]);
        let (gates, experts) = top_k(probs.clone(), 1);
        Routing::new(probs.zeros_like(), probs, gates, experts)
    }

    #[test]
    fn the_importance_loss_has_the_value_of_vmoes_test() {
        const TOLERANCE: f64 = 1e-6;
        assert!((scalar(importance_loss(&vmoe_routing(), VMoe)) - 0.03874999).abs() < TOLERANCE);
    }

    #[test]
    fn the_gshard_loss_has_the_value_of_vmoes_test() {
        const TOLERANCE: f64 = 1e-6;
        let loss = load_balance_loss(&vmoe_routing(), BalanceConvention::GShard);
        assert!((scalar(loss) - 1.0875).abs() < TOLERANCE);
    }

    #[test]
    fn the_load_loss_has_the_value_of_vmoes_test() {
        const TOLERANCE: f64 = 1e-6;
        let logits = matrix([[0.9, 0.06, 0.04], [0.7, 0.18, 0.12], [0.85, 0.05, 0.1]]);
        let noise = matrix([[-0.037, 0.026, -0.018], [-0.074, 0.045, -0.015], [-0.067, -0.059, 0.073]]);
        let (gates, experts) = top_k(logits.clone(), 2);
        let noise = RouterNoise { logits: logits.clone() + noise, std: logits.ones_like() * 0.1 };
        let routing = Routing { noise: Some(noise), ..Routing::new(logits.clone(), logits, gates, experts) };
        let loss = scalar(load_loss(&routing, VMoe));
        assert!((loss - 0.485_738_645).abs() < TOLERANCE, "{loss}");
    }

    #[test]
    fn a_decision_without_noise_or_tokens_costs_nothing() {
        let empty = Routing::<F>::empty(3, 2, burn::tensor::DType::F32, &Default::default());
        for convention in [VMoe, Shazeer] {
            assert_eq!(scalar(load_loss(&vmoe_routing(), convention)), 0.0);
            assert_eq!([scalar(load_loss(&empty, convention)), scalar(importance_loss(&empty, convention))], [0.0; 2]);
        }
    }

    #[test]
    fn even_probabilities_have_no_importance_loss() {
        const TOLERANCE: f64 = 1e-6;
        let probs = matrix([[0.2, 0.3, 0.5], [0.3, 0.5, 0.2], [0.5, 0.2, 0.3]]);
        let experts = Tensor::<F, 2, Int>::from_data([[2i64], [1], [0]], &Default::default());
        let gates = Tensor::full([3, 1], 0.5, &Default::default());
        let loss = importance_loss(&Routing::new(probs.zeros_like(), probs, gates, experts), VMoe);
        assert!(scalar(loss).abs() < TOLERANCE);
    }

    /// Relative, f32.
    const TOLERANCE: f64 = 1e-5;

    fn assert_close(found: f64, expected: f64) {
        assert!((found - expected).abs() <= TOLERANCE * expected.abs(), "{found} instead of {expected}");
    }

    /// `(std / mean)^2` in f64.
    fn variation(x: &[f64]) -> f64 {
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        x.iter().map(|x| (x / mean - 1.0).powi(2)).sum::<f64>() / x.len() as f64
    }

    #[test]
    fn a_small_variation_is_not_lost_in_rounding() {
        for size in [1e-1, 1e-2, 3e-3, 1e-3] {
            let x: Vec<f32> = [1.0, -1.5, 0.25, 2.0, -1.25, -0.5].map(|step| 1000.0 * (1.0 + size * step)).to_vec();
            let expected = variation(&x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
            let x = Tensor::<F, 1>::from_data(TensorData::from(x.as_slice()), &Default::default());
            assert_close(scalar(squared_variation(x)), expected);
        }
    }

    /// The other rank has this importance, always.
    struct Other([f32; 3]);

    impl<B: Backend> Ranks<B> for Other {
        fn mean(&self, values: Tensor<B, 1>) -> Tensor<B, 1> {
            let other = Tensor::from_data(TensorData::from(self.0), &values.device());
            (values + other) / 2.0
        }
    }

    #[test]
    fn the_variation_among_ranks_is_that_of_all_tokens() {
        let other = [0.9, 1.2, 2.02];
        // Of `vmoe_routing`: 1.7, 1.1, 1.2.
        let expected = variation(&[1.7 + 0.9, 1.1 + 1.2, 1.2 + 2.02]);
        let ranks = Rc::new(Other(other)) as Rc<dyn Ranks<F>>;
        assert_close(scalar(among_ranks(ranks, || importance_loss(&vmoe_routing(), VMoe))), expected);
    }

    #[test]
    fn shazeers_importance_sums_the_gates() {
        let probs = matrix([[0.5, 0.4, 0.1], [0.3, 0.3, 0.4], [0.1, 0.2, 0.7]]);
        let experts = Tensor::<F, 2, Int>::from_data([[0i64, 1], [2, 0], [2, 1]], &Default::default());
        let gates = Tensor::from_data([[0.55f32, 0.45], [0.6, 0.4], [0.75, 0.25]], &Default::default());
        let routing = Routing::new(probs.zeros_like(), probs, gates, experts);
        assert_close(scalar(importance_loss(&routing, Shazeer)), variation(&[0.95, 0.7, 1.35]));
    }

    /// `Phi` at 3, 2, 1, -1, -2 and -3.
    const PHI: [f64; 6] =
        [0.998650101968, 0.977249868052, 0.841344746069, 0.158655253931, 0.022750131948, 0.001349898032];

    /// One token with noisy logits 3, 2 and 0, and these without noise, of deviation 1.
    fn noisy_routing<B: MoeBackend>(logits: [f32; 3], k: usize) -> Routing<B> {
        let logits = Tensor::<B, 2>::from_data([logits], &Default::default()).require_grad();
        let noisy =
            logits.clone() + (Tensor::from_data([[3.0f32, 2.0, 0.0]], &Default::default()) - logits.clone().detach());
        let noise = RouterNoise { std: logits.clone().detach().ones_like(), logits: noisy };
        let (gates, experts) = top_k(noise.logits.clone(), k);
        Routing { noise: Some(noise), ..Routing::new(logits.clone(), logits, gates, experts) }
    }

    #[test]
    fn the_threshold_of_an_expert_leaves_it_out_in_shazeers_load_and_not_in_v_moes() {
        let [at_3, at_2, at_1, at_minus_1, at_minus_2, at_minus_3] = PHI;
        let loss = |k, convention| scalar(load_loss(&noisy_routing::<F>([3.0, 2.0, 0.0], k), convention));
        assert_close(loss(1, VMoe), variation(&[0.5, at_minus_1, at_minus_3]));
        assert_close(loss(1, Shazeer), variation(&[at_1, at_minus_1, at_minus_3]));
        assert_close(loss(2, VMoe), variation(&[at_1, 0.5, at_minus_2]));
        assert_close(loss(2, Shazeer), variation(&[at_3, at_2, at_minus_2]));
    }

    /// Who is chosen is a matter of the noisy logits, the distance one of those without noise.
    #[test]
    fn shazeers_load_measures_from_the_logits_without_noise() {
        let loss = scalar(load_loss(&noisy_routing::<F>([1.0, 2.0, 1.0], 1), Shazeer));
        // Thresholds 2, 3 and 3.
        assert_close(loss, variation(&[PHI[3], PHI[3], PHI[4]]));
    }

    #[test]
    fn shazeers_load_of_all_experts_is_even() {
        assert_eq!(scalar(load_loss(&noisy_routing::<F>([3.0, 2.0, 0.0], 3), Shazeer)), 0.0);
    }

    /// Thresholds are noisy logits too: a logit moves its own distance and the thresholds of others.
    #[test]
    fn the_gradient_of_shazeers_load_is_the_slope() {
        const STEP: f64 = 1e-4;
        const OF_STEP: f64 = 1e-6;
        let routing = noisy_routing::<Autodiff<F>>([3.0, 2.0, 0.0], 1);
        let grads = load_loss(&routing, Shazeer).backward();
        let grad: Vec<f64> = routing.logits.grad(&grads).expect("tracked").into_data().iter().collect();
        // The densities at 1, -1 and -3: expert 0 is measured from logit 1, the others from logit 0.
        let at = |x: [f64; 3]| {
            let phi =
                |x: f64, near: f64, value: f64| value + (x - near) * (-near * near / 2.0).exp() / 2.506_628_274_631;
            variation(&[phi(x[0] - x[1], 1.0, PHI[2]), phi(x[1] - x[0], -1.0, PHI[3]), phi(x[2] - x[0], -3.0, PHI[5])])
        };
        for (i, grad) in grad.into_iter().enumerate() {
            let moved = |by: f64| at([0, 1, 2].map(|j| [3.0, 2.0, 0.0][j] + if i == j { by } else { 0.0 }));
            let slope = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
            assert!((grad - slope).abs() < OF_STEP, "logit {i}: {grad} instead of {slope}");
        }
    }
}
