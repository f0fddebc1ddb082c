//! `moe-layers` against `dispatch::dense` and closed forms: values and all gradients.

use burn::module::Param;
use burn::tensor::activation::softmax;
use burn::tensor::{DType, Int, Tensor, TensorData};
use moe_kernels::reference::{self, ExpertFfn};
use moe_kernels::sum_dim;
use moe_layers::{
    Activation, AutodiffMoeBackend, BalanceConvention, Experts, ExpertsConfig, Moe, MoeConfig, Routing, RoutingStats,
    dispatch, load_balance_loss, load_balance_loss_pooled, router_z_loss,
};
use moe_tests::{
    CASES, Case, assert_close, cases, host, no_rows, on_every_backend, on_software_gpu, random, takes_empty_tensors,
    tensor,
};

on_every_backend!(
    grouped_dispatch_matches_the_dense_oracle,
    grouped_dispatch_matches_the_loops,
    router_gradient_matches_the_closed_form,
    relabelling_experts_changes_nothing,
    the_order_of_tokens_changes_nothing,
    all_experts_chosen_equals_the_softmax_mixture,
    an_idle_expert_gets_no_gradient,
    balance_losses_match_a_computation_by_hand,
    the_balance_gradient_flows_through_the_probabilities_only,
    pooled_balance_treats_layers_as_one_batch,
    z_loss_matches_a_computation_by_hand,
    statistics_match_a_computation_by_hand,
    an_empty_batch_has_finite_losses,
);

fn randomized<B: AutodiffMoeBackend, const D: usize>(
    shape: [usize; D],
    seed: u64,
    device: &B::Device,
) -> Param<Tensor<B, D>> {
    Param::from_tensor(tensor(&random(shape.iter().product(), seed), shape, device))
}

/// Experts whose weights and biases are the same numbers on every backend.
pub(crate) fn experts<B: AutodiffMoeBackend>(
    case: &Case,
    activation: Activation,
    bias: bool,
    device: &B::Device,
) -> Experts<B> {
    let (e, d, f) = (case.experts, case.d_model, case.d_hidden);
    let mut experts = ExpertsConfig::new(e, d, f).with_activation(activation).with_bias(bias).init(device);
    experts.w_in = randomized([e, d, activation.columns(f)], 1, device);
    experts.w_out = randomized([e, f, d], 2, device);
    experts.b_in = bias.then(|| randomized([e, activation.columns(f)], 3, device));
    experts.b_out = bias.then(|| randomized([e, d], 4, device));
    experts
}

/// A decision with the case's assignment; probabilities and gates are arbitrary numbers.
pub(crate) fn routing<B: AutodiffMoeBackend>(case: &Case, gates: Tensor<B, 2>) -> Routing<B> {
    let (t, e, device) = (case.tokens, case.experts, gates.device());
    let logits = tensor::<B, 2>(&random(t * e, 6), [t, e], &device);
    let chosen: Vec<i64> = case.assignment().into_iter().map(|e| e as i64).collect();
    let chosen = Tensor::<B, 2, Int>::from_data(TensorData::new(chosen, [t, case.top_k]), &device);
    Routing::new(logits.clone(), softmax(logits, 1), gates, chosen)
}

const VARIANTS: [(Activation, bool); 4] =
    [(Activation::SwiGlu, true), (Activation::Gelu, true), (Activation::Relu, true), (Activation::SwiGlu, false)];

/// Experts for which the oracle, one product after the other, is compiled on a software GPU within seconds.
const FEW_EXPERTS: usize = 16;

