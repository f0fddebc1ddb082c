//! Plans with slots that nobody serves, against the same slots served with a gate of zero.

use burn::tensor::{Int, Tensor, TensorData};
use moe_kernels::reference::{self, ExpertFfn};
use moe_kernels::{
    Activation, AutodiffMoeBackend, ExpertPlan, combine_rows, dispatch_rows, expert_ffn_summing, grouped_matmul, swiglu,
};
use moe_tests::{Case, LARGE_CASES, assert_close, cases, host, on_every_path, random, tensor};

use crate::expert_ffn::{Inputs, NAMES, problem};

on_every_path!(
    a_slot_that_nobody_serves_is_one_with_a_gate_of_zero,
    large_partial_plans_match_too,
    the_sums_of_experts_leave_it_out,
    the_parts_agree_with_the_whole,
    the_counts_are_those_of_the_slots_that_are_served,
);

/// Which slots are dropped: every `n`-th, or all.
const DROPS: [usize; 2] = [3, 1];

/// `problem` with its dropped slots given to nobody, and what it is equal to: the same slots with a gate of zero.
fn dropped(case: &Case, activation: Activation, every: usize) -> (ExpertFfn, ExpertFfn) {
    let (mut partial, mut oracle) = (problem(case, activation, true), problem(case, activation, true));
    for slot in (0..partial.experts.len()).step_by(every) {
        partial.experts[slot] = case.experts;
        oracle.inputs[1][slot] = 0.0;
    }
    (partial, oracle)
}

fn plan_of<B: AutodiffMoeBackend>(problem: &ExpertFfn, num_experts: usize, device: &B::Device) -> ExpertPlan<B> {
    let (slots, k) = (problem.experts.len(), problem.top_k);
    let experts: Vec<i64> = problem.experts.iter().map(|&e| e as i64).collect();
    let experts = Tensor::<B, 2, Int>::from_data(TensorData::new(experts, [slots / k, k]), device);
    ExpertPlan::partial(experts, num_experts)
}

fn check<B: AutodiffMoeBackend>(case: &Case, activation: Activation, every: usize, device: &B::Device) {
    let (partial, oracle) = dropped(case, activation, every);
    let weight = random(partial.inputs[0].len(), 31);
    let (expected, mut expected_grads) = reference::expert_ffn(&oracle, &weight);
    expected_grads[1].iter_mut().step_by(every).for_each(|gate| *gate = 0.0);

    let inputs = Inputs::<B>::with_plan(&partial, plan_of(&partial, case.experts, device), device);
    let output = inputs.output();
    let what = format!("{}, {activation:?}, every {every}th dropped", case.name);
    assert_close(&format!("{what}, output"), &host(output.clone()), &expected);
    for ((found, expected), name) in inputs.gradients(output, &weight).iter().zip(&expected_grads).zip(NAMES) {
        assert_close(&format!("{what}, gradient of {name}"), found.as_ref().expect("tracked"), expected);
    }
}

fn a_slot_that_nobody_serves_is_one_with_a_gate_of_zero<B: AutodiffMoeBackend>(device: &B::Device) {
    for case in cases(9) {
        for every in DROPS {
            check::<B>(case, Activation::SwiGlu, every, device);
        }
    }
}

fn large_partial_plans_match_too<B: AutodiffMoeBackend>(device: &B::Device) {
    for (case, activation) in LARGE_CASES.iter().zip([Activation::Gelu, Activation::Relu].into_iter().cycle()) {
        check::<B>(case, activation, 3, device);
    }
}

fn the_sums_of_experts_leave_it_out<B: AutodiffMoeBackend>(device: &B::Device) {
    for case in LARGE_CASES {
        let (partial, oracle) = dropped(case, Activation::SwiGlu, 3);
        let sums = |problem: &ExpertFfn, plan: ExpertPlan<B>| {
            let inputs = Inputs::<B>::with_plan(problem, plan, device);
            // The oracle's dropped slots have a share of zero, as they have a gate.
            let shares = tensor::<B, 2>(&oracle.inputs[1], inputs.gates.dims(), device);
            expert_ffn_summing(inputs.tokens, inputs.gates, shares, inputs.weights, &inputs.plan)
        };
        let found = sums(&partial, plan_of(&partial, case.experts, device));
        let expected = sums(&oracle, plan_of(&oracle, case.experts, device));
        assert_close(case.name, &host(found.0), &host(expected.0));
        assert_close(case.name, &host(found.1), &host(expected.1));
        assert_close(case.name, &host(found.2), &host(expected.2));
    }
}

fn the_parts_agree_with_the_whole<B: AutodiffMoeBackend>(device: &B::Device) {
    for case in &cases(2)[..2] {
        let (partial, _) = dropped(case, Activation::SwiGlu, 3);
        let inputs = Inputs::<B>::with_plan(&partial, plan_of(&partial, case.experts, device), device);
        let (plan, weights) = (&inputs.plan, &inputs.weights);
        // Without biases here.
        let mut whole = inputs.clone();
        (whole.weights.b_in, whole.weights.b_out) = (None, None);
        let hidden = swiglu(grouped_matmul(dispatch_rows(inputs.tokens.clone(), plan), weights.w_in.clone(), plan));
        let rows = grouped_matmul(hidden, weights.w_out.clone(), plan);
        let parts = combine_rows(rows, inputs.gates.clone(), plan);
        assert_close(case.name, &host(whole.output()), &host(parts.clone()));

        let weight = random(case.tokens * case.d_model, 3);
        let expected = whole.gradients(whole.output(), &weight);
        let found = inputs.gradients(parts, &weight);
        for (found, expected) in found.iter().zip(&expected).take(4) {
            assert_close(case.name, found.as_ref().expect("tracked"), expected.as_ref().expect("tracked"));
        }
    }
}

fn the_counts_are_those_of_the_slots_that_are_served<B: AutodiffMoeBackend>(device: &B::Device) {
    for case in cases(9) {
        let (partial, _) = dropped(case, Activation::Relu, 3);
        let plan = plan_of::<B>(&partial, case.experts, device);
        let counts: Vec<usize> = plan.counts().into_data().iter::<i64>().map(|n| n as usize).collect();
        let by_hand = |expert| partial.experts.iter().filter(|&&e| e == expert).count();
        assert_eq!(counts, (0..case.experts).map(by_hand).collect::<Vec<_>>(), "{}", case.name);
        assert!(plan.is_partial());
    }
}
