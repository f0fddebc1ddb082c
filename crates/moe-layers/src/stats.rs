//! What a routing decision looks like in numbers.

use burn::tensor::Tensor;
use moe_kernels::MoeBackend;
use serde::{Deserialize, Serialize};

use crate::Routing;

/// Statistics of one routing decision, on the host. `n_e` is the count of expert `e`, `T` tokens, `E` experts.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct RoutingStats {
    /// Slots that each expert serves, `n_e`: exact, `[E]`; they sum to `T * K` where every slot is served.
    pub expert_counts: Vec<u64>,
    /// `max_e n_e / mean_e n_e`, in `[1, E]`; 1 when balanced, 0 when there are no tokens.
    pub load_ratio: f64,
    /// Experts with `n_e = 0`.
    pub dead_experts: usize,
    /// `-sum_e q_e ln q_e / ln E` with `q_e = n_e / sum n`, in `[0, 1]`; 1 when balanced, and for `E = 1`.
    pub load_entropy: f64,
    /// `-(1 / T) sum_t sum_e p_te ln p_te`, nats, in `[0, ln E]`: how undecided the router is about a token.
    pub router_entropy: f64,
    /// `(1 / T) sum_t sum_k p_{t, e_tk}`, in `[K / E, 1]`: the probability that the chosen experts hold, before any
    /// renormalisation.
    pub gate_mass: f64,
    /// Share of the chosen slots that a capacity dropped, in `[0, 1]`; 0 without a capacity.
    #[serde(default)]
    pub drop_rate: f64,
}

impl RoutingStats {
    /// Reads the statistics of `routing` from its device.
    pub fn from_routing<B: MoeBackend>(routing: &Routing<B>) -> Self {
        let counts: Vec<u64> = routing.counts().into_data().iter::<i64>().map(|n| n as u64).collect();
        let [router_entropy, gate_mass] = means_over_tokens(routing);
        let drop_rate = drop_rate(routing, counts.iter().sum());
        Self { router_entropy, gate_mass, drop_rate, ..Self::from_counts(counts) }
    }

    /// The part that follows from the counts; the rest is 0.
    pub fn from_counts(expert_counts: Vec<u64>) -> Self {
        let total: u64 = expert_counts.iter().sum();
        let mean = total as f64 / expert_counts.len().max(1) as f64;
        let max = expert_counts.iter().copied().max().unwrap_or(0) as f64;
        Self {
            load_ratio: if total == 0 { 0.0 } else { max / mean },
            dead_experts: expert_counts.iter().filter(|&&n| n == 0).count(),
            load_entropy: normalized_entropy(&expert_counts),
            router_entropy: 0.0,
            gate_mass: 0.0,
            drop_rate: 0.0,
            expert_counts,
        }
    }
}

fn normalized_entropy(counts: &[u64]) -> f64 {
    let total: u64 = counts.iter().sum();
    match (counts.len(), total) {
        (_, 0) => 0.0,
        (1, _) => 1.0,
        _ => {
            let share = |n: u64| n as f64 / total as f64;
            let nats: f64 = counts.iter().filter(|&&n| n > 0).map(|&n| -share(n) * share(n).ln()).sum();
            nats / (counts.len() as f64).ln()
        }
    }
}

fn drop_rate<B: MoeBackend>(routing: &Routing<B>, served: u64) -> f64 {
    let Some(chosen) = &routing.before_capacity else { return 0.0 };
    let chosen: i64 = chosen.to_data().iter::<i64>().sum();
    if chosen == 0 { 0.0 } else { 1.0 - served as f64 / chosen as f64 }
}

/// Router entropy and gate mass, in one read.
fn means_over_tokens<B: MoeBackend>(routing: &Routing<B>) -> [f64; 2] {
    let tokens = routing.num_tokens();
    if tokens == 0 {
        return [0.0; 2];
    }
    let probs = routing.probs.clone().detach();
    // A column for the slots of nobody.
    let nobodys = Tensor::zeros([tokens, 1], (&probs.device(), probs.dtype()));
    let mass = Tensor::cat(vec![probs.clone(), nobodys], 1).gather(1, routing.experts.clone()).sum();
    // The clamp only turns 0 * ln 0 into 0.
    let entropy = (probs.clone() * probs.clamp_min(f32::MIN_POSITIVE).log()).sum().neg();
    let sums: Vec<f64> = Tensor::cat(vec![entropy, mass], 0).into_data().iter::<f64>().collect();
    [sums[0] / tokens as f64, sums[1] / tokens as f64]
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLERANCE: f64 = 1e-12;

    #[test]
    fn a_balanced_load_has_ratio_and_entropy_one() {
        let stats = RoutingStats::from_counts(vec![5; 4]);
        assert_eq!((stats.load_ratio, stats.dead_experts), (1.0, 0));
        assert!((stats.load_entropy - 1.0).abs() < TOLERANCE);
    }

    #[test]
    fn one_expert_that_owns_all_has_ratio_e_and_entropy_zero() {
        let stats = RoutingStats::from_counts(vec![0, 8, 0, 0]);
        assert_eq!((stats.load_ratio, stats.dead_experts, stats.load_entropy), (4.0, 3, 0.0));
    }

    #[test]
    fn a_skewed_load_matches_the_formula_by_hand() {
        let stats = RoutingStats::from_counts(vec![3, 1]);
        let by_hand = -(0.75f64 * 0.75f64.ln() + 0.25 * 0.25f64.ln()) / 2f64.ln();
        assert_eq!(stats.load_ratio, 1.5);
        assert!((stats.load_entropy - by_hand).abs() < TOLERANCE);
    }

    #[test]
    fn no_tokens_give_zeros_not_nan() {
        let stats = RoutingStats::from_counts(vec![0, 0]);
        assert_eq!((stats.load_ratio, stats.dead_experts, stats.load_entropy), (0.0, 2, 0.0));
    }
}
