//! Every router in a layer: grouped dispatch of its decision against the dense oracle, its gradient against a slope, capacity and default
//! vectors on top, and Soft MoE against loops.

use burn::module::Param;
use burn::tensor::{DType, Int, Tensor, TensorData};
use default_moe::{DefaultMoe, DefaultMoeConfig, DefaultOptions, UpdateRule};
use moe_layers::dispatch::{self, Capacity, DropPolicy};
use moe_layers::router::{HashOptions, NoisyTopKOptions, ReluOptions, SigmoidOptions, SinkhornOptions};
use moe_layers::{
    Activation, AutodiffMoeBackend, Experts, Moe, MoeConfig, RouterRule, Routing, SoftMoe, SoftMoeConfig,
};
use moe_tests::{assert_close, host, no_rows, on_every_backend, random, takes_empty_tensors, tensor};

on_every_backend!(
    grouped_dispatch_of_every_decision_matches_the_dense_oracle,
    values_and_gradients_match_those_in_f64,
    layers_with_a_capacity_match_those_in_f64,
    the_router_gradient_is_the_slope_along_a_direction,
    a_capacity_drops_what_its_slots_say,
    unchosen_experts_have_the_gate_they_would_have,
    default_vectors_fill_in_for_every_token_choice_router,
    default_vectors_leave_out_what_a_capacity_dropped,
    soft_moe_matches_loops,
    every_router_takes_an_empty_batch,
    one_expert_and_all_experts_are_no_special_cases,
    a_batch_in_which_nobody_has_an_expert_is_zero,
);

/// Tokens, width, width inside an expert, experts, experts per token.
const SIZES: [usize; 5] = [11, 6, 5, 4, 2];
/// Length of a step along a direction, and the error allowed for the slope in f32, relative to the sum of its terms' sizes.
const STEP: f64 = 1e-2;
const SLOPE_TOLERANCE: f64 = 2e-3;
/// In f64 only the third derivative is left, `STEP^2 / 64` of it.
const SLOPE_TOLERANCE_F64: f64 = 1e-5;

fn rules() -> Vec<RouterRule> {
    vec![
        RouterRule::TopK,
        // Without noise, which comes from a generator that all threads share: `tests/router_noise.rs` has it.
        RouterRule::NoisyTopK(NoisyTopKOptions::new().with_noise_std(Some(0.0))),
        RouterRule::Sigmoid(SigmoidOptions::new().with_scale(2.5)),
        RouterRule::Sigmoid(SigmoidOptions::new().with_groups(2)),
        RouterRule::Sinkhorn(SinkhornOptions::new()),
        RouterRule::Relu(ReluOptions::new().with_l1_coef(0.1)),
        RouterRule::ExpertChoice,
        RouterRule::Hash(HashOptions { vocab_size: 9, seed: 3 }),
    ]
}

fn config(rule: RouterRule) -> MoeConfig {
    let [_, d, f, e, k] = SIZES;
    MoeConfig::new(d, f, e, k).with_router(rule)
}

/// A layer with the same numbers on every backend.
fn layer<B: AutodiffMoeBackend>(config: &MoeConfig, device: &B::Device) -> Moe<B> {
    let [_, d, f, e, _] = SIZES;
    let mut moe: Moe<B> = config.init(device);
    if let Some(weight) = moe.router.weight_mut() {
        *weight = Param::from_tensor(tensor(&random(d * e, 1), [d, e], device));
    }
    moe.experts.w_in = Param::from_tensor(tensor(&random(e * d * 2 * f, 2), [e, d, 2 * f], device));
    moe.experts.w_out = Param::from_tensor(tensor(&random(e * f * d, 3), [e, f, d], device));
    moe
}

fn tokens<B: AutodiffMoeBackend>(device: &B::Device) -> Tensor<B, 2> {
    let [t, d, ..] = SIZES;
    tensor::<B, 2>(&random(t * d, 4), [t, d], device).require_grad()
}

