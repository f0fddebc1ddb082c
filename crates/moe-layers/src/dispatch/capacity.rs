//! A capacity for every expert: slots beyond it are dropped, and their token goes without that expert
//! ([Lepikhin et al., 2020](https://arxiv.org/abs/2006.16668); [Fedus et al., 2021](https://arxiv.org/abs/2101.03961)).
//!
//! Nothing here needs it: dispatch is dropless, and an expert may serve any number of tokens. A capacity bounds the work and the
//! memory of the busiest expert, and what published models were trained with can be reproduced.
//!
//! Whether a slot is dropped depends on other tokens of the batch, also on later ones of its own sequence, unless the policy is
//! [`Position`](DropPolicy::Position) and `K` is 1. The policies that rank gates sort with burn's `argsort`, which reads them on the host on
//! every backend, twice a layer; equal gates come in no particular order there.

use burn::config::Config;
use burn::tensor::{Int, Tensor};
use moe_kernels::{ExpertPlan, MoeBackend, top_k};
use serde::{Deserialize, Serialize};

use crate::Routing;

/// Who is served first, and so who is dropped when an expert is full.
///
/// In text `"position"`, `"probability"`, `"batch-priority"`.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum DropPolicy {
    /// The first choices of all tokens in their order, then all second choices, and so on (GShard, Switch).
    #[default]
    Position,
    /// The slots with the largest gates (Megatron-LM's `probs`).
    Probability,
    /// As by position, but tokens in the order of their largest gate
    /// (batch-priority routing, [Riquelme et al., 2021](https://arxiv.org/abs/2106.05974), section 4).
    BatchPriority,
}

/// How many slots an expert serves at most.
#[derive(Config, Debug, PartialEq)]
pub struct Capacity {
    /// Times the even load: an expert serves at most `ceil(factor * T * K / E)` slots.
    pub factor: f64,
    /// Who is dropped. Default: position
    #[config(default = "DropPolicy::Position")]
    pub policy: DropPolicy,
}

impl Capacity {
    /// Slots that an expert serves at most, at least 1.
    ///
    /// # Panics
    ///
    /// Panics unless the factor is above 0 and finite.
    pub fn slots(&self, num_tokens: usize, top_k: usize, num_experts: usize) -> usize {
        let factor = self.factor;
        assert!(
            factor > 0.0 && factor.is_finite(),
            "Capacity: the factor must be a finite number above 0, got {factor}"
        );
        ((factor * (num_tokens * top_k) as f64 / num_experts as f64).ceil() as usize).max(1)
    }

    /// The same decision with the slots dropped that are beyond the capacity of their expert: nobody serves them, and their
    /// gates are zero. [`experts`](Routing::experts) stays as it is.
    ///
    /// The other gates stay too: those of a token then may sum to less than before.
    ///
    /// `top_k` is how many experts a token has, on average where their number varies.
    ///
    /// # Panics
    ///
    /// As [`slots`](Self::slots), unless there are no tokens.
    pub fn apply<B: MoeBackend>(&self, routing: Routing<B>, top_k: usize) -> Routing<B> {
        let (tokens, experts) = (routing.num_tokens(), routing.num_experts());
        if tokens == 0 {
            return routing;
        }
        let dropped = self.ranks(&routing).greater_equal_elem(self.slots(tokens, top_k, experts) as i64);
        let served = routing.experts.clone().mask_fill(dropped.clone(), experts as i64);
        Routing {
            plan: ExpertPlan::partial(served, experts),
            gates: routing.gates.clone().mask_fill(dropped, 0.0),
            before_capacity: Some(routing.demand()),
            ..routing
        }
    }

    /// For every slot, how many of its expert come before it, `[T, K]`.
    fn ranks<B: MoeBackend>(&self, routing: &Routing<B>) -> Tensor<B, 2, Int> {
        let [tokens, k] = routing.experts.dims();
        let gates = routing.gates.clone().detach();
        match self.policy {
            DropPolicy::Position => by_position(routing.experts.clone(), routing.num_experts()),
            DropPolicy::Probability => {
                let order = gates.reshape([tokens * k]).argsort_descending(0);
                let experts = routing.experts.clone().reshape([tokens * k]).select(0, order.clone());
                let ranks = by_position(experts.reshape([tokens * k, 1]), routing.num_experts());
                ranks.select(0, order.argsort(0)).reshape([tokens, k])
            }
            DropPolicy::BatchPriority => {
                let order = top_k(gates, 1).0.reshape([tokens]).argsort_descending(0);
                let experts = routing.experts.clone().select(0, order.clone());
                by_position(experts, routing.num_experts()).select(0, order.argsort(0))
            }
        }
    }
}

