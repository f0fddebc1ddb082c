//! The fused feed-forward op against loops over slots in f64: values and the gradient of every input, over the catalogue
//! of cases, for every activation, with and without biases.

use burn::tensor::{Int, Tensor, TensorData};
use moe_kernels::reference::{self, ExpertFfn};
use moe_kernels::{
    Activation, AutodiffMoeBackend, ExpertPlan, FfnWeights, combine_rows, dispatch_rows, expert_ffn, grouped_matmul,
    swiglu,
};
use moe_tests::{CASES, Case, LARGE_CASES, assert_close, host, on_every_path, random, tensor};

on_every_path!(
    expert_ffn_matches_the_loop_over_slots,
    large_cases_match_the_loop_over_slots,
    a_token_may_choose_an_expert_twice,
    expert_ffn_equals_its_parts,
    frozen_inputs_get_no_gradient_and_change_no_other,
    an_idle_expert_gets_a_zero_gradient,
    two_runs_give_the_same_bits,
    without_autodiff_the_values_are_the_same,
    the_gradient_is_the_slope_along_a_direction,
);

const ACTIVATIONS: [Activation; 3] = [Activation::SwiGlu, Activation::Gelu, Activation::Relu];
/// Length of a step along a direction, and the error allowed for the slope in f32, relative to the sum of its terms'
/// sizes: the third derivative takes 1e-4 of them, rounding `1e-7 / 1e-2`.
const STEP: f64 = 1e-2;
const SLOPE_TOLERANCE: f64 = 1e-3;
pub(crate) const NAMES: [&str; 6] = ["tokens", "gates", "w_in", "w_out", "b_in", "b_out"];

pub(crate) fn problem(case: &Case, activation: Activation, bias: bool) -> ExpertFfn {
    let (d, f, e) = (case.d_model, case.d_hidden, case.experts);
    let (c, slots) = (activation.columns(f), case.tokens * case.top_k);
    let lengths = [case.tokens * d, slots, e * d * c, e * f * d, e * c, e * d];
    let mut seed = 20;
    let inputs = lengths.map(|length| {
        seed += 1;
        if bias || seed <= 24 { random(length, seed) } else { vec![0.0; length] }
    });
    ExpertFfn { d_model: d, d_hidden: f, activation, experts: case.assignment(), top_k: case.top_k, inputs }
}

/// The inputs as tensors; the biases are there if `bias`.
#[derive(Clone)]
pub(crate) struct Inputs<B: AutodiffMoeBackend> {
    pub(crate) tokens: Tensor<B, 2>,
    pub(crate) gates: Tensor<B, 2>,
    pub(crate) weights: FfnWeights<B>,
    pub(crate) plan: ExpertPlan<B>,
}

impl<B: AutodiffMoeBackend> Inputs<B> {
    pub(crate) fn new(problem: &ExpertFfn, num_experts: usize, bias: bool, device: &B::Device) -> Self {
        let experts: Vec<i64> = problem.experts.iter().map(|&e| e as i64).collect();
        let shape = [problem.experts.len() / problem.top_k, problem.top_k];
        let experts = Tensor::<B, 2, Int>::from_data(TensorData::new(experts, shape), device);
        let mut inputs = Self::with_plan(problem, ExpertPlan::new(experts, num_experts), device);
        if !bias {
            (inputs.weights.b_in, inputs.weights.b_out) = (None, None);
        }
        inputs
    }

    /// With a plan of one's own, and biases.
    pub(crate) fn with_plan(problem: &ExpertFfn, plan: ExpertPlan<B>, device: &B::Device) -> Self {
        let (d, f, k, num_experts) = (problem.d_model, problem.d_hidden, problem.top_k, plan.num_experts());
        let (c, t) = (problem.activation.columns(f), problem.experts.len() / k);
        let [tokens, gates, w_in, w_out, b_in, b_out] = &problem.inputs;
        let matrix = |values: &[f64], shape: [usize; 2]| tensor::<B, 2>(values, shape, device).require_grad();
        let stack = |values: &[f64], shape: [usize; 3]| tensor::<B, 3>(values, shape, device).require_grad();
        Self {
            tokens: matrix(tokens, [t, d]),
            gates: matrix(gates, [t, k]),
            weights: FfnWeights {
                w_in: stack(w_in, [num_experts, d, c]),
                w_out: stack(w_out, [num_experts, f, d]),
                b_in: Some(matrix(b_in, [num_experts, c])),
                b_out: Some(matrix(b_out, [num_experts, d])),
                activation: problem.activation,
            },
            plan,
        }
    }

