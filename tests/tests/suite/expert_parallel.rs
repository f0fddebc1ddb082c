//! Experts spread over ranks against the same experts on one device: values, every gradient, and what crosses.
//!
//! On a CPU all ranks are one device; `tests/expert_parallel.rs` has ranks that share nothing.

use burn::tensor::{DType, Int, Tensor, TensorData};
use moe_layers::dispatch::Capacity;
use moe_layers::parallel::{Counted, ExpertPlacement, InProcess, ShardedExperts};
use moe_layers::{Activation, AutodiffMoeBackend, Experts, MoeConfig, Routing, dispatch};
use moe_tests::{Case, assert_close, cases, host, on_every_backend_and_unfused, random, tensor};

use crate::layers::{by_loops, experts, routing};

on_every_backend_and_unfused!(
    sharded_experts_match_the_loops,
    tokens_of_one_rank_give_what_one_device_gives,
    tokens_of_every_rank_give_what_one_device_gives,
    slots_of_nobody_stay_where_they_are,
    experts_that_serve_nobody_get_a_gradient_of_zero,
    a_layer_with_a_router_learns_the_same,
    what_crosses_is_what_the_counts_say,
);

/// Names and numbers, compared with the suite's tolerances.
type Named = Vec<(&'static str, Vec<f64>)>;

fn placements(num_experts: usize) -> Vec<ExpertPlacement> {
    let even = [1, 2, 3].into_iter().filter_map(|ranks| ExpertPlacement::even(num_experts, ranks).ok());
    let uneven =
        (num_experts > 2).then(|| ExpertPlacement::from_sizes(&[num_experts - 2, 1, 1]).expect("none is idle"));
    even.chain(uneven).collect()
}

fn shards<B: AutodiffMoeBackend>(
    experts: &Experts<B>,
    placement: &ExpertPlacement,
    device: &B::Device,
) -> (ShardedExperts<B>, Counted<InProcess<B>>) {
    let devices = vec![device.clone(); placement.num_ranks()];
    (ShardedExperts::split(experts, placement, &devices), Counted::new(InProcess::new(devices).expect("one device")))
}

/// What a layer is given: tokens and gates that want a gradient, and the chosen experts.
struct Given<B: AutodiffMoeBackend> {
    tokens: Tensor<B, 2>,
    gates: Tensor<B, 2>,
    routing: Routing<B>,
}

impl<B: AutodiffMoeBackend> Given<B> {
    fn new(case: &Case, device: &B::Device) -> Self {
        let (t, k, d) = (case.tokens, case.top_k, case.d_model);
        let tokens = tensor::<B, 2>(&random(t * d, 7), [t, d], device).require_grad();
        let gates = tensor::<B, 2>(&random(t * k, 8), [t, k], device).require_grad();
        Self { tokens, routing: routing(case, gates.clone()), gates }
    }

    /// The output, and the gradients of tokens, gates and the stacks of `experts`, in order.
    fn gradients(&self, output: Tensor<B, 2>, experts: &[Experts<B>]) -> Named {
        let weight = tensor(&random(output.dims().iter().product(), 9), output.dims(), &output.device());
        let grads = (output.clone() * weight).sum().backward();
        let stack = |of: fn(&Experts<B>, &B::Gradients) -> Option<Vec<f64>>| {
            experts.iter().flat_map(|experts| of(experts, &grads).unwrap_or_default()).collect::<Vec<f64>>()
        };
        let b_in = |experts: &Experts<B>, grads: &B::Gradients| experts.b_in.as_ref()?.grad(grads).map(host);
        let b_out = |experts: &Experts<B>, grads: &B::Gradients| experts.b_out.as_ref()?.grad(grads).map(host);
        vec![
            ("output", host(output)),
            ("tokens", host(self.tokens.grad(&grads).expect("tracked"))),
            ("gates", host(self.gates.grad(&grads).expect("tracked"))),
            ("w_in", stack(|experts, grads| experts.w_in.grad(grads).map(host))),
            ("w_out", stack(|experts, grads| experts.w_out.grad(grads).map(host))),
            ("b_in", stack(b_in)),
            ("b_out", stack(b_out)),
        ]
    }

    /// The same with the experts on several ranks and all tokens on the first of them; and what crossed.
    fn on_ranks(&self, experts: &Experts<B>, placement: &ExpertPlacement) -> (Named, Counted<InProcess<B>>) {
        let (sharded, exchange) = shards(experts, placement, &self.tokens.device());
        let output = sharded.forward_one(self.tokens.clone(), &self.routing, &exchange);
        (self.gradients(output, &sharded.shards), exchange)
    }

    fn on_one_device(&self, experts: &Experts<B>) -> Named {
        let output = dispatch::grouped(self.tokens.clone(), experts, &self.routing);
        self.gradients(output, std::slice::from_ref(experts))
    }
}

fn assert_same(what: &str, actual: &Named, expected: &Named) {
    for ((name, actual), (_, expected)) in actual.iter().zip(expected) {
        assert_close(&format!("{what}, {name}"), actual, expected);
    }
}

fn tokens_of_one_rank_give_what_one_device_gives<B: AutodiffMoeBackend>(device: &B::Device) {
    for (i, case) in cases(2).iter().enumerate() {
        let (activation, bias) = ([Activation::SwiGlu, Activation::Gelu, Activation::Relu][i % 3], i % 2 == 0);
        let experts = experts::<B>(case, activation, bias, device);
        let given = Given::<B>::new(case, device);
        let expected = given.on_one_device(&experts);
        for placement in placements(case.experts) {
            let (actual, _) = given.on_ranks(&experts, &placement);
            assert_same(&format!("{}, {placement:?}", case.name), &actual, &expected);
        }
    }
}

fn sharded_experts_match_the_loops<B: AutodiffMoeBackend>(device: &B::Device) {
    for (i, case) in cases(2).iter().enumerate() {
        let activation = [Activation::SwiGlu, Activation::Gelu, Activation::Relu][i % 3];
        let experts = experts::<B>(case, activation, true, device);
        let (given, expected) = (Given::<B>::new(case, device), by_loops(case, activation, true));
        for placement in placements(case.experts) {
            let (actual, _) = given.on_ranks(&experts, &placement);
            assert_same(&format!("{}, {placement:?}", case.name), &actual, &expected);
        }
    }
}

/// The rows `range` of a decision.
fn part<B: AutodiffMoeBackend>(whole: &Routing<B>, range: std::ops::Range<usize>) -> Routing<B> {
    let part = |t: &Tensor<B, 2>| t.clone().slice([range.clone()]);
    let chosen = whole.experts.clone().slice([range.clone()]);
    Routing::partial(part(&whole.logits), part(&whole.probs), part(&whole.gates), chosen)
}

fn tokens_of_every_rank_give_what_one_device_gives<B: AutodiffMoeBackend>(device: &B::Device) {
    for case in cases(2).iter().filter(|case| case.tokens > 4) {
        let experts = experts::<B>(case, Activation::SwiGlu, true, device);
        let given = Given::<B>::new(case, device);
        let expected = given.on_one_device(&experts);
        for placement in placements(case.experts).into_iter().filter(|placement| placement.num_ranks() == 3) {
            let (sharded, exchange) = shards(&experts, &placement, device);
            // One rank has one token, one the rest, one none.
            let routings = [part(&given.routing, 0..1), part(&given.routing, 1..case.tokens)];
            let nobody = Routing::empty(case.experts, case.top_k, DType::F32, device);
            let tokens = |range| given.tokens.clone().slice([range]);
            let none = Tensor::from_data(TensorData::new(Vec::<f32>::new(), [0, case.d_model]), device);
            let batches = vec![(tokens(0..1), &routings[0]), (none, &nobody), (tokens(1..case.tokens), &routings[1])];
            let outputs = sharded.forward(batches, &exchange);
            assert_eq!(outputs[1].dims(), [0, case.d_model]);
            let output = Tensor::cat(vec![outputs[0].clone(), outputs[2].clone()], 0);
            let actual = given.gradients(output, &sharded.shards);
            assert_same(&format!("{}, {placement:?}", case.name), &actual, &expected);
        }
    }
}

/// Of every token the experts from `kept` on are dropped. A graph is good for one backward pass, so each run makes its own.
fn partly_dropped<B: AutodiffMoeBackend>(case: &Case, kept: i64, device: &B::Device) -> Given<B> {
    let given = Given::<B>::new(case, device);
    let Routing { logits, probs, experts: chosen, .. } = given.routing;
    let dropped = chosen.clone().greater_equal_elem(kept);
    let gates = given.gates.clone().mask_fill(dropped.clone(), 0.0);
    let routing = Routing::partial(logits, probs, gates, chosen.mask_fill(dropped, case.experts as i64));
    Given { routing, ..given }
}

fn slots_of_nobody_stay_where_they_are<B: AutodiffMoeBackend>(device: &B::Device) {
    let case = &cases(2)[1];
    for kept in [0, 3] {
        let experts = experts::<B>(case, Activation::SwiGlu, true, device);
        let expected = partly_dropped::<B>(case, kept, device).on_one_device(&experts);
        for placement in placements(case.experts) {
            let given = partly_dropped::<B>(case, kept, device);
            let (actual, exchange) = given.on_ranks(&experts, &placement);
            assert_same(&format!("{kept} kept, {placement:?}"), &actual, &expected);
            let rows: usize = exchange.take()[0].rows.iter().flatten().sum();
            assert_eq!(rows, given.routing.counts().into_data().iter::<i64>().sum::<i64>() as usize);
        }
    }
}

fn experts_that_serve_nobody_get_a_gradient_of_zero<B: AutodiffMoeBackend>(device: &B::Device) {
    let case = cases(6).last().expect("there are cases");
    let experts = experts::<B>(case, Activation::SwiGlu, true, device);
    let given = Given::<B>::new(case, device);
    // All tokens choose expert 0 first; the last rank has nothing to do.
    let chosen = Tensor::<B, 2, Int>::from_data(TensorData::new(vec![0i64; case.tokens], [case.tokens, 1]), device);
    let Routing { logits, probs, .. } = given.routing;
    let routing = Routing::new(logits, probs, given.gates.slice([0..case.tokens, 0..1]), chosen);
    let placement = ExpertPlacement::even(case.experts, 2).expect("enough experts");
    let (sharded, exchange) = shards(&experts, &placement, device);
    let grads = sharded.forward_one(given.tokens, &routing, &exchange).sum().backward();
    let idle = &sharded.shards[1];
    for grad in [idle.w_in.grad(&grads), idle.w_out.grad(&grads)] {
        assert!(host(grad.expect("a gradient of zero is one")).iter().all(|&g| g == 0.0));
    }
}

fn a_layer_with_a_router_learns_the_same<B: AutodiffMoeBackend>(device: &B::Device) {
    let config = MoeConfig::new(8, 6, 5, 3).with_normalize_gates(true).with_shared_d_hidden(4);
    for config in [config.clone(), config.with_capacity(Some(Capacity::new(0.6)))] {
        let moe = config.init::<B>(device);
        let input = tensor::<B, 3>(&random(2 * 7 * 8, 3), [2, 7, 8], device);
        let placement = ExpertPlacement::even(5, 2).expect("enough experts");
        let (sharded, exchange) = shards(&moe.experts, &placement, device);
        let learned = |output: Tensor<B, 3>, loss: Tensor<B, 1>| {
            let grads = ((output.clone() * output.clone()).sum() + loss).backward();
            let router = moe.router.weight().expect("a learned router").grad(&grads).expect("tracked");
            vec![("output", host(output)), ("router", host(router))]
        };
        let (out, ()) =
            moe.forward_with(input.clone(), |tokens, routing| (sharded.forward_one(tokens, routing, &exchange), ()));
        let actual = learned(out.output, out.losses.weighted());
        let out = moe.forward(input);
        assert_same("layer", &actual, &learned(out.output, out.losses.weighted()));
    }
}

fn what_crosses_is_what_the_counts_say<B: AutodiffMoeBackend>(device: &B::Device) {
    let case = &cases(2)[1];
    let experts = experts::<B>(case, Activation::SwiGlu, false, device);
    let given = Given::<B>::new(case, device);
    let placement = ExpertPlacement::from_sizes(&[1, 3, 1]).expect("none is idle");
    let (sharded, exchange) = shards(&experts, &placement, device);
    sharded.forward_one(given.tokens, &given.routing, &exchange);
    let chosen = |rank| case.assignment().iter().filter(|e| placement.experts_of(rank).contains(e)).count();
    let rows = [0, 1, 2].map(chosen);
    let crossed = exchange.take();
    let (d, size) = (case.d_model, 4);
    assert_eq!(crossed.iter().map(|sent| sent.row_bytes).collect::<Vec<_>>(), [d * size, size, d * size]);
    let none = vec![0; 3];
    let out = vec![rows.to_vec(), none.clone(), none];
    let back = rows.map(|rows| vec![rows, 0, 0]).to_vec();
    assert_eq!(crossed.iter().map(|sent| &sent.rows).collect::<Vec<_>>(), [&out, &out, &back]);
    assert_eq!(crossed[0].bytes_leaving(0), [(rows[1] + rows[2]) * d * size, 0, 0]);
    assert_eq!(crossed[2].bytes_leaving(0), [0, rows[1] * d * size, rows[2] * d * size]);
}

/// With one thread, where a CPU does not divide the rows of an expert by how many there are: gradients of parameters and gates are those of
/// one device in every bit. Outputs and gradients of tokens are sums over the experts of a token, here in the order of its choices.
#[cfg(any(feature = "flex", feature = "ndarray"))]
fn gradients_of_experts_have_the_same_bits<B: AutodiffMoeBackend>(device: &B::Device) {
    for (i, case) in moe_tests::CASES.iter().chain(moe_tests::LARGE_CASES).enumerate() {
        let bias = i % 2 == 0;
        let experts = experts::<B>(case, Activation::SwiGlu, bias, device);
        let given = Given::<B>::new(case, device);
        let expected = given.on_one_device(&experts);
        for placement in placements(case.experts) {
            let (actual, _) = given.on_ranks(&experts, &placement);
            let what = format!("{}, {placement:?}", case.name);
            assert_same(&what, &actual, &expected);
            let sums_differ = case.top_k > 2 || bias && case.top_k == 2;
            for (actual, expected) in actual.iter().zip(&expected).skip(if sums_differ { 2 } else { 0 }) {
                assert_eq!(actual, expected, "{what}");
            }
        }
    }
}

#[cfg(any(feature = "flex", feature = "ndarray"))]
fn on_one_thread(run: impl FnOnce() + Send) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread can be started");
    pool.install(run);
}

