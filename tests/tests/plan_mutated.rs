//! The planner's readers against files that were changed at random: an error or what a plan can be made of, never a panic, and no time or
//! memory that only a number asks for.

#[path = "../../crates/moe-train/tests/common/mutation.rs"]
mod mutation;

use std::panic::{AssertUnwindSafe, catch_unwind};

use moe_plan::{Device, Dtype, Link, Measured, Model, Plan, Routing, Setting, model_from_json, preset};
use mutation::{Reader, mutated};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// Reads `original` again and again, changed.
fn survives(what: &str, original: &str, read: impl Fn(&str) -> Result<(), String>) {
    read(original).unwrap_or_else(|error| panic!("{what}: {error}"));
    let mut reader = Reader::new(what);
    for seed in reader.seeds() {
        let bytes = mutated(original.as_bytes(), &mut ChaCha8Rng::seed_from_u64(seed));
        let text = String::from_utf8_lossy(&bytes);
        let result = catch_unwind(AssertUnwindSafe(|| read(&text)));
        reader.add(&result.unwrap_or_else(|_| panic!("{what} panics at seed {seed}: {text}")));
    }
    reader.end();
}

fn plan(model: Model, routing: Routing) -> Result<(), String> {
    let setting = Setting {
        seq_len: model.max_seq_len.min(64),
        device: Device::named("h100", Dtype::Bf16)?,
        link: Link::parse("nvlink4")?,
        between: Link::parse("infiniband-ndr")?,
        node: 8,
        dtype: Dtype::Bf16,
        tokens: 64 * model.max_seq_len.min(64),
        accumulation: 2,
        model,
        routing,
    };
    let plan = Plan::best(&setting, 16)?;
    let finite = plan.memory.total().is_finite() && plan.sequential_seconds().is_finite() && plan.skew >= 1.0;
    assert!(finite, "a plan of {setting:?} is {plan:?}");
    Ok(())
}

#[test]
fn models_to_plan() {
    let run = r#"{"model": {"vocab_size": 11, "d_model": 8, "num_layers": 4, "num_heads": 4, "d_hidden": 6, "max_seq_len": 64,
        "num_kv_heads": 2, "head_dim": null, "norm": "layer", "qk_norm": "per-head", "activation": "gelu", "tie_embeddings": false,
        "moe_layers": "every-2", "moe": {"num_experts": 3, "top_k": 2, "d_hidden": 5, "router": "top-k", "bias": true}}}"#;
    let mixtral = r#"{"model_type": "mixtral", "vocab_size": 32000, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 8, "num_key_value_heads": 2, "num_local_experts": 8, "num_experts_per_tok": 2, "max_position_embeddings": 128}"#;
    let qwen = r#"{"model_type": "qwen3_moe", "hidden_size": 64, "num_hidden_layers": 6, "mlp_only_layers": [1, 3], "decoder_sparse_step": 2,
        "num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 32, "head_dim": 16, "tie_word_embeddings": true}"#;
    for (name, text) in
        [("a run's config.json", run), ("config.json of Mixtral", mixtral), ("config.json of Qwen3-MoE", qwen)]
    {
        survives(name, text, |text| plan(model_from_json(text)?, Routing::Balanced));
    }
}

#[test]
fn loads_to_plan_with() {
    let model = preset("mixtral-8x7b").expect("a preset");
    let line = |step: usize| {
        format!(
            r#"{{"step": {step}, "layers": [{{"expert_counts": [{step}, 7, 0, 3, 1, 1, 2, 4]}}, {{"expert_counts": [0, 0, 0, 0, 0, 0, 0, 9]}}]}}"#
        ) + "\n"
    };
    survives("metrics.jsonl to plan with", &(1..5).map(line).collect::<String>(), |text| {
        plan(model.clone(), Routing::Measured(Measured::parse(text)?))
    });
}
