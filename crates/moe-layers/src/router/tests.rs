//! What routers of all kinds refuse.

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::backend::Flex;
use burn::tensor::{Int, Tensor, TensorData};

use super::load::tests::load;
use super::*;
use crate::{BalanceConvention, MoeConfig, load_balance_loss, load_balance_loss_pooled, sequence_balance_loss};

fn config(rule: RouterRule) -> RouterConfig {
    RouterConfig::new(8, 4, 2).with_rule(rule)
}

fn router(rule: RouterRule) -> Router<Flex> {
    config(rule).init(&Default::default())
}

fn hash() -> RouterRule {
    RouterRule::Hash(HashOptions { vocab_size: 5, seed: 0 })
}

fn tokens(count: usize, width: usize) -> Tensor<Flex, 2> {
    Tensor::ones([count, width], &Default::default())
}

/// A panic for every rule that looks at tokens, each with the name of its router; also where there are none.
#[test]
fn tokens_of_another_width_panic() {
    let rules = [
        (RouterRule::TopK, "TopKRouter"),
        (RouterRule::NoisyTopK(NoisyTopKOptions::new()), "NoisyTopKRouter"),
        (RouterRule::Sigmoid(SigmoidOptions::new()), "SigmoidRouter"),
        (RouterRule::Sinkhorn(SinkhornOptions::new()), "SinkhornRouter"),
        (RouterRule::Relu(ReluOptions::new()), "ReluRouter"),
        (RouterRule::ExpertChoice, "ExpertChoiceRouter"),
    ];
    for (rule, name) in rules {
        let router = router(rule);
        for count in [3, 0] {
            let forward = AssertUnwindSafe(|| router.forward(tokens(count, 6)));
            let panic = catch_unwind(forward).expect_err("the width is wrong");
            let message = panic.downcast_ref::<String>().expect("a panic with a message");
            assert_eq!(*message, expected_message(name));
        }
    }
}

fn expected_message(name: &str) -> String {
    format!("assertion `left == right` failed: {name}: tokens [T, D] must have D = 8, got 6\n  left: 6\n right: 8")
}

#[test]
#[should_panic(expected = "top_k = 5 must be in 1..=4")]
fn more_experts_per_token_than_experts_panics() {
    RouterConfig::new(8, 4, 5).with_rule(RouterRule::ExpertChoice).init::<Flex>(&Default::default());
}

#[test]
#[should_panic(expected = "iterations must be at least 1")]
fn no_iteration_panics() {
    router(RouterRule::Sinkhorn(SinkhornOptions::new().with_iterations(0)));
}

#[test]
#[should_panic(expected = "a hash router needs the ids of the tokens")]
fn a_hash_router_without_ids_panics() {
    router(hash()).forward(tokens(3, 8));
}

#[test]
#[should_panic(expected = "index 5 out of bounds for dimension of size 5")]
fn an_id_outside_the_vocabulary_panics() {
    let ids = Tensor::<Flex, 1, Int>::from_data(TensorData::from([5i64]), &Default::default());
    router(hash()).forward_ids(tokens(1, 8), ids);
}

#[test]
#[should_panic(expected = "default vectors have no meaning with a ReLU router")]
fn gates_of_unchosen_experts_panic_where_they_are_zero() {
    let router = router(RouterRule::Relu(ReluOptions::new()));
    router.gates_of_unchosen(&router.forward(tokens(3, 8)));
}

#[test]
#[should_panic(expected = "the load must be of as many experts")]
fn a_load_of_another_layer_panics() {
    router(RouterRule::Sigmoid(SigmoidOptions::new())).absorb(&load(&[1.0, 2.0], 3.0));
}

#[test]
#[should_panic(expected = "7 tokens are not 2 sequences of one length")]
fn a_torn_sequence_panics() {
    sequence_balance_loss(&router(RouterRule::TopK).forward(tokens(7, 8)), 2);
}

#[test]
#[should_panic(expected = "tokens must have K experts each")]
fn a_balance_of_sequences_panics_where_experts_choose() {
    sequence_balance_loss(&router(RouterRule::ExpertChoice).forward(tokens(6, 8)), 2);
}

#[test]
#[should_panic(expected = "this router does not give")]
fn a_layer_with_a_balance_of_sequences_panics_where_experts_choose() {
    let config = MoeConfig::new(8, 4, 4, 2).with_balance(BalanceConvention::Sequence);
    config.with_router(RouterRule::ExpertChoice).init::<Flex>(&Default::default());
}

#[test]
#[should_panic(expected = "needs a router with noise")]
fn a_load_loss_without_noise_panics() {
    MoeConfig::new(8, 4, 4, 2).with_load_coef(0.1).init::<Flex>(&Default::default());
}

/// Two sequences of two tokens by hand: each has `3 * (f P)` summed over three experts.
#[test]
fn the_balance_of_sequences_matches_a_computation_by_hand() {
    const TOLERANCE: f32 = 1e-6;
    let device = Default::default();
    let probs = [[0.5, 0.3, 0.2], [0.6, 0.1, 0.3], [0.1, 0.2, 0.7], [0.2, 0.3, 0.5]];
    let probs = Tensor::<Flex, 2>::from_data(probs, &device);
    let (gates, experts) = moe_kernels::top_k(probs.clone(), 2);
    let routing = Routing::new(probs.zeros_like(), probs, gates, experts);
    // f = (1/2, 1/4, 1/4), P = (0.55, 0.2, 0.25); f = (0, 1/2, 1/2), P = (0.15, 0.25, 0.6).
    let expected = 3.0 * (0.275 + 0.05 + 0.0625 + 0.125 + 0.3) / 2.0;
    let found = sequence_balance_loss(&routing, 2).into_scalar();
    assert!((found - expected).abs() < TOLERANCE, "{found} instead of {expected}");
}