/// For each slot of `experts` `[T, K]`, how many slots of its expert come before it when all first choices come before all second
/// ones, `[T, K]`: a counting sort says where a slot stands among all, and where those of its expert begin.
fn by_position<B: MoeBackend>(experts: Tensor<B, 2, Int>, num_experts: usize) -> Tensor<B, 2, Int> {
    let [tokens, k] = experts.dims();
    let choices = experts.transpose().reshape([tokens * k, 1]);
    // Slots of nobody are an expert more.
    let plan = ExpertPlan::new(choices.clone(), num_experts + 1);
    let begins = plan.offsets().select(0, choices.reshape([tokens * k]));
    (plan.row_of_slot() - begins).reshape([k, tokens]).transpose()
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::tensor::TensorData;

    use super::*;
    use crate::RoutingStats;

    /// Four tokens, `K = 2`, `E = 3`.
    fn routing() -> Routing<Flex> {
        let device = Default::default();
        let experts = Tensor::from_data([[0i64, 1], [0, 2], [1, 0], [0, 1]], &device);
        let gates = Tensor::from_data([[0.5f32, 0.3], [0.6, 0.4], [0.7, 0.1], [0.9, 0.2]], &device);
        let probs = Tensor::full([4, 3], 1.0 / 3.0, &device);
        Routing::new(probs.zeros_like(), probs, gates, experts)
    }

    fn kept(policy: DropPolicy, factor: f64) -> Vec<bool> {
        let routing = Capacity::new(factor).with_policy(policy).apply(routing(), 2);
        let gates: Vec<f32> = routing.gates.to_data().to_vec().expect("f32");
        let served: i64 = routing.counts().into_data().iter::<i64>().sum();
        assert_eq!(served as usize, gates.iter().filter(|&&gate| gate > 0.0).count());
        gates.into_iter().map(|gate| gate > 0.0).collect()
    }

    /// Capacity 2 each. Expert 0 is chosen by tokens 0, 1 and 3 first and by 2 second; expert 1 by 2 first, by 0 and 3 second.
    #[test]
    fn position_serves_first_choices_first_and_earlier_tokens_first() {
        assert_eq!(Capacity::new(0.75).slots(4, 2, 3), 2);
        let expected = [true, true, true, true, true, false, false, false];
        assert_eq!(kept(DropPolicy::Position, 0.75), expected);
    }

    /// Gates of expert 0: .5, .6, .1, .9; of expert 1: .3, .7, .2.
    #[test]
    fn probability_serves_the_largest_gates() {
        let expected = [false, true, true, true, true, false, true, false];
        assert_eq!(kept(DropPolicy::Probability, 0.75), expected);
    }

    /// Tokens in the order 3, 2, 1, 0.
    #[test]
    fn batch_priority_serves_the_surest_tokens_first() {
        let expected = [false, false, true, true, true, false, true, true];
        assert_eq!(kept(DropPolicy::BatchPriority, 0.75), expected);
    }

    #[test]
    fn a_capacity_that_is_large_enough_drops_nothing() {
        for policy in [DropPolicy::Position, DropPolicy::Probability, DropPolicy::BatchPriority] {
            assert_eq!(kept(policy, 3.0), [true; 8]);
        }
    }

    #[test]
    fn statistics_show_what_was_dropped() {
        let stats = RoutingStats::from_routing(&Capacity::new(0.75).apply(routing(), 2));
        assert_eq!(stats.expert_counts, [2, 2, 1]);
        assert_eq!(stats.drop_rate, 1.0 - 5.0 / 8.0);
        assert_eq!(RoutingStats::from_routing(&routing()).drop_rate, 0.0);
    }

    #[test]
    fn random_decisions_match_a_loop_over_slots() {
        let (tokens, k, experts) = (37, 3, 5);
        let device = Default::default();
        let scores = Tensor::<Flex, 2>::random([tokens, experts], burn::tensor::Distribution::Default, &device);
        let (gates, chosen) = moe_kernels::top_k(scores.clone(), k);
        let routing = Routing::new(scores.zeros_like(), scores, gates, chosen.clone());
        let capped = Capacity::new(0.8).apply(routing, k);
        let chosen: Vec<usize> = chosen.into_data().iter::<i64>().map(|e| e as usize).collect();
        let (mut load, mut expected) = (vec![0; experts], vec![0u64; experts]);
        let most = (0.8f64 * (tokens * k) as f64 / experts as f64).ceil() as usize;
        let mut kept = vec![false; tokens * k];
        for choice in 0..k {
            for token in 0..tokens {
                let slot = token * k + choice;
                load[chosen[slot]] += 1;
                kept[slot] = load[chosen[slot]] <= most;
                expected[chosen[slot]] += u64::from(kept[slot]);
            }
        }
        let gates = capped.gates.to_data().to_vec::<f32>().expect("f32");
        assert_eq!(gates.iter().map(|&gate| gate > 0.0).collect::<Vec<_>>(), kept);
        assert_eq!(RoutingStats::from_routing(&capped).expert_counts, expected);
    }

    #[test]
    #[should_panic(expected = "above 0, got 0")]
    fn no_capacity_panics() {
        Capacity::new(0.0).apply(routing(), 2);
    }

    #[test]
    fn nobody_stays_nobody() {
        let device = Default::default();
        let experts = Tensor::from_data(TensorData::new(vec![0i64, 2, 0, 1], [2, 2]), &device);
        let gates = Tensor::from_data([[0.5f32, 0.0], [0.6, 0.4]], &device);
        let probs = Tensor::<Flex, 2>::full([2, 2], 0.5, &device);
        let routing = Routing::partial(probs.zeros_like(), probs, gates, experts);
        let capped = Capacity::new(0.5).apply(routing, 2);
        assert_eq!(capped.counts().into_data().iter::<i64>().collect::<Vec<_>>(), [1, 1]);
    }

    #[test]
    #[should_panic(expected = "above 0, got inf")]
    fn an_infinite_capacity_panics() {
        Capacity::new(f64::INFINITY).apply(routing(), 2);
    }
}
