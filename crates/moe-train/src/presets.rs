//! Settings of whole runs to start from.
//!
//! | preset | for |
//! |---|---|
//! | `tiny` | the first run: minutes on two cores |
//! | `small` | an evening on two cores, minutes on a GPU |
//! | `nanogpt-dense`, `nanogpt-moe` | comparison with [nanoGPT](https://github.com/karpathy/nanoGPT)'s CPU run on tiny Shakespeare |
//! | those of [`LmConfig::PRESETS`] | a published model with common settings; the text and the machine are yours to choose |
//!
//! `default-moe-8c1` and `default-moe-32c4` are the sizes of the Default MoE paper with plain top-K, its baseline; the method itself takes
//! `moe.router=default`.

use moe_layers::upcycle::Upcycling;
use moe_models::lm::{LmConfig, MoeLayers};

use crate::{
    config::{ConfigError, DataConfig, Dtype, LoopConfig, OptimConfig, TrainConfig},
    data::BYTES,
    overrides::Overrides,
};

/// The preset of a run that names none.
pub const DEFAULT: &str = "tiny";

/// Presets of whole runs that are tuned as such.
const TUNED: [&str; 4] = ["tiny", "small", "nanogpt-dense", "nanogpt-moe"];

/// A run that is made shorter than its preset keeps a warm-up of at most this part of its steps.
const WARMUP_PART: usize = 10;

impl TrainConfig {
    /// The settings of a preset.
    ///
    /// # Errors
    ///
    /// [`ConfigError::UnknownPreset`] with the names there are.
    pub fn preset(name: &str) -> Result<Self, ConfigError> {
        match name {
            "tiny" => Ok(tiny()),
            "small" => Ok(small()),
            "nanogpt-dense" => Ok(nanogpt_dense()),
            "nanogpt-moe" => Ok(nanogpt_moe()),
            other => LmConfig::preset(other).map(published).ok_or_else(|| unknown(other)),
        }
    }

    /// [`resolve_on`](Self::resolve_on) the settings of a preset.
    ///
    /// # Errors
    ///
    /// As there, and an unknown preset.
    pub fn resolve(preset: &str, overrides: &Overrides) -> Result<Self, ConfigError> {
        Self::resolve_on(&Self::preset(preset)?, overrides)
    }

    /// Settings with changes on top, not yet checked for contradictions.
    ///
    /// A change of `train.steps` alone shortens a warm-up that would take more than a tenth of the run.
    ///
    /// # Errors
    ///
    /// An unknown key or a value that does not fit, each naming it.
    pub fn resolve_on(base: &Self, overrides: &Overrides) -> Result<Self, ConfigError> {
        let mut config = overrides.apply(base)?;
        shorten_warmup(&mut config.optim, config.train.steps, overrides);
        Ok(config)
    }
}

/// Fits the warm-up into a run of `steps` steps, if the changes are of their number alone.
pub(crate) fn shorten_warmup(optim: &mut OptimConfig, steps: usize, overrides: &Overrides) {
    if overrides.names("train.steps") && !overrides.names("optim.warmup_steps") {
        optim.warmup_steps = optim.warmup_steps.min(steps / WARMUP_PART);
    }
}

fn unknown(name: &str) -> ConfigError {
    let models = LmConfig::PRESETS.iter().copied().filter(|name| !TUNED.contains(name));
    let known: Vec<&str> = TUNED.into_iter().chain(models).collect();
    ConfigError::UnknownPreset { name: name.into(), known: known.join(", ") }
}

pub(crate) fn adamw(lr: f64, warmup_steps: usize) -> OptimConfig {
    OptimConfig {
        lr,
        min_lr: lr / 10.0,
        warmup_steps,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        clip_norm: 1.0,
        excitation: None,
        gamma: 1.0,
        control: None,
        freeze: Vec::new(),
    }
}

fn tiny() -> TrainConfig {
    TrainConfig {
        model: LmConfig { vocab_size: BYTES, ..LmConfig::tiny() },
        data: DataConfig::default(),
        optim: OptimConfig { beta2: 0.99, ..adamw(2e-3, 100) },
        train: LoopConfig {
            steps: 1200,
            batch_size: 8,
            seq_len: 128,
            grad_accumulation: 1,
            seed: 0,
            dtype: Dtype::F32,
            log_every: 10,
            valid_every: 200,
            valid_batches: 16,
            checkpoint_every: 200,
            keep_last: 2,
            sample_tokens: 256,
            init_from: None,
            upcycling: Upcycling::Copy,
        },
    }
}

