//! Everything that makes one run what it is, as plain data.
//!
//! A run starts from a preset ([`presets`](crate::presets)), takes the settings of a file and of `--set` on top
//! ([`overrides`](crate::overrides)) and is checked as a whole before anything is built. The result is stored as
//! `config.json` in the run directory and is enough to repeat the run.

use std::{fmt, path::PathBuf};

use burn::tensor::DType;
use clap::ValueEnum;
use excitation_optim::{Control, ExcitationConfig, Variant};
use moe_layers::upcycle::Upcycling;
use moe_models::lm::{LmConfig, LmConfigError};
use moe_models::vit::VitConfigError;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::parallel;

/// Everything about one training run.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct TrainConfig {
    /// The model.
    pub model: LmConfig,
    /// The text.
    pub data: DataConfig,
    /// The optimizer and its learning rate.
    pub optim: OptimConfig,
    /// The training loop.
    pub train: LoopConfig,
}

/// Where the text comes from and how it becomes tokens.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct DataConfig {
    /// A file or a directory of text; `None` is the Rust sources of the workspace's dependencies.
    pub path: Option<PathBuf>,
    /// Held-out text, a file or a directory; `None` holds out a part of `path`.
    pub valid_path: Option<PathBuf>,
    /// A `tokenizer.json`; `None` takes bytes as tokens.
    pub tokenizer: Option<PathBuf>,
    /// Part of a single text that is held out, at its end, in (0, 1).
    pub valid_fraction: f64,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self { path: None, valid_path: None, tokenizer: None, valid_fraction: 0.1 }
    }
}

/// AdamW with a linear warm-up and a cosine decay.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct OptimConfig {
    /// Learning rate at the end of the warm-up.
    pub lr: f64,
    /// Learning rate at the last step.
    pub min_lr: f64,
    /// Steps over which the rate rises from 0 to `lr`.
    pub warmup_steps: usize,
    /// Decay of the mean of gradients, in [0, 1).
    pub beta1: f64,
    /// Decay of the mean of squared gradients, in [0, 1).
    pub beta2: f64,
    /// Added to the root of the mean of squared gradients.
    pub eps: f64,
    /// Decoupled decay of matrices; norms, embeddings, routers and biases have none.
    pub weight_decay: f64,
    /// Largest norm of all gradients together; 0 does not clip.
    pub clip_norm: f64,
    /// Scales the step of each expert by its use: `zero-sum`, `positive-sum` or `exp-diff`; null does not.
    #[serde(default)]
    pub excitation: Option<Variant>,
    /// Strength of the excitation; 0 is none.
    #[serde(default = "full_strength")]
    pub gamma: f64,
    /// Replaces the excitation by a control: `global-exp`, `random-boost` or `inverted`; null does not.
    #[serde(default)]
    pub control: Option<Control>,
    /// Patterns of the paths of parameters that are not trained, see [`Freeze`](crate::optim::Freeze).
    #[serde(default)]
    pub freeze: Vec<String>,
}

fn full_strength() -> f64 {
    1.0
}

impl OptimConfig {
    /// The excitation, where one is configured; its random orders depend on `seed`.
    pub fn excitation(&self, seed: u64) -> Option<ExcitationConfig> {
        let excitation = ExcitationConfig::new().with_gamma(self.gamma).with_control(self.control).with_seed(seed);
        self.excitation.map(|variant| excitation.with_variant(variant))
    }
}

/// The training loop: how much, in which portions, and what is recorded when.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct LoopConfig {
    /// Optimizer steps of the whole run.
    pub steps: usize,
    /// Sequences per micro-batch.
    pub batch_size: usize,
    /// Tokens per sequence.
    pub seq_len: usize,
    /// Micro-batches per optimizer step.
    pub grad_accumulation: usize,
    /// Seed of the weights and of the order of the text.
    pub seed: u64,
    /// Type of the activations; weights and optimizer state are f32.
    pub dtype: Dtype,
    /// Steps between two lines of the metrics.
    pub log_every: usize,
    /// Steps between two validations; the last step always validates.
    pub valid_every: usize,
    /// Batches per validation, spread evenly over the held-out text (all of it if it has fewer).
    pub valid_batches: usize,
    /// Steps between two checkpoints; the last step always writes one.
    pub checkpoint_every: usize,
    /// Newest checkpoints that are kept, beside the best one.
    pub keep_last: usize,
    /// Tokens of the sample at the end of the run; 0 for none.
    pub sample_tokens: usize,
    /// A Hugging Face checkpoint whose weights the run starts from; `None` draws them.
    #[serde(default)]
    pub init_from: Option<PathBuf>,
    /// What experts have of the networks of such a checkpoint, where the model has experts and it has none.
    #[serde(default)]
    pub upcycling: Upcycling,
}

