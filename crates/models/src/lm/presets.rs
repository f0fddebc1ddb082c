//! Models by name: two to play with, and published ones.
//!
//! The presets named after Default MoE are the sizes of its paper: they train plain top-K unless the router is set.
//!
//! Published figures are tested in [`count`](super::count): the parameters that these constructors give are those of
//! the papers.

use moe_layers::BalanceConvention;

use super::{LmConfig, LmMoeConfig, MoeLayers, NormKind, QkNorm};

/// Tokens are bytes.
const BYTES: usize = 256;

impl LmConfig {
    /// Names that [`preset`](Self::preset) knows.
    pub const PRESETS: &[&str] =
        &["tiny", "small", "default-moe-8c1", "default-moe-32c4", "olmoe-1b-7b", "mixtral-8x7b"];

    /// The preset called `name`, or `None` when no preset is.
    pub fn preset(name: &str) -> Option<Self> {
        match name {
            "tiny" => Some(Self::tiny()),
            "small" => Some(Self::small()),
            "default-moe-8c1" => Some(Self::default_moe_8c1()),
            "default-moe-32c4" => Some(Self::default_moe_32c4()),
            "olmoe-1b-7b" => Some(Self::olmoe_1b_7b()),
            "mixtral-8x7b" => Some(Self::mixtral_8x7b()),
            _ => None,
        }
    }

    /// Bytes, 4 layers of width 128, 8 experts top 2: learns something visible in minutes on two CPU cores.
    pub fn tiny() -> Self {
        Self::new(BYTES, 128, 4, 4, 384, 128).with_moe(LmMoeConfig::new(8, 2, 192))
    }

    /// Bytes, 6 layers of width 256, 16 experts top 2: an evening on a CPU, minutes on a GPU.
    pub fn small() -> Self {
        Self::new(BYTES, 256, 6, 8, 768, 256).with_moe(LmMoeConfig::new(16, 2, 384))
    }

    /// The 1.96 B model with 8 experts, 1 active, of the Default MoE paper
    /// ([Panda et al., 2025](https://arxiv.org/abs/2504.12463)).
    ///
    /// The paper gives widths, layers, heads, norm and the total. Ours by inference: an untied vocabulary of 128,256
    /// tokens, which that total needs. It routes by plain top-K, the paper's baseline; the method is the router
    /// [`Default`](super::RouterKind::Default).
    pub fn default_moe_8c1() -> Self {
        Self::default_moe(LmMoeConfig::new(8, 1, 2816))
    }

    /// The 1.96 B model with 32 experts, 4 active, of the Default MoE paper; see
    /// [`default_moe_8c1`](Self::default_moe_8c1).
    pub fn default_moe_32c4() -> Self {
        Self::default_moe(LmMoeConfig::new(32, 4, 704))
    }

    fn default_moe(moe: LmMoeConfig) -> Self {
        Self::new(128_256, 1024, 24, 16, 2816, 2048)
            .with_norm(NormKind::Layer)
            .with_tie_embeddings(false)
            .with_moe_layers(MoeLayers::AllButFirst)
            .with_moe(moe)
    }

    /// OLMoE-1B-7B: 6.9 B parameters, 1.3 B active ([Muennighoff et al., 2024](https://arxiv.org/abs/2409.02060)).
    pub fn olmoe_1b_7b() -> Self {
        let moe = LmMoeConfig::new(64, 8, 1024).with_z_coef(0.001);
        Self::new(50_304, 2048, 16, 16, 1024, 4096)
            .with_qk_norm(QkNorm::Full)
            .with_tie_embeddings(false)
            .with_moe_layers(MoeLayers::All)
            .with_moe(moe)
    }

    /// Mixtral 8x7B: 46.7 B parameters, 12.9 B active ([Jiang et al., 2024](https://arxiv.org/abs/2401.04088)).
    pub fn mixtral_8x7b() -> Self {
        let moe = LmMoeConfig::new(8, 2, 14_336)
            .with_normalize_gates(true)
            .with_balance(BalanceConvention::HuggingFace)
            .with_balance_coef(0.02);
        Self::new(32_000, 4096, 32, 32, 14_336, 32_768)
            .with_num_kv_heads(Some(8))
            .with_rope_theta(1e6)
            .with_tie_embeddings(false)
            .with_moe_layers(MoeLayers::All)
            .with_moe(moe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_valid_model() {
        for name in LmConfig::PRESETS {
            let config = LmConfig::preset(name).expect(name);
            assert_eq!(config.validate(), Ok(()), "{name}");
        }
        assert_eq!(LmConfig::preset("huge"), None);
    }
}
