//! A caller's shape mistake panics with what was expected.

use burn::backend::Flex;
use burn::tensor::{DType, Int, Tensor};
use moe_kernels::{
    Activation, ExpertPlan, FfnWeights, chosen, combine_rows, dispatch_rows, expert_ffn, expert_ffn_summing,
    grouped_matmul, grouped_matmul_transposed, grouped_outer, swiglu, top_k, unchosen,
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
#[should_panic(expected = "expert index 4 is not below num_experts = 4")]
fn an_expert_beyond_nobody_panics() {
    ExpertPlan::<Flex>::partial(Tensor::from_data([[3, 4]], &Default::default()), 3);
}

#[test]
#[should_panic(expected = "chosen: scores [T, E] and indices [T, K] disagree on T")]
fn choosing_for_another_number_of_tokens_panics() {
    chosen(ones([3, 4]), Tensor::zeros([2, 1], &Default::default()));
}

#[test]
#[should_panic(expected = "unchosen: scores [T, E] and indices [T, K] disagree on T")]
fn leaving_out_for_another_number_of_tokens_panics() {
    unchosen(ones([3, 4]), Tensor::zeros([2, 1], &Default::default()));
}

#[test]
#[should_panic(expected = "experts [T, K] must have K of at least 1, got [2, 0]")]
fn a_plan_without_choices_panics() {
    ExpertPlan::<Flex>::new(Tensor::zeros([2, 0], &Default::default()), 3);
}

#[test]
#[should_panic(expected = "num_experts must be at least 1")]
fn a_plan_without_experts_panics() {
    ExpertPlan::<Flex>::new(Tensor::zeros([0, 2], &Default::default()), 0);
}

/// One number, seen `2^31` times.
#[test]
#[should_panic(expected = "T * K = 2147483648 slots are more than the 2147483647 that an index holds")]
fn a_plan_of_more_slots_than_an_index_holds_panics() {
    let experts = Tensor::<Flex, 2, Int>::zeros([1, 1], &Default::default());
    ExpertPlan::new(experts.expand([1 << 30, 2]), 3);
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

#[test]
#[should_panic(expected = "linear: x [T, I] and weight [I, O] disagree on I")]
fn a_matrix_of_another_width_panics() {
    moe_kernels::linear(ones([2, 5]), ones([4, 5]));
}

#[test]
#[should_panic(expected = "linear_transposed: x [T, I] and weight [O, I] disagree on I")]
fn linear_transposed_of_another_width_panics() {
    moe_kernels::linear_transposed(ones([2, 5]), ones([5, 4]));
}

#[test]
#[should_panic(expected = "linear_transposed: x and weight must be of one dtype")]
fn linear_transposed_of_another_type_panics() {
    moe_kernels::linear_transposed(ones([2, 5]), ones([4, 5]).cast(burn::tensor::DType::BF16));
}

#[test]
#[should_panic(expected = "linear: x and weight must be of one dtype")]
fn a_matrix_of_another_dtype_panics() {
    moe_kernels::linear(ones([2, 5]), ones([5, 4]).cast(burn::tensor::DType::BF16));
}

#[test]
#[should_panic(expected = "linear_onto: x [T, I] and weight [I, O] disagree on I")]
fn linear_onto_of_another_width_panics() {
    moe_kernels::linear_onto(ones([2, 4]), ones([2, 5]), ones([4, 4]));
}

#[test]
#[should_panic(expected = "linear_onto: base must be [T, O]")]
fn linear_onto_something_of_another_shape_panics() {
    moe_kernels::linear_onto(ones([4, 2]), ones([2, 5]), ones([5, 4]));
}

#[test]
#[should_panic(expected = "linear_onto: base, x and weight must be of one dtype")]
fn linear_onto_something_of_another_dtype_panics() {
    moe_kernels::linear_onto(ones([2, 4]).cast(burn::tensor::DType::BF16), ones([2, 5]), ones([5, 4]));
}

fn half<const D: usize>(shape: [usize; D]) -> Tensor<Flex, D> {
    ones(shape).cast(DType::BF16)
}

#[test]
#[should_panic(expected = "grouped_matmul: rows and weight must have one dtype, got [F32, BF16]")]
fn a_weight_of_another_dtype_panics() {
    grouped_matmul(ones([4, 5]), half([3, 5, 6]), &plan());
}

#[test]
#[should_panic(expected = "grouped_matmul_transposed: rows and weight must have one dtype, got [BF16, F32]")]
fn a_transposed_weight_of_another_dtype_panics() {
    grouped_matmul_transposed(half([4, 6]), ones([3, 5, 6]), &plan());
}

#[test]
#[should_panic(expected = "grouped_outer: lhs and rhs must have one dtype, got [F32, BF16]")]
fn an_outer_product_of_two_dtypes_panics() {
    grouped_outer(ones([4, 5]), half([4, 6]), &plan());
}

#[test]
#[should_panic(expected = "combine_rows: rows and gates must have one dtype, got [BF16, F32]")]
fn combining_with_gates_of_another_dtype_panics() {
    combine_rows(half([4, 4]), ones([2, 2]), &plan());
}

#[test]
#[should_panic(expected = "expert_ffn: tokens and gates must have one dtype, got [F32, BF16]")]
fn a_feed_forward_with_gates_of_another_dtype_panics() {
    expert_ffn(ones([2, 4]), half([2, 2]), weights(), &plan());
}

#[test]
#[should_panic(expected = "expert_ffn: tokens and w_out must have one dtype, got [F32, BF16]")]
fn a_feed_forward_with_a_matrix_of_another_dtype_panics() {
    expert_ffn(ones([2, 4]), ones([2, 2]), FfnWeights { w_out: half([3, 5, 4]), ..weights() }, &plan());
}

#[test]
#[should_panic(expected = "expert_ffn: tokens and b_out must have one dtype, got [F32, BF16]")]
fn a_bias_of_another_dtype_panics() {
    expert_ffn(ones([2, 4]), ones([2, 2]), FfnWeights { b_out: Some(half([3, 4])), ..weights() }, &plan());
}

#[test]
#[should_panic(expected = "dispatch_rows: tokens [T, D] must have a width")]
fn dispatching_rows_without_width_panics() {
    dispatch_rows(ones([2, 0]), &plan());
}

#[test]
#[should_panic(expected = "combine_rows: rows [R, D] must have a width")]
fn combining_rows_without_width_panics() {
    combine_rows(ones([4, 0]), ones([2, 2]), &plan());
}

#[test]
#[should_panic(expected = "grouped_matmul: weight [E, I, O] must have I and O of at least 1, got [3, 5, 0]")]
fn a_weight_without_columns_panics() {
    grouped_matmul(ones([4, 5]), ones([3, 5, 0]), &plan());
}

#[test]
#[should_panic(expected = "grouped_matmul_transposed: weight [E, I, O] must have I and O of at least 1, got [3, 0, 5]")]
fn a_transposed_weight_without_rows_panics() {
    grouped_matmul_transposed(ones([4, 5]), ones([3, 0, 5]), &plan());
}

#[test]
#[should_panic(expected = "grouped_outer: lhs [R, I] and rhs [R, O] must have a width, got 5 and 0")]
fn an_outer_product_without_columns_panics() {
    grouped_outer(ones([4, 5]), ones([4, 0]), &plan());
}

#[test]
#[should_panic(expected = "swiglu: the input [R, 2F] must have a width")]
fn swiglu_without_columns_panics() {
    swiglu(ones([2, 0]));
}

#[test]
#[should_panic(expected = "expert_ffn: D and F must be at least 1, got 0 and 5")]
fn a_feed_forward_of_tokens_without_width_panics() {
    let weights = FfnWeights { w_in: ones([3, 0, 10]), w_out: ones([3, 5, 0]), ..weights() };
    expert_ffn(ones([2, 0]), ones([2, 2]), weights, &plan());
}

#[test]
#[should_panic(expected = "expert_ffn: D and F must be at least 1, got 4 and 0")]
fn a_feed_forward_of_experts_without_width_panics() {
    let weights = FfnWeights { w_in: ones([3, 4, 0]), w_out: ones([3, 0, 4]), ..weights() };
    expert_ffn(ones([2, 4]), ones([2, 2]), weights, &plan());
}

#[test]
#[should_panic(expected = "expert_ffn_summing: tokens [T, D] and the plan disagree on T")]
fn summing_over_another_number_of_tokens_panics() {
    expert_ffn_summing(ones([3, 4]), ones([2, 2]), ones([2, 2]), weights(), &plan());
}

#[test]
#[should_panic(expected = "grouped_matmul: weight [E, I, O] must have I and O of at least 1, got [3, 0, 6]")]
fn a_weight_without_rows_panics() {
    grouped_matmul(ones([4, 0]), ones([3, 0, 6]), &plan());
}

#[test]
#[should_panic(expected = "grouped_matmul_transposed: rows [R, O] and the plan disagree on R = T * K")]
fn a_transposed_product_of_other_rows_panics() {
    grouped_matmul_transposed(ones([3, 6]), ones([3, 5, 6]), &plan());
}

#[test]
#[should_panic(expected = "grouped_matmul_transposed: weight [E, I, O] and the plan disagree on E")]
fn a_transposed_weight_for_another_number_of_experts_panics() {
    grouped_matmul_transposed(ones([4, 6]), ones([2, 5, 6]), &plan());
}

#[test]
#[should_panic(expected = "grouped_matmul_transposed: weight [E, I, O] must have I and O of at least 1, got [3, 5, 0]")]
fn a_transposed_weight_without_columns_panics() {
    grouped_matmul_transposed(ones([4, 0]), ones([3, 5, 0]), &plan());
}

#[test]
#[should_panic(expected = "grouped_outer: lhs [R, I] and rhs [R, O] must have a width, got 0 and 6")]
fn an_outer_product_without_rows_panics() {
    grouped_outer(ones([4, 0]), ones([4, 6]), &plan());
}

#[test]
#[should_panic(expected = "ExpertPlan: num_experts must be at least 1")]
fn a_partial_plan_without_experts_panics() {
    ExpertPlan::<Flex>::partial(Tensor::zeros([2, 1], &Default::default()), 0);
}

#[test]
#[should_panic(expected = "expert_ffn: w_out must be [E, F, D]")]
fn a_second_matrix_of_another_width_panics() {
    expert_ffn(ones([2, 4]), ones([2, 2]), FfnWeights { w_out: ones([3, 5, 6]), ..weights() }, &plan());
}

#[test]
#[should_panic(expected = "expert_ffn: b_out must be [E, D]")]
fn a_second_bias_of_another_width_panics() {
    expert_ffn(ones([2, 4]), ones([2, 2]), FfnWeights { b_out: Some(ones([3, 5])), ..weights() }, &plan());
}

#[test]
#[should_panic(expected = "expert_ffn: tokens and w_in must have one dtype, got [F32, BF16]")]
fn a_feed_forward_with_a_first_matrix_of_another_dtype_panics() {
    expert_ffn(ones([2, 4]), ones([2, 2]), FfnWeights { w_in: half([3, 4, 10]), ..weights() }, &plan());
}

#[test]
#[should_panic(expected = "expert_ffn: tokens and b_in must have one dtype, got [F32, BF16]")]
fn a_first_bias_of_another_dtype_panics() {
    expert_ffn(ones([2, 4]), ones([2, 2]), FfnWeights { b_in: Some(half([3, 10])), ..weights() }, &plan());
}

#[test]
#[should_panic(expected = "expert_ffn_summing: D and F must be at least 1, got 0 and 5")]
fn summing_over_tokens_without_width_panics() {
    let weights = FfnWeights { w_in: ones([3, 0, 10]), w_out: ones([3, 5, 0]), ..weights() };
    expert_ffn_summing(ones([2, 0]), ones([2, 2]), ones([2, 2]), weights, &plan());
}

#[test]
#[should_panic(expected = "expert_ffn_summing: D and F must be at least 1, got 4 and 0")]
fn summing_over_experts_without_width_panics() {
    let weights = FfnWeights { w_in: ones([3, 4, 0]), w_out: ones([3, 0, 4]), ..weights() };
    expert_ffn_summing(ones([2, 4]), ones([2, 2]), ones([2, 2]), weights, &plan());
}

#[test]
#[should_panic(expected = "expert_ffn_summing: tokens and shares must have one dtype, got [F32, BF16]")]
fn shares_of_another_dtype_panic() {
    expert_ffn_summing(ones([2, 4]), ones([2, 2]), half([2, 2]), weights(), &plan());
}

#[test]
#[should_panic(expected = "grouped_matmul: rows [R, I] and the plan disagree on R = T * K")]
fn a_product_of_other_rows_panics() {
    grouped_matmul(ones([3, 5]), ones([3, 5, 6]), &plan());
}

#[test]
#[should_panic(expected = "grouped_outer: lhs [R, I] and the plan disagree on R = T * K")]
fn an_outer_product_of_other_left_rows_panics() {
    grouped_outer(ones([3, 5]), ones([4, 6]), &plan());
}

#[test]
#[should_panic(expected = "k = 0 must be in 1..=3")]
fn top_k_of_nothing_panics() {
    top_k(ones([2, 3]), 0);
}

#[test]
#[should_panic(expected = "index 3 out of bounds for dimension of size 3")]
fn choosing_a_column_that_is_not_there_panics() {
    chosen(ones([1, 3]), Tensor::from_data([[3]], &Default::default()));
}

#[test]
#[should_panic(expected = "index out of bounds: the len is 3 but the index is 3")]
fn leaving_out_a_column_that_is_not_there_panics() {
    unchosen(ones([1, 3]), Tensor::from_data([[3]], &Default::default()));
}
