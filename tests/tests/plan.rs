//! `moe-plan` against what it plans for: sizes and counts of the program's models, and what the experts of a layer really exchange.

#![cfg(feature = "flex")]

use burn::backend::Flex;
use burn::tensor::{Int, Tensor, TensorData};
use moe_layers::parallel::{Counted, ExpertPlacement, InProcess, Sent, ShardedExperts};
use moe_layers::{Activation, ExpertsConfig, Routing};
use moe_models::checkpoint::read_config;
use moe_models::lm::{LmConfig, LmMoeConfig, MoeLayers, NormKind, QkNorm, RouterKind};
use moe_plan::{Device, Dtype, Layout, Link, Model, PRESETS, Plan, Setting, exchange_bytes, model_from_json, preset};

fn json(config: &LmConfig) -> String {
    serde_json::to_string(config).expect("plain data")
}

fn assert_counts(model: &Model, config: &LmConfig) {
    assert_eq!(model.num_params(), config.num_params(), "{config}");
    assert_eq!(model.num_active_params(), config.num_active_params(), "{config}");
    let flops = model.dense_flops_per_token(config.max_seq_len as u64) + model.expert_flops_per_token();
    assert_eq!(flops, config.train_flops_per_token() as f64, "{config}");
}

#[test]
fn presets_are_those_of_the_program() {
    assert_eq!(PRESETS, LmConfig::PRESETS);
    for name in PRESETS {
        let (ours, config) = (preset(name).unwrap(), LmConfig::preset(name).expect("named"));
        let read = model_from_json(&json(&config)).unwrap();
        assert_eq!(ours, Model { name: name.to_string(), ..read });
        assert_counts(&ours, &config);
    }
}

#[test]
fn the_settings_of_any_model_give_its_counts() {
    let base = || LmConfig::new(11, 8, 5, 4, 6, 5).with_moe(LmMoeConfig::new(3, 2, 5));
    let moe = |moe: LmMoeConfig| base().with_moe(moe);
    let router = |router| moe(LmMoeConfig::new(3, 2, 5).with_router(router));
    let mut configs = vec![
        base().with_tie_embeddings(false),
        base().with_norm(NormKind::Layer),
        base().with_qk_norm(QkNorm::PerHead),
        base().with_qk_norm(QkNorm::Full).with_num_kv_heads(Some(1)),
        base().with_head_dim(Some(6)),
        base().with_activation(Activation::Gelu),
        moe(LmMoeConfig::new(3, 2, 5).with_bias(true).with_activation(Activation::Relu)),
        moe(LmMoeConfig::new(3, 2, 5).with_shared_d_hidden(7).with_shared_gate(true).with_bias(true)),
    ];
    configs.extend([RouterKind::Hash, RouterKind::NoisyTopK, RouterKind::Sigmoid].map(router));
    let placements = ["none", "all", "every-2", "every-3", "last-2", "last-9", "only-0,3"];
    configs.extend(placements.map(|text| base().with_moe_layers(text.parse::<MoeLayers>().expect("a placement"))));
    for config in &configs {
        assert_counts(&model_from_json(&json(config)).unwrap(), config);
    }
}

#[test]
fn a_checkpoint_of_transformers_gives_the_counts_of_the_model_that_is_made_of_it() {
    let texts = [
        r#"{"model_type": "mixtral"}"#,
        r#"{"model_type": "mixtral", "num_local_experts": 5, "num_key_value_heads": null, "head_dim": 64, "vocab_size": 99}"#,
        r#"{"model_type": "olmoe", "num_experts": 9, "tie_word_embeddings": true}"#,
        r#"{"model_type": "qwen3_moe"}"#,
        r#"{"model_type": "qwen3_moe", "decoder_sparse_step": 2, "mlp_only_layers": [3], "num_hidden_layers": 9, "head_dim": 32}"#,
    ];
    for text in texts {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("config.json"), text).expect("room for a line");
        let read = read_config(folder.path()).expect(text);
        assert_counts(&model_from_json(text).unwrap(), &read.model);
    }
}

const D: usize = 6;
const E: usize = 12;
const K: usize = 3;
/// Tokens of each rank.
const T: usize = 8;

