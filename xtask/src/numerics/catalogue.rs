//! Which tests of the suite compare which op or layer with an oracle in f64.

/// An op or a layer, and the tests of the suite whose comparisons are its errors: module and name.
pub(super) struct Measured {
    /// As the table calls it.
    pub(super) name: &'static str,
    pub(super) tests: &'static [(&'static str, &'static str)],
}

const fn of(name: &'static str, tests: &'static [(&'static str, &'static str)]) -> Measured {
    Measured { name, tests }
}

/// Our ops beside burn's own in the same precision, both against f64.
const HALF: &str = "low_precision_loses_no_more_than_twice_what_plain_ops_lose";

/// In the order of the table. Routing (top-K, plans, dispatch of rows) is not here: what it computes is compared for equality.
pub(super) const CATALOGUE: &[Measured] = &[
    of("dispatch_rows", &[("kernels", "dispatch_matches_the_loop")]),
    of("combine_rows", &[("kernels", "combine_matches_the_loop")]),
    of("grouped_matmul", &[("kernels", "grouped_matmul_matches_the_loop_over_experts")]),
    of("grouped_matmul_transposed", &[("kernels", "grouped_matmul_transposed_matches_the_loop_over_experts")]),
    of("grouped_outer", &[("kernels", "grouped_outer_matches_the_loop_over_experts")]),
    of("swiglu", &[("kernels", "swiglu_matches_the_formula_and_finite_differences")]),
    of("gelu", &[("kernels", "gelu_of_several_blocks_matches_its_series")]),
    of(
        "expert_ffn",
        &[
            ("expert_ffn", "expert_ffn_matches_the_loop_over_slots"),
            ("expert_ffn", "large_cases_match_the_loop_over_slots"),
            ("expert_ffn", "a_token_may_choose_an_expert_twice"),
            ("partial_plan", "a_slot_that_nobody_serves_is_one_with_a_gate_of_zero"),
            ("partial_plan", "large_partial_plans_match_too"),
        ],
    ),
    of("expert_ffn_summing", &[("expert_sums", "sums_over_the_batch_match_the_loop_over_slots")]),
    of("linear", &[("linear", "linear_matches_the_loop")]),
    of("linear_transposed", &[("linear", "linear_transposed_matches_the_loop")]),
    of("linear_onto", &[("linear", "linear_onto_matches_the_loop")]),
    of("sum_dim", &[("reduce", "sums_match_the_loop")]),
    of("divide_rows", &[("reduce", "quotients_match_the_loop")]),
    of("rms_norm", &[("fused", "rms_norm_matches_the_loop")]),
    of("layer_norm", &[("fused", "layer_norm_matches_the_loop")]),
    of("softmax_rows", &[("fused", "softmax_matches_the_loop")]),
    of("log_sum_exp_rows", &[("fused", "log_sum_exp_matches_the_loop")]),
    of("cross_entropy_rows", &[("fused", "cross_entropy_matches_the_loop")]),
    of("rotary", &[("fused", "rotary_matches_the_rotation_of_every_pair")]),
    of("causal_attention", &[("fused", "causal_attention_matches_the_loop")]),
    of("sum_of_squares", &[("fused", "sum_of_squares_matches_the_loop")]),
    of("adamw_step, four steps", &[("fused", "adamw_matches_the_loop")]),
    of("adamw_step_scaled", &[("fused", "adamw_changes_are_scaled_slice_by_slice")]),
    of("experts of a layer", &[("layers", "grouped_dispatch_matches_the_loops")]),
    of("experts of a layer, half precision", &[("low_precision::beside_plain_ops", HALF)]),
    of("sharded experts", &[("expert_parallel", "sharded_experts_match_the_loops")]),
    of("sharded experts, half precision", &[("expert_parallel", HALF)]),
    of("layer of experts, beside PyTorch", &[("torch_layer", "every_gradient_is_pytorchs")]),
    of("layer with each router", &[("routers", "values_and_gradients_match_those_in_f64")]),
    of("layer with each router, half precision", &[("routers", HALF)]),
    of("layer with a capacity", &[("routers", "layers_with_a_capacity_match_those_in_f64")]),
    of(
        "layer with a capacity, half precision",
        &[("routers", "low_precision_with_a_capacity_loses_no_more_than_twice_what_plain_ops_lose")],
    ),
    of("shared experts", &[("shared_experts", "values_and_gradients_match_the_loops")]),
    of("shared experts, half precision", &[("shared_experts::low_precision", HALF)]),
    of("soft MoE", &[("routers", "soft_moe_matches_loops")]),
    of(
        "default vectors",
        &[
            ("default_moe", "values_vectors_and_gradients_match_the_loops"),
            ("default_moe", "renormalised_gates_divide_the_vectors_weights_too"),
            ("default_moe", "backward_only_is_top_k_with_the_router_gradient_of_all_slots"),
        ],
    ),
    of(
        "default vectors, half precision",
        &[("default_moe::low_precision", "in_half_precision_the_layer_is_off_by_a_few_roundings")],
    ),
    of("attention layer", &[("attention", "values_and_gradients_match_the_loops")]),
    of("attention layer, half precision", &[("attention::low_precision", HALF)]),
    of(
        "balance losses",
        &[
            ("layers", "balance_losses_match_a_computation_by_hand"),
            ("layers", "the_balance_gradient_flows_through_the_probabilities_only"),
        ],
    ),
    of("router z-loss", &[("layers", "z_loss_matches_a_computation_by_hand")]),
    of("importance loss", &[("losses", "importance_losses_match_the_formula")]),
    of("load loss", &[("losses", "load_losses_match_the_formula")]),
    of("L1 loss of a ReLU router", &[("losses", "the_l1_loss_of_a_relu_router_matches_the_formula")]),
];
