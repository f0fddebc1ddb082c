//! `config.json` as an [`LmConfig`], and back.
//!
//! A missing field has the value that `transformers` gives it in that family. A field that changes what a model computes
//! is read or must have its neutral value; a field that does not is on a list ([`HARMLESS`]); any other is an error.

use moe_layers::{Activation, BalanceConvention};
use serde_json::{Map, Value, json};

use super::family::{Defaults, ExpertDefaults, Family};
use super::fields::Fields;
use super::names::RopeTable;
use super::{CheckpointError, TokenIds, WeightDtype, names, rope};
use crate::lm::{LmConfig, LmMoeConfig, MoeLayers, NormKind, RouterKind};

/// What `config.json` says.
#[derive(Clone, Debug, PartialEq)]
pub struct HfConfig {
    /// The family of the model.
    pub family: Family,
    /// The model.
    pub model: LmConfig,
    /// Its special tokens.
    pub token_ids: TokenIds,
}

/// Fields that say how a model was saved, is used with a tokenizer or reports, not what it computes.
const HARMLESS: &[&str] = &[
    "_attn_implementation_autoset",
    "_name_or_path",
    "architectures",
    "chunk_size_feed_forward",
    "dtype",
    "id2label",
    "label2id",
    "max_window_layers",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pretraining_tp",
    "problem_type",
    "return_dict",
    "torch_dtype",
    "transformers_version",
    "use_cache",
];

/// What the fields describe.
///
/// # Errors
///
/// An unknown field, an unsupported value, a model that contradicts itself.
pub(super) fn read(fields: Map<String, Value>) -> Result<HfConfig, CheckpointError> {
    let mut fields = Fields::new(fields);
    let family = read_family(&mut fields)?;
    let rope = if fields.has("rope_parameters") { RopeTable::Parameters } else { RopeTable::Scaling };
    refuse_unsupported(&mut fields, family)?;
    let token_ids = TokenIds::take(&mut fields, family)?;
    let config = read_model(&mut fields, family)?.with_padding_id(token_ids.pad.map(|id| id as usize));
    fields.ignore(HARMLESS);
    fields.finish()?;
    config.validate().map_err(|error| names::in_config_json(error, family, rope))?;
    Ok(HfConfig { family, model: config, token_ids })
}

fn read_family(fields: &mut Fields) -> Result<Family, CheckpointError> {
    let name = fields.nullable::<String>("model_type")?.unwrap_or_default();
    let unknown =
        |error: super::UnknownFamily| CheckpointError::value("model_type", format!("{name:?}"), error.to_string());
    name.parse().map_err(unknown)
}

/// What `transformers` can do in these families and we cannot.
fn refuse_unsupported(fields: &mut Fields, family: Family) -> Result<(), CheckpointError> {
    let zero = [json!(0), json!(0.0)];
    fields.only("hidden_act", &[json!("silu")], "feed-forward networks are SwiGLU, whose activation is \"silu\"")?;
    fields.only("attention_bias", &[json!(false)], "attention has no biases here; only false is supported")?;
    fields.only("mlp_bias", &[json!(false)], "feed-forward networks have no biases here; only false is supported")?;
    fields.only("attention_dropout", &zero, "there is no dropout here; set it to 0")?;
    fields.only("router_jitter_noise", &zero, "routers have no noise here; set it to 0")?;
    fields.only("clip_qkv", &[Value::Null], "queries, keys and values are not clipped here; only null is supported")?;
    fields.only("quantization_config", &[Value::Null], "quantised weights are not read; save the model in bfloat16")?;
    fields.only("is_encoder_decoder", &[json!(false)], "only decoders are supported")?;
    refuse_windows(fields, family)
}

/// Every token sees all earlier ones here.
fn refuse_windows(fields: &mut Fields, family: Family) -> Result<(), CheckpointError> {
    const ADVICE: &str = "every token sees all earlier ones here";
    fields.only("use_sliding_window", &[json!(false)], &format!("{ADVICE}; only false is supported"))?;
    let layers = fields.nullable::<Vec<String>>("layer_types")?.unwrap_or_default();
    if let Some(other) = layers.iter().find(|layer| *layer != "full_attention") {
        let advice = format!("{ADVICE}; only \"full_attention\" is supported");
        return Err(CheckpointError::value("layer_types", format!("{other:?}"), advice));
    }
    match family {
        // Without `use_sliding_window` it is not looked at.
        Family::Qwen3Moe | Family::Qwen3 => fields.ignore(&["sliding_window"]),
        // Without the field it has a window of 4096.
        Family::Mistral if !fields.has("sliding_window") => {
            return Err(CheckpointError::value("sliding_window", "missing", format!("{ADVICE}; write null")));
        }
        _ => (),
    }
    fields.only("sliding_window", &[Value::Null], &format!("{ADVICE}; only null is supported"))
}

