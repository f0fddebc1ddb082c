//! Every op of `moe-kernels` against naive loops in f64: values and all gradients, over the catalogue of cases.

use burn::tensor::{Int, Tensor, TensorData};
use moe_kernels::reference;
use moe_kernels::{
    Activation, AutodiffMoeBackend, ExpertPlan, FfnWeights, MoeBackend, combine_rows, dispatch_rows, expert_ffn, gelu,
    grouped_matmul, grouped_matmul_transposed, grouped_outer, swiglu, top_k,
};
use moe_tests::{
    CASES, Case, LARGE_CASES, assert_close, host, no_rows, numeric_gradient_by_rows, on_every_path, random, tensor,
};

on_every_path!(
    top_k_matches_repeated_argmax,
    top_k_breaks_ties_by_the_lower_index,
    top_k_survives_nan,
    top_k_ranks_nan_below_minus_infinity,
    top_k_gradient_reaches_the_chosen_scores_only,
    top_k_gradient_matches_the_loop,
    a_plan_is_a_stable_sort_with_its_inverse,
    no_tokens_need_no_kernel,
    dispatch_matches_the_loop,
    combine_matches_the_loop,
    grouped_matmul_matches_the_loop_over_experts,
    grouped_matmul_transposed_matches_the_loop_over_experts,
    grouped_outer_matches_the_loop_over_experts,
    an_idle_expert_gets_a_zero_gradient,
    swiglu_matches_the_formula_and_finite_differences,
    gelu_matches_the_formula_and_its_exact_gradient,
    gelu_of_several_blocks_matches_its_series,
    combining_dispatched_rows_with_mean_gates_is_the_identity,
    two_runs_give_the_same_bits,
);

fn plan<B: AutodiffMoeBackend>(case: &Case, device: &B::Device) -> ExpertPlan<B> {
    let experts: Vec<i64> = case.assignment().into_iter().map(|e| e as i64).collect();
    let experts = TensorData::new(experts, [case.tokens, case.top_k]);
    ExpertPlan::new(Tensor::<B, 2, Int>::from_data(experts, device), case.experts)
}

fn ints<B: MoeBackend, const D: usize>(tensor: Tensor<B, D, Int>) -> Vec<usize> {
    match tensor.shape().num_elements() {
        0 => Vec::new(),
        _ => tensor.into_data().iter::<i64>().map(|i| i as usize).collect(),
    }
}

/// `sum(output * weight)`: a scalar whose gradient with respect to the output is `weight`.
fn backward<B: AutodiffMoeBackend, const D: usize>(output: Tensor<B, D>, weight: &[f64]) -> B::Gradients {
    let weight = tensor::<B, D>(weight, output.dims(), &output.device());
    (output * weight).sum().backward()
}

fn gradient<B: AutodiffMoeBackend, const D: usize>(input: &Tensor<B, D>, grads: &B::Gradients) -> Vec<f64> {
    host(input.grad(grads).expect("the input was tracked"))
}

fn top_k_matches_repeated_argmax<B: AutodiffMoeBackend>(device: &B::Device) {
    for case in CASES.iter().chain(LARGE_CASES) {
        let scores = random(case.tokens * case.experts, 1);
        let (values, indices) = top_k(tensor::<B, 2>(&scores, [case.tokens, case.experts], device), case.top_k);
        let expected = reference::top_k(&scores, case.experts, case.top_k);
        assert_eq!(ints(indices), expected, "{}", case.name);

        let row = |i: usize| i / case.top_k * case.experts;
        let picked: Vec<f64> = expected.iter().enumerate().map(|(i, &e)| scores[row(i) + e]).collect();
        assert_eq!(host(values), picked, "{}", case.name);
    }
}

fn top_k_breaks_ties_by_the_lower_index<B: AutodiffMoeBackend>(device: &B::Device) {
    let scores = tensor::<B, 2>(&[0.0, 2.0, 2.0, -0.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0], [2, 5], device);
    assert_eq!(ints(top_k(scores, 4).1), [1, 2, 4, 0, 0, 1, 2, 3]);
}

