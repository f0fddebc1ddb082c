//! `default-moe` against loops in f64, numbers worked out by hand and an implementation in PyTorch.

mod by_hand;
#[cfg(feature = "flex")]
mod low_precision;
mod oracle;
mod routers;
mod torch;

use burn::module::Param;
use burn::tensor::{DType, Tensor};
use default_moe::{DefaultMoe, DefaultMoeConfig, DefaultOptions, DefaultUpdate, Evaluation, Form, UpdateRule};
use moe_layers::{AutodiffMoeBackend, BalanceConvention, Moe, MoeConfig, MoeLosses};
use moe_tests::{
    CASES, assert_close, cases, host, no_rows, on_every_backend_and_portable, random, takes_empty_tensors, tensor,
};

use oracle::Layer;

on_every_backend_and_portable!(
    values_vectors_and_gradients_match_the_loops,
    renormalised_gates_divide_the_vectors_weights_too,
    backward_only_is_top_k_with_the_router_gradient_of_all_slots,
    frozen_evaluation_uses_the_vectors_and_top_k_does_not,
    all_experts_chosen_leaves_nothing_to_fill,
    relabelling_experts_relabels_the_vectors,
    no_tokens_are_an_empty_update,
    the_energy_is_that_of_the_two_parts,
    measuring_changes_neither_output_nor_gradients,
    losses_are_those_of_the_layer_without_vectors,
    shared_experts_are_added_and_change_nothing_else,
);

const RULES: [UpdateRule; 3] = [UpdateRule::Mean, UpdateRule::Weighted, UpdateRule::WeightedByCount];

fn param<B: AutodiffMoeBackend, const D: usize>(
    values: &[f64],
    shape: [usize; D],
    device: &B::Device,
) -> Param<Tensor<B, D>> {
    Param::from_tensor(tensor(values, shape, device))
}

fn layer<B: AutodiffMoeBackend>(numbers: &Layer, form: Form, device: &B::Device) -> DefaultMoe<B> {
    let (e, d, f, k) = (numbers.case.experts, numbers.case.d_model, numbers.case.d_hidden, numbers.case.top_k);
    let moe = MoeConfig::new(d, f, e, k).with_normalize_gates(numbers.renormalize);
    let options = DefaultOptions::new().with_beta(numbers.beta).with_rule(numbers.rule).with_form(form);
    let mut layer = DefaultMoeConfig::new(moe).with_options(options).init::<B>(device);
    *layer.moe.router.weight_mut().expect("a learned router") = param(&numbers.router, [d, e], device);
    layer.moe.experts.w_in = param(&numbers.w_in, [e, d, 2 * f], device);
    layer.moe.experts.w_out = param(&numbers.w_out, [e, f, d], device);
    layer.vectors.values = layer.vectors.values.map(|_| tensor(&numbers.vectors, [e, d], device));
    layer.vectors = layer.vectors.with_measuring(numbers.measuring);
    layer
}

/// Output, the vectors after the batch, and gradients in the order tokens, router, `w_in`, `w_out`.
fn run<B: AutodiffMoeBackend>(numbers: &Layer, form: Form, device: &B::Device) -> [Vec<f64>; 6] {
    run_in::<B>(numbers, form, None, device)
}

/// [`run`] with activations in `dtype`, if there is one.
fn run_in<B: AutodiffMoeBackend>(
    numbers: &Layer,
    form: Form,
    dtype: Option<DType>,
    device: &B::Device,
) -> [Vec<f64>; 6] {
    let mut layer = layer::<B>(numbers, form, device);
    let shape = [numbers.case.tokens, numbers.case.d_model];
    let tokens = tensor::<B, 2>(&numbers.tokens, shape, device).require_grad();
    let out = layer.forward(dtype.map_or(tokens.clone(), |dtype| tokens.clone().cast(dtype)));
    assert_eq!(out.output.dtype(), dtype.unwrap_or(tokens.dtype()));
    let output = out.output.cast(tokens.dtype());
    let grads = (output.clone() * tensor(&numbers.grad, shape, device)).sum().backward();
    layer.absorb(&out.update.expect("a training pass"));
    let moe = &layer.moe;
    [
        host(output),
        host(layer.vectors.values.val()),
        host(tokens.grad(&grads).expect("tracked")),
        host(moe.router.weight().expect("a learned router").grad(&grads).expect("tracked")),
        host(moe.experts.w_in.grad(&grads).expect("tracked")),
        host(moe.experts.w_out.grad(&grads).expect("tracked")),
    ]
}