fn ids<B: AutodiffMoeBackend>(device: &B::Device) -> Tensor<B, 1, Int> {
    let ids: Vec<i64> = (0..SIZES[0] as i64).map(|t| t * t % 9).collect();
    Tensor::from_data(TensorData::from(ids.as_slice()), device)
}

fn route<B: AutodiffMoeBackend>(moe: &Moe<B>, tokens: Tensor<B, 2>, device: &B::Device) -> Routing<B> {
    moe.router.forward_ids(tokens, ids(device))
}

type Path<B> = fn(Tensor<B, 2>, &Experts<B>, &Routing<B>) -> Tensor<B, 2>;

/// Output, and gradients of tokens, router and experts.
fn run<B: AutodiffMoeBackend>(config: &MoeConfig, path: Path<B>, device: &B::Device) -> Vec<(&'static str, Vec<f64>)> {
    run_on(config, path, &random(SIZES[0] * SIZES[1], 4), None, device)
}

/// [`run`] on these tokens, with activations in `dtype`, if there is one.
fn run_on<B: AutodiffMoeBackend>(
    config: &MoeConfig,
    path: Path<B>,
    tokens: &[f64],
    dtype: Option<DType>,
    device: &B::Device,
) -> Vec<(&'static str, Vec<f64>)> {
    let moe = layer::<B>(config, device);
    let tokens = tensor::<B, 2>(tokens, [SIZES[0], SIZES[1]], device).require_grad();
    let input = dtype.map_or(tokens.clone(), |dtype| tokens.clone().cast(dtype));
    let routing = route(&moe, input.clone(), device);
    let routing = match &config.capacity {
        Some(capacity) => capacity.apply(routing, SIZES[4]),
        None => routing,
    };
    let output = path(input, &moe.experts, &routing).cast(tokens.dtype());
    let weight = tensor(&random(SIZES[0] * SIZES[1], 9), output.dims(), device);
    let grads = (output.clone() * weight).sum().backward();
    let mut all = vec![
        ("output", host(output)),
        ("tokens", host(tokens.grad(&grads).expect("tracked"))),
        ("w_in", host(moe.experts.w_in.grad(&grads).expect("tracked"))),
        ("w_out", host(moe.experts.w_out.grad(&grads).expect("tracked"))),
    ];
    let router = moe.router.weight().map(|weight| host(weight.grad(&grads).expect("tracked")));
    all.extend(router.map(|grad| ("router", grad)));
    all
}

fn assert_dense<B: AutodiffMoeBackend>(config: &MoeConfig, device: &B::Device) {
    let expected = run::<B>(config, dispatch::dense, device);
    for ((name, found), (_, expected)) in run::<B>(config, dispatch::grouped, device).iter().zip(&expected) {
        assert_close(&format!("{:?}, {:?}, {name}", config.router, config.capacity), found, expected);
    }
}

fn grouped_dispatch_of_every_decision_matches_the_dense_oracle<B: AutodiffMoeBackend>(device: &B::Device) {
    for rule in rules() {
        assert_dense::<B>(&config(rule), device);
    }
}

/// Every expert on every token in f64, in burn's own ops, whose gradient [`the_router_gradient_in_f64_is_the_slope`] checks.
#[cfg(feature = "flex")]
fn in_f64(config: &MoeConfig, tokens: &[f64]) -> Vec<(&'static str, Vec<f64>)> {
    let mut found = Vec::new();
    moe_tests::in_f64(|| {
        found = run_on::<moe_tests::Flex>(config, dispatch::dense, tokens, None, &Default::default());
    });
    found
}

fn assert_as_in_f64<B: AutodiffMoeBackend>(_config: &MoeConfig, _device: &B::Device) {
    #[cfg(feature = "flex")]
    {
        let expected = in_f64(_config, &random(SIZES[0] * SIZES[1], 4));
        for ((name, found), (_, expected)) in run::<B>(_config, dispatch::grouped, _device).iter().zip(&expected) {
            assert_close(&format!("{:?}, {:?}, {name}", _config.router, _config.capacity), found, expected);
        }
    }
}