fn small() -> TrainConfig {
    let tiny = tiny();
    TrainConfig {
        model: LmConfig { vocab_size: BYTES, ..LmConfig::small() },
        optim: adamw(1e-3, 200),
        train: LoopConfig {
            steps: 10_000,
            batch_size: 16,
            seq_len: 256,
            valid_every: 500,
            valid_batches: 32,
            checkpoint_every: 500,
            ..tiny.train
        },
        ..tiny
    }
}

/// nanoGPT's documented CPU run (README, "I only have a macbook"): 4 layers, 4 heads, width 128, context 64, batch 12, 2000 steps, 1e-3
/// to 1e-4, beta2 0.99, warm-up 100, no dropout. Validation differs: all of the held-out text instead of 20 batches.
fn nanogpt_dense() -> TrainConfig {
    let tiny = tiny();
    TrainConfig {
        model: LmConfig {
            vocab_size: BYTES,
            d_model: 128,
            num_layers: 4,
            num_heads: 4,
            d_hidden: NANOGPT_HIDDEN,
            max_seq_len: 64,
            num_kv_heads: None,
            head_dim: None,
            moe_layers: MoeLayers::None,
            ..LmConfig::tiny()
        },
        optim: OptimConfig { beta2: 0.99, ..adamw(1e-3, 100) },
        train: LoopConfig {
            steps: 2000,
            batch_size: 12,
            seq_len: 64,
            valid_every: 250,
            valid_batches: 200,
            checkpoint_every: 250,
            ..tiny.train
        },
        ..tiny
    }
}

/// Width of a SwiGLU layer with the parameters of nanoGPT's GELU layer, `3 * 128 * 341` against `2 * 128 * 512`, rounded up to
/// a multiple of 8.
const NANOGPT_HIDDEN: usize = 344;

/// [`nanogpt_dense`] with 8 experts in every layer, two of half the dense width for each token. The gates of a token sum
/// to 1, so a layer starts at the scale of a dense one.
fn nanogpt_moe() -> TrainConfig {
    let mut config = nanogpt_dense();
    config.model.moe_layers = MoeLayers::All;
    config.model.moe.num_experts = 8;
    config.model.moe.top_k = 2;
    config.model.moe.d_hidden = NANOGPT_HIDDEN / 2;
    config.model.moe.normalize_gates = true;
    config
}

/// A published model: its own vocabulary (pass its tokenizer), sequences of up to 2048, half a million tokens a step.
fn published(model: LmConfig) -> TrainConfig {
    let tiny = tiny();
    let seq_len = model.max_seq_len.min(2048);
    TrainConfig {
        model,
        optim: adamw(4e-4, 2000),
        train: LoopConfig {
            steps: 100_000,
            batch_size: 4,
            seq_len,
            grad_accumulation: 64,
            valid_every: 1000,
            valid_batches: 64,
            checkpoint_every: 1000,
            ..tiny.train
        },
        ..tiny
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(assignments: &[&str]) -> TrainConfig {
        let mut overrides = Overrides::default();
        assignments.iter().for_each(|text| overrides.add_assignment(text).unwrap());
        TrainConfig::resolve(DEFAULT, &overrides).unwrap()
    }

    #[test]
    fn every_preset_is_free_of_contradictions() {
        for name in TUNED.iter().chain(LmConfig::PRESETS) {
            TrainConfig::preset(name).unwrap().validate().unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }

    #[test]
    fn an_unknown_preset_is_refused_with_the_names_there_are() {
        let message = TrainConfig::preset("huge").unwrap_err().to_string();
        assert!(message.contains("`huge`") && message.contains("tiny, small, nanogpt-dense"), "{message}");
    }

    #[test]
    fn the_two_nanogpt_presets_have_the_same_active_width() {
        let dense = TrainConfig::preset("nanogpt-dense").unwrap().model;
        let moe = TrainConfig::preset("nanogpt-moe").unwrap().model;
        assert_eq!(moe.moe.top_k * moe.moe.d_hidden, dense.d_hidden);
        let routers = (moe.num_layers * moe.d_model * moe.moe.num_experts) as u64;
        assert_eq!(moe.num_active_params(), dense.num_params() + routers);
    }

    #[test]
    fn a_short_run_shortens_its_warm_up_unless_told_not_to() {
        assert_eq!(resolved(&["train.steps=20"]).optim.warmup_steps, 2);
        assert_eq!(resolved(&["train.steps=20", "optim.warmup_steps=9"]).optim.warmup_steps, 9);
        assert_eq!(resolved(&["train.steps=99999"]).optim.warmup_steps, resolved(&[]).optim.warmup_steps);
    }
}