const PARTS: [&str; 6] = ["output", "vectors", "tokens", "router", "w_in", "w_out"];

fn check<B: AutodiffMoeBackend>(numbers: &Layer, device: &B::Device) {
    let expected = numbers.expected();
    let expected = [expected.output, expected.vectors, expected.tokens, expected.router, expected.w_in, expected.w_out];
    assert_parts(numbers, &run::<B>(numbers, Form::Full, device), &expected);
}

fn assert_parts(numbers: &Layer, found: &[Vec<f64>; 6], expected: &[Vec<f64>; 6]) {
    for ((found, expected), part) in found.iter().zip(expected).zip(PARTS) {
        assert_close(&format!("{}, {:?}, {part}", numbers.case.name, numbers.rule), found, expected);
    }
}

/// The router's gradient is the closed form `pi_i (g.v_i - g.y)`; an expert gets `pi_i g` from the tokens that chose it
/// and nothing else.
fn values_vectors_and_gradients_match_the_loops<B: AutodiffMoeBackend>(device: &B::Device) {
    for (i, case) in cases(6).iter().enumerate().filter(|(_, case)| case.tokens > 0) {
        for rule in &RULES[..if i < 2 { RULES.len() } else { 1 }] {
            check::<B>(&Layer::random(case, *rule), device);
        }
    }
    check::<B>(&Layer::random(&CASES[4], UpdateRule::Weighted), device);
}

/// `(pi_i / s) (g.v_i - 1[i in A] g.y)`.
fn renormalised_gates_divide_the_vectors_weights_too<B: AutodiffMoeBackend>(device: &B::Device) {
    for case in &CASES[..3] {
        check::<B>(&Layer { renormalize: true, ..Layer::random(case, UpdateRule::Weighted) }, device);
    }
}

fn backward_only_is_top_k_with_the_router_gradient_of_all_slots<B: AutodiffMoeBackend>(device: &B::Device) {
    let numbers = Layer::random(&CASES[1], UpdateRule::Weighted);
    let [output, vectors, tokens, router, ..] = run::<B>(&numbers, Form::BackwardOnly, device);
    let expected = numbers.expected();
    assert_close("output", &output, &expected.top_k);
    assert_close("vectors", &vectors, &expected.vectors);
    // `ybar` of the formula is the output of the full form, so the two forms have one router gradient.
    assert_close("router", &router, &expected.router);
    assert_close("tokens", &tokens, &expected.tokens);

    let layer = layer::<B>(&numbers, Form::BackwardOnly, device);
    let input = tensor::<B, 2>(&numbers.tokens, [numbers.case.tokens, numbers.case.d_model], device);
    assert_eq!(host(layer.forward(input.clone()).output), host(layer.moe.forward(input).output));
}

fn frozen_evaluation_uses_the_vectors_and_top_k_does_not<B: AutodiffMoeBackend>(device: &B::Device) {
    let numbers = Layer::random(&CASES[1], UpdateRule::Weighted);
    let input = tensor::<B, 2>(&numbers.tokens, [numbers.case.tokens, numbers.case.d_model], device);
    let trained = layer::<B>(&numbers, Form::Full, device);
    let evaluate = |layer: &DefaultMoe<B>| {
        let out = layer.vectors.forward_evaluation(&layer.moe, input.clone());
        assert!(out.update.is_none());
        host(out.output)
    };
    // With beta 1 the batch moves nothing: the loops then use the vectors as they are.
    let frozen = Layer { beta: 1.0, ..numbers.clone() }.expected().output;
    assert_close("frozen", &evaluate(&trained), &frozen);
    let plain = trained.with_evaluation(Evaluation::TopK);
    assert_eq!(evaluate(&plain), host(plain.moe.forward(input.clone()).output));
    assert_close("frozen again", &evaluate(&plain.with_evaluation(Evaluation::Frozen)), &frozen);
}

fn all_experts_chosen_leaves_nothing_to_fill<B: AutodiffMoeBackend>(device: &B::Device) {
    let case = CASES.iter().find(|case| case.name == "every expert").expect("in the catalogue");
    let layer = layer::<B>(&Layer::random(case, UpdateRule::Mean), Form::Full, device);
    let input = tensor::<B, 2>(&random(case.tokens * case.d_model, 1), [case.tokens, case.d_model], device);
    assert_eq!(host(layer.forward(input.clone()).output), host(layer.moe.forward(input).output));
}

