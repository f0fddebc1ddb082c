//! The presets of `moe-train`, by their sizes; a test compares them with the program's.

use crate::{FeedForward, Model, Moe, names};

/// Names that [`preset`] knows.
pub const PRESETS: &[&str] = &["tiny", "small", "default-moe-8c1", "default-moe-32c4", "olmoe-1b-7b", "mixtral-8x7b"];

/// The model of a preset.
///
/// # Errors
///
/// An unknown name.
pub fn preset(name: &str) -> Result<Model, String> {
    let model = match name {
        "tiny" => bytes(128, 4, 4, 384, 128, experts(8, 2, 192)),
        "small" => bytes(256, 6, 8, 768, 256, experts(16, 2, 384)),
        "default-moe-8c1" => default_moe(experts(8, 1, 2816)),
        "default-moe-32c4" => default_moe(experts(32, 4, 704)),
        "olmoe-1b-7b" => olmoe(),
        "mixtral-8x7b" => mixtral(),
        _ => return Err(names::unknown("model", name, PRESETS)),
    };
    Ok(Model { name: name.into(), ..model })
}

fn experts(num_experts: u64, top_k: u64, d_hidden: u64) -> Moe {
    Moe {
        num_experts,
        top_k,
        expert: FeedForward { d_hidden, gated: true },
        bias: false,
        shared_d_hidden: 0,
        shared_gate: false,
        router_matrices: 1,
    }
}

/// Bytes as tokens, experts in all layers but the first.
fn bytes(d_model: u64, num_layers: u64, num_heads: u64, d_hidden: u64, max_seq_len: u64, moe: Moe) -> Model {
    Model {
        name: String::new(),
        vocab_size: 256,
        d_model,
        num_layers,
        num_heads,
        num_kv_heads: num_heads,
        head_dim: d_model / num_heads,
        max_seq_len,
        tied: true,
        norm_vectors: 1,
        qk_gains: 0,
        dense: FeedForward { d_hidden, gated: true },
        num_moe_layers: num_layers - 1,
        moe,
    }
}

fn default_moe(moe: Moe) -> Model {
    Model { vocab_size: 128_256, tied: false, norm_vectors: 2, ..bytes(1024, 24, 16, 2816, 2048, moe) }
}

fn olmoe() -> Model {
    let base = bytes(2048, 16, 16, 1024, 4096, experts(64, 8, 1024));
    Model { vocab_size: 50_304, tied: false, qk_gains: 2 * 2048, num_moe_layers: 16, ..base }
}

fn mixtral() -> Model {
    let base = bytes(4096, 32, 32, 14_336, 32_768, experts(8, 2, 14_336));
    Model { vocab_size: 32_000, tied: false, num_kv_heads: 8, num_moe_layers: 32, ..base }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_models_have_the_published_counts() {
        let counts = |name| preset(name).map(|model| (model.num_params(), model.num_active_params()));
        assert_eq!(counts("mixtral-8x7b"), Ok((46_702_792_704, 12_879_925_248)));
        assert_eq!(counts("olmoe-1b-7b"), Ok((6_919_161_856, 1_282_017_280)));
    }

    #[test]
    fn an_unknown_preset_is_refused() {
        assert_eq!(preset("mixtral-8x7").unwrap_err(), "unknown model `mixtral-8x7`; did you mean `mixtral-8x7b`?");
    }
}