fn values_and_gradients_match_those_in_f64<B: AutodiffMoeBackend>(device: &B::Device) {
    rules().into_iter().for_each(|rule| assert_as_in_f64::<B>(&config(rule), device));
}

/// Layers that drop a part of what was chosen, by every policy.
fn with_capacities() -> Vec<MoeConfig> {
    let rules = [RouterRule::TopK, RouterRule::Relu(ReluOptions::new())];
    let policies = [DropPolicy::Position, DropPolicy::Probability, DropPolicy::BatchPriority];
    let capacities = policies.map(|policy| Capacity::new(0.7).with_policy(policy));
    let of = |rule: RouterRule| capacities.clone().map(|capacity| config(rule.clone()).with_capacity(Some(capacity)));
    rules.into_iter().flat_map(of).collect()
}

fn layers_with_a_capacity_match_those_in_f64<B: AutodiffMoeBackend>(device: &B::Device) {
    with_capacities().iter().for_each(|config| assert_as_in_f64::<B>(config, device));
}

/// On the same numbers, so with the same choices, which are made in f32.
#[cfg(feature = "flex")]
fn assert_low_precision(config: &MoeConfig) {
    let device = Default::default();
    for (dtype, called) in moe_tests::HALF {
        let tokens = moe_tests::rounded::<moe_tests::Flex>(SIZES[0] * SIZES[1], 4, dtype, &device);
        let run = |path| run_on::<moe_tests::Flex>(config, path, &tokens, Some(dtype), &device);
        let (found, plain) = (run(dispatch::grouped), run(dispatch::dense));
        for (((name, exact), (_, found)), (_, plain)) in in_f64(config, &tokens).iter().zip(&found).zip(&plain) {
            let what = format!("{:?}, {:?}, {name}", config.router, config.capacity);
            moe_tests::assert_like_plain_ops(&what, called, [found, plain], exact);
        }
    }
}

#[cfg(feature = "flex")]
#[test]
fn low_precision_loses_no_more_than_twice_what_plain_ops_lose() {
    rules().into_iter().for_each(|rule| assert_low_precision(&config(rule)));
}

#[cfg(feature = "flex")]
#[test]
fn low_precision_with_a_capacity_loses_no_more_than_twice_what_plain_ops_lose() {
    with_capacities().iter().for_each(assert_low_precision);
}

#[cfg(feature = "flex")]
#[test]
fn the_router_gradient_in_f64_is_the_slope() {
    moe_tests::in_f64(|| the_router_gradient_is_the_slope_along_a_direction::<moe_tests::Flex>(&Default::default()));
}

fn a_capacity_drops_what_its_slots_say<B: AutodiffMoeBackend>(device: &B::Device) {
    for config in with_capacities() {
        assert_dense::<B>(&config, device);

        let (moe, capacity) = (layer::<B>(&config, device), config.capacity.as_ref().expect("it was configured"));
        let free = route(&moe, tokens(device), device);
        let most = capacity.slots(SIZES[0], SIZES[4], SIZES[3]) as f64;
        let expected: Vec<f64> = host(free.counts().float()).into_iter().map(|count| count.min(most)).collect();
        let out = moe.forward(tokens(device));
        assert_eq!(host(out.routing.counts().float()), expected, "{config}");
        assert_eq!(host(out.routing.demand().float()), host(free.counts().float()), "{config}");
    }
}

