//! A caller's shape mistake panics with what was expected.

use burn::backend::Flex;
use burn::tensor::{Int, Tensor};
use moe_kernels::{
    Activation, ExpertPlan, FfnWeights, combine_rows, dispatch_rows, expert_ffn, grouped_matmul,
    grouped_matmul_transposed, grouped_outer, swiglu, top_k,
};

fn plan() -> ExpertPlan<Flex> {
    ExpertPlan::new(Tensor::<Flex, 2, Int>::from_data([[0, 1], [2, 0]], &Default::default()), 3)
}

fn ones<const D: usize>(shape: [usize; D]) -> Tensor<Flex, D> {
    Tensor::ones(shape, &Default::default())
}

#[test]
#[should_panic(expected = "expert index 3 is not below num_experts = 3")]
fn an_expert_out_of_range_panics() {
    ExpertPlan::<Flex>::new(Tensor::from_data([[0, 3]], &Default::default()), 3);
}

#[test]
#[should_panic(expected = "k = 4 must be in 1..=3")]
fn top_k_beyond_the_experts_panics() {
    top_k(ones([2, 3]), 4);
}

#[test]
#[should_panic(expected = "disagree on T")]
fn dispatching_another_number_of_tokens_panics() {
    dispatch_rows(ones([3, 4]), &plan());
}

#[test]
#[should_panic(expected = "disagree on R")]
fn combining_another_number_of_rows_panics() {
    combine_rows(ones([3, 4]), ones([2, 2]), &plan());
}

#[test]
#[should_panic(expected = "gates must be [T, K]")]
fn combining_with_gates_of_another_shape_panics() {
    combine_rows(ones([4, 4]), ones([2, 3]), &plan());
}

#[test]
#[should_panic(expected = "disagree on E")]
fn a_weight_for_another_number_of_experts_panics() {
    grouped_matmul(ones([4, 5]), ones([2, 5, 6]), &plan());
}

#[test]
#[should_panic(expected = "disagree on I")]
fn a_weight_of_another_width_panics() {
    grouped_matmul(ones([4, 5]), ones([3, 4, 6]), &plan());
}

#[test]
#[should_panic(expected = "disagree on O")]
fn a_transposed_weight_of_another_width_panics() {
    grouped_matmul_transposed(ones([4, 5]), ones([3, 5, 6]), &plan());
}

#[test]
#[should_panic(expected = "rhs [R, O] and the plan disagree on R")]
fn an_outer_product_of_other_rows_panics() {
    grouped_outer(ones([4, 5]), ones([3, 6]), &plan());
}

#[test]
#[should_panic(expected = "odd width, 5")]
fn swiglu_of_an_odd_width_panics() {
    swiglu(ones([2, 5]));
}

/// Two tokens, three experts, `D = 4`, `F = 5`.
fn weights() -> FfnWeights<Flex> {
    let (w_in, w_out) = (ones([3, 4, 10]), ones([3, 5, 4]));
    FfnWeights { w_in, w_out, b_in: None, b_out: None, activation: Activation::SwiGlu }
}

#[test]
#[should_panic(expected = "tokens [T, D] and the plan disagree on T")]
fn a_feed_forward_of_another_number_of_tokens_panics() {
    expert_ffn(ones([3, 4]), ones([2, 2]), weights(), &plan());
}

#[test]
#[should_panic(expected = "gates must be [T, K]")]
fn a_feed_forward_with_gates_of_another_shape_panics() {
    expert_ffn(ones([2, 4]), ones([2, 3]), weights(), &plan());
}

#[test]
#[should_panic(expected = "disagree on D")]
fn a_feed_forward_of_another_width_panics() {
    expert_ffn(ones([2, 5]), ones([2, 2]), weights(), &plan());
}

#[test]
#[should_panic(expected = "disagree on F")]
fn a_feed_forward_whose_matrices_do_not_meet_panics() {
    expert_ffn(ones([2, 4]), ones([2, 2]), FfnWeights { activation: Activation::Relu, ..weights() }, &plan());
}

#[test]
#[should_panic(expected = "b_in must be [E, C]")]
fn a_bias_of_another_width_panics() {
    expert_ffn(ones([2, 4]), ones([2, 2]), FfnWeights { b_in: Some(ones([3, 5])), ..weights() }, &plan());
}

#[test]
#[should_panic(expected = "disagree on E")]
fn weights_of_other_experts_panic() {
    let (w_in, w_out) = (ones([2, 4, 10]), ones([2, 5, 4]));
    expert_ffn(ones([2, 4]), ones([2, 2]), FfnWeights { w_in, w_out, ..weights() }, &plan());
}
