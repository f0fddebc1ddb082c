//! The models whose training steps are measured: Mixtral's architecture, small.

use clap::ValueEnum;
use moe_layers::BalanceConvention;
use moe_models::lm::{LmConfig, LmMoeConfig, MoeLayers};
use moe_train::config::{Dtype, LoopConfig, OptimConfig, TrainConfig};
use serde::Serialize;

/// Values of a byte.
pub(super) const VOCAB: usize = 256;
/// Learning rate, the same in every step.
pub(super) const LR: f64 = 1e-3;
/// Largest norm of all gradients together.
pub(super) const CLIP_NORM: f64 = 1.0;

/// A model by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Preset {
    /// 6 layers of width 256, context 256, batch 8, 16 experts of width 384, top 2
    Medium,
    /// The same with 64 experts of width 96, top 8
    Fine,
    /// 4 layers of width 128, context 64, batch 12, 8 experts of width 256, top 2
    Small,
}

/// A model's sizes.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Sizes {
    pub(crate) layers: usize,
    pub(crate) width: usize,
    pub(crate) heads: usize,
    pub(crate) context: usize,
    pub(crate) batch: usize,
    pub(crate) experts: usize,
    pub(crate) top_k: usize,
    pub(crate) expert_width: usize,
}

impl Preset {
    /// The name on the command line.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().into()).unwrap_or_default()
    }

    /// Heads have width 32.
    pub(crate) fn sizes(self) -> Sizes {
        let medium =
            Sizes { layers: 6, width: 256, heads: 8, context: 256, batch: 8, experts: 16, top_k: 2, expert_width: 384 };
        match self {
            Self::Medium => medium,
            Self::Fine => Sizes { experts: 64, top_k: 8, expert_width: 96, ..medium },
            Self::Small => Sizes {
                layers: 4,
                width: 128,
                heads: 4,
                context: 64,
                batch: 12,
                experts: 8,
                top_k: 2,
                expert_width: 256,
            },
        }
    }
}

impl Sizes {
    /// Tokens of a step.
    pub(crate) fn tokens(&self) -> usize {
        self.batch * self.context
    }

    /// The settings of a run of such a model.
    pub(crate) fn config(&self) -> TrainConfig {
        let mut config = TrainConfig::preset("tiny").expect("a preset of the program");
        config.model = self.model();
        config.optim = OptimConfig { lr: LR, clip_norm: CLIP_NORM, ..config.optim };
        config.train = LoopConfig {
            batch_size: self.batch,
            seq_len: self.context,
            grad_accumulation: 1,
            dtype: Dtype::F32,
            ..config.train
        };
        config
    }

    fn model(&self) -> LmConfig {
        let moe = LmMoeConfig::new(self.experts, self.top_k, self.expert_width)
            .with_normalize_gates(true)
            .with_balance(BalanceConvention::HuggingFace);
        // The width of dense blocks is of no consequence: every layer has experts.
        LmConfig::new(VOCAB, self.width, self.layers, self.heads, self.expert_width, self.context)
            .with_tie_embeddings(false)
            .with_moe_layers(MoeLayers::All)
            .with_moe(moe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configs_are_free_of_contradictions() {
        for preset in Preset::value_variants() {
            preset.sizes().config().validate().unwrap();
        }
    }

    #[test]
    fn parameters_are_those_of_mixtral_counted_by_hand() {
        let Sizes { layers, width, experts, expert_width, .. } = Preset::Medium.sizes();
        let attention = 4 * width * width;
        let layer = attention + 2 * width + width * experts + experts * 3 * width * expert_width;
        let by_hand = 2 * VOCAB * width + layers * layer + width;
        assert_eq!(Preset::Medium.sizes().config().model.num_params(), by_hand as u64);
    }

    #[test]
    fn fine_experts_have_the_same_active_width() {
        let active = |preset: Preset| preset.sizes().top_k * preset.sizes().expert_width;
        assert_eq!(active(Preset::Medium), active(Preset::Fine));
    }
}
