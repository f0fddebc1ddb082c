//! Models from files: `config.json` of a run of `moe-train` (or its `model` alone), and of a Hugging Face checkpoint.

use std::collections::HashSet;

use serde_json::Value;

use crate::{FeedForward, Model, Moe, names};

/// The model that a JSON text describes: with a `model_type` a Hugging Face `config.json`, otherwise the settings of a run, or of its
/// model alone.
///
/// # Errors
///
/// What is no JSON, lacks a field or contradicts itself.
pub fn model_from_json(text: &str) -> Result<Model, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))?;
    let model = match (value.get("model_type"), value.get("model")) {
        (Some(family), _) => hugging_face(&Fields(&value), family.as_str().unwrap_or_default())?,
        (None, Some(model)) => of_a_run(&Fields(model))?,
        (None, None) => of_a_run(&Fields(&value))?,
    };
    check(&model)?;
    Ok(model)
}

/// Larger sizes are those of no model.
const MOST: u64 = 1 << 24;
/// More parameters neither, and what follows from them would not fit into 64 bits.
const MOST_PARAMS: f64 = 1e15;

/// A JSON object whose fields are asked for by name.
struct Fields<'a>(&'a Value);

impl<'a> Fields<'a> {
    /// `None` where the field is missing or null.
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    fn number(&self, name: &str, default: Option<u64>) -> Result<u64, String> {
        match (self.get(name), default) {
            (Some(value), _) => match value.as_u64() {
                Some(number) if number <= MOST => Ok(number),
                Some(number) => Err(format!("`{name}` is {number}; {MOST} is the most")),
                None => Err(format!("`{name}` is {value}, not a whole number")),
            },
            (None, Some(default)) => Ok(default),
            (None, None) => Err(format!("`{name}` is missing")),
        }
    }

    fn flag(&self, name: &str) -> bool {
        self.get(name).and_then(Value::as_bool).unwrap_or(false)
    }

