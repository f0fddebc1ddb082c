//! What is wrong with a model, in the names that `config.json` has for it.

use super::{CheckpointError, Family};
use crate::lm::LmConfigError;

/// The same error about the fields that were read; `rope` is the name of the table about rotary positions.
pub(super) fn in_config_json(error: LmConfigError, family: Family, rope: RopeTable) -> CheckpointError {
    use LmConfigError as E;
    let theirs = |field| name(rope_name(field, rope), family);
    match error {
        E::Zero { field } => E::Zero { field: theirs(field) }.into(),
        E::TooLarge { field, value, most } => E::TooLarge { field: theirs(field), value, most }.into(),
        E::Range { field, value, expected } => E::Range { field: theirs(field), value, expected }.into(),
        E::HeadsDoNotDivide { d_model, num_heads } => {
            let advice = format!("it is no multiple of num_attention_heads = {num_heads}; change one or set head_dim");
            CheckpointError::value("hidden_size", d_model, advice)
        }
        E::KvHeadsDoNotDivide { num_kv_heads, num_heads } => {
            let advice = format!("choose a divisor of num_attention_heads = {num_heads}");
            CheckpointError::value("num_key_value_heads", num_kv_heads, advice)
        }
        E::TopKTooLarge { top_k, num_experts } => {
            let advice = format!("choose at most {} = {num_experts}", family.experts_field());
            CheckpointError::value("num_experts_per_tok", top_k, advice)
        }
        E::NoSuchPadding { padding_id, vocab_size } => {
            let advice = format!("choose a token below vocab_size = {vocab_size}, or null");
            CheckpointError::value("pad_token_id", padding_id, advice)
        }
        other => other.into(),
    }
}

/// The two spellings of the table about rotary positions.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum RopeTable {
    /// `rope_scaling`, before version 5 of `transformers`.
    Scaling,
    /// `rope_parameters`.
    Parameters,
}

/// A field of that table under its name there.
fn rope_name(field: &'static str, table: RopeTable) -> &'static str {
    match (field, table) {
        ("rope_scaling.original_max_seq_len", RopeTable::Scaling) => "rope_scaling.original_max_position_embeddings",
        (same, RopeTable::Scaling) => same,
        ("rope_scaling.factor", _) => "rope_parameters.factor",
        ("rope_scaling.low_freq_factor", _) => "rope_parameters.low_freq_factor",
        ("rope_scaling.high_freq_factor - low_freq_factor", _) => "rope_parameters.high_freq_factor - low_freq_factor",
        ("rope_scaling.original_max_seq_len", _) => "rope_parameters.original_max_position_embeddings",
        ("rope_scaling.attention_factor", _) => "rope_parameters.attention_factor",
        ("rope_scaling.beta_slow", _) => "rope_parameters.beta_slow",
        ("rope_scaling.beta_fast - beta_slow", _) => "rope_parameters.beta_fast - beta_slow",
        (same, _) => same,
    }
}

/// What `config.json` calls our field.
fn name(field: &'static str, family: Family) -> &'static str {
    match field {
        "d_model" => "hidden_size",
        "num_layers" => "num_hidden_layers",
        "num_heads" => "num_attention_heads",
        "num_kv_heads" => "num_key_value_heads",
        "d_hidden" => "intermediate_size",
        "max_seq_len" => "max_position_embeddings",
        "norm_eps" => "rms_norm_eps",
        "init_std" => "initializer_range",
        "moe.num_experts" => family.experts_field(),
        "moe.top_k" => "num_experts_per_tok",
        "moe.d_hidden" if family == Family::Qwen3Moe => "moe_intermediate_size",
        "moe.d_hidden" => "intermediate_size",
        "moe.balance_coef" => "router_aux_loss_coef",
        same => same,
    }
}
