//! The planner's activations against what autodiff keeps between the passes of a whole model, counted by the allocator.
//!
//! A program of its own: the count is that of the whole process.

#![cfg(feature = "flex")]

use std::sync::Mutex;

use burn::tensor::{Distribution, Int, Tensor, TensorData};
use moe_layers::parallel::{ExpertPlacement, InProcess, ShardedExperts};
use moe_layers::{MoeConfig, dispatch};
use moe_models::lm::{LmConfig, LmMoeConfig, MoeLayers};
use moe_plan::{Device, Dtype, Layout, Link, Memory, Plan, Routing as Balance, Setting, model_from_json};
use moe_tests::{CountingAllocator, Flex as AD, live_bytes};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// How far the count may be from the plan, of the plan.
const TOLERANCE: f64 = 0.05;

/// Tests of this file run one after the other.
static ALONE: Mutex<()> = Mutex::new(());

fn planned(config: &LmConfig, tokens: u64, ranks: u64) -> Memory {
    let setting = Setting {
        model: model_from_json(&serde_json::to_string(config).expect("plain data")).unwrap(),
        device: Device::named("h100", Dtype::F32).unwrap(),
        link: Link::parse("1").unwrap(),
        between: Link::parse("1").unwrap(),
        node: 8,
        dtype: Dtype::F32,
        tokens,
        seq_len: config.max_seq_len as u64,
        accumulation: 1,
        routing: Balance::Skew(1.0),
    };
    Plan::new(&setting, Layout::new(&setting.model, ranks, ranks).unwrap()).unwrap().memory
}

/// Bytes that are alive after `forward`, of what it returns and what it keeps.
fn kept<T>(forward: impl Fn() -> T) -> f64 {
    drop(forward()); // whatever is made once and for all
    let before = live_bytes();
    let output = forward();
    let kept = live_bytes() - before;
    drop(output);
    kept as f64
}

fn kept_by_model(config: &LmConfig, batch: usize) -> f64 {
    let device = Default::default();
    let model = config.init::<AD>(&device);
    let ids: Vec<i64> = (0..batch * config.max_seq_len).map(|i| (i * 7 % config.vocab_size) as i64).collect();
    let tokens = Tensor::<AD, 2, Int>::from_data(TensorData::new(ids, [batch, config.max_seq_len]), &device);
    kept(|| model.loss(tokens.clone(), tokens.clone()).total)
}

#[test]
fn activations_are_what_a_model_keeps() {
    let _alone = ALONE.lock();
    let base = || LmConfig::new(500, 128, 4, 4, 384, 64).with_moe(LmMoeConfig::new(8, 2, 192));
    let configs = [
        base(),
        base().with_moe_layers(MoeLayers::None),
        base().with_moe_layers(MoeLayers::All).with_num_kv_heads(Some(1)).with_tie_embeddings(false),
        base().with_qk_norm(moe_models::lm::QkNorm::PerHead),
        base().with_moe(LmMoeConfig::new(32, 8, 64).with_shared_d_hidden(96)),
    ];
    for config in &configs {
        let (planned, kept) = (planned(config, 4 * 64, 1).activations, kept_by_model(config, 4));
        println!("planned {:.2} MB, kept {:.2} MB", planned / 1e6, kept / 1e6);
        assert!((kept - planned).abs() <= TOLERANCE * planned, "planned {planned}, kept {kept}: {config}");
    }
}

/// What a layer keeps more when its experts are on two ranks with tokens of their own: rows that came and their gates.
#[test]
fn experts_on_two_ranks_keep_the_rows_that_came() {
    let _alone = ALONE.lock();
    let (device, ranks, [t, d, f, e, k]) = (Default::default(), 2, [512, 128, 192, 8, 2]);
    let moe = MoeConfig::new(d, f, e, k).init::<AD>(&device);
    let placement = ExpertPlacement::even(e, ranks).expect("enough experts");
    let devices = vec![device; ranks];
    let sharded = ShardedExperts::split(&moe.experts, &placement, &devices);
    let exchange = InProcess::new(devices).expect("one device");
    let sources: Vec<_> =
        (0..ranks).map(|_| Tensor::<AD, 2>::random([t, d], Distribution::Default, &device).require_grad()).collect();
    // Tokens that only this pass holds, and the decision about them, which the layer returns.
    let routed = || sources.iter().map(|source| source.clone() * 0.5).map(|x| (x.clone(), moe.router.forward(x)));
    let on_one = kept(|| routed().map(|(x, r)| (dispatch::grouped(x, &moe.experts, &r), r)).collect::<Vec<_>>());
    let spread = kept(|| {
        let batches: Vec<_> = routed().collect();
        let outputs = sharded.forward(batches.iter().map(|(x, r)| (x.clone(), r)).collect(), &exchange);
        (outputs, batches)
    });
    let config = LmConfig::new(10, d, 1, 4, f, t).with_moe_layers(MoeLayers::All).with_moe(LmMoeConfig::new(e, k, f));
    let [one, two] = [1, 2].map(|ranks| planned(&config, t as u64, ranks).activations);
    let (planned, kept) = (ranks as f64 * (two - one), spread - on_one);
    println!("planned {:.2} MB more, kept {:.2} MB more", planned / 1e6, kept / 1e6);
    assert!((kept - planned).abs() <= TOLERANCE * (on_one + planned), "planned {planned}, kept {kept}");
}