/// Central difference of output and losses along a direction in the router's weight, which is small enough for the choice to stay.
fn the_router_gradient_is_the_slope_along_a_direction<B: AutodiffMoeBackend>(device: &B::Device) {
    let [t, d, _, e, _] = SIZES;
    for rule in rules() {
        // An expert that comes has gate zero, but its load jumps: not in the slope.
        let config = config(rule.clone()).with_z_coef(0.05).with_balance_coef(0.2).with_importance_coef(0.1);
        let config = match &rule {
            RouterRule::Hash(_) => continue,
            _ => config,
        };
        let (direction, weight) = (random(d * e, 12), random(t * d, 9));
        let loss = |step: f64| {
            let mut moe = layer::<B>(&config, device);
            let moved: Vec<f64> = random(d * e, 1).iter().zip(&direction).map(|(w, v)| w + step * v).collect();
            let leaf = Param::from_tensor(tensor(&moved, [d, e], device));
            *moe.router.weight_mut().expect("a learned router") = leaf;
            let out = moe.forward(tokens::<B>(device));
            let loss = (out.output * tensor(&weight, [t, d], device)).sum() + out.losses.weighted();
            (loss, moe, host(out.routing.experts.float()))
        };
        let ((above, _, chosen_above), (below, _, chosen_below)) = (loss(STEP / 8.0), loss(-STEP / 8.0));
        assert_eq!(chosen_above, chosen_below, "{rule:?}: the choice must stay for the loss to be smooth");
        let slope = (host(above)[0] - host(below)[0]) / (2.0 * STEP / 8.0);

        let (at, moe, _) = loss(0.0);
        let at_dtype = at.dtype();
        let grads = at.backward();
        let grad = host(moe.router.weight().expect("a learned router").grad(&grads).expect("tracked"));
        let terms = grad.iter().zip(&direction).map(|(g, v)| g * v);
        let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
        let tolerance = if at_dtype == DType::F64 { SLOPE_TOLERANCE_F64 } else { SLOPE_TOLERANCE };
        assert!((slope - sum).abs() <= tolerance * size, "{rule:?}: {slope} against {sum}, terms {size}");
    }
}

fn token_choice() -> Vec<RouterRule> {
    rules().into_iter().filter(|rule| rule.default_vectors_error().is_none()).collect()
}

/// From what the decision says: a score, over the sum of those of the chosen where gates are normalised, times the scale.
fn unchosen_experts_have_the_gate_they_would_have<B: AutodiffMoeBackend>(device: &B::Device) {
    let [t, _, _, e, k] = SIZES;
    for (rule, normalize) in token_choice().into_iter().flat_map(|rule| [(rule.clone(), false), (rule, true)]) {
        let moe = layer::<B>(&config(rule.clone()).with_normalize_gates(normalize), device);
        let routing = route(&moe, tokens(device), device);
        let (scores, chosen) = (host(routing.scores.clone()), host(routing.experts.clone().float()));
        let gates = host(routing.gates.clone());
        let found = host(moe.router.gates_of_unchosen(&routing));
        for token in 0..t {
            let row = &chosen[token * k..(token + 1) * k];
            let score = |expert: usize| scores[token * e + expert];
            // A gate over its score is what stands between the two, whichever expert one looks at.
            let factor = gates[token * k] / score(row[0] as usize);
            let expected: Vec<f64> =
                (0..e).map(|i| if row.contains(&(i as f64)) { 0.0 } else { score(i) * factor }).collect();
            assert_close(&format!("{rule:?}, {normalize}"), &found[token * e..(token + 1) * e], &expected);
        }
    }
}

fn default_vectors_fill_in_for_every_token_choice_router<B: AutodiffMoeBackend>(device: &B::Device) {
    let [t, d, _, e, _] = SIZES;
    for rule in token_choice() {
        let moe = layer::<B>(&config(rule.clone()), device);
        let mut layer: DefaultMoe<B> = DefaultMoeConfig::new(config(rule.clone())).init(device);
        layer.moe = moe.clone();
        let out = layer.forward(tokens::<B>(device));
        let vectors = host(layer.vectors.updated(&out.update.expect("a training pass")));
        let routing = route(&moe, tokens(device), device);
        let gates = host(moe.router.gates_of_unchosen(&routing));
        let mut expected = host(dispatch::dense(tokens(device), &moe.experts, &routing));
        for token in 0..t {
            for i in 0..d {
                expected[token * d + i] += (0..e).map(|x| gates[token * e + x] * vectors[x * d + i]).sum::<f64>();
            }
        }
        assert_close(&format!("{rule:?}"), &host(out.output), &expected);
    }
}

