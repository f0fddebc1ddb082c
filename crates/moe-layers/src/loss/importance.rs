//! Importance and load: how unevenly experts are weighed, and how unevenly they would be chosen
//! ([Shazeer et al., 2017](https://arxiv.org/abs/1701.06538), eq. 6 to 11; in the form of V-MoE,
//! [Riquelme et al., 2021](https://arxiv.org/abs/2106.05974), appendix A).

use std::f64::consts::SQRT_2;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use moe_kernels::{MoeBackend, linear, sum_dim, top_k};

use super::zero;
use crate::Routing;
use crate::ranks::with_mean_over_ranks;
use crate::router::scores::TINY;

/// `(std / mean)^2` over the experts of the sums of [`probs`](Routing::probs) over the tokens, `[1]`, f32; 0 when even, and for an empty
/// batch. The variance is that of the `E` numbers themselves, not an estimate.
pub fn importance_loss<B: MoeBackend>(routing: &Routing<B>) -> Tensor<B, 1> {
    if routing.num_tokens() == 0 {
        return zero(routing);
    }
    squared_variation(with_mean_over_ranks(sum_dim(routing.probs.clone(), 0).squeeze_dim(0)))
}

/// `(std / mean)^2` over the experts of their mean probability to be among the `K` best if the noise of each were drawn once more,
/// `[1]`, f32; 0 when even, for an empty batch, and for a decision without noise, whose choice has no gradient.
///
/// That probability is `Phi((logit_te - threshold_t) / sigma_te)` with the `K`-th largest noisy logit of a token as its threshold (V-MoE;
/// Shazeer leaves out the expert itself).
///
/// The deviation must be above zero: noise of none decides nothing.
pub fn load_loss<B: MoeBackend>(routing: &Routing<B>) -> Tensor<B, 1> {
    let Some(noise) = routing.noise.as_ref().filter(|_| routing.num_tokens() > 0) else { return zero(routing) };
    let (tokens, experts, k) = (routing.num_tokens(), routing.num_experts(), routing.top_k());
    let (best, _) = top_k(noise.logits.clone(), k);
    let threshold = best.slice([0..tokens, k - 1..k]);
    // A product, so that its gradient is one too.
    let ones = Tensor::ones([1, experts], (&threshold.device(), threshold.dtype()));
    let distance = (routing.logits.clone() - linear(threshold, ones)) / (noise.std.clone() * SQRT_2);
    let probability = (distance.erf() + 1.0) * 0.5;
    squared_variation(with_mean_over_ranks(sum_dim(probability, 0).squeeze_dim(0)))
}

/// `(std / mean)^2` of `[E]`, as `[1]`: the same for all multiples of the numbers; 0 where all are.
fn squared_variation<B: Backend>(x: Tensor<B, 1>) -> Tensor<B, 1> {
    let count = x.dims()[0] as f64;
    let mean_square = x.clone().powi_scalar(2).sum() / count;
    let squared_mean = (x.sum() / count).powi_scalar(2);
    (mean_square - squared_mean.clone()) / (squared_mean + TINY)
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::tensor::Int;

    use super::*;
    use crate::routing::RouterNoise;
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
        assert!((scalar(importance_loss(&vmoe_routing())) - 0.03874999).abs() < TOLERANCE);
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
        let loss = scalar(load_loss(&routing));
        assert!((loss - 0.485_738_645).abs() < TOLERANCE, "{loss}");
    }

    #[test]
    fn a_decision_without_noise_or_tokens_costs_nothing() {
        assert_eq!(scalar(load_loss(&vmoe_routing())), 0.0);
        let empty = Routing::<F>::empty(3, 2, burn::tensor::DType::F32, &Default::default());
        assert_eq!([scalar(load_loss(&empty)), scalar(importance_loss(&empty))], [0.0; 2]);
    }

    #[test]
    fn even_probabilities_have_no_importance_loss() {
        const TOLERANCE: f64 = 1e-6;
        let probs = matrix([[0.2, 0.3, 0.5], [0.3, 0.5, 0.2], [0.5, 0.2, 0.3]]);
        let experts = Tensor::<F, 2, Int>::from_data([[2i64], [1], [0]], &Default::default());
        let gates = Tensor::full([3, 1], 0.5, &Default::default());
        let loss = importance_loss(&Routing::new(probs.zeros_like(), probs, gates, experts));
        assert!(scalar(loss).abs() < TOLERANCE);
    }
}