/// Every activation on the first two cases, one on the others: a software GPU compiles kernels for each anew.
fn grouped_dispatch_matches_the_dense_oracle<B: AutodiffMoeBackend>(device: &B::Device) {
    let cases = CASES.iter().filter(|case| !on_software_gpu() || case.experts <= FEW_EXPERTS);
    for (i, case) in cases.enumerate() {
        for &(activation, bias) in &VARIANTS[..if i < 2 { VARIANTS.len() } else { 1 }] {
            let run = |path| values_and_gradients::<B>(case, activation, bias, path, DType::F32, device);
            let actual = run(dispatch::grouped);
            // burn's own ops do not take an empty batch.
            let zeros = || actual.iter().map(|(name, values)| (*name, vec![0.0; values.len()])).collect();
            let expected = if case.tokens == 0 { zeros() } else { run(dispatch::dense) };
            for ((name, actual), (_, expected)) in actual.iter().zip(&expected) {
                assert_close(&format!("{}, {activation:?}, {name}", case.name), actual, expected);
            }
        }
    }
}

fn grouped_dispatch_matches_the_loops<B: AutodiffMoeBackend>(device: &B::Device) {
    for case in cases(2) {
        for (activation, bias) in VARIANTS {
            let found = values_and_gradients::<B>(case, activation, bias, dispatch::grouped, DType::F32, device);
            for ((name, found), (_, expected)) in found.iter().zip(&by_loops(case, activation, bias)) {
                assert_close(&format!("{}, {activation:?}, {name}", case.name), found, expected);
            }
        }
    }
}

/// What [`values_and_gradients`] are, in f64.
pub(crate) fn by_loops(case: &Case, activation: Activation, bias: bool) -> Vec<(&'static str, Vec<f64>)> {
    let (t, k, e, d, f) = (case.tokens, case.top_k, case.experts, case.d_model, case.d_hidden);
    let c = activation.columns(f);
    let of_bias = |length: usize, seed| if bias { random(length, seed) } else { vec![0.0; length] };
    let inputs = [
        random(t * d, 7),
        random(t * k, 8),
        random(e * d * c, 1),
        random(e * f * d, 2),
        of_bias(e * c, 3),
        of_bias(e * d, 4),
    ];
    let network = ExpertFfn { d_model: d, d_hidden: f, activation, experts: case.assignment(), top_k: k, inputs };
    let (output, grads) = reference::expert_ffn(&network, &random(t * d, 9));
    let names = ["tokens", "gates", "w_in", "w_out", "b_in", "b_out"];
    let grads = names.into_iter().zip(grads).take(if bias { 6 } else { 4 });
    std::iter::once(("output", output)).chain(grads).collect()
}

type Path<B> = fn(Tensor<B, 2>, &Experts<B>, &Routing<B>) -> Tensor<B, 2>;

/// Of the experts in `dtype` on tokens, gates and parameters in f32: the output, and the gradient of every input.
pub(crate) fn values_and_gradients<B: AutodiffMoeBackend>(
    case: &Case,
    activation: Activation,
    bias: bool,
    forward: Path<B>,
    dtype: DType,
    device: &B::Device,
) -> Vec<(&'static str, Vec<f64>)> {
    let (t, k, d) = (case.tokens, case.top_k, case.d_model);
    let experts = experts::<B>(case, activation, bias, device);
    let tokens = tensor::<B, 2>(&random(t * d, 7), [t, d], device).require_grad();
    let gates = tensor::<B, 2>(&random(t * k, 8), [t, k], device).require_grad();
    let routing = routing(case, gates.clone());

    let output = forward(tokens.clone().cast(dtype), &experts, &routing);
    assert_eq!(output.dtype(), dtype);
    let output = output.cast(DType::F32);
    let grads = (output.clone() * tensor(&random(t * d, 9), [t, d], device)).sum().backward();

    let mut all = vec![
        ("output", host(output)),
        ("tokens", host(tokens.grad(&grads).expect("tracked"))),
        ("gates", host(gates.grad(&grads).expect("tracked"))),
        ("w_in", host(experts.w_in.grad(&grads).expect("tracked"))),
        ("w_out", host(experts.w_out.grad(&grads).expect("tracked"))),
    ];
    for (name, param) in [("b_in", &experts.b_in), ("b_out", &experts.b_out)] {
        all.extend(param.iter().map(|p| (name, host(p.grad(&grads).expect("tracked")))));
    }
    all
}