    pub(crate) fn output(&self) -> Tensor<B, 2> {
        expert_ffn(self.tokens.clone(), self.gates.clone(), self.weights.clone(), &self.plan)
    }

    /// Gradients of `sum(output * weight)`, in the order of [`NAMES`]; `None` for an input without one.
    pub(crate) fn gradients(&self, output: Tensor<B, 2>, weight: &[f64]) -> [Option<Vec<f64>>; 6] {
        let weight = tensor::<B, 2>(weight, output.dims(), &output.device());
        let grads = (output * weight).sum().backward();
        let weights = &self.weights;
        [
            self.tokens.grad(&grads).map(host),
            self.gates.grad(&grads).map(host),
            weights.w_in.grad(&grads).map(host),
            weights.w_out.grad(&grads).map(host),
            weights.b_in.as_ref().and_then(|bias| bias.grad(&grads)).map(host),
            weights.b_out.as_ref().and_then(|bias| bias.grad(&grads)).map(host),
        ]
    }
}

pub(crate) fn check<B: AutodiffMoeBackend>(
    name: &str,
    problem: &ExpertFfn,
    num_experts: usize,
    bias: bool,
    device: &B::Device,
) {
    let weight = random(problem.inputs[0].len(), 31);
    let (expected, expected_grads) = reference::expert_ffn(problem, &weight);
    let inputs = Inputs::<B>::new(problem, num_experts, bias, device);
    let output = inputs.output();
    let what = format!("{name}, {:?}, bias {bias}", problem.activation);
    assert_close(&format!("{what}, output"), &host(output.clone()), &expected);

    let found = inputs.gradients(output, &weight);
    for (i, (found, expected)) in found.iter().zip(&expected_grads).enumerate() {
        match found {
            Some(found) => assert_close(&format!("{what}, gradient of {}", NAMES[i]), found, expected),
            None => assert!(i >= 4 && !bias, "{what}: no gradient of {}", NAMES[i]),
        }
    }
}

fn expert_ffn_matches_the_loop_over_slots<B: AutodiffMoeBackend>(device: &B::Device) {
    for case in CASES {
        for activation in ACTIVATIONS {
            for bias in [false, true] {
                check::<B>(case.name, &problem(case, activation, bias), case.experts, bias, device);
            }
        }
    }
}

/// One activation each: what is large is the same for all.
fn large_cases_match_the_loop_over_slots<B: AutodiffMoeBackend>(device: &B::Device) {
    for (i, case) in LARGE_CASES.iter().enumerate() {
        let activation = ACTIVATIONS[i % ACTIVATIONS.len()];
        check::<B>(case.name, &problem(case, activation, true), case.experts, true, device);
    }
}

fn a_token_may_choose_an_expert_twice<B: AutodiffMoeBackend>(device: &B::Device) {
    let mut problem = problem(&CASES[0], Activation::SwiGlu, true);
    for slot in problem.experts.chunks_mut(2).step_by(3) {
        slot[1] = slot[0];
    }
    check::<B>("an expert twice", &problem, CASES[0].experts, true, device);
}

fn expert_ffn_equals_its_parts<B: AutodiffMoeBackend>(device: &B::Device) {
    let inputs = Inputs::<B>::new(&problem(&CASES[1], Activation::SwiGlu, false), CASES[1].experts, false, device);
    let rows = dispatch_rows(inputs.tokens.clone(), &inputs.plan);
    let hidden = swiglu(grouped_matmul(rows, inputs.weights.w_in.clone(), &inputs.plan));
    let rows = grouped_matmul(hidden, inputs.weights.w_out.clone(), &inputs.plan);
    let expected = combine_rows(rows, inputs.gates.clone(), &inputs.plan);
    assert_close("parts", &host(inputs.output()), &host(expected.clone()));

    let weight = random(CASES[1].tokens * CASES[1].d_model, 3);
    let found = inputs.gradients(inputs.output(), &weight);
    for (i, expected) in inputs.gradients(expected, &weight).iter().enumerate().take(4) {
        assert_close(NAMES[i], found[i].as_ref().expect("tracked"), expected.as_ref().expect("tracked"));
    }
}