#[test]
#[should_panic(expected = "RouterConfig: top_k = 0 must be in 1..=4")]
fn no_expert_per_token_panics() {
    RouterConfig::new(8, 4, 0).init::<Flex>(&Default::default());
}

#[test]
#[should_panic(expected = "TopKRouter: tokens [T, D] must have D = 8, got 6")]
fn tokens_of_another_width_with_ids_panic() {
    router(RouterRule::TopK).forward_ids(tokens(3, 6), Tensor::zeros([3], &Default::default()));
}

#[test]
#[should_panic(expected = "Router: there must be one id for each token")]
fn a_missing_id_panics() {
    router(hash()).forward_ids(tokens(3, 8), Tensor::zeros([2], &Default::default()));
}

#[test]
#[should_panic(expected = "ReluRouter: the load must be of as many experts")]
fn a_load_of_another_relu_layer_panics() {
    router(RouterRule::Relu(ReluOptions::new())).absorb(&load(&[1.0, 2.0], 3.0));
}

#[test]
#[should_panic(expected = "load_balance_loss_pooled: no layers")]
fn a_pooled_balance_of_no_layers_panics() {
    load_balance_loss_pooled::<Flex>(&[]);
}

#[test]
#[should_panic(expected = "load_balance_loss_pooled: layers differ in their number of experts")]
fn a_pooled_balance_of_layers_with_different_numbers_of_experts_panics() {
    let other = RouterConfig::new(8, 5, 2).init::<Flex>(&Default::default());
    load_balance_loss_pooled(&[router(RouterRule::TopK), other].map(|router| router.forward(tokens(3, 8))));
}

#[test]
#[should_panic(expected = "tokens must have K experts each")]
fn a_balance_in_sequences_panics_where_experts_choose() {
    let routing = router(RouterRule::ExpertChoice).forward(tokens(6, 8));
    load_balance_loss(&routing, BalanceConvention::Sequence);
}

#[test]
#[should_panic(expected = "Router: a hash router needs the ids of the tokens")]
fn a_layer_with_a_hash_router_panics_without_ids() {
    let moe = MoeConfig::new(8, 4, 4, 2).with_router(hash()).init::<Flex>(&Default::default());
    moe.forward(tokens(3, 8));
}

#[test]
#[should_panic(expected = "Router: a hash router needs the ids of the tokens")]
fn a_served_layer_with_a_hash_router_panics() {
    let moe = MoeConfig::new(8, 4, 4, 2).with_router(hash()).init::<Flex>(&Default::default());
    moe.forward_with(tokens(3, 8), |tokens, _| (tokens, ()));
}

#[test]
#[should_panic(expected = "TopKRouter: tokens [T, D] must have D = 8, got 6")]
fn an_input_of_another_width_with_ids_panics() {
    let moe = MoeConfig::new(8, 4, 4, 2).init::<Flex>(&Default::default());
    moe.forward_ids(tokens(3, 6), Tensor::zeros([3], &Default::default()));
}

#[test]
#[should_panic(expected = "expert_ffn: tokens [T, D] and w_in [E, D, C] disagree on D")]
fn an_input_of_another_width_under_a_hash_router_panics() {
    let moe = MoeConfig::new(8, 4, 4, 2).with_router(hash()).init::<Flex>(&Default::default());
    moe.forward_ids(tokens(3, 6), Tensor::zeros([3], &Default::default()));
}

#[test]
#[should_panic(expected = "Router: there must be one id for each token")]
fn a_layer_with_a_hash_router_panics_where_ids_are_missing() {
    let moe = MoeConfig::new(8, 4, 4, 2).with_router(hash()).init::<Flex>(&Default::default());
    moe.forward_ids(tokens(3, 8), Tensor::zeros([2], &Default::default()));
}

fn nobody_else(count: usize) -> Tensor<Flex, 2, Int> {
    Tensor::zeros([count, 2], &Default::default())
}

#[test]
#[should_panic(expected = "Routing: logits and probs must both be [T, E]")]
fn logits_of_another_number_of_experts_panic() {
    Routing::new(tokens(3, 4), tokens(3, 5), tokens(3, 2), nobody_else(3));
}

#[test]
#[should_panic(expected = "Routing: gates and experts must both be [T, K]")]
fn gates_of_another_number_of_choices_panic() {
    Routing::new(tokens(3, 4), tokens(3, 4), tokens(3, 1), nobody_else(3));
}

#[test]
#[should_panic(expected = "Routing: gates [T, K] and probs [T, E] disagree on T")]
fn gates_of_another_number_of_tokens_panic() {
    Routing::new(tokens(2, 4), tokens(2, 4), tokens(3, 2), nobody_else(3));
}

#[test]
#[should_panic(expected = "Routing: gates and experts must both be [T, K]")]
fn gates_of_another_number_of_choices_panic_in_a_partial_decision() {
    Routing::partial(tokens(3, 4), tokens(3, 4), tokens(3, 1), nobody_else(3));
}

#[test]
#[should_panic(expected = "ExpertPlan: num_experts must be at least 1")]
fn a_decision_without_experts_panics() {
    Routing::new(tokens(3, 0), tokens(3, 0), tokens(3, 2), nobody_else(3));
}

#[test]
#[should_panic(expected = "ExpertPlan: num_experts must be at least 1")]
fn a_partial_decision_without_experts_panics() {
    Routing::partial(tokens(3, 0), tokens(3, 0), tokens(3, 2), nobody_else(3));
}
