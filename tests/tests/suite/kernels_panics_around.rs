//! A caller's shape mistake panics with what was expected: the ops around the layer.

use burn::backend::Flex;
use burn::tensor::{DType, Tensor};
use moe_kernels::{
    AdamWStep, ChangeScale, adamw_step, adamw_step_scaled, causal_attention, cross_entropy_rows, divide_rows,
    layer_norm, log_sum_exp_rows, rms_norm, rotary, softmax_rows, sum_dim,
};

fn ones<const D: usize>(shape: [usize; D]) -> Tensor<Flex, D> {
    Tensor::ones(shape, &Default::default())
}

fn half<const D: usize>(shape: [usize; D]) -> Tensor<Flex, D> {
    ones(shape).cast(DType::BF16)
}

#[test]
#[should_panic(expected = "causal_attention: no size may be 0, got query [1, 0, 2, 4]")]
fn attention_without_queries_panics() {
    causal_attention(ones([1, 0, 2, 4]), ones([1, 2, 1, 4]), ones([1, 2, 1, 4]), 0.5);
}

#[test]
#[should_panic(expected = "causal_attention: 3 queries need as many keys, got 2")]
fn more_queries_than_keys_panic() {
    causal_attention(ones([1, 3, 2, 4]), ones([1, 2, 1, 4]), ones([1, 2, 1, 4]), 0.5);
}

#[test]
#[should_panic(expected = "causal_attention: H = 3 must be a multiple of C = 2")]
fn heads_that_do_not_share_keys_evenly_panic() {
    causal_attention(ones([1, 2, 3, 4]), ones([1, 2, 2, 4]), ones([1, 2, 2, 4]), 0.5);
}

#[test]
#[should_panic(expected = "causal_attention: query and key disagree on B or A")]
fn keys_of_another_width_panic() {
    causal_attention(ones([1, 2, 2, 4]), ones([1, 2, 1, 6]), ones([1, 2, 1, 6]), 0.5);
}

#[test]
#[should_panic(expected = "causal_attention: key and value must have one shape")]
fn values_of_another_number_of_positions_panic() {
    causal_attention(ones([1, 2, 2, 4]), ones([1, 2, 1, 4]), ones([1, 3, 1, 4]), 0.5);
}

#[test]
#[should_panic(expected = "causal_attention: query, key and value must have one dtype")]
fn values_of_another_dtype_panic() {
    causal_attention(ones([1, 2, 2, 4]), ones([1, 2, 1, 4]), half([1, 2, 1, 4]), 0.5);
}

#[test]
#[should_panic(expected = "causal_attention: scale must be positive, got 0")]
fn attention_without_scale_panics() {
    causal_attention(ones([1, 2, 2, 4]), ones([1, 2, 1, 4]), ones([1, 2, 1, 4]), 0.0);
}

#[test]
#[should_panic(expected = "rms_norm: x [T, D] and its gain or shift [D] disagree on D")]
fn a_gain_of_another_width_panics() {
    rms_norm(ones([2, 4]), ones([3]), 1e-5);
}

#[test]
#[should_panic(expected = "rms_norm: rows must have a width")]
fn normalising_rows_without_width_panics() {
    rms_norm(ones([2, 0]), ones([0]), 1e-5);
}

#[test]
#[should_panic(expected = "layer_norm: x [T, D] and its gain or shift [D] disagree on D")]
fn a_shift_of_another_width_panics() {
    layer_norm(ones([2, 4]), ones([4]), ones([3]), 1e-5);
}

#[test]
#[should_panic(expected = "layer_norm: rows must have a width")]
fn layer_normalising_rows_without_width_panics() {
    layer_norm(ones([2, 0]), ones([0]), ones([0]), 1e-5);
}

fn numbers_of_step(time: usize) -> AdamWStep {
    let (beta_1, beta_2, epsilon, weight_decay) = (0.9, 0.999, 1e-5, 0.0);
    AdamWStep { lr: 1e-3, beta_1, beta_2, epsilon, weight_decay, time, grad_factor: 1.0 }
}