fn frozen_inputs_get_no_gradient_and_change_no_other<B: AutodiffMoeBackend>(device: &B::Device) {
    let inputs = Inputs::<B>::new(&problem(&CASES[1], Activation::Gelu, true), CASES[1].experts, true, device);
    let weight = random(CASES[1].tokens * CASES[1].d_model, 3);
    let all = inputs.gradients(inputs.output(), &weight);
    for (frozen, frozen_name) in NAMES.iter().enumerate() {
        let mut inputs = inputs.clone();
        freeze(&mut inputs, frozen);
        let found = inputs.gradients(inputs.output(), &weight);
        for (i, name) in NAMES.iter().enumerate() {
            let expected = if i == frozen { &None } else { &all[i] };
            assert_eq!(&found[i], expected, "{name} with {frozen_name} frozen");
        }
    }
}

/// burn's `detach` keeps a leaf's wish for a gradient: a constant has to leave autodiff and come back.
fn constant<B: AutodiffMoeBackend, const D: usize>(tensor: &Tensor<B, D>) -> Tensor<B, D> {
    Tensor::from_inner(tensor.clone().inner())
}

fn freeze<B: AutodiffMoeBackend>(inputs: &mut Inputs<B>, which: usize) {
    let weights = &mut inputs.weights;
    match which {
        0 => inputs.tokens = constant(&inputs.tokens),
        1 => inputs.gates = constant(&inputs.gates),
        2 => weights.w_in = constant(&weights.w_in),
        3 => weights.w_out = constant(&weights.w_out),
        4 => weights.b_in = weights.b_in.as_ref().map(constant),
        _ => weights.b_out = weights.b_out.as_ref().map(constant),
    }
}

fn an_idle_expert_gets_a_zero_gradient<B: AutodiffMoeBackend>(device: &B::Device) {
    let case = CASES.iter().find(|case| case.name == "idle experts").expect("in the catalogue");
    let inputs = Inputs::<B>::new(&problem(case, Activation::SwiGlu, true), case.experts, true, device);
    let grads = inputs.gradients(inputs.output(), &random(case.tokens * case.d_model, 3));
    for grad in grads[2..].iter().map(|grad| grad.as_ref().expect("tracked")) {
        let busy = grad.len() / case.experts * case.busy;
        assert!(grad[busy..].iter().all(|&g| g == 0.0) && grad[..busy].iter().any(|&g| g != 0.0));
    }
}

fn two_runs_give_the_same_bits<B: AutodiffMoeBackend>(device: &B::Device) {
    let case = &LARGE_CASES[0];
    let run = || {
        let inputs = Inputs::<B>::new(&problem(case, Activation::SwiGlu, true), case.experts, true, device);
        let output = inputs.output();
        (host(output.clone()), inputs.gradients(output, &random(case.tokens * case.d_model, 3)))
    };
    assert_eq!(run(), run());
}

fn without_autodiff_the_values_are_the_same<B: AutodiffMoeBackend>(device: &B::Device) {
    for activation in ACTIVATIONS {
        let inputs = Inputs::<B>::new(&problem(&CASES[0], activation, true), CASES[0].experts, true, device);
        let mut untracked = inputs.clone();
        (0..NAMES.len()).for_each(|i| freeze(&mut untracked, i));
        assert_eq!(host(inputs.output()), host(untracked.output()), "{activation:?}");
    }
}

