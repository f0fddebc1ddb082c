//! What autodiff keeps between the forward and the backward pass of an MoE layer, counted by the allocator.
//!
//! A program of its own: the count is that of the whole process.

#![cfg(feature = "flex")]

use std::sync::Mutex;

use burn::tensor::{Distribution, Tensor};
use default_moe::{DefaultMoeConfig, DefaultMoeOutput, DefaultOptions, UpdateRule};
use moe_layers::MoeConfig;
use moe_layers::dispatch::{self, Capacity};
use moe_tests::{CountingAllocator, Flex as AD, live_bytes, take_largest_piece};

/// Shape B of the layer benchmark: T, D, F, E, K.
const SHAPE: [usize; 5] = [2048, 512, 128, 64, 8];
/// Room for gates and indices.
const SLACK: f64 = 1.1;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Tests of this file run one after the other.
static ALONE: Mutex<()> = Mutex::new(());

/// Bytes that are alive after `forward` made an output of `output_bytes`, beside that output.
fn kept_by<T>(output_bytes: usize, forward: impl Fn() -> T) -> f64 {
    drop(forward()); // whatever is made once and for all
    let before = live_bytes();
    let output = forward();
    let kept = live_bytes() - before;
    drop(output);
    (kept - output_bytes as isize) as f64
}

/// `4 * (T * D + 2 * T * K * F)`: the tokens and the pre-activation in f32.
fn unavoidable() -> f64 {
    let [t, d, f, _, k] = SHAPE;
    4.0 * (t * d + 2 * t * k * f) as f64
}

fn assert_within(kept: f64, unavoidable: f64) {
    let allowed = SLACK * unavoidable;
    println!("kept {:.1} MB, unavoidable {:.1} MB", kept / 1e6, unavoidable / 1e6);
    assert!(kept >= unavoidable, "{kept} bytes are less than what backward needs: the count is wrong");
    assert!(kept <= allowed, "{kept} bytes are kept, {allowed} are allowed");
}

#[test]
fn the_expert_network_keeps_its_input_and_the_pre_activation() {
    let _alone = ALONE.lock();
    let (device, [t, d, f, e, k]) = (Default::default(), SHAPE);
    let moe = MoeConfig::new(d, f, e, k).init::<AD>(&device);
    let source = Tensor::<AD, 2>::random([t, d], Distribution::Default, &device).require_grad();
    let kept = kept_by(4 * t * d, || {
        let tokens = source.clone() * 0.5;
        let routing = moe.router.forward(tokens.clone());
        let routing = moe_layers::Routing {
            gates: Tensor::from_inner(routing.gates.inner()).require_grad(),
            logits: Tensor::zeros([1, 1], &device),
            probs: Tensor::zeros([1, 1], &device),
            scores: Tensor::zeros([1, 1], &device),
            ..routing
        };
        dispatch::grouped(tokens, &moe.experts, &routing)
    });
    assert_within(kept, unavoidable());
}

#[test]
fn a_whole_layer_keeps_the_scores_of_its_router_besides() {
    let _alone = ALONE.lock();
    let (device, [t, d, f, e, k]) = (Default::default(), SHAPE);
    let moe = MoeConfig::new(d, f, e, k).init::<AD>(&device);
    let source = Tensor::<AD, 2>::random([t, d], Distribution::Default, &device).require_grad();
    let kept = kept_by(4 * t * d, || moe.forward(source.clone() * 0.5));
    let scores = 4.0 * (2 * t * e) as f64; // logits and probabilities, which the layer returns
    assert_within(kept, unavoidable() + scores);
}

#[test]
fn memory_is_counted_while_it_is_alive() {
    const BIG: usize = 1 << 30; // far above what the test runner holds
    let _alone = ALONE.lock();
    let before = live_bytes();
    let mut memory: Vec<u8> = Vec::with_capacity(BIG);
    let held = live_bytes() - before;
    memory.shrink_to(BIG / 2);
    let shrunk = live_bytes() - before;
    drop(memory);
    let freed = live_bytes() - before;
    let near = |bytes: isize, expected: usize| bytes.abs_diff(expected as isize) < BIG / 64;
    assert!(near(held, BIG) && near(shrunk, BIG / 2) && near(freed, 0), "{held} {shrunk} {freed}");
}

/// Copies of the vectors that a training pass with default vectors keeps: for the router's gradient and in its update.
const VECTOR_COPIES: usize = 2;

#[test]
fn default_vectors_keep_a_few_vectors_per_expert_besides() {
    let _alone = ALONE.lock();
    let (device, [t, d, f, e, k]) = (Default::default(), SHAPE);
    let layer = DefaultMoeConfig::new(MoeConfig::new(d, f, e, k)).init::<AD>(&device);
    let source = Tensor::<AD, 2>::random([t, d], Distribution::Default, &device).require_grad();
    let plain = kept_by(4 * t * d, || layer.moe.forward(source.clone() * 0.5));
    let with = kept_by(4 * t * d, || layer.forward(source.clone() * 0.5));
    let indices = 8 * t * k;
    let allowed = (4 * VECTOR_COPIES * e * d + indices) as f64;
    println!("kept {:.2} MB more, allowed {:.2} MB", (with - plain) / 1e6, allowed / 1e6);
    assert!(with - plain <= SLACK * allowed, "{} bytes more are kept, {allowed} are allowed", with - plain);
}

/// Many experts, so that `T * E * D` numbers would be far more than anything else: T, D, F, E, K.
const MANY_EXPERTS: [usize; 5] = [4096, 64, 16, 64, 1];

#[test]
fn nothing_of_size_tokens_times_experts_times_width_exists_ever() {
    let _alone = ALONE.lock();
    for rule in [UpdateRule::Mean, UpdateRule::Weighted, UpdateRule::WeightedByCount] {
        for capacity in [None, Some(Capacity::new(1.0))] {
            for measuring in [false, true] {
                assert_small_pieces(rule, capacity.clone(), measuring);
            }
        }
    }
}

fn assert_small_pieces(rule: UpdateRule, capacity: Option<Capacity>, measuring: bool) {
    let (device, [t, d, f, e, k]) = (Default::default(), MANY_EXPERTS);
    let what = format!("{rule:?}, {capacity:?}, measuring {measuring}");
    let config = DefaultMoeConfig::new(MoeConfig::new(d, f, e, k).with_capacity(capacity));
    let mut layer = config.with_options(DefaultOptions::new().with_rule(rule)).init::<AD>(&device);
    layer.vectors = layer.vectors.with_measuring(measuring);
    let tokens = Tensor::<AD, 2>::random([t, d], Distribution::Default, &device).require_grad();
    let mut pass = || {
        let DefaultMoeOutput { output, update, energy, .. } = layer.forward(tokens.clone());
        assert_eq!(energy.is_some(), measuring);
        let grads = output.square().sum().backward();
        layer.absorb(&update.expect("a training pass"));
        drop(grads);
    };
    pass(); // what is made once for each thread: the products' workspace, a few megabytes, as large as a processor's cache
    take_largest_piece();
    pass();
    let (largest, forbidden) = (take_largest_piece(), 4 * t * e * d);
    println!("{what}: the largest piece has {largest} bytes, [T, E, D] would have {forbidden}");
    assert!(largest > 0 && largest < forbidden / 8, "{what}: {largest} bytes in one piece");
}