fn relabelling_experts_relabels_the_vectors<B: AutodiffMoeBackend>(device: &B::Device) {
    let numbers = Layer::random(&CASES[1], UpdateRule::Weighted);
    let order = Tensor::<B, 1, burn::tensor::Int>::from_data([3, 0, 4, 1, 2], device);
    let straight = layer::<B>(&numbers, Form::Full, device);
    let mut relabelled = straight.clone();
    *relabelled.moe.router.weight_mut().expect("a learned router") =
        relabelled.moe.router.weight().expect("a learned router").clone().map(|w| w.select(1, order.clone()));
    relabelled.moe.experts.w_in = relabelled.moe.experts.w_in.map(|w| w.select(0, order.clone()));
    relabelled.moe.experts.w_out = relabelled.moe.experts.w_out.map(|w| w.select(0, order.clone()));
    relabelled.vectors.values = relabelled.vectors.values.map(|v| v.select(0, order.clone()));

    let input = tensor::<B, 2>(&numbers.tokens, [numbers.case.tokens, numbers.case.d_model], device);
    let (before, after) = (straight.forward(input.clone()), relabelled.forward(input));
    assert_close("output", &host(after.output), &host(before.output));
    let matrix = |update: Option<DefaultUpdate<B>>| update.expect("training").into_matrix();
    assert_close("update", &host(matrix(after.update)), &host(matrix(before.update).select(0, order)));
}

fn no_tokens_are_an_empty_update<B: AutodiffMoeBackend>(device: &B::Device) {
    if !takes_empty_tensors() {
        return;
    }
    let mut layer = layer::<B>(&Layer::random(&CASES[0], UpdateRule::Mean), Form::Full, device);
    let before = host(layer.vectors.values.val());
    let out = layer.forward(no_rows::<B>(CASES[0].d_model, device));
    assert_eq!(out.output.dims(), [0, CASES[0].d_model]);
    layer.absorb(&out.update.expect("training"));
    assert_eq!(host(layer.vectors.values.val()), before);
}

fn the_energy_is_that_of_the_two_parts<B: AutodiffMoeBackend>(device: &B::Device) {
    let numbers = Layer::random(&CASES[1], UpdateRule::Weighted);
    let input = tensor::<B, 2>(&numbers.tokens, [numbers.case.tokens, numbers.case.d_model], device);
    let layer = layer::<B>(&numbers, Form::Full, device);
    assert!(layer.forward(input.clone()).energy.is_none());
    let measuring = layer.vectors.with_measuring(true);
    let energy = measuring.forward(&layer.moe, input).energy.expect("it was asked for");
    let expected = numbers.expected();
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let fill = squares(&mut expected.output.iter().zip(&expected.top_k).map(|(y, e)| y - e));
    // Summed in f32, of f32 vectors, whatever the type of the tokens.
    let limit = if cfg!(feature = "cuda") { 5e-3 } else { 1e-5 };
    for (found, expected) in host(energy).iter().zip([fill, squares(&mut expected.top_k.iter().copied())]) {
        assert!((found / expected - 1.0).abs() < limit, "got {found}, expected {expected}");
    }
}

/// The loops say so in full, the pass without measuring in the other form.
fn measuring_changes_neither_output_nor_gradients<B: AutodiffMoeBackend>(device: &B::Device) {
    for rule in RULES {
        for (case, renormalize) in [(&CASES[0], false), (&CASES[1], true)] {
            let plain = Layer { renormalize, ..Layer::random(case, rule) };
            let measured = Layer { measuring: true, ..plain.clone() };
            check::<B>(&measured, device);
            let [plain, found] = [&plain, &measured].map(|numbers| run::<B>(numbers, Form::BackwardOnly, device));
            assert_parts(&measured, &found, &plain);
        }
    }
}

