//! The families of models that checkpoints come from, and what `transformers` takes where a field is missing.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::lm::{LmConfig, QkNorm};

/// A family of models, by its implementation in `transformers`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Mixtral ([Jiang et al., 2024](https://arxiv.org/abs/2401.04088)): experts in every layer, gates that sum to 1.
    Mixtral,
    /// OLMoE ([Muennighoff et al., 2024](https://arxiv.org/abs/2409.02060)): experts in every layer, queries and keys
    /// normalised over all heads.
    Olmoe,
    /// Qwen3-MoE ([Yang et al., 2025](https://arxiv.org/abs/2505.09388)): dense layers too, queries and keys normalised
    /// per head.
    Qwen3Moe,
    /// Llama ([Touvron et al., 2023](https://arxiv.org/abs/2302.13971)): no experts, the start of many an upcycling.
    Llama,
    /// Mistral ([Jiang et al., 2023](https://arxiv.org/abs/2310.06825)) without its window, which then is a Llama: read, and
    /// written as one.
    Mistral,
    /// Qwen3 ([Yang et al., 2025](https://arxiv.org/abs/2505.09388)): no experts, queries and keys normalised per head.
    Qwen3,
}

/// A name that no [`Family`] has.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "`{0}` is no family of models here; there are mixtral, olmoe, qwen3_moe, and without experts llama, mistral and qwen3"
)]
pub struct UnknownFamily(String);

/// Values of fields that `config.json` leaves out.
pub(super) struct Defaults {
    pub(super) vocab_size: usize,
    pub(super) hidden_size: usize,
    pub(super) intermediate_size: usize,
    pub(super) num_hidden_layers: usize,
    pub(super) num_attention_heads: usize,
    /// `None`: as many as query heads.
    pub(super) num_key_value_heads: Option<usize>,
    /// `None`: as wide as `hidden_size / num_attention_heads` says.
    pub(super) head_dim: Option<usize>,
    pub(super) max_position_embeddings: usize,
    pub(super) rms_norm_eps: f64,
    pub(super) rope_theta: f64,
    /// `None`: a family without experts.
    pub(super) experts: Option<ExpertDefaults>,
}

/// Values of fields about experts that `config.json` leaves out.
pub(super) struct ExpertDefaults {
    pub(super) num_experts: usize,
    pub(super) num_experts_per_tok: usize,
    pub(super) router_aux_loss_coef: f64,
}

/// `MixtralConfig`.
const MIXTRAL: Defaults = Defaults {
    vocab_size: 32_000,
    hidden_size: 4096,
    intermediate_size: 14_336,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    num_key_value_heads: Some(8),
    head_dim: None,
    max_position_embeddings: 131_072,
    rms_norm_eps: 1e-5,
    rope_theta: 1e6,
    experts: Some(ExpertDefaults { num_experts: 8, num_experts_per_tok: 2, router_aux_loss_coef: 0.001 }),
};

/// `OlmoeConfig`.
const OLMOE: Defaults = Defaults {
    vocab_size: 50_304,
    hidden_size: 2048,
    intermediate_size: 2048,
    num_hidden_layers: 16,
    num_attention_heads: 16,
    num_key_value_heads: None,
    head_dim: None,
    max_position_embeddings: 4096,
    rms_norm_eps: 1e-5,
    rope_theta: 1e4,
    experts: Some(ExpertDefaults { num_experts: 64, num_experts_per_tok: 8, router_aux_loss_coef: 0.01 }),
};

/// `Qwen3MoeConfig`.
const QWEN3_MOE: Defaults = Defaults {
    vocab_size: 151_936,
    hidden_size: 2048,
    intermediate_size: 6144,
    num_hidden_layers: 24,
    num_attention_heads: 32,
    num_key_value_heads: Some(4),
    head_dim: None,
    max_position_embeddings: 32_768,
    rms_norm_eps: 1e-6,
    rope_theta: 1e4,
    experts: Some(ExpertDefaults { num_experts: 128, num_experts_per_tok: 8, router_aux_loss_coef: 0.001 }),
};