/// The output of every expert for every token, `[E][T D]`.
fn outputs_of_all<B: AutodiffMoeBackend>(experts: &Experts<B>, device: &B::Device) -> Vec<Vec<f64>> {
    let [t, _, _, e, _] = SIZES;
    let of = |expert: usize| {
        let only = Tensor::<B, 2, Int>::full([t, 1], expert as i64, device);
        let ones = Tensor::<B, 2>::ones([t, e], device);
        let routing = Routing::new(ones.clone(), ones, Tensor::ones([t, 1], device), only);
        host(dispatch::dense(tokens(device), experts, &routing))
    };
    (0..e).map(of).collect()
}

/// Loops over slots: who is dropped has neither its expert nor a vector, and moves none.
fn default_vectors_leave_out_what_a_capacity_dropped<B: AutodiffMoeBackend>(device: &B::Device) {
    let [t, d, _, e, k] = SIZES;
    let rules = [UpdateRule::Mean, UpdateRule::Weighted, UpdateRule::WeightedByCount];
    for (rule, normalize) in rules.into_iter().flat_map(|rule| [(rule, false), (rule, true)]) {
        let capacity = Capacity::new(0.7);
        let config = config(RouterRule::TopK).with_normalize_gates(normalize).with_capacity(Some(capacity.clone()));
        let options = DefaultOptions::new().with_rule(rule);
        let mut defaults: DefaultMoe<B> = DefaultMoeConfig::new(config.clone()).with_options(options).init(device);
        defaults.moe = layer(&config, device);
        let routing = capacity.apply(route(&defaults.moe, tokens(device), device), k);
        let (gates, scores) = (host(routing.gates), host(routing.scores));
        let chosen: Vec<usize> = host(routing.experts.float()).into_iter().map(|expert| expert as usize).collect();
        let outputs = outputs_of_all(&defaults.moe.experts, device);
        assert!(gates.contains(&0.0), "a capacity that drops nothing tells nothing");

        let (mut vectors, mut divisors, mut output) = (vec![0.0; e * d], vec![0.0; e], vec![0.0; t * d]);
        for slot in (0..t * k).filter(|&slot| gates[slot] > 0.0) {
            let (token, expert) = (slot / k, chosen[slot]);
            let score = scores[token * e + expert];
            let share = if rule == UpdateRule::Mean { 1.0 } else { score };
            divisors[expert] += if rule == UpdateRule::Weighted { score } else { 1.0 };
            for i in 0..d {
                vectors[expert * d + i] += share * outputs[expert][token * d + i];
                output[token * d + i] += gates[slot] * outputs[expert][token * d + i];
            }
        }
        // From zero, a step goes a tenth of the way.
        vectors.iter_mut().enumerate().for_each(|(i, value)| *value *= 0.1 / divisors[i / d]);
        for token in 0..t {
            let own = &chosen[token * k..(token + 1) * k];
            let whole: f64 = own.iter().map(|&expert| scores[token * e + expert]).sum();
            for expert in (0..e).filter(|expert| !own.contains(expert)) {
                let gate = scores[token * e + expert] / if normalize { whole } else { 1.0 };
                (0..d).for_each(|i| output[token * d + i] += gate * vectors[expert * d + i]);
            }
        }
        let out = defaults.forward(tokens::<B>(device));
        let moved = defaults.vectors.updated(&out.update.expect("a training pass"));
        assert_close(&format!("vectors, {rule:?}, {normalize}"), &host(moved), &vectors);
        assert_close(&format!("output, {rule:?}, {normalize}"), &host(out.output), &output);
    }
}