fn top_k_survives_nan<B: AutodiffMoeBackend>(device: &B::Device) {
    const NAN: f64 = f64::NAN;
    let scores = tensor::<B, 2>(&[NAN, 1.0, 2.0, NAN, NAN, NAN], [2, 3], device);
    assert_eq!(ints(top_k(scores, 2).1), [2, 1, 0, 1]);
}

/// Minus infinity is a number: a masked expert goes before one whose score is undefined.
fn top_k_ranks_nan_below_minus_infinity<B: AutodiffMoeBackend>(device: &B::Device) {
    let (nan, masked) = (f64::NAN, f64::NEG_INFINITY);
    for (scores, k, expected) in [
        (vec![nan, masked, 1.0, masked, nan, masked, -nan, masked, nan], 3, vec![2, 1, 0, 0, 2, 1, 1, 0, 2]),
        (vec![nan, masked], 1, vec![1]),
    ] {
        let width = scores.len().isqrt().max(2);
        assert_eq!(ints(top_k(tensor::<B, 2>(&scores, [scores.len() / width, width], device), k).1), expected);
        assert_eq!(reference::top_k(&scores, width, k), expected);
    }
}

fn top_k_gradient_reaches_the_chosen_scores_only<B: AutodiffMoeBackend>(device: &B::Device) {
    let scores = tensor::<B, 2>(&[0.1, 0.4, 0.3, 0.9, 0.5, 0.7], [2, 3], device).require_grad();
    let grads = backward(top_k(scores.clone(), 2).0, &[1.0, 2.0, 3.0, 4.0]);
    assert_eq!(gradient(&scores, &grads), [0.0, 1.0, 2.0, 3.0, 0.0, 4.0]);
}

fn top_k_gradient_matches_the_loop<B: AutodiffMoeBackend>(device: &B::Device) {
    for case in CASES.iter().chain(LARGE_CASES) {
        let shape = [case.tokens, case.experts];
        let (scores, weight) = (random(case.tokens * case.experts, 1), random(case.tokens * case.top_k, 2));
        let input = tensor::<B, 2>(&scores, shape, device).require_grad();
        let grads = backward(top_k(input.clone(), case.top_k).0, &weight);

        let mut expected = vec![0.0; scores.len()];
        for (slot, chosen) in reference::top_k(&scores, case.experts, case.top_k).into_iter().enumerate() {
            expected[slot / case.top_k * case.experts + chosen] = weight[slot];
        }
        assert_eq!(gradient(&input, &grads), expected, "{}", case.name);
    }
}

fn a_plan_is_a_stable_sort_with_its_inverse<B: AutodiffMoeBackend>(device: &B::Device) {
    for case in CASES.iter().chain(LARGE_CASES) {
        let (plan, experts) = (plan::<B>(case, device), case.assignment());
        let slots = reference::sorted_slots(&experts);
        assert_eq!(ints(plan.slot_of_row()), slots, "{}", case.name);

        let rows = ints(plan.row_of_slot());
        assert!(slots.iter().enumerate().all(|(row, &slot)| rows[slot] == row), "{}", case.name);

        let counts = ints(plan.counts());
        let expected = |e: usize| experts.iter().filter(|&&x| x == e).count();
        assert_eq!(counts, (0..case.experts).map(expected).collect::<Vec<_>>(), "{}", case.name);
        assert_eq!(counts.iter().sum::<usize>(), plan.num_rows());
    }
}