/// What `ranks` ranks exchange in a forward pass of one layer, when slot `s` of all tokens chooses expert `choose(s)`.
fn exchanged(placement: &ExpertPlacement, choose: impl Fn(usize) -> usize) -> Vec<Sent> {
    let (device, ranks) = (Default::default(), placement.num_ranks());
    let experts = ExpertsConfig::new(E, D, 5).init::<Flex>(&device);
    let devices = vec![device; ranks];
    let (sharded, exchange) = (
        ShardedExperts::split(&experts, placement, &devices),
        Counted::new(InProcess::new(devices).expect("one device")),
    );
    let routing = |rank: usize| {
        let chosen: Vec<i64> = (0..T * K).map(|slot| choose(rank * T * K + slot) as i64).collect();
        let chosen = Tensor::<Flex, 2, Int>::from_data(TensorData::new(chosen, [T, K]), &device);
        let scores = Tensor::ones([T, E], &device);
        Routing::new(scores.clone(), scores, Tensor::ones([T, K], &device), chosen)
    };
    let routings: Vec<_> = (0..ranks).map(routing).collect();
    let batches = routings.iter().map(|routing| (Tensor::ones([T, D], &device), routing)).collect();
    sharded.forward(batches, &exchange);
    exchange.take()
}

/// Bytes that left each rank.
fn bytes(sent: &[Sent]) -> Vec<usize> {
    let each: Vec<_> = sent.iter().map(|sent| sent.bytes_leaving(0)).collect();
    (0..each[0].len()).map(|rank| each.iter().map(|bytes| bytes[rank]).sum()).collect()
}

/// Of which a test changes what matters to it.
fn one_device() -> Setting {
    Setting {
        model: preset("tiny").unwrap(),
        device: Device::named("h100", Dtype::F32).unwrap(),
        link: Link::parse("1").unwrap(),
        between: Link::parse("1").unwrap(),
        node: 8,
        dtype: Dtype::F32,
        tokens: 128,
        seq_len: 128,
        accumulation: 1,
        routing: moe_plan::Routing::Balanced,
    }
}

#[test]
fn bytes_of_an_all_to_all_are_those_that_are_sent() {
    for sizes in [&[6, 6][..], &[1, 8, 3], &[2, 4, 1, 5]] {
        let placement = ExpertPlacement::from_sizes(sizes).expect("no rank is idle");
        // Some experts more often than others.
        let sent = exchanged(&placement, |slot| (slot * slot / 3 + slot % K) % E);
        let rows = &sent[0].rows;
        for (rank, bytes) in bytes(&sent).into_iter().enumerate() {
            let others = || (0..sizes.len()).filter(|&other| other != rank);
            let leaving: usize = others().map(|other| rows[rank][other]).sum();
            let arriving: usize = others().map(|other| rows[other][rank]).sum();
            assert_eq!(bytes as f64, exchange_bytes(leaving as f64, arriving as f64, D as u64, Dtype::F32));
        }
    }
}

#[test]
fn a_balanced_layer_sends_what_is_planned() {
    for ranks in [2, 3, 4, 6] {
        let model = Model {
            d_model: D as u64,
            num_moe_layers: 1,
            moe: moe_plan::Moe { num_experts: E as u64, top_k: K as u64, ..preset("tiny").unwrap().moe },
            ..preset("tiny").unwrap()
        };
        let setting = Setting { model, tokens: T as u64, seq_len: T as u64, ..one_device() };
        let plan = Plan::new(&setting, Layout::new(&setting.model, ranks, ranks).unwrap()).unwrap();
        let placement = ExpertPlacement::even(E, ranks as usize).expect("enough experts");
        // Every rank's 24 slots go around the 12 experts twice.
        for bytes in bytes(&exchanged(&placement, |slot| slot % E)) {
            assert!((plan.traffic.forward - bytes as f64).abs() < 1e-6, "{ranks}: {} {bytes}", plan.traffic.forward);
        }
    }
}

/// A step of the record `name` of the benchmark `step` on two cores of an AMD EPYC, and what is planned for it: model, seconds, plan.
fn recorded_steps(name: &str) -> Vec<(Setting, f64, Plan)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../benchmarks/epyc-2-cores");
    let text = std::fs::read_to_string(format!("{folder}/{name}")).expect("a committed record");
    let record: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let step = |step: &serde_json::Value| {
        let size = |name: &str| step["sizes"][name].as_u64().expect("a size");
        let config = LmConfig::new(
            256,
            size("width") as usize,
            size("layers") as usize,
            size("heads") as usize,
            1,
            size("context") as usize,
        )
        .with_tie_embeddings(false)
        .with_moe_layers(MoeLayers::All)
        .with_moe(LmMoeConfig::new(
            size("experts") as usize,
            size("top_k") as usize,
            size("expert_width") as usize,
        ));
        let setting = Setting {
            model: model_from_json(&json(&config)).unwrap(),
            device: Device { flops: CORES * FLOPS_PER_CORE, memory: 24e9, memory_rate: f64::INFINITY },
            tokens: step["tokens_per_step"].as_u64().expect("a number of tokens"),
            seq_len: size("context"),
            ..one_device()
        };
        assert_eq!(
            Some(setting.model.num_params()),
            step["parameters"].as_u64(),
            "parameters that the program counted"
        );
        let plan = Plan::new(&setting, Layout::new(&setting.model, 1, 1).unwrap()).unwrap();
        (setting, step["ours"]["wall_seconds"]["median"].as_f64().expect("seconds"), plan)
    };
    record["models"].as_array().expect("models").iter().map(step).collect()
}