fn every_router_takes_an_empty_batch<B: AutodiffMoeBackend>(device: &B::Device) {
    if !takes_empty_tensors() {
        return;
    }
    for rule in rules() {
        let moe = layer::<B>(&config(rule.clone()), device);
        let none = no_rows::<B>(SIZES[1], device);
        let ids = Tensor::<B, 1, Int>::from_data(TensorData::from([0i64; 0]), device);
        let out = moe.forward_ids(none, ids);
        assert_eq!(out.output.dims(), [0, SIZES[1]]);
        assert_eq!(host(out.losses.weighted()), [0.0], "{rule:?}");
        assert_eq!(host(out.routing.counts().float()), [0.0; 4], "{rule:?}");
    }
}

/// Sequences, tokens, width, width inside, experts, slots each.
const SOFT: [usize; 6] = [2, 5, 4, 3, 3, 2];

fn soft<B: AutodiffMoeBackend>(device: &B::Device) -> SoftMoe<B> {
    let [_, _, d, f, e, p] = SOFT;
    let config = SoftMoeConfig::new(d, f, e).with_slots_per_expert(p).with_activation(Activation::Relu);
    let mut layer: SoftMoe<B> = config.init(device);
    layer.slots = Param::from_tensor(tensor(&random(d * e * p, 1), [d, e * p], device));
    layer.scale = Param::from_tensor(tensor(&[1.5], [1], device));
    layer.experts.w_in = Param::from_tensor(tensor(&random(e * d * f, 2), [e, d, f], device));
    layer.experts.w_out = Param::from_tensor(tensor(&random(e * f * d, 3), [e, f, d], device));
    layer.experts.b_in = Some(Param::from_tensor(tensor(&random(e * f, 4), [e, f], device)));
    layer.experts.b_out = Some(Param::from_tensor(tensor(&random(e * d, 5), [e, d], device)));
    layer
}