impl LoopConfig {
    /// Tokens of one optimizer step.
    pub fn tokens_per_step(&self) -> usize {
        self.batch_size * self.seq_len * self.grad_accumulation
    }
}

/// Type of the activations.
#[derive(Serialize, Deserialize, ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32-bit floats.
    #[default]
    F32,
    /// bfloat16 activations and products; weights, router, norms and losses stay f32.
    Bf16,
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

impl From<Dtype> for DType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::Bf16 => Self::BF16,
        }
    }
}

/// Why settings cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// No preset of this name.
    #[error("unknown preset `{name}`; there are {known}")]
    UnknownPreset {
        /// What was asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// A setting that does not exist.
    #[error("unknown key `{key}`{}", suggestion.as_ref().map(|s| format!("; did you mean `{s}`?")).unwrap_or_default())]
    UnknownKey {
        /// What was given.
        key: String,
        /// The setting with the most similar name, if one is similar.
        suggestion: Option<String>,
    },
    /// `--set` without `=`.
    #[error("`--set {0}` has no `=`: write --set key=value")]
    NoValue(String),
    /// A value of the wrong type or out of range.
    #[error("`{key}` cannot be `{value}`: {reason}")]
    BadValue {
        /// The setting.
        key: String,
        /// The value given.
        value: String,
        /// What would be right.
        reason: String,
    },
    /// A file of settings that cannot be read.
    #[error("cannot read the config file `{path}`: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Two settings that contradict each other, or one that makes no sense.
    #[error("{0}")]
    Contradiction(String),
    /// The model's settings contradict each other.
    #[error("model: {0}")]
    Model(#[from] LmConfigError),
    /// So do a vision model's.
    #[error("model: {0}")]
    Vit(#[from] VitConfigError),
    /// A file of settings of another kind of run.
    #[error("the file holds the settings of a run of `{found}`: pass it to train {found}")]
    OtherTask {
        /// The kind of model it is for.
        found: String,
    },
}

impl TrainConfig {
    /// Finds contradictions before anything is built.
    ///
    /// # Errors
    ///
    /// The first contradiction, in words that say which setting to change.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.model.validate()?;
        self.data.validate()?;
        self.optim.validate()?;
        self.train.validate()?;
        ensure(self.optim.excitation.is_none() || self.model.num_moe_layers() > 0, || {
            "optim.excitation needs experts, and the model has no MoE layer".to_string()
        })?;
        let (seq_len, max) = (self.train.seq_len, self.model.max_seq_len);
        ensure(seq_len <= max, || {
            format!(
                "train.seq_len {seq_len} is longer than model.max_seq_len {max}: raise the latter or lower the former"
            )
        })?;
        self.optim.validate_warmup(self.train.steps)
    }

    /// Whether so many ranks can train this together.
    ///
    /// # Errors
    ///
    /// As [`parallel::check`].
    pub fn check_ranks(&self, num_ranks: usize) -> Result<(), ConfigError> {
        let moe = (self.model.num_moe_layers() > 0).then_some(&self.model.moe);
        parallel::check(moe, self.train.batch_size, num_ranks)
    }
}

impl DataConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        let fraction = self.valid_fraction;
        ensure(fraction > 0.0 && fraction < 1.0, || {
            format!("data.valid_fraction {fraction} must lie between 0 and 1")
        })?;
        ensure(self.valid_path.is_none() || self.path.is_some(), || {
            "data.valid_path needs data.path: pass --data as well".to_string()
        })
    }
}

impl OptimConfig {
    /// # Errors
    ///
    /// A warm-up that a run of `steps` steps does not reach the end of.
    pub(crate) fn validate_warmup(&self, steps: usize) -> Result<(), ConfigError> {
        let warmup = self.warmup_steps;
        ensure(warmup <= steps, || {
            format!(
                "optim.warmup_steps {warmup} is more than train.steps {steps}: the learning rate would never be reached"
            )
        })
    }

    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        positive("optim.lr", self.lr)?;
        positive("optim.eps", self.eps)?;
        not_negative("optim.min_lr", self.min_lr)?;
        not_negative("optim.weight_decay", self.weight_decay)?;
        not_negative("optim.clip_norm", self.clip_norm)?;
        for (name, beta) in [("optim.beta1", self.beta1), ("optim.beta2", self.beta2)] {
            ensure((0.0..1.0).contains(&beta), || format!("{name} {beta} must be at least 0 and below 1"))?;
        }
        not_negative("optim.gamma", self.gamma)?;
        ensure(self.excitation.is_some() || self.control.is_none(), || {
            "optim.control is a control of excitation: set optim.excitation as well".to_string()
        })?;
        let (lr, min_lr) = (self.lr, self.min_lr);
        ensure(min_lr <= lr, || format!("optim.min_lr {min_lr} is above optim.lr {lr}: lower it as well"))
    }
}

