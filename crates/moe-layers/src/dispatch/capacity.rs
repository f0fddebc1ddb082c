//! A capacity for every expert: slots beyond it are dropped, and their token goes without that expert.

use burn::config::Config;
use burn::tensor::{Int, Tensor, TensorData};
use moe_kernels::{ExpertPlan, MoeBackend, top_k};
use serde::{Deserialize, Serialize};

use crate::Routing;

/// Who is served first, and so who is dropped when an expert is full. Of equal gates the earlier token's comes first.
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

/// How many slots an expert serves at most: those beyond are dropped, and their token goes without that expert
/// ([Lepikhin et al., 2020](https://arxiv.org/abs/2006.16668); [Fedus et al., 2021](https://arxiv.org/abs/2101.03961)).
///
/// Nothing here needs it: dispatch is dropless, and an expert may serve any number of tokens. A capacity bounds the work and the
/// memory of the busiest expert, and what published models were trained with can be reproduced.
///
/// **Not for causal models** unless the policy is [`Position`](DropPolicy::Position) and `K` is 1: whether a slot is dropped depends on other
/// tokens of the batch, otherwise also on later ones of its own sequence. The policies that rank gates read them and sort on the host, once a
/// layer.
#[derive(Config, Debug, PartialEq)]
pub struct Capacity {
    /// Times the even load: an expert serves at most `ceil(T * K / E * factor)` slots.
    pub factor: f64,
    /// Who is dropped. Default: position
    #[config(default = "DropPolicy::Position")]
    pub policy: DropPolicy,
}

impl Capacity {
    /// Slots that an expert serves at most: at least 1, and otherwise no more than there are.
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
        let slots = num_tokens * top_k;
        // The even load first, as Megatron-LM: 1.1 times 100 slots of 10 experts is 11, and 1.1 * 100 is above 110.
        let most = (slots as f64 / num_experts as f64 * factor).ceil() as usize;
        most.min(slots).max(1)
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
                let [order, places] = descending(gates.reshape([tokens * k]));
                let experts = routing.experts.clone().reshape([tokens * k]).select(0, order);
                let ranks = by_position(experts.reshape([tokens * k, 1]), routing.num_experts());
                ranks.select(0, places).reshape([tokens, k])
            }
            DropPolicy::BatchPriority => {
                let [order, places] = descending(top_k(gates, 1).0.reshape([tokens]));
                let experts = routing.experts.clone().select(0, order);
                by_position(experts, routing.num_experts()).select(0, places)
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

/// The indices of `gates` `[N]` from the largest gate to the smallest, the lower index first among equals, and the place of each index
/// in that order. On the host: burn's `argsort` reads there too, and leaves the order of equals open.
fn descending<B: MoeBackend>(gates: Tensor<B, 1>) -> [Tensor<B, 1, Int>; 2] {
    let device = gates.device();
    let gates: Vec<f64> = gates.into_data().iter().collect();
    let mut order: Vec<i32> = (0..gates.len() as i32).collect();
    order.sort_by(|&a, &b| gates[b as usize].total_cmp(&gates[a as usize]));
    let mut places = vec![0; order.len()];
    for (place, &index) in order.iter().enumerate() {
        places[index as usize] = place as i32;
    }
    [order, places].map(|indices| Tensor::from_data(TensorData::new(indices, [gates.len()]), &device))
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;

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
            for factor in [3.0, 5e6, 5e8, 1e30, f64::MAX] {
                assert_eq!(kept(policy, factor), [true; 8], "{policy:?}, {factor}");
            }
        }
    }

    #[test]
    fn a_capacity_is_that_many_even_loads_and_not_one_more_by_rounding() {
        assert_eq!(Capacity::new(1.1).slots(50, 2, 10), 11);
        assert_eq!(Capacity::new(1.25).slots(50, 2, 10), 13);
        assert_eq!(Capacity::new(1e30).slots(50, 2, 10), 100);
        assert_eq!(Capacity::new(1e-30).slots(50, 2, 10), 1);
    }

    /// Every gate is the same, as a hash router's and normalised ones where `K` is 1.
    #[test]
    fn of_equal_gates_the_earlier_tokens_are_served() {
        let (device, tokens, k) = (Default::default(), 96, 2);
        let experts: Vec<i64> = (0..tokens).flat_map(|t| [t % 3, (t + 1) % 3]).collect();
        let experts = Tensor::<Flex, 1, Int>::from_data(TensorData::from(experts.as_slice()), &device).reshape([96, k]);
        let (gates, probs) = (Tensor::full([96, k], 0.5, &device), Tensor::full([96, 3], 1.0 / 3.0, &device));
        let routing = Routing::new(probs.zeros_like(), probs, gates, experts);
        for (policy, last) in [(DropPolicy::Probability, [48; 2]), (DropPolicy::BatchPriority, [96, 0])] {
            let capped = Capacity::new(0.5).with_policy(policy).apply(routing.clone(), k);
            let gates: Vec<f32> = capped.gates.to_data().to_vec().expect("f32");
            let expected = (0..96 * k).map(|slot| slot / k < last[slot % k]);
            assert!(gates.iter().map(|&gate| gate > 0.0).eq(expected), "{policy:?}: {gates:?}");
        }
    }

    /// Two gates in turn, which a sort that is not stable mixes up. The larger ones fit, of the smaller ones a part.
    #[test]
    fn of_equal_gates_among_others_the_earlier_tokens_are_served() {
        let (device, tokens) = (Default::default(), 200);
        let gate = |t: usize| if t * t % 7 < 2 { 0.75f32 } else { 0.5 };
        let (experts, gates) = ((0..tokens).map(|t| t as i64 % 3).collect(), (0..tokens).map(gate).collect());
        let experts = Tensor::<Flex, 2, Int>::from_data(TensorData::new::<i64, _>(experts, [tokens, 1]), &device);
        let gates = Tensor::from_data(TensorData::new::<f32, _>(gates, [tokens, 1]), &device);
        let probs = Tensor::full([tokens, 3], 1.0 / 3.0, &device);
        let routing = Routing::new(probs.zeros_like(), probs, gates, experts);

        let (mut left, mut expected) = ([34; 3], vec![false; tokens]);
        for level in [0.75, 0.5] {
            for t in (0..tokens).filter(|&t| gate(t) == level) {
                expected[t] = left[t % 3] > 0;
                left[t % 3] -= i32::from(expected[t]);
            }
        }
        for policy in [DropPolicy::Probability, DropPolicy::BatchPriority] {
            let capped = Capacity::new(0.5).with_policy(policy).apply(routing.clone(), 1);
            let gates: Vec<f32> = capped.gates.to_data().to_vec().expect("f32");
            assert_eq!(gates.iter().map(|&gate| gate > 0.0).collect::<Vec<_>>(), expected, "{policy:?}");
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