fn softmax(values: &[f64]) -> Vec<f64> {
    let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = values.iter().map(|x| (x - largest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|x| x / sum).collect()
}

/// One sequence `[S, D]` to `[S, D]`.
fn soft_by_loops(x: &[f64]) -> Vec<f64> {
    let [_, s, d, f, e, p] = SOFT;
    let (slots, w_in, w_out) = (random(d * e * p, 1), random(e * d * f, 2), random(e * f * d, 3));
    let (b_in, b_out) = (random(e * f, 4), random(e * d, 5));
    let length = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let logit = |t: usize, slot: usize| {
        let token = length(&mut (0..d).map(|i| x[t * d + i]));
        let wanted = length(&mut (0..d).map(|i| slots[i * e * p + slot]));
        1.5 * (0..d).map(|i| x[t * d + i] * slots[i * e * p + slot]).sum::<f64>() / token / wanted
    };
    let mut outputs = vec![0.0; e * p * d];
    for slot in 0..e * p {
        let shares = softmax(&(0..s).map(|t| logit(t, slot)).collect::<Vec<_>>());
        let input: Vec<f64> = (0..d).map(|i| (0..s).map(|t| shares[t] * x[t * d + i]).sum()).collect();
        let expert = slot / p;
        let hidden: Vec<f64> = (0..f)
            .map(|h| b_in[expert * f + h] + (0..d).map(|i| input[i] * w_in[(expert * d + i) * f + h]).sum::<f64>())
            .map(|h| h.max(0.0))
            .collect();
        for i in 0..d {
            let sum: f64 = (0..f).map(|h| hidden[h] * w_out[(expert * f + h) * d + i]).sum();
            outputs[slot * d + i] = sum + b_out[expert * d + i];
        }
    }
    let mut y = vec![0.0; s * d];
    for t in 0..s {
        let shares = softmax(&(0..e * p).map(|slot| logit(t, slot)).collect::<Vec<_>>());
        for i in 0..d {
            y[t * d + i] = (0..e * p).map(|slot| shares[slot] * outputs[slot * d + i]).sum();
        }
    }
    y
}

/// Values against the loops, the gradient of the input against their central difference.
fn soft_moe_matches_loops<B: AutodiffMoeBackend>(device: &B::Device) {
    let [b, s, d, ..] = SOFT;
    let (x, weight) = (random(b * s * d, 7), random(b * s * d, 8));
    let input = tensor::<B, 3>(&x, [b, s, d], device).require_grad();
    let output = soft::<B>(device).forward(input.clone());
    let loops = |x: &[f64]| x.chunks(s * d).flat_map(soft_by_loops).collect::<Vec<_>>();
    assert_close("output", &host(output.clone()), &loops(&x));

    let grads = (output * tensor(&weight, [b, s, d], device)).sum().backward();
    let found = host(input.grad(&grads).expect("tracked"));
    let loss = |x: &[f64]| loops(x).iter().zip(&weight).map(|(y, w)| y * w).sum::<f64>();
    let step = 1e-5;
    let slopes: Vec<f64> = (0..x.len())
        .map(|i| {
            let moved =
                |by: f64| x.iter().enumerate().map(|(j, x)| if i == j { x + by } else { *x }).collect::<Vec<_>>();
            (loss(&moved(step)) - loss(&moved(-step))) / (2.0 * step)
        })
        .collect();
    assert_close("gradient of x", &found, &slopes);
}

/// `E = 1`, and `K = E`.
fn one_expert_and_all_experts_are_no_special_cases<B: AutodiffMoeBackend>(device: &B::Device) {
    let [t, d, f, ..] = SIZES;
    for experts in [1, 3] {
        for rule in
            rules().into_iter().filter(|rule| !matches!(rule, RouterRule::Sigmoid(sigmoid) if sigmoid.groups > 1))
        {
            let config = MoeConfig::new(d, f, experts, experts).with_router(rule.clone());
            let moe: Moe<B> = config.init(device);
            let routing = route(&moe, tokens(device), device);
            let found = host(dispatch::grouped(tokens(device), &moe.experts, &routing));
            let expected = host(dispatch::dense(tokens(device), &moe.experts, &routing));
            assert_close(&format!("{rule:?}, {experts} experts"), &found, &expected);
            let losses = host(moe.forward_ids(tokens::<B>(device), ids(device)).losses.weighted());
            assert!(losses[0].is_finite(), "{rule:?}, {experts} experts: {losses:?}");
            let served: f64 = host(routing.counts().float()).iter().sum();
            let all = (t * experts) as f64;
            assert!(served == all || matches!(rule, RouterRule::Relu(_)) && served < all, "{rule:?}: {served}");
        }
    }
}

/// A ReLU router whose scores are all negative: no output, no gradient that is not finite, no loss that is not.
fn a_batch_in_which_nobody_has_an_expert_is_zero<B: AutodiffMoeBackend>(device: &B::Device) {
    let [t, d, _, e, _] = SIZES;
    let relu = config(RouterRule::Relu(ReluOptions::new().with_l1_coef(0.1)));
    let config = relu.with_importance_coef(0.1).with_capacity(Some(Capacity::new(1.0)));
    let mut moe = layer::<B>(&config, device);
    *moe.router.weight_mut().expect("a learned router") =
        Param::from_tensor(tensor(&vec![-1.0; d * e], [d, e], device));
    let tokens = tensor::<B, 2>(&vec![0.5; t * d], [t, d], device).require_grad();
    let out = moe.forward(tokens.clone());
    assert_eq!(host(out.output.clone()), vec![0.0; t * d]);
    assert_eq!(host(out.routing.counts().float()), vec![0.0; e]);
    let loss = out.output.sum() + out.losses.weighted();
    assert!(host(loss.clone())[0].is_finite());
    let grads = loss.backward();
    let router = host(moe.router.weight().expect("a learned router").grad(&grads).expect("tracked"));
    let inputs = host(tokens.grad(&grads).expect("tracked"));
    assert!(router.iter().chain(&inputs).all(|grad| grad.is_finite()), "{router:?} {inputs:?}");
}