/// Token 1 is undefined: so is its output and every gradient that it has a part in, and nothing else.
///
/// On CPU backends; a shader may take `max(NaN, 0)` for 0.
#[cfg(any(feature = "flex", feature = "ndarray"))]
fn an_undefined_token_is_not_hidden<B: AutodiffMoeBackend>(device: &B::Device) {
    let case = CASES.iter().find(|case| case.name == "top-1").expect("in the catalogue");
    for activation in ACTIVATIONS {
        let mut problem = problem(case, activation, true);
        let d = case.d_model;
        problem.inputs[0][d..2 * d].fill(f64::NAN);
        let inputs = Inputs::<B>::new(&problem, case.experts, true, device);
        let output = inputs.output();
        let undefined = |values: &[f64]| values.iter().map(|x| x.is_nan()).collect::<Vec<_>>();
        let of_token_1: Vec<bool> = (0..case.tokens * d).map(|i| i / d == 1).collect();
        assert_eq!(undefined(&host(output.clone())), of_token_1, "{activation:?}");

        let grads = inputs.gradients(output, &random(case.tokens * d, 3)).map(|grad| grad.expect("tracked"));
        assert_eq!(undefined(&grads[0]), of_token_1, "{activation:?}");
        let expert = problem.experts[1];
        for (name, grad) in NAMES.iter().zip(&grads).skip(2).take(3) {
            let of_expert = |i: usize| i / (grad.len() / case.experts) == expert;
            assert!(
                grad.iter().enumerate().all(|(i, g)| g.is_nan() == of_expert(i)),
                "{activation:?}: {name} hides a NaN or spreads it"
            );
        }
    }
}

#[cfg(feature = "flex")]
#[test]
fn an_undefined_token_is_not_hidden_on_flex() {
    an_undefined_token_is_not_hidden::<moe_tests::Flex>(&Default::default());
}

#[cfg(feature = "ndarray")]
#[test]
fn an_undefined_token_is_not_hidden_on_ndarray() {
    an_undefined_token_is_not_hidden::<moe_tests::NdArray>(&Default::default());
}

/// burn's autodiff frees, after every backward pass of any thread, what nobody holds a tensor of.
#[cfg(feature = "flex")]
#[test]
fn a_backward_pass_of_another_thread_takes_no_gradient_away() {
    let (case, device) = (&LARGE_CASES[4], Default::default());
    let inputs = Inputs::<moe_tests::Flex>::new(&problem(case, Activation::Gelu, true), case.experts, true, &device);
    let (weights, weight) = (&inputs.weights, vec![1.0; case.tokens * case.d_model]);
    moe_tests::beside_backward_passes(|| {
        // Nobody but the op holds what it is given.
        let given = FfnWeights {
            w_in: weights.w_in.clone() * 1.0,
            w_out: weights.w_out.clone() * 1.0,
            b_in: weights.b_in.clone().map(|bias| bias * 1.0),
            b_out: weights.b_out.clone().map(|bias| bias * 1.0),
            activation: Activation::Gelu,
        };
        let output = expert_ffn(inputs.tokens.clone() * 1.0, inputs.gates.clone() * 1.0, given, &inputs.plan);
        let missing = inputs.gradients(output, &weight).map(|grad| grad.is_none());
        assert_eq!(missing, [false; 6], "gradients that are missing, of {NAMES:?}");
    });
}

/// Central difference of the op itself in the backend's own precision, all inputs moved together.
fn the_gradient_is_the_slope_along_a_direction<B: AutodiffMoeBackend>(device: &B::Device) {
    let case = &CASES[1];
    for activation in [Activation::SwiGlu, Activation::Gelu] {
        let start = problem(case, activation, true);
        let weight = random(case.tokens * case.d_model, 3);
        let direction = [41, 42, 43, 44, 45, 46].map(|seed| random(10_000, seed));
        let loss = |step: f64| -> f64 {
            let mut moved = start.clone();
            for (values, direction) in moved.inputs.iter_mut().zip(&direction) {
                values.iter_mut().zip(direction).for_each(|(value, d)| *value += step * d);
            }
            let output = host(Inputs::<B>::new(&moved, case.experts, true, device).output());
            output.iter().zip(&weight).map(|(y, w)| y * w).sum()
        };
        let slope = (loss(STEP) - loss(-STEP)) / (2.0 * STEP);

        let inputs = Inputs::<B>::new(&start, case.experts, true, device);
        let grads = inputs.gradients(inputs.output(), &weight).map(|grad| grad.expect("tracked"));
        let terms = grads.iter().zip(&direction).flat_map(|(grad, d)| grad.iter().zip(d).map(|(g, d)| g * d));
        let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
        assert!((slope - sum).abs() <= SLOPE_TOLERANCE * size, "{activation:?}: {slope} against {sum}, terms {size}");
    }
}
