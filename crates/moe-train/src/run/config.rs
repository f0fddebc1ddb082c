//! `config.json`: the settings of a run, of whichever kind of model.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::RunError;
use crate::config::{ConfigError, TrainConfig};
use crate::images::VitTrainConfig;

/// The settings of a run, tagged with the kind of its model: `"task": "lm"` or `"vit"`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(tag = "task", rename_all = "lowercase")]
pub enum RunConfig {
    /// A language model.
    Lm(Box<TrainConfig>),
    /// A vision model.
    Vit(Box<VitTrainConfig>),
}

/// The key of the tag of [`RunConfig`].
pub(crate) const TASK: &str = "task";

/// Settings of one kind of model.
pub trait Settings: Sized {
    /// The tag of the kind.
    const TASK: &'static str;

    /// The settings in `config`.
    ///
    /// # Errors
    ///
    /// [`RunError::OtherTask`], naming `dir`, if they are of another kind.
    fn of(config: RunConfig, dir: &Path) -> Result<Self, RunError>;

    /// Optimizer steps of the whole run.
    fn steps_mut(&mut self) -> &mut usize;

    /// # Errors
    ///
    /// The first contradiction among the settings.
    fn check(&self) -> Result<(), ConfigError>;
}

impl Settings for TrainConfig {
    const TASK: &'static str = "lm";

    fn of(config: RunConfig, dir: &Path) -> Result<Self, RunError> {
        match config {
            RunConfig::Lm(config) => Ok(*config),
            RunConfig::Vit(_) => Err(other(dir, "vision", "language")),
        }
    }

    fn steps_mut(&mut self) -> &mut usize {
        &mut self.train.steps
    }

    fn check(&self) -> Result<(), ConfigError> {
        self.validate()
    }
}

impl Settings for VitTrainConfig {
    const TASK: &'static str = "vit";

    fn of(config: RunConfig, dir: &Path) -> Result<Self, RunError> {
        match config {
            RunConfig::Vit(config) => Ok(*config),
            RunConfig::Lm(_) => Err(other(dir, "language", "vision")),
        }
    }

    fn steps_mut(&mut self) -> &mut usize {
        &mut self.train.steps
    }

    fn check(&self) -> Result<(), ConfigError> {
        self.validate()
    }
}

fn other(dir: &Path, found: &'static str, wanted: &'static str) -> RunError {
    RunError::OtherTask { dir: dir.to_path_buf(), found, wanted }
}

impl From<&TrainConfig> for RunConfig {
    fn from(config: &TrainConfig) -> Self {
        Self::Lm(Box::new(config.clone()))
    }
}

impl From<&VitTrainConfig> for RunConfig {
    fn from(config: &VitTrainConfig) -> Self {
        Self::Vit(Box::new(config.clone()))
    }
}

impl RunConfig {
    pub(super) fn keep_last(&self) -> usize {
        match self {
            Self::Lm(config) => config.train.keep_last,
            Self::Vit(config) => config.train.keep_last,
        }
    }

    pub(super) fn checkpoint_every(&self) -> usize {
        match self {
            Self::Lm(config) => config.train.checkpoint_every,
            Self::Vit(config) => config.train.checkpoint_every,
        }
    }

    /// # Errors
    ///
    /// The first contradiction among the settings.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        match self {
            Self::Lm(config) => config.check(),
            Self::Vit(config) => config.check(),
        }
    }

    /// Reads what was written, or what was written before there were several kinds.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        let mut tree: serde_json::Value = serde_json::from_slice(bytes)?;
        if let Some(tree) = tree.as_object_mut() {
            tree.entry(TASK).or_insert_with(|| TrainConfig::TASK.into());
        }
        serde_json::from_value(tree)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_both_kinds_come_back_and_those_without_a_tag_are_of_text() {
        let lm = TrainConfig::preset("tiny").expect("a preset");
        let vit = VitTrainConfig::preset("tiny").expect("a preset");
        for config in [RunConfig::from(&lm), RunConfig::from(&vit)] {
            assert_eq!(
                RunConfig::parse(&serde_json::to_vec(&config).expect("plain data")).expect("its own text"),
                config
            );
        }
        let untagged = serde_json::to_vec(&lm).expect("plain data");
        assert_eq!(RunConfig::parse(&untagged).expect("without a tag"), RunConfig::from(&lm));
        assert!(RunConfig::parse(b"{\"task\": \"audio\"}").is_err() && RunConfig::parse(b"[]").is_err());
    }

    #[test]
    fn settings_of_the_other_kind_are_refused_with_the_directory() {
        let lm = TrainConfig::preset("tiny").expect("a preset");
        let refused = VitTrainConfig::of(RunConfig::from(&lm), Path::new("runs/a")).expect_err("text").to_string();
        assert!(refused.starts_with("runs/a") && refused.contains("language"), "{refused}");
    }
}