impl LoopConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        ensure_counts(&[
            ("train.steps", self.steps),
            ("train.batch_size", self.batch_size),
            ("train.seq_len", self.seq_len),
            ("train.grad_accumulation", self.grad_accumulation),
            ("train.log_every", self.log_every),
            ("train.valid_every", self.valid_every),
            ("train.valid_batches", self.valid_batches),
            ("train.checkpoint_every", self.checkpoint_every),
            ("train.keep_last", self.keep_last),
        ])
    }
}

/// # Errors
///
/// The first setting that is 0.
pub(crate) fn ensure_counts(counts: &[(&str, usize)]) -> Result<(), ConfigError> {
    counts.iter().try_for_each(|(name, count)| ensure(*count > 0, || format!("{name} must be at least 1")))
}

fn positive(name: &str, value: f64) -> Result<(), ConfigError> {
    ensure(value > 0.0 && value.is_finite(), || format!("{name} {value} must be above 0"))
}

fn not_negative(name: &str, value: f64) -> Result<(), ConfigError> {
    ensure(value >= 0.0 && value.is_finite(), || format!("{name} {value} must be 0 or more"))
}

pub(crate) fn ensure(holds: bool, message: impl FnOnce() -> String) -> Result<(), ConfigError> {
    if holds { Ok(()) } else { Err(ConfigError::Contradiction(message())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(change: impl FnOnce(&mut TrainConfig)) -> String {
        let mut config = TrainConfig::preset("tiny").unwrap();
        change(&mut config);
        config.validate().unwrap_err().to_string()
    }

    #[test]
    fn a_sequence_longer_than_the_model_allows_is_refused() {
        assert!(refusal(|c| c.train.seq_len = c.model.max_seq_len + 1).contains("max_seq_len"));
    }

    #[test]
    fn counts_of_zero_are_refused() {
        assert!(refusal(|c| c.train.steps = 0).contains("train.steps"));
        assert!(refusal(|c| c.train.batch_size = 0).contains("train.batch_size"));
        assert!(refusal(|c| c.train.grad_accumulation = 0).contains("train.grad_accumulation"));
    }

    #[test]
    fn a_warm_up_longer_than_the_run_is_refused() {
        assert!(refusal(|c| c.optim.warmup_steps = c.train.steps + 1).contains("warmup_steps"));
    }

    #[test]
    fn a_learning_rate_that_would_rise_at_the_end_is_refused() {
        assert!(refusal(|c| c.optim.min_lr = 2.0 * c.optim.lr).contains("min_lr"));
        assert!(refusal(|c| c.optim.lr = f64::NAN).contains("optim.lr"));
    }

    #[test]
    fn a_fraction_that_holds_out_all_or_nothing_is_refused() {
        assert!(refusal(|c| c.data.valid_fraction = 1.0).contains("valid_fraction"));
        assert!(refusal(|c| c.data.valid_fraction = 0.0).contains("valid_fraction"));
    }

    #[test]
    fn a_control_without_excitation_and_a_negative_gamma_are_refused() {
        assert!(refusal(|c| c.optim.control = Some(Control::Inverted)).contains("set optim.excitation"));
        assert!(refusal(|c| c.optim.gamma = -1.0).contains("optim.gamma"));
    }

    #[test]
    fn excitation_of_a_dense_model_is_refused() {
        let dense = |c: &mut TrainConfig| {
            c.optim.excitation = Some(Variant::ZeroSum);
            c.model.moe_layers = "none".parse().unwrap();
        };
        assert!(refusal(dense).contains("no MoE layer"));
    }

    #[test]
    fn a_config_from_before_excitation_is_one_without_it() {
        let config = TrainConfig::preset("tiny").unwrap();
        let mut tree = serde_json::to_value(&config).unwrap();
        let optim = tree["optim"].as_object_mut().unwrap();
        for key in ["excitation", "gamma", "control"] {
            optim.remove(key).expect("it was written");
        }
        assert_eq!(serde_json::from_value::<TrainConfig>(tree).unwrap(), config);
    }

    #[test]
    fn contradictions_of_the_model_are_found_too() {
        assert!(refusal(|c| c.model.moe.top_k = c.model.moe.num_experts + 1).starts_with("model: "));
    }

    #[test]
    fn a_config_survives_json() {
        let config = TrainConfig::preset("nanogpt-moe").unwrap();
        let back: TrainConfig = serde_json::from_str(&serde_json::to_string(&config).unwrap()).unwrap();
        assert_eq!(back, config);
    }
}