/// A layer with known weights, its input `[T, D]` and a weight for the output.
fn layer<B: AutodiffMoeBackend>(normalize: bool, device: &B::Device) -> (Moe<B>, Tensor<B, 2>, Tensor<B, 2>) {
    let case = &CASES[1];
    let (t, e, d) = (case.tokens, case.experts, case.d_model);
    let config = MoeConfig::new(d, case.d_hidden, e, case.top_k).with_normalize_gates(normalize);
    let mut moe: Moe<B> = config.init(device);
    *moe.router.weight_mut().expect("a learned router") = randomized([d, e], 10, device);
    moe.experts = experts(case, Activation::SwiGlu, false, device);
    let tokens = tensor(&random(t * d, 11), [t, d], device);
    (moe, tokens, tensor(&random(t * d, 12), [t, d], device))
}

/// Top-K: `dL/dlogit_i = p_i (1[i in A] g.E_i - g.y)`; renormalised, with `s` the mass of the kept set `A`:
/// `(p_i / s)(g.E_i - g.y)` for `i` in `A`, else 0. The logits are `x W`, so `dL/dW = x^T dL/dlogits`.
fn router_gradient_matches_the_closed_form<B: AutodiffMoeBackend>(device: &B::Device) {
    for normalize in [false, true] {
        let (moe, tokens, weight) = layer::<B>(normalize, device);
        let out = moe.forward(tokens.clone());
        let grads = (out.output.clone() * weight.clone()).sum().backward();
        let actual = host(moe.router.weight().expect("a learned router").grad(&grads).expect("tracked"));

        let [t, e] = out.routing.probs.dims();
        let (probs, chosen) = (host(out.routing.probs.clone()), out.routing.experts.clone());
        let chosen: Vec<usize> = chosen.into_data().iter::<i64>().map(|e| e as usize).collect();
        let k = chosen.len() / t;
        let dot = |y: Tensor<B, 2>| host(sum_dim(y * weight.clone(), 1));
        let total = dot(out.output.clone());
        let each: Vec<Vec<f64>> = (0..e).map(|i| dot(only_expert(&moe, tokens.clone(), i))).collect();

        let mut logits_grad = vec![0.0; t * e];
        for token in 0..t {
            let kept = &chosen[token * k..(token + 1) * k];
            let mass: f64 = kept.iter().map(|&i| probs[token * e + i]).sum();
            for i in 0..e {
                let inside = kept.contains(&i);
                let benefit = if inside { each[i][token] } else { 0.0 };
                logits_grad[token * e + i] = match (normalize, inside) {
                    (true, false) => 0.0,
                    (true, true) => probs[token * e + i] / mass * (benefit - total[token]),
                    (false, _) => probs[token * e + i] * (benefit - total[token]),
                };
            }
        }
        let logits_grad = tensor::<B, 2>(&logits_grad, [t, e], device);
        let expected = host(tokens.transpose().matmul(logits_grad));
        assert_close(&format!("router weight, normalize = {normalize}"), &actual, &expected);
    }
}

/// Output of expert `i` on every token.
fn only_expert<B: AutodiffMoeBackend>(moe: &Moe<B>, tokens: Tensor<B, 2>, i: usize) -> Tensor<B, 2> {
    let (t, e) = (tokens.dims()[0], moe.experts.num_experts());
    let logits = Tensor::zeros([t, e], &tokens.device());
    let chosen = Tensor::<B, 2, Int>::full([t, 1], i as i64, &tokens.device());
    let gates = Tensor::ones([t, 1], &tokens.device());
    dispatch::dense(tokens, &moe.experts, &Routing::new(logits.clone(), logits, gates, chosen))
}