#[cfg(feature = "flex")]
#[test]
fn gradients_of_experts_have_the_same_bits_on_flex() {
    on_one_thread(|| gradients_of_experts_have_the_same_bits::<moe_tests::Flex>(&Default::default()));
}

#[cfg(feature = "ndarray")]
#[test]
fn gradients_of_experts_have_the_same_bits_on_ndarray() {
    on_one_thread(|| gradients_of_experts_have_the_same_bits::<moe_tests::NdArray>(&Default::default()));
}

/// Against every expert in burn's own ops in the same precision: at most twice their error, as on one device.
#[cfg(feature = "flex")]
#[test]
fn low_precision_loses_no_more_than_twice_what_plain_ops_lose() {
    type B = moe_tests::Flex;
    let (device, case) = (Default::default(), moe_tests::CASES.iter().find(|case| case.name == "bench A, small"));
    let case = case.expect("in the catalogue");
    let experts = experts::<B>(case, Activation::SwiGlu, true, &device);
    let placement = ExpertPlacement::even(case.experts, 3).expect("enough experts");
    let (sharded, exchange) = shards(&experts, &placement, &device);
    let exact = by_loops(case, Activation::SwiGlu, true);
    let given = Given::<B>::new(case, &device);
    for (dtype, called) in moe_tests::HALF {
        let tokens = || given.tokens.clone().cast(dtype);
        let output = sharded.forward_one(tokens(), &given.routing, &exchange);
        assert_eq!(output.dtype(), dtype);
        let found = given.gradients(output.cast(DType::F32), &sharded.shards);
        let plain = dispatch::dense(tokens(), &experts, &given.routing).cast(DType::F32);
        let plain = given.gradients(plain, std::slice::from_ref(&experts));
        for (((name, exact), (_, found)), (_, plain)) in exact.iter().zip(&found).zip(&plain) {
            moe_tests::assert_like_plain_ops(name, called, [found, plain], exact);
        }
    }
}

/// Two devices of wgpu with memory and a queue each, though the software adapter is behind both. burn 0.21 moves nothing between
/// them, and says nothing. On another machine nobody knows which second device there is.
#[cfg(feature = "wgpu")]
#[test]
fn devices_that_nothing_reaches_are_refused_on_wgpu() {
    use burn::backend::wgpu::WgpuDevice;
    use moe_layers::parallel::UnreachableDevice;
    if !moe_tests::on_software_gpu() {
        println!("not run: MOE_TEST_WGPU=cpu names the software adapter, which is there twice");
        return;
    }
    let devices = || vec![WgpuDevice::Cpu, WgpuDevice::Cpu, WgpuDevice::DefaultDevice];
    let refused = UnreachableDevice { rank: 2 };
    assert_eq!(InProcess::<moe_tests::Wgpu>::new(devices()).err(), Some(refused));
    assert_eq!(InProcess::<moe_tests::WgpuUnfused>::new(devices()).err(), Some(refused));
}
