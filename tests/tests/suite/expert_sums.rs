//! What default vectors need of the kernels, against loops in f64: the outputs of each expert summed over the batch, and the
//! scores without the chosen ones.

use burn::tensor::{Int, Tensor, TensorData};
use moe_kernels::reference::{self, ExpertFfn};
use moe_kernels::{Activation, AutodiffMoeBackend, ExpertPlan, FfnWeights, expert_ffn, expert_ffn_summing, unchosen};
use moe_tests::{CASES, Case, LARGE_CASES, assert_close, cases, host, on_every_backend, random, tensor};

on_every_backend!(
    sums_over_the_batch_match_the_loop_over_slots,
    summing_changes_neither_values_nor_gradients,
    two_runs_give_the_same_bits,
    unchosen_scores_and_their_gradient_are_all_but_the_chosen,
);

const VARIANTS: [(Activation, bool); 3] =
    [(Activation::SwiGlu, false), (Activation::Gelu, true), (Activation::Relu, true)];

fn indices<B: AutodiffMoeBackend>(case: &Case, device: &B::Device) -> Tensor<B, 2, Int> {
    let chosen = case.assignment().into_iter().map(|e| e as i64).collect();
    Tensor::from_data(TensorData::new(chosen, [case.tokens, case.top_k]), device)
}

fn problem(case: &Case, activation: Activation, bias: bool) -> ExpertFfn {
    let (d, f, e) = (case.d_model, case.d_hidden, case.experts);
    let (c, slots) = (activation.columns(f), case.tokens * case.top_k);
    let lengths = [case.tokens * d, slots, e * d * c, e * f * d, e * c, e * d];
    let inputs = std::array::from_fn(|i| match bias || i < 4 {
        true => random(lengths[i], 21 + i as u64),
        false => vec![0.0; lengths[i]],
    });
    ExpertFfn { d_model: d, d_hidden: f, activation, experts: case.assignment(), top_k: case.top_k, inputs }
}

/// Tokens and gates, tracked, and the weights.
fn inputs<B: AutodiffMoeBackend>(
    problem: &ExpertFfn,
    case: &Case,
    bias: bool,
    device: &B::Device,
) -> ([Tensor<B, 2>; 2], FfnWeights<B>) {
    let (t, e, d, f) = (case.tokens, case.experts, case.d_model, case.d_hidden);
    let c = problem.activation.columns(f);
    let matrix = |i: usize, shape: [usize; 2]| tensor::<B, 2>(&problem.inputs[i], shape, device).require_grad();
    let stack = |i: usize, shape: [usize; 3]| tensor::<B, 3>(&problem.inputs[i], shape, device).require_grad();
    let weights = FfnWeights {
        w_in: stack(2, [e, d, c]),
        w_out: stack(3, [e, f, d]),
        b_in: bias.then(|| matrix(4, [e, c])),
        b_out: bias.then(|| matrix(5, [e, d])),
        activation: problem.activation,
    };
    ([matrix(0, [t, d]), matrix(1, [t, case.top_k])], weights)
}

fn sums_over_the_batch_match_the_loop_over_slots<B: AutodiffMoeBackend>(device: &B::Device) {
    for case in cases(3).iter().filter(|case| case.tokens > 0) {
        for (activation, bias) in VARIANTS {
            let (problem, what) = (problem(case, activation, bias), format!("{}, {activation:?}", case.name));
            let shares = random(case.tokens * case.top_k, 51);
            let (expected, expected_totals) = reference::expert_sums(&problem, &shares, case.experts);
            let ([tokens, gates], weights) = inputs::<B>(&problem, case, bias, device);
            let (shares, plan) = (tensor(&shares, gates.dims(), device), plan(case, device));
            let (_, sums, totals) = expert_ffn_summing(tokens, gates, shares, weights, &plan);
            assert!(!sums.is_require_grad() && !totals.is_require_grad());
            assert_close(&format!("{what}, sums"), &host(sums.clone()), &expected);
            assert_close(&format!("{what}, totals"), &host(totals), &expected_totals);
            let idle = &host(sums)[case.busy * case.d_model..];
            assert!(idle.iter().all(|&sum| sum == 0.0), "{what}: an idle expert put something out");
        }
    }
}