fn relabelling_experts_changes_nothing<B: AutodiffMoeBackend>(device: &B::Device) {
    let (moe, tokens, _) = layer::<B>(false, device);
    let order = Tensor::<B, 1, Int>::from_data([3, 0, 4, 1, 2], device);
    let mut relabelled = moe.clone();
    *relabelled.router.weight_mut().expect("a learned router") =
        moe.router.weight().expect("a learned router").clone().map(|w| w.select(1, order.clone()));
    relabelled.experts.w_in = moe.experts.w_in.clone().map(|w| w.select(0, order.clone()));
    relabelled.experts.w_out = moe.experts.w_out.clone().map(|w| w.select(0, order.clone()));

    let (before, after) = (moe.forward(tokens.clone()), relabelled.forward(tokens));
    assert_close("output", &host(after.output), &host(before.output));
    assert_close("balance", &host(after.losses.balance), &host(before.losses.balance));
}

fn the_order_of_tokens_changes_nothing<B: AutodiffMoeBackend>(device: &B::Device) {
    let (moe, tokens, _) = layer::<B>(true, device);
    let t = tokens.dims()[0];
    let reversed = moe.forward(tokens.clone().flip([0]));
    let straight = moe.forward(tokens);
    assert_eq!(reversed.output.dims()[0], t);
    assert_close("output", &host(reversed.output.flip([0])), &host(straight.output));
    assert_eq!(host(reversed.routing.counts().float()), host(straight.routing.counts().float()));
}

fn all_experts_chosen_equals_the_softmax_mixture<B: AutodiffMoeBackend>(device: &B::Device) {
    let (_, tokens, _) = layer::<B>(false, device);
    let d = tokens.dims()[1];
    let moe = MoeConfig::new(d, 4, 3, 3).init::<B>(device);
    let out = moe.forward(tokens.clone());
    let mixture = (0..3).map(|i| {
        let gate = out.routing.probs.clone().slice([0..tokens.dims()[0], i..i + 1]);
        only_expert(&moe, tokens.clone(), i) * gate
    });
    let mixture = mixture.reduce(|a, b| a + b).expect("three experts");
    assert_close("output", &host(out.output), &host(mixture));
}

fn an_idle_expert_gets_no_gradient<B: AutodiffMoeBackend>(device: &B::Device) {
    let case = CASES.iter().find(|c| c.name == "idle experts").expect("in the catalogue");
    let all = values_and_gradients::<B>(case, Activation::Gelu, true, dispatch::grouped, DType::F32, device);
    for (name, gradient) in all.iter().filter(|(name, _)| name.starts_with(['w', 'b'])) {
        let stride = gradient.len() / case.experts;
        assert!(gradient[case.busy * stride..].iter().all(|&g| g == 0.0), "{name}");
    }
}

/// Three tokens, two experts each; slots per expert 3, 2, 1; first choices 2, 1, 0.
fn small_routing<B: AutodiffMoeBackend>(probs: Tensor<B, 2>) -> Routing<B> {
    let device = probs.device();
    let experts = Tensor::<B, 2, Int>::from_data([[0, 1], [0, 2], [1, 0]], &device);
    let gates = probs.clone().gather(1, experts.clone());
    Routing::new(probs.clone().log(), probs, gates, experts)
}

const PROBS: [[f64; 3]; 3] = [[0.5, 0.3, 0.2], [0.6, 0.1, 0.3], [0.35, 0.45, 0.2]];
const SLOTS: [f64; 3] = [3.0, 2.0, 1.0];

fn mean_probs() -> [f64; 3] {
    [0, 1, 2].map(|e| PROBS.iter().map(|row| row[e]).sum::<f64>() / 3.0)
}

fn balance_losses_match_a_computation_by_hand<B: AutodiffMoeBackend>(device: &B::Device) {
    let routing = small_routing(Tensor::<B, 2>::from_data(PROBS, device));
    let by_hand = |fractions: [f64; 3]| 3.0 * fractions.iter().zip(mean_probs()).map(|(f, p)| f * p).sum::<f64>();
    for (convention, fractions) in [
        (BalanceConvention::Switch, SLOTS.map(|n| n / 6.0)),
        (BalanceConvention::HuggingFace, SLOTS.map(|n| n / 3.0)),
        (BalanceConvention::GShard, [2.0, 1.0, 0.0].map(|n| n / 3.0)),
    ] {
        let loss = host(load_balance_loss(&routing, convention));
        assert_close(&format!("{convention:?}, output"), &loss, &[by_hand(fractions)]);
    }
}