/// With and without autodiff: what the device computes afterwards is right.
fn no_tokens_need_no_kernel<B: AutodiffMoeBackend>(device: &B::Device) {
    fn layer<B: MoeBackend>(device: &B::Device) {
        let none = |width| no_rows::<B>(width, device);
        let (gates, chosen) = top_k(none(4), 2);
        let plan = ExpertPlan::new(chosen.clone(), 4);
        let weight = |shape: [usize; 3]| tensor::<B, 3>(&vec![0.5; shape.iter().product()], shape, device);
        let rows = grouped_matmul(dispatch_rows(none(3), &plan), weight([4, 3, 10]), &plan);
        // The sigmoid of burn-flex makes f32 of no numbers in f64.
        let inner = swiglu(rows.clone()).cast(rows.dtype());
        let rows = grouped_matmul(inner, weight([4, 5, 3]), &plan);
        assert_eq!(combine_rows(rows, gates.clone(), &plan).dims(), [0, 3]);
        let (w_in, w_out, activation) = (weight([4, 3, 10]), weight([4, 5, 3]), Activation::SwiGlu);
        let weights = FfnWeights { w_in, w_out, b_in: None, b_out: None, activation };
        assert_eq!(expert_ffn(none(3), gates, weights, &plan).dims(), [0, 3]);
        assert_eq!(ints(plan.counts()), [0; 4]);
    }
    layer::<B>(device);
    layer::<B::InnerBackend>(device);
    assert_eq!(host(tensor::<B, 1>(&[1.0; 4], [4], device).sum()), [4.0]);
}

fn dispatch_matches_the_loop<B: AutodiffMoeBackend>(device: &B::Device) {
    for case in CASES.iter().chain(LARGE_CASES) {
        let of = |tensor: &str| format!("{}, {tensor}", case.name);
        let (experts, width) = (case.assignment(), case.d_model);
        let tokens = random(case.tokens * width, 2);
        let weight = random(experts.len() * width, 3);

        let input = tensor::<B, 2>(&tokens, [case.tokens, width], device).require_grad();
        let rows = dispatch_rows(input.clone(), &plan(case, device));
        assert_eq!(host(rows.clone()), reference::dispatch(&tokens, width, &experts, case.top_k), "{}", case.name);

        let grads = backward(rows, &weight);
        let expected = reference::dispatch_grad(&weight, width, &experts, case.top_k);
        assert_close(&of("gradient of tokens"), &gradient(&input, &grads), &expected);
    }
}

fn combine_matches_the_loop<B: AutodiffMoeBackend>(device: &B::Device) {
    for case in CASES.iter().chain(LARGE_CASES) {
        let of = |tensor: &str| format!("{}, {tensor}", case.name);
        let (experts, width) = (case.assignment(), case.d_model);
        let rows = random(experts.len() * width, 4);
        let gates = random(experts.len(), 5);
        let weight = random(case.tokens * width, 6);

        let rows_in = tensor::<B, 2>(&rows, [experts.len(), width], device).require_grad();
        let gates_in = tensor::<B, 2>(&gates, [case.tokens, case.top_k], device).require_grad();
        let output = combine_rows(rows_in.clone(), gates_in.clone(), &plan(case, device));
        let expected = reference::combine(&rows, &gates, width, &experts, case.top_k);
        assert_close(&of("output"), &host(output.clone()), &expected);

        let grads = backward(output, &weight);
        let (rows_grad, gates_grad) = reference::combine_grad(&rows, &gates, &weight, width, &experts, case.top_k);
        assert_close(&of("gradient of rows"), &gradient(&rows_in, &grads), &rows_grad);
        assert_close(&of("gradient of gates"), &gradient(&gates_in, &grads), &gates_grad);
    }
}

fn grouped_matmul_matches_the_loop_over_experts<B: AutodiffMoeBackend>(device: &B::Device) {
    for case in CASES.iter().chain(LARGE_CASES) {
        let of = |tensor: &str| format!("{}, {tensor}", case.name);
        let (experts, d, f) = (case.assignment(), case.d_model, case.d_hidden);
        let rows = random(experts.len() * d, 7);
        let matrices = random(case.experts * d * f, 8);
        let weight = random(experts.len() * f, 9);

        let rows_in = tensor::<B, 2>(&rows, [experts.len(), d], device).require_grad();
        let matrices_in = tensor::<B, 3>(&matrices, [case.experts, d, f], device).require_grad();
        let output = grouped_matmul(rows_in.clone(), matrices_in.clone(), &plan(case, device));
        let expected = reference::grouped_matmul(&rows, &matrices, d, f, &experts);
        assert_close(&of("output"), &host(output.clone()), &expected);

        let grads = backward(output, &weight);
        let (rows_grad, matrices_grad) = reference::grouped_matmul_grad(&rows, &matrices, &weight, d, f, &experts);
        assert_close(&of("gradient of rows"), &gradient(&rows_in, &grads), &rows_grad);
        assert_close(&of("gradient of matrices"), &gradient(&matrices_in, &grads), &matrices_grad);
    }
}