fn read_model(fields: &mut Fields, family: Family) -> Result<LmConfig, CheckpointError> {
    let defaults = family.defaults();
    let d_model = fields.get("hidden_size", defaults.hidden_size)?;
    let num_layers = fields.get("num_hidden_layers", defaults.num_hidden_layers)?;
    let num_heads = fields.get("num_attention_heads", defaults.num_attention_heads)?;
    let d_hidden = fields.get("intermediate_size", defaults.intermediate_size)?;
    let max_seq_len = fields.get("max_position_embeddings", defaults.max_position_embeddings)?;
    let (rope_theta, rope_scaling) = rope::read(fields, defaults.rope_theta, max_seq_len)?;
    let vocab_size = fields.get("vocab_size", defaults.vocab_size)?;
    let config = LmConfig::new(vocab_size, d_model, num_layers, num_heads, d_hidden, max_seq_len)
        .with_num_kv_heads(read_kv_heads(fields, defaults)?)
        .with_head_dim(read_head_dim(fields, family, d_model, num_heads)?)
        .with_norm_eps(fields.get("rms_norm_eps", defaults.rms_norm_eps)?)
        .with_rope_theta(rope_theta)
        .with_rope_scaling(rope_scaling)
        .with_qk_norm(family.qk_norm())
        .with_tie_embeddings(fields.get("tie_word_embeddings", false)?)
        .with_init_std(fields.get("initializer_range", 0.02)?);
    let Some(experts) = &defaults.experts else { return Ok(config.with_moe_layers(MoeLayers::None)) };
    let moe = read_moe(fields, family, d_hidden, experts)?;
    Ok(config.with_moe_layers(read_placement(fields, family, num_layers, moe.num_experts)?).with_moe(moe))
}

/// `None`: as many as query heads, what `null` means.
fn read_kv_heads(fields: &mut Fields, defaults: &Defaults) -> Result<Option<usize>, CheckpointError> {
    Ok(fields.take::<Option<usize>>("num_key_value_heads")?.unwrap_or(defaults.num_key_value_heads))
}

fn read_head_dim(
    fields: &mut Fields,
    family: Family,
    d_model: usize,
    num_heads: usize,
) -> Result<Option<usize>, CheckpointError> {
    let head_dim = fields.nullable::<usize>("head_dim")?.or(family.defaults().head_dim);
    match head_dim.filter(|head_dim| family == Family::Olmoe && head_dim * num_heads != d_model) {
        Some(head_dim) => {
            let advice = "in OLMoE it is hidden_size / num_attention_heads; leave it out";
            Err(CheckpointError::value("head_dim", head_dim, advice))
        }
        None => Ok(head_dim),
    }
}

fn read_moe(
    fields: &mut Fields,
    family: Family,
    d_hidden: usize,
    defaults: &ExpertDefaults,
) -> Result<LmMoeConfig, CheckpointError> {
    let d_hidden = match family {
        Family::Qwen3Moe => fields.get("moe_intermediate_size", 768)?,
        _ => d_hidden,
    };
    let normalize_gates = match family {
        Family::Mixtral => true,
        _ => fields.get("norm_topk_prob", false)?,
    };
    let top_k = fields.get("num_experts_per_tok", defaults.num_experts_per_tok)?;
    Ok(LmMoeConfig::new(read_num_experts(fields, defaults)?, top_k, d_hidden)
        .with_normalize_gates(normalize_gates)
        .with_balance(BalanceConvention::HuggingFace)
        .with_balance_coef(fields.get("router_aux_loss_coef", defaults.router_aux_loss_coef)?))
}

/// One number under two names, of which versions of `transformers` write one or the other.
fn read_num_experts(fields: &mut Fields, defaults: &ExpertDefaults) -> Result<usize, CheckpointError> {
    let names = ["num_local_experts", "num_experts"];
    let [local, plain] = [fields.take::<usize>(names[0])?, fields.take::<usize>(names[1])?];
    if let (Some(local), Some(plain)) = (local, plain)
        && local != plain
    {
        return Err(CheckpointError::value(names[0], local, format!("`{}` is {plain}; make them equal", names[1])));
    }
    Ok(local.or(plain).unwrap_or(defaults.num_experts))
}

fn read_placement(
    fields: &mut Fields,
    family: Family,
    num_layers: usize,
    num_experts: usize,
) -> Result<MoeLayers, CheckpointError> {
    if family != Family::Qwen3Moe {
        return Ok(MoeLayers::All);
    }
    let dense = fields.nullable::<Vec<usize>>("mlp_only_layers")?.unwrap_or_default();
    let step = fields.get::<usize>("decoder_sparse_step", 1)?;
    if step == 0 {
        return Err(CheckpointError::value("decoder_sparse_step", step, "it must be at least 1"));
    }
    let is_moe = |layer: usize| num_experts > 0 && !dense.contains(&layer) && (layer + 1).is_multiple_of(step);
    Ok(MoeLayers::of(num_layers, is_moe))
}