/// With the fractions constant, `dL/dp_te = E f_e / T`.
fn the_balance_gradient_flows_through_the_probabilities_only<B: AutodiffMoeBackend>(device: &B::Device) {
    let probs = Tensor::<B, 2>::from_data(PROBS, device).require_grad();
    let loss = load_balance_loss(&small_routing(probs.clone()), BalanceConvention::Switch);
    let gradient = host(probs.grad(&loss.backward()).expect("tracked"));
    let row = SLOTS.map(|n| 3.0 * (n / 6.0) / 3.0);
    assert_close("gradient of probs", &gradient, &[row, row, row].concat());
}

fn pooled_balance_treats_layers_as_one_batch<B: AutodiffMoeBackend>(device: &B::Device) {
    let rows = |range: std::ops::Range<usize>| {
        let probs = Tensor::<B, 2>::from_data(PROBS, device);
        let whole = small_routing(probs);
        let part = |t: Tensor<B, 2>| t.slice([range.clone()]);
        Routing::new(part(whole.logits), part(whole.probs), part(whole.gates), whole.experts.slice([range.clone()]))
    };
    let pooled = load_balance_loss_pooled(&[rows(0..1), rows(1..3)]);
    let one = load_balance_loss(&rows(0..3), BalanceConvention::HuggingFace);
    assert_close("pooled", &host(pooled), &host(one));
}

fn z_loss_matches_a_computation_by_hand<B: AutodiffMoeBackend>(device: &B::Device) {
    const LOGITS: [[f64; 2]; 2] = [[1.0, -2.0], [80.0, 79.0]]; // exp(80) overflows f32: the shift must come first
    let logits = Tensor::<B, 2>::from_data(LOGITS, device).require_grad();
    let experts = Tensor::<B, 2, Int>::from_data([[0], [0]], device);
    let gates = Tensor::ones([2, 1], device);
    let loss = router_z_loss(&Routing::new(logits.clone(), softmax(logits.clone(), 1), gates, experts));

    let lse = LOGITS.map(|row| row[0] + (1.0 + (row[1] - row[0]).exp()).ln());
    assert_close("output", &host(loss.clone()), &[lse.iter().map(|l| l * l).sum::<f64>() / 2.0]);

    let gradient = host(logits.grad(&loss.backward()).expect("tracked"));
    let expected = [0, 1].map(|t| LOGITS[t].map(|l| 2.0 * lse[t] / 2.0 * (l - lse[t]).exp()));
    assert_close("gradient of logits", &gradient, &expected.concat());
}

fn statistics_match_a_computation_by_hand<B: AutodiffMoeBackend>(device: &B::Device) {
    let stats = RoutingStats::from_routing(&small_routing(Tensor::<B, 2>::from_data(PROBS, device)));
    assert_eq!(stats.expert_counts, [3, 2, 1]);
    assert_eq!((stats.load_ratio, stats.dead_experts), (1.5, 0));

    let entropy = -PROBS.iter().flatten().map(|p| p * p.ln()).sum::<f64>() / 3.0;
    let mass = ((0.5 + 0.3) + (0.6 + 0.3) + (0.45 + 0.35)) / 3.0;
    let load: f64 = SLOTS.iter().map(|n| -(n / 6.0) * (n / 6.0f64).ln()).sum::<f64>() / 3f64.ln();
    let actual = [stats.router_entropy, stats.gate_mass, stats.load_entropy];
    assert_close("statistics", &actual, &[entropy, mass, load]);
}

fn an_empty_batch_has_finite_losses<B: AutodiffMoeBackend>(device: &B::Device) {
    if !takes_empty_tensors() {
        return;
    }
    let moe = MoeConfig::new(4, 8, 3, 2).with_z_coef(0.001).init::<B>(device);
    let out = moe.forward(no_rows::<B>(4, device));
    assert_eq!(out.output.dims(), [0, 4]);
    assert_eq!(host(out.losses.weighted()), [0.0]);
}