fn grouped_matmul_transposed_matches_the_loop_over_experts<B: AutodiffMoeBackend>(device: &B::Device) {
    for case in CASES.iter().chain(LARGE_CASES) {
        let of = |tensor: &str| format!("{}, {tensor}", case.name);
        let (experts, d, f) = (case.assignment(), case.d_model, case.d_hidden);
        let rows = random(experts.len() * f, 7);
        let matrices = random(case.experts * d * f, 8);
        let weight = random(experts.len() * d, 9);

        let rows_in = tensor::<B, 2>(&rows, [experts.len(), f], device).require_grad();
        let matrices_in = tensor::<B, 3>(&matrices, [case.experts, d, f], device).require_grad();
        let output = grouped_matmul_transposed(rows_in.clone(), matrices_in.clone(), &plan(case, device));
        // The product's gradient is the transposed product.
        let (expected, matrices_grad) = reference::grouped_matmul_grad(&weight, &matrices, &rows, d, f, &experts);
        assert_close(&of("output"), &host(output.clone()), &expected);

        let grads = backward(output, &weight);
        let rows_grad = reference::grouped_matmul(&weight, &matrices, d, f, &experts);
        assert_close(&of("gradient of rows"), &gradient(&rows_in, &grads), &rows_grad);
        assert_close(&of("gradient of matrices"), &gradient(&matrices_in, &grads), &matrices_grad);
    }
}

fn grouped_outer_matches_the_loop_over_experts<B: AutodiffMoeBackend>(device: &B::Device) {
    for case in CASES.iter().chain(LARGE_CASES) {
        let of = |tensor: &str| format!("{}, {tensor}", case.name);
        let (experts, d, f) = (case.assignment(), case.d_model, case.d_hidden);
        let lhs = random(experts.len() * d, 7);
        let rhs = random(experts.len() * f, 8);
        let weight = random(case.experts * d * f, 9);

        let lhs_in = tensor::<B, 2>(&lhs, [experts.len(), d], device).require_grad();
        let rhs_in = tensor::<B, 2>(&rhs, [experts.len(), f], device).require_grad();
        let output = grouped_outer(lhs_in.clone(), rhs_in.clone(), &plan(case, device));
        // The product's gradient of the weights is the outer product.
        let (lhs_grad, expected) = reference::grouped_matmul_grad(&lhs, &weight, &rhs, d, f, &experts);
        assert_close(&of("output"), &host(output.clone()), &expected);

        let grads = backward(output, &weight);
        let rhs_grad = reference::grouped_matmul(&lhs, &weight, d, f, &experts);
        assert_close(&of("gradient of lhs"), &gradient(&lhs_in, &grads), &lhs_grad);
        assert_close(&of("gradient of rhs"), &gradient(&rhs_in, &grads), &rhs_grad);
    }
}

fn an_idle_expert_gets_a_zero_gradient<B: AutodiffMoeBackend>(device: &B::Device) {
    let case = CASES.iter().find(|c| c.name == "idle experts").expect("in the catalogue");
    let rows = tensor::<B, 2>(&random(case.tokens * case.top_k * 4, 1), [case.tokens * case.top_k, 4], device);
    let matrices = tensor::<B, 3>(&random(case.experts * 4 * 3, 2), [case.experts, 4, 3], device).require_grad();
    let output = grouped_matmul(rows, matrices.clone(), &plan(case, device));
    let grads = gradient(&matrices, &output.sum().backward());
    assert!(grads[case.busy * 12..].iter().all(|&g| g == 0.0));
    assert!(grads[..case.busy * 12].iter().any(|&g| g != 0.0));
}