/// `LlamaConfig`.
const LLAMA: Defaults = Defaults {
    vocab_size: 32_000,
    hidden_size: 4096,
    intermediate_size: 11_008,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    num_key_value_heads: None,
    head_dim: None,
    max_position_embeddings: 2048,
    rms_norm_eps: 1e-6,
    rope_theta: 1e4,
    experts: None,
};

/// `MistralConfig`.
const MISTRAL: Defaults =
    Defaults { intermediate_size: 14_336, num_key_value_heads: Some(8), max_position_embeddings: 131_072, ..LLAMA };

/// `Qwen3Config`.
const QWEN3: Defaults = Defaults {
    vocab_size: 151_936,
    intermediate_size: 22_016,
    num_key_value_heads: Some(32),
    head_dim: Some(128),
    max_position_embeddings: 32_768,
    ..LLAMA
};

impl Family {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Mixtral, Self::Olmoe, Self::Qwen3Moe, Self::Llama, Self::Mistral, Self::Qwen3];

    /// `model_type` in `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Mixtral => "mixtral",
            Self::Olmoe => "olmoe",
            Self::Qwen3Moe => "qwen3_moe",
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen3 => "qwen3",
        }
    }

    /// The family whose queries and keys are normalised as those of `config`, with experts or without: no other could describe it.
    pub fn of(config: &LmConfig) -> Self {
        match (config.qk_norm, config.num_moe_layers() > 0) {
            (QkNorm::None, true) => Self::Mixtral,
            (QkNorm::None, false) => Self::Llama,
            (QkNorm::Full, _) => Self::Olmoe,
            (QkNorm::PerHead, true) => Self::Qwen3Moe,
            (QkNorm::PerHead, false) => Self::Qwen3,
        }
    }

    /// Whether its models have experts.
    pub fn has_experts(self) -> bool {
        self.defaults().experts.is_some()
    }

    /// `architectures` in `config.json`.
    pub(super) fn architecture(self) -> &'static str {
        match self {
            Self::Mixtral => "MixtralForCausalLM",
            Self::Olmoe => "OlmoeForCausalLM",
            Self::Qwen3Moe => "Qwen3MoeForCausalLM",
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
        }
    }

    /// The name that every version of `transformers` reads the number of experts from.
    pub(super) fn experts_field(self) -> &'static str {
        match self {
            Self::Mixtral => "num_local_experts",
            _ => "num_experts",
        }
    }

    pub(super) fn qk_norm(self) -> QkNorm {
        match self {
            Self::Mixtral | Self::Llama | Self::Mistral => QkNorm::None,
            Self::Olmoe => QkNorm::Full,
            Self::Qwen3Moe | Self::Qwen3 => QkNorm::PerHead,
        }
    }

    pub(super) fn defaults(self) -> &'static Defaults {
        match self {
            Self::Mixtral => &MIXTRAL,
            Self::Olmoe => &OLMOE,
            Self::Qwen3Moe => &QWEN3_MOE,
            Self::Llama => &LLAMA,
            Self::Mistral => &MISTRAL,
            Self::Qwen3 => &QWEN3,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.model_type())
    }
}

impl FromStr for Family {
    type Err = UnknownFamily;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|family| family.model_type() == text);
        found.ok_or_else(|| UnknownFamily(text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lm::MoeLayers;

    #[test]
    fn names_round_trip_and_others_are_refused_with_the_choices() {
        for family in Family::ALL {
            assert_eq!(family.to_string().parse(), Ok(family));
            let layers = if family.has_experts() { MoeLayers::All } else { MoeLayers::None };
            let config = LmConfig::tiny().with_qk_norm(family.qk_norm()).with_moe_layers(layers);
            let written = if family == Family::Mistral { Family::Llama } else { family };
            assert_eq!(Family::of(&config), written);
        }
        let message = "gpt2".parse::<Family>().expect_err("not one of them").to_string();
        assert!(message.contains("gpt2") && message.contains("qwen3_moe") && message.contains("llama"), "{message}");
    }
}