/// Balance in every convention, router z and importance, in training and in evaluation: the losses are the router's, whose choice no vector
/// changes.
fn losses_are_those_of_the_layer_without_vectors<B: AutodiffMoeBackend>(device: &B::Device) {
    use BalanceConvention::{GShard, HuggingFace, Sequence, Switch};
    let numbers = Layer::random(&CASES[0], UpdateRule::Weighted);
    let (t, e, d) = (numbers.case.tokens, numbers.case.experts, numbers.case.d_model);
    let input = tensor::<B, 3>(&numbers.tokens, [2, t / 2, d], device);
    let vectors = layer::<B>(&numbers, Form::Full, device).vectors;
    for balance in [Switch, HuggingFace, GShard, Sequence] {
        let moe = MoeConfig::new(d, 3, e, numbers.case.top_k).with_balance(balance).with_balance_coef(0.5);
        let moe = moe.with_z_coef(0.25).with_importance_coef(0.125).init::<B>(device);
        let expected = losses_and_gradient(&moe, moe.forward(input.clone()).losses);
        let trained = losses_and_gradient(&moe, vectors.forward_training(&moe, input.clone()).losses);
        let evaluated = losses_and_gradient(&moe, vectors.forward_evaluation(&moe, input.clone()).losses);
        assert!(expected[..4].iter().all(|loss| loss[0] > 0.0), "{balance:?}: {expected:?}");
        for (found, pass) in [(trained, "training"), (evaluated, "evaluation")] {
            for ((found, expected), part) in found.iter().zip(&expected).zip(LOSSES) {
                assert_close(&format!("{balance:?}, {pass}, {part}"), found, expected);
            }
        }
    }
}

const LOSSES: [&str; 5] = ["balance", "z", "importance", "their sum", "router"];

/// The losses, and the gradient of their weighted sum in the router.
fn losses_and_gradient<B: AutodiffMoeBackend>(moe: &Moe<B>, losses: MoeLosses<B>) -> [Vec<f64>; 5] {
    let sum = losses.weighted();
    let grads = sum.clone().backward();
    let router = host(moe.router.weight().expect("a learned router").grad(&grads).expect("tracked"));
    let importance = losses.other.expect("it has a coefficient");
    [host(losses.balance), host(losses.z), host(importance), host(sum), router]
}

/// Nor do they count as an expert: they are no part of the vectors, of what moves them or of the router's gradient.
fn shared_experts_are_added_and_change_nothing_else<B: AutodiffMoeBackend>(device: &B::Device) {
    let numbers = Layer::random(&CASES[1], UpdateRule::Weighted);
    let (t, d) = (numbers.case.tokens, numbers.case.d_model);
    let input = tensor::<B, 2>(&numbers.tokens, [t, d], device);
    let e = numbers.case.experts;
    let mut shared = MoeConfig::new(d, 1, e, 1).with_shared_d_hidden(6).with_shared_gate(true).init::<B>(device);
    shared.experts.w_out = shared.experts.w_out.map(|w| w.zeros_like());
    for form in [Form::Full, Form::BackwardOnly] {
        let pass = |shared: Option<&Moe<B>>| {
            let mut layer = layer::<B>(&numbers, form, device);
            if let Some(Moe { shared, shared_gate, .. }) = shared {
                (layer.moe.shared, layer.moe.shared_gate) = (shared.clone(), shared_gate.clone());
            }
            let out = layer.forward(input.clone());
            let grads = (out.output.clone() * tensor(&numbers.grad, [t, d], device)).sum().backward();
            layer.absorb(&out.update.expect("a training pass"));
            let router = host(layer.moe.router.weight().expect("a learned router").grad(&grads).expect("tracked"));
            let w_in = host(layer.moe.experts.w_in.grad(&grads).expect("tracked"));
            let frozen = layer.vectors.forward_evaluation(&layer.moe, input.clone()).output;
            [host(out.output), host(frozen), host(layer.vectors.values.val()), router, w_in]
        };
        let added = host(shared.forward(input.clone()).output);
        assert!(added.iter().any(|value| value.abs() > 1e-3));
        let [mut output, mut frozen, vectors, router, w_in] = pass(None);
        for routed in [&mut output, &mut frozen] {
            routed.iter_mut().zip(&added).for_each(|(routed, added)| *routed += added);
        }
        let expected = [output, frozen, vectors, router, w_in];
        let names = ["output", "frozen output", "vectors", "router", "w_in"];
        for ((found, expected), name) in pass(Some(&shared)).iter().zip(&expected).zip(names) {
            assert_close(&format!("{form:?}, {name}"), found, expected);
        }
    }
}