/// A few rows, and more numbers than a thread takes at a time.
fn swiglu_matches_the_formula_and_finite_differences<B: AutodiffMoeBackend>(device: &B::Device) {
    for (rows, f) in [(5, 3), (130, 65)] {
        let values: Vec<f64> = random(rows * 2 * f, 10).iter().map(|&v| f64::from(v as f32 * 6.0)).collect();
        let weight = random(rows * f, 11);

        let input = tensor::<B, 2>(&values, [rows, 2 * f], device).require_grad();
        let output = swiglu(input.clone());
        assert_close("output", &host(output.clone()), &reference::swiglu(&values, f));

        let numeric = numeric_gradient_by_rows(&values, &weight, rows, |_, row| reference::swiglu(row, f));
        assert_close("gradient of x", &gradient(&input, &backward(output, &weight)), &numeric);
    }
}

/// Reference values from the error function in f64, to 12 digits.
fn gelu_matches_the_formula_and_its_exact_gradient<B: AutodiffMoeBackend>(device: &B::Device) {
    const POINTS: [f64; 5] = [-3.0, -1.0, 0.0, 0.5, 2.0];
    const VALUES: [f64; 5] = [-0.004049694095, -0.158655253931, 0.0, 0.345731230637, 1.954499736104];
    const SLOPES: [f64; 5] = [-0.011945647204, -0.083315470588, 0.5, 0.867495124656, 1.085231801078];

    let input = tensor::<B, 2>(&POINTS, [1, 5], device).require_grad();
    let output = gelu(input.clone());
    assert_close("output", &host(output.clone()), &VALUES);
    assert_close("gradient of x", &gradient(&input, &backward(output, &[1.0; 5])), &SLOPES);
}

/// More numbers than a thread takes at a time.
fn gelu_of_several_blocks_matches_its_series<B: AutodiffMoeBackend>(device: &B::Device) {
    let shape @ [rows, width] = [130, 130];
    let values: Vec<f64> = random(rows * width, 13).iter().map(|&v| f64::from(v as f32 * 5.0)).collect();
    let weight = random(rows * width, 14);
    let input = tensor::<B, 2>(&values, shape, device).require_grad();
    let output = gelu(input.clone());
    assert_close("output", &host(output.clone()), &reference::gelu(&values));

    let numeric = numeric_gradient_by_rows(&values, &weight, values.len(), |_, x| reference::gelu(x));
    assert_close("gradient of x", &gradient(&input, &backward(output, &weight)), &numeric);
}

fn combining_dispatched_rows_with_mean_gates_is_the_identity<B: AutodiffMoeBackend>(device: &B::Device) {
    for case in CASES.iter().chain(LARGE_CASES) {
        let (tokens, plan) = (random(case.tokens * case.d_model, 12), plan::<B>(case, device));
        let rows = dispatch_rows(tensor(&tokens, [case.tokens, case.d_model], device), &plan);
        let gates = vec![1.0 / case.top_k as f64; plan.num_rows()];
        let gates = tensor(&gates, [case.tokens, case.top_k], device);
        assert_close(case.name, &host(combine_rows(rows, gates, &plan)), &tokens);
    }
}

fn two_runs_give_the_same_bits<B: AutodiffMoeBackend>(device: &B::Device) {
    let case = &LARGE_CASES[0];
    let run = || {
        let plan = plan::<B>(case, device);
        let tokens = tensor::<B, 2>(&random(case.tokens * 6, 1), [case.tokens, 6], device).require_grad();
        let matrices = tensor::<B, 3>(&random(case.experts * 24, 2), [case.experts, 6, 4], device).require_grad();
        let gates = tensor::<B, 2>(&random(plan.num_rows(), 3), [case.tokens, case.top_k], device);
        let rows = grouped_matmul(dispatch_rows(tokens.clone(), &plan), matrices.clone(), &plan);
        let output = combine_rows(swiglu(rows), gates, &plan);
        let grads = output.clone().sum().backward();
        [host(output), gradient(&tokens, &grads), gradient(&matrices, &grads)]
    };
    assert_eq!(run(), run());
}
