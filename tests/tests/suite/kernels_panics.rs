//! A caller's shape mistake panics with what was expected.

use burn::backend::Flex;
use burn::tensor::{Int, Tensor};
use moe_kernels::{ExpertPlan, combine_rows, dispatch_rows, grouped_matmul, swiglu, top_k};

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
#[should_panic(expected = "odd width, 5")]
fn swiglu_of_an_odd_width_panics() {
    swiglu(ones([2, 5]));
}