const CORES: f64 = 2.0;
/// Most f32 FLOP/s of a core of that machine, measured with fused multiply-adds alone on the day of the record (docs/LOG.md).
const FLOPS_PER_CORE: f64 = 117e9;

/// And not shorter by more than what is not in the bound: norms, softmax, activations, rotation, gathers and AdamW.
#[test]
fn a_measured_step_takes_longer_than_the_bound() {
    for (setting, seconds, plan) in recorded_steps("2026-11-24/step-2-threads.json") {
        let part = plan.overlapped_seconds() / seconds;
        println!("{} parameters: {seconds:.3} s, {:.0} % of it in the bound", setting.model.num_params(), 100.0 * part);
        assert!((0.3..1.0).contains(&part), "the bound is {part} of {seconds} s");
    }
}

const RANKS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../benchmarks/ranks/2026-11-26.txt");

/// What ranks of the program send each other in a step, as the loopback interface counted it.
#[test]
fn the_bytes_that_ranks_exchange_are_those_of_the_plan() {
    let text = std::fs::read_to_string(RANKS).expect("a committed record");
    let measured = |ranks: u64| -> Vec<f64> {
        let lines = text.lines().filter(|line| line.starts_with(&format!("--launch {ranks} ")));
        lines.map(|line| line.rsplit(' ').next().and_then(|word| word.parse().ok()).expect("a number")).collect()
    };
    for ranks in [2, 4] {
        let setting = Setting { model: preset("tiny").unwrap(), ..one_device() };
        let plan = Plan::new(&setting, Layout::new(&setting.model, ranks, 1).unwrap()).unwrap();
        let planned = ranks as f64 * plan.traffic.all_reduce();
        let found = measured(ranks);
        assert_eq!(found.len(), 2, "two runs");
        for found in found {
            assert!((1.0..1.02).contains(&(found / planned)), "{ranks} ranks: {found} bytes, planned {planned}");
        }
    }
}

/// Most f32 FLOP/s of a core of the machine of that record: its bare products on two threads
/// (`benchmarks/xeon-2-cores/2026-11-27/layer-2-threads.json`, A forward), by two.
const FLOPS_PER_CORE_OF_RANKS: f64 = 276e9 / 2.0;

/// Ranks that share the cores of one machine, each with its part of them.
#[test]
fn measured_steps_of_several_ranks_take_longer_than_the_bound() {
    let text = std::fs::read_to_string(RANKS).expect("a committed record");
    let mut runs = 0;
    for line in text.lines().filter(|line| line.contains("tokens_per_s=")) {
        let number = |name: &str| -> f64 {
            let word = line.split(' ').find_map(|word| word.strip_prefix(name)).expect("it is there");
            word.parse().expect("a number")
        };
        // What is in front of the bar: `--launch 4`, `--devices 0,1`, `(one rank)`.
        let start = line.split(" | ").next().unwrap_or_default();
        let ranks: u32 = match start.rsplit(' ').next() {
            Some("2" | "0,1") => 2,
            Some("4" | "0,1,2,3") => 4,
            _ => 1,
        };
        let tokens = number("tokens=") / number("steps=");
        let flops = CORES * FLOPS_PER_CORE_OF_RANKS / f64::from(ranks);
        let setting = Setting {
            model: preset("tiny").unwrap(),
            device: Device { flops, memory: 24e9, memory_rate: f64::INFINITY },
            tokens: tokens as u64 / u64::from(ranks),
            ..one_device()
        };
        let plan = Plan::new(&setting, Layout::new(&setting.model, u64::from(ranks), 1).unwrap()).unwrap();
        let part = plan.overlapped_seconds() / (tokens / number("tokens_per_s="));
        println!("{start}: {:.0} % of a step in the bound", 100.0 * part);
        assert!((0.1..1.0).contains(&part), "{start}: the bound is {part} of the step");
        runs += 1;
    }
    assert_eq!(runs, 10);
}