    fn text(&self, name: &str, default: &'a str) -> &'a str {
        self.get(name).and_then(Value::as_str).unwrap_or(default)
    }
}

fn of_a_run(fields: &Fields<'_>) -> Result<Model, String> {
    let (d_model, num_layers) = (fields.number("d_model", None)?, fields.number("num_layers", None)?);
    let num_heads = fields.number("num_heads", None)?;
    let num_kv_heads = fields.number("num_kv_heads", Some(num_heads))?;
    let head_dim = fields.number("head_dim", Some(d_model / num_heads.max(1)))?;
    let moe = Fields(fields.get("moe").ok_or("`moe` is missing: this is not a language model with experts")?);
    let placement = fields.text("moe_layers", "all-but-first");
    Ok(Model {
        name: "of a run".into(),
        vocab_size: fields.number("vocab_size", None)?,
        d_model,
        num_layers,
        num_heads,
        num_kv_heads,
        head_dim,
        max_seq_len: fields.number("max_seq_len", None)?,
        tied: fields.get("tie_embeddings").and_then(Value::as_bool).unwrap_or(true),
        norm_vectors: if fields.text("norm", "rms") == "layer" { 2 } else { 1 },
        qk_gains: qk_gains(fields.text("qk_norm", "none"), num_heads, num_kv_heads, head_dim),
        dense: FeedForward { d_hidden: fields.number("d_hidden", None)?, gated: is_gated(fields) },
        num_moe_layers: layers_with_experts(placement, num_layers)?,
        moe: moe_of_a_run(&moe)?,
    })
}

fn moe_of_a_run(moe: &Fields<'_>) -> Result<Moe, String> {
    let learns_noise = moe.get("noisy").is_none_or(|noisy| Fields(noisy).get("noise_std").is_none());
    Ok(Moe {
        num_experts: moe.number("num_experts", None)?,
        top_k: moe.number("top_k", None)?,
        expert: FeedForward { d_hidden: moe.number("d_hidden", None)?, gated: is_gated(moe) },
        bias: moe.flag("bias"),
        shared_d_hidden: moe.number("shared_d_hidden", Some(0))?,
        shared_gate: moe.flag("shared_gate"),
        router_matrices: match moe.text("router", "top-k") {
            "hash" => 0,
            "noisy-top-k" if learns_noise => 2,
            _ => 1,
        },
    })
}

fn is_gated(fields: &Fields<'_>) -> bool {
    fields.text("activation", "swiglu") == "swiglu"
}

fn qk_gains(norm: &str, num_heads: u64, num_kv_heads: u64, head_dim: u64) -> u64 {
    match norm {
        "per-head" => 2 * head_dim,
        "full" => (num_heads + num_kv_heads) * head_dim,
        _ => 0,
    }
}

/// How many layers the text of `moe_layers` gives experts.
fn layers_with_experts(placement: &str, num_layers: u64) -> Result<u64, String> {
    let wrong = || format!("`moe_layers` is \"{placement}\", which is no placement of experts");
    let count = |n: &str| n.parse::<u64>().ok().filter(|&n| n > 0).ok_or_else(wrong);
    match placement.split_once('-') {
        None if placement == "none" => Ok(0),
        None if placement == "all" => Ok(num_layers),
        Some(("all", "but-first")) => Ok(num_layers.saturating_sub(1)),
        Some(("every", n)) => Ok(num_layers / count(n)?),
        Some(("last", n)) => Ok(count(n)?.min(num_layers)),
        Some(("only", list)) => {
            let layers = list.split(',').map(|layer| layer.parse::<u64>().map_err(|_| wrong()));
            let layers = layers.collect::<Result<Vec<_>, _>>()?;
            Ok(layers.iter().filter(|&&layer| layer < num_layers).count() as u64)
        }
        _ => Err(wrong()),
    }
}

/// What `transformers` takes where a field is missing.
struct Family {
    vocab_size: u64,
    hidden_size: u64,
    intermediate_size: u64,
    num_hidden_layers: u64,
    num_attention_heads: u64,
    num_key_value_heads: Option<u64>,
    max_position_embeddings: u64,
    num_experts: u64,
    num_experts_per_tok: u64,
    qk_norm: &'static str,
}

const MIXTRAL: Family = Family {
    vocab_size: 32_000,
    hidden_size: 4096,
    intermediate_size: 14_336,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    num_key_value_heads: Some(8),
    max_position_embeddings: 131_072,
    num_experts: 8,
    num_experts_per_tok: 2,
    qk_norm: "none",
};

const OLMOE: Family = Family {
    vocab_size: 50_304,
    hidden_size: 2048,
    intermediate_size: 2048,
    num_hidden_layers: 16,
    num_attention_heads: 16,
    num_key_value_heads: None,
    max_position_embeddings: 4096,
    num_experts: 64,
    num_experts_per_tok: 8,
    qk_norm: "full",
};

const QWEN3_MOE: Family = Family {
    vocab_size: 151_936,
    hidden_size: 2048,
    intermediate_size: 6144,
    num_hidden_layers: 24,
    num_attention_heads: 32,
    num_key_value_heads: Some(4),
    max_position_embeddings: 32_768,
    num_experts: 128,
    num_experts_per_tok: 8,
    qk_norm: "per-head",
};

fn hugging_face(fields: &Fields<'_>, name: &str) -> Result<Model, String> {
    let family = match name {
        "mixtral" => MIXTRAL,
        "olmoe" => OLMOE,
        "qwen3_moe" => QWEN3_MOE,
        _ => return Err(names::unknown("model_type", name, &["mixtral", "olmoe", "qwen3_moe"])),
    };
    let is_qwen = name == "qwen3_moe";
    let (d_model, num_layers) = (
        fields.number("hidden_size", Some(family.hidden_size))?,
        fields.number("num_hidden_layers", Some(family.num_hidden_layers))?,
    );
    let num_heads = fields.number("num_attention_heads", Some(family.num_attention_heads))?;
    let num_kv_heads = match fields.0.get("num_key_value_heads") {
        Some(Value::Null) => num_heads,
        _ => fields.number("num_key_value_heads", Some(family.num_key_value_heads.unwrap_or(num_heads)))?,
    };
    let head_dim = fields.number("head_dim", Some(d_model / num_heads.max(1)))?;
    let dense = fields.number("intermediate_size", Some(family.intermediate_size))?;
    let d_hidden = if is_qwen { fields.number("moe_intermediate_size", Some(768))? } else { dense };
    Ok(Model {
        name: name.into(),
        vocab_size: fields.number("vocab_size", Some(family.vocab_size))?,
        d_model,
        num_layers,
        num_heads,
        num_kv_heads,
        head_dim,
        max_seq_len: fields.number("max_position_embeddings", Some(family.max_position_embeddings))?,
        tied: fields.flag("tie_word_embeddings"),
        norm_vectors: 1,
        qk_gains: qk_gains(family.qk_norm, num_heads, num_kv_heads, head_dim),
        dense: FeedForward { d_hidden: dense, gated: true },
        num_moe_layers: if is_qwen { sparse_layers(fields, num_layers)? } else { num_layers },
        moe: Moe {
            num_experts: fields
                .number("num_experts", Some(fields.number("num_local_experts", Some(family.num_experts))?))?,
            top_k: fields.number("num_experts_per_tok", Some(family.num_experts_per_tok))?,
            expert: FeedForward { d_hidden, gated: true },
            bias: false,
            shared_d_hidden: 0,
            shared_gate: false,
            router_matrices: 1,
        },
    })
}

/// Layers with experts of a Qwen3-MoE.
fn sparse_layers(fields: &Fields<'_>, num_layers: u64) -> Result<u64, String> {
    let step = fields.number("decoder_sparse_step", Some(1))?.max(1);
    let dense: HashSet<u64> = fields
        .get("mlp_only_layers")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_u64)
        .collect();
    let sparse = |layer: &u64| !dense.contains(layer) && (layer + 1).is_multiple_of(step);
    Ok((0..num_layers).filter(sparse).count() as u64)
}