/// The fields of a `config.json` for weights of `dtype`.
///
/// # Errors
///
/// [`CheckpointError::NoEquivalent`] naming the first setting that the family does not have.
pub(super) fn write(
    config: &LmConfig,
    token_ids: &TokenIds,
    dtype: WeightDtype,
) -> Result<(Family, Value), CheckpointError> {
    let family = Family::of(config);
    refuse_inexpressible(config, family)?;
    let mut fields = json!({
        "architectures": [family.architecture()],
        "model_type": family.model_type(),
        "torch_dtype": dtype.name_in_torch(),
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_hidden,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads(),
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": rope::write(config.rope_scaling),
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.init_std,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
    });
    if family.has_experts() {
        fields[family.experts_field()] = json!(config.moe.num_experts);
        fields["num_experts_per_tok"] = json!(config.moe.top_k);
        fields["router_aux_loss_coef"] = json!(written_coefficient(&config.moe));
    }
    with_padding_of(config, token_ids, family)?.write(&mut fields);
    write_family(&mut fields, family, config);
    Ok((family, fields))
}

/// The special tokens, of which that for padding is the model's where it has one.
fn with_padding_of(config: &LmConfig, token_ids: &TokenIds, family: Family) -> Result<TokenIds, CheckpointError> {
    let id = config.padding_id.map(|id| u32::try_from(id).expect("a vocabulary is far smaller"));
    match (id, token_ids.pad) {
        (Some(id), Some(pad)) if id != pad => {
            let reason = format!("padding_id is {id} and the token for padding {pad}; make them equal");
            Err(CheckpointError::NoEquivalent { family: family.model_type(), reason })
        }
        (id, pad) => Ok(TokenIds { pad: id.or(pad), ..token_ids.clone() }),
    }
}

/// The weight of the loss that `transformers` has; another definition would need another weight.
fn written_coefficient(moe: &LmMoeConfig) -> f64 {
    if moe.balance == BalanceConvention::HuggingFace { moe.balance_coef } else { 0.0 }
}

/// Fields that not every family has.
fn write_family(fields: &mut Value, family: Family, config: &LmConfig) {
    match family {
        Family::Mixtral => {
            fields["intermediate_size"] = json!(config.moe.d_hidden);
            fields["head_dim"] = json!(config.head_width());
            fields["sliding_window"] = Value::Null;
        }
        Family::Olmoe => {
            fields["intermediate_size"] = json!(config.moe.d_hidden);
            fields["norm_topk_prob"] = json!(config.moe.normalize_gates);
        }
        Family::Qwen3Moe => {
            let dense = (0..config.num_layers).filter(|&layer| !config.is_moe_layer(layer));
            fields["mlp_only_layers"] = json!(dense.collect::<Vec<_>>());
            fields["decoder_sparse_step"] = json!(1);
            fields["head_dim"] = json!(config.head_width());
            fields["moe_intermediate_size"] = json!(config.moe.d_hidden);
            fields["norm_topk_prob"] = json!(config.moe.normalize_gates);
        }
        Family::Llama | Family::Mistral => {
            fields["head_dim"] = json!(config.head_width());
            fields["attention_bias"] = json!(false);
            fields["mlp_bias"] = json!(false);
        }
        Family::Qwen3 => {
            fields["head_dim"] = json!(config.head_width());
            fields["attention_bias"] = json!(false);
            fields["use_sliding_window"] = json!(false);
        }
    }
}

/// What a model can have here and not in `family`.
pub(super) fn refuse_inexpressible(config: &LmConfig, family: Family) -> Result<(), CheckpointError> {
    let (moe, heads) = (&config.moe, config.num_heads);
    let whole = config.head_width() * heads == config.d_model;
    let everywhere = (0..config.num_layers).all(|layer| config.is_moe_layer(layer));
    // Without experts, nothing of theirs matters.
    let fits = |met: bool| config.num_moe_layers() == 0 || met;
    let needs = [
        (config.qk_norm == family.qk_norm(), "qk_norm must be that of the family"),
        (fits(family.has_experts()), "moe_layers must be \"none\""),
        (config.norm == NormKind::Rms, "norm must be \"rms\""),
        (config.activation == Activation::SwiGlu, "activation must be \"swiglu\""),
        (fits(moe.activation == Activation::SwiGlu), "moe.activation must be \"swiglu\""),
        (fits(moe.router == RouterKind::TopK), "moe.router must be \"top-k\""),
        (fits(!moe.default_vectors), "moe.default_vectors must be false"),
        (fits(moe.capacity_factor == 0.0), "moe.capacity_factor must be 0"),
        (fits(!moe.bias), "moe.bias must be false"),
        (fits(moe.shared_d_hidden == 0), "moe.shared_d_hidden must be 0"),
        (family != Family::Olmoe || whole, "head_dim must be d_model / num_heads"),
        (family != Family::Llama || config.d_model.is_multiple_of(heads), "d_model must be a multiple of num_heads"),
        (
            !matches!(family, Family::Mixtral | Family::Olmoe) || everywhere,
            "moe_layers must be \"all\" (or qk_norm \"per-head\", for Qwen3-MoE)",
        ),
        (
            family != Family::Mixtral || moe.normalize_gates,
            "moe.normalize_gates must be true (or qk_norm \"full\" or \"per-head\", for OLMoE or Qwen3-MoE)",
        ),
    ];
    match needs.into_iter().find(|(met, _)| !met) {
        Some((_, reason)) => Err(CheckpointError::NoEquivalent { family: family.model_type(), reason: reason.into() }),
        None => Ok(()),
    }
}