#[test]
#[should_panic(expected = "adamw_step: parameter, gradient and moments must have one shape")]
fn a_gradient_of_another_shape_panics() {
    adamw_step(ones([2, 3]), ones([3, 2]), [ones([2, 3]), ones([2, 3])], &numbers_of_step(1));
}

#[test]
#[should_panic(expected = "adamw_step: steps are counted from 1")]
fn a_step_counted_from_zero_panics() {
    adamw_step(ones([2, 3]), ones([2, 3]), [ones([2, 3]), ones([2, 3])], &numbers_of_step(0));
}

#[test]
#[should_panic(expected = "adamw_step_scaled: parameter and factors")]
fn factors_of_another_dtype_panic() {
    let factors = ones([2]).cast(burn::tensor::DType::F64);
    let scale = ChangeScale { factors, axis: 0, spares_decay: false };
    adamw_step_scaled(ones([2, 3]), ones([2, 3]), [ones([2, 3]), ones([2, 3])], &numbers_of_step(1), scale);
}

fn scaled(factors: usize, axis: usize) {
    let scale = ChangeScale { factors: ones([factors]), axis, spares_decay: false };
    adamw_step_scaled(ones([2, 3]), ones([2, 3]), [ones([2, 3]), ones([2, 3])], &numbers_of_step(1), scale);
}

#[test]
#[should_panic(expected = "adamw_step_scaled: 3 factors for an axis of 2")]
fn factors_of_another_number_of_slices_panic() {
    scaled(3, 0);
}

#[test]
#[should_panic(expected = "adamw_step_scaled: there is no axis 2 in 2 dimensions")]
fn factors_along_an_axis_that_is_not_there_panic() {
    scaled(2, 2);
}

#[test]
#[should_panic(expected = "sum_dim: there is no dimension 2 in a tensor of rank 2")]
fn summing_along_a_dimension_that_is_not_there_panics() {
    sum_dim(ones([2, 3]), 2);
}

#[test]
#[should_panic(expected = "divide_rows: there must be one divisor [T, 1] for every row of x")]
fn dividing_by_another_number_of_divisors_panics() {
    divide_rows(ones([3, 2]), ones([2, 1]));
}

#[test]
#[should_panic(expected = "divide_rows: x and divisors must have one dtype, got [F32, BF16]")]
fn dividing_by_another_dtype_panics() {
    divide_rows(ones([3, 2]), half([3, 1]));
}

#[test]
#[should_panic(expected = "rotary: heads must have a width")]
fn heads_without_width_panic() {
    rotary(ones([1, 2, 1, 0]), ones([2, 0]), ones([2, 0]));
}

#[test]
#[should_panic(expected = "rotary: heads have an odd width, 3")]
fn heads_of_an_odd_width_panic() {
    rotary(ones([1, 2, 1, 3]), ones([2, 1]), ones([2, 1]));
}

#[test]
#[should_panic(expected = "rotary: a table must be [S, A / 2]")]
fn a_table_of_another_length_panics() {
    rotary(ones([1, 2, 1, 4]), ones([2, 2]), ones([3, 2]));
}

#[test]
#[should_panic(expected = "softmax_rows: rows must have a width")]
fn a_softmax_of_rows_without_width_panics() {
    softmax_rows(ones([2, 0]));
}

#[test]
#[should_panic(expected = "log_sum_exp_rows: rows must have a width")]
fn a_log_sum_exp_of_rows_without_width_panics() {
    log_sum_exp_rows(ones([2, 0]));
}

#[test]
#[should_panic(expected = "cross_entropy_rows: rows must have a width")]
fn a_cross_entropy_of_rows_without_width_panics() {
    cross_entropy_rows(ones([2, 0]), Tensor::zeros([2], &Default::default()));
}

#[test]
#[should_panic(expected = "cross_entropy_rows: logits [T, V] and targets [T] disagree on T")]
fn another_number_of_targets_panics() {
    cross_entropy_rows(ones([3, 4]), Tensor::zeros([2], &Default::default()));
}

#[test]
#[should_panic(expected = "index out of bounds: the len is 3 but the index is 3")]
fn a_target_out_of_range_panics() {
    cross_entropy_rows(ones([2, 3]), Tensor::from_data([0, 3], &Default::default()));
}