fn check(model: &Model) -> Result<(), String> {
    let moe = &model.moe;
    let sizes = [model.d_model, model.num_layers, model.num_heads, model.num_kv_heads, model.head_dim, moe.num_experts];
    if sizes.contains(&0) || model.vocab_size == 0 || moe.expert.d_hidden == 0 {
        return Err("a size of the model is zero".into());
    }
    if !(1..=moe.num_experts).contains(&moe.top_k) {
        return Err(format!("top_k = {} must be in 1..={}, the number of experts", moe.top_k, moe.num_experts));
    }
    match at_most_params(model) {
        params if params > MOST_PARAMS => {
            Err(format!("a model of {params:.0e} parameters; {MOST_PARAMS:.0e} are the most"))
        }
        _ => Ok(()),
    }
}

/// Not fewer parameters than the model has.
fn at_most_params(model: &Model) -> f64 {
    let [vocab, width, layers, experts] =
        [model.vocab_size, model.d_model, model.num_layers, model.moe.num_experts].map(|size| size as f64);
    let heads = (model.num_heads + model.num_kv_heads) as f64 * model.head_dim as f64;
    let hidden = (model.dense.d_hidden + model.moe.shared_d_hidden) as f64;
    let expert = 3.0 * (width + 1.0) * (model.moe.expert.d_hidden + 1) as f64;
    2.0 * vocab * width
        + layers * (2.0 * (width + 1.0) * heads + 3.0 * width * hidden + 8.0 * width + experts * (expert + 2.0 * width))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preset;

    const RUN: &str = r#"{"vocab_size": 11, "d_model": 8, "num_layers": 4, "num_heads": 4, "d_hidden": 6, "max_seq_len": 5,
        "num_kv_heads": 2, "head_dim": null, "norm": "layer", "qk_norm": "per-head", "activation": "gelu", "tie_embeddings": false,
        "moe_layers": "every-2", "moe": {"num_experts": 3, "top_k": 2, "d_hidden": 5, "router": "hash", "bias": true}}"#;

    #[test]
    fn the_settings_of_a_run_are_read_with_or_without_what_is_around_them() {
        let model = model_from_json(RUN).unwrap();
        assert_eq!(model_from_json(&format!(r#"{{"model": {RUN}, "train": {{}}}}"#)).unwrap(), model);
        assert_eq!((model.num_kv_heads, model.head_dim, model.norm_vectors, model.qk_gains), (2, 2, 2, 4));
        assert_eq!((model.dense.gated, model.moe.expert.gated), (false, true));
        assert_eq!((model.num_moe_layers, model.moe.router_matrices, model.tied), (2, 0, false));
    }

    #[test]
    fn every_placement_of_experts_is_counted() {
        let layers = |placement: &str| {
            let text = RUN.replace("every-2", placement);
            model_from_json(&text).map(|model| model.num_moe_layers)
        };
        let counts = ["none", "all", "all-but-first", "every-3", "last-3", "only-0,2"].map(layers);
        assert_eq!(counts, [0, 4, 3, 1, 3, 2].map(Ok));
        for wrong in ["some", "every-0", "last-x", "only-1,a", "all-but-last"] {
            assert!(layers(wrong).unwrap_err().contains("no placement of experts"), "{wrong}");
        }
    }

    #[test]
    fn a_checkpoint_has_the_defaults_of_its_family() {
        let published = |text| model_from_json(text).unwrap();
        let mixtral = published(r#"{"model_type": "mixtral", "max_position_embeddings": 32768}"#);
        assert_eq!(mixtral, Model { name: "mixtral".into(), ..preset("mixtral-8x7b").unwrap() });
        let olmoe = published(r#"{"model_type": "olmoe", "intermediate_size": 1024}"#);
        assert_eq!(olmoe, Model { name: "olmoe".into(), ..preset("olmoe-1b-7b").unwrap() });
        let qwen =
            r#"{"model_type": "qwen3_moe", "num_hidden_layers": 6, "mlp_only_layers": [1], "decoder_sparse_step": 2}"#;
        assert_eq!(published(qwen).num_moe_layers, 2);
    }

    #[test]
    fn what_is_no_model_is_an_error_that_names_it() {
        let error = |text: &str| model_from_json(text).unwrap_err();
        assert!(error("{").starts_with("not JSON"));
        assert_eq!(error("{}"), "`d_model` is missing");
        assert_eq!(error(&RUN.replace("\"d_model\": 8", "\"d_model\": 8.5")), "`d_model` is 8.5, not a whole number");
        assert_eq!(
            error(&RUN.replace("\"top_k\": 2", "\"top_k\": 4")),
            "top_k = 4 must be in 1..=3, the number of experts"
        );
        assert_eq!(error(&RUN.replace("\"d_model\": 8", "\"d_model\": 0")), "a size of the model is zero");
        assert!(error(&RUN.replace("11", "1111111111111")).contains("is the most"));
        let large = RUN
            .replace("\"d_model\": 8", "\"d_model\": 16000000")
            .replace("\"num_heads\": 4", "\"num_heads\": 16000000");
        assert!(error(&large).contains("parameters; 1e15 are the most"), "{}", error(&large));
        assert!(error(r#"{"model_type": "llama"}"#).contains("mixtral, olmoe, qwen3_moe"));
    }
}