fn plan<B: AutodiffMoeBackend>(case: &Case, device: &B::Device) -> ExpertPlan<B> {
    ExpertPlan::new(indices(case, device), case.experts)
}

/// Output, gradients of tokens, gates and `w_out`, and, if summing, the sums.
fn run<B: AutodiffMoeBackend>(case: &Case, activation: Activation, summing: bool, device: &B::Device) -> Vec<Vec<f64>> {
    let ([tokens, gates], weights) = inputs::<B>(&problem(case, activation, true), case, true, device);
    let (t, g, w_out, plan) = (tokens.clone(), gates.clone(), weights.w_out.clone(), plan(case, device));
    let (output, sums) = match summing {
        false => (expert_ffn(t, g, weights, &plan), None),
        true => {
            let shares = tensor(&random(case.tokens * case.top_k, 51), gates.dims(), device);
            let (output, sums, _) = expert_ffn_summing(t, g, shares, weights, &plan);
            (output, Some(host(sums)))
        }
    };
    let weight = tensor::<B, 2>(&random(case.tokens * case.d_model, 3), output.dims(), device);
    let grads = (output.clone() * weight).sum().backward();
    let mut all = vec![host(output)];
    all.extend([tokens, gates].map(|input| host(input.grad(&grads).expect("tracked"))));
    all.push(host(w_out.grad(&grads).expect("tracked")));
    all.extend(sums);
    all
}

fn summing_changes_neither_values_nor_gradients<B: AutodiffMoeBackend>(device: &B::Device) {
    for (activation, _) in VARIANTS {
        let (summed, plain) =
            (run::<B>(&CASES[1], activation, true, device), run::<B>(&CASES[1], activation, false, device));
        assert_eq!(summed[..4], plain[..], "{activation:?}");
    }
}

fn two_runs_give_the_same_bits<B: AutodiffMoeBackend>(device: &B::Device) {
    let run = || run::<B>(&LARGE_CASES[0], Activation::SwiGlu, true, device);
    assert_eq!(run(), run());
}

fn unchosen_scores_and_their_gradient_are_all_but_the_chosen<B: AutodiffMoeBackend>(device: &B::Device) {
    for case in CASES.iter().chain(LARGE_CASES).filter(|case| case.tokens > 0) {
        let (t, e, k) = (case.tokens, case.experts, case.top_k);
        let (values, weight) = (random(t * e, 1), random(t * e, 2));
        let scores = tensor::<B, 2>(&values, [t, e], device).require_grad();
        let rest = unchosen(scores.clone(), indices(case, device));
        let grads = (rest.clone() * tensor(&weight, [t, e], device)).sum().backward();
        let chosen = case.assignment();
        let clear = |values: &[f64]| {
            let keep = |i: usize| !chosen[i / e * k..(i / e + 1) * k].contains(&(i % e));
            values.iter().enumerate().map(|(i, &v)| if keep(i) { v } else { 0.0 }).collect::<Vec<_>>()
        };
        assert_eq!(host(rest), clear(&values), "{}", case.name);
        assert_eq!(host(scores.grad(&grads).expect("tracked")), clear(&weight), "{}", case.name);
    }
}

#[cfg(feature = "flex")]
#[test]
#[should_panic(expected = "expert_ffn_summing: shares must be [T, K]")]
fn shares_of_another_shape_panic() {
    let (case, device) = (&CASES[0], Default::default());
    let ([tokens, gates], weights) =
        inputs::<moe_tests::Flex>(&problem(case, Activation::Gelu, false), case, false, &device);
    let shares = Tensor::ones([case.tokens, 1], &device);
    expert_ffn_summing(tokens, gates, shares, weights, &plan(case, &device));
}

#[cfg(feature = "flex")]
#[test]
#[should_panic(expected = "unchosen: scores [T, E] and indices [T, K] disagree on T")]
fn indices_for_another_number_of_scores_panic() {
    let device = Default::default();
    unchosen::<moe_tests::Flex>(Tensor::ones([3, 3], &device), indices(&CASES[0], &device));
}
