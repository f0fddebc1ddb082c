//! The error a command ends with: whatever went wrong, in one line that says what to do.

use std::{io, path::PathBuf};

use moe_models::generate::GenerateError;
use thiserror::Error;

use crate::{
    backend::BackendError,
    config::ConfigError,
    data::DataError,
    images::ImageError,
    report::ReportError,
    run::{CheckpointError, RunError},
    trainer::TrainError,
};

/// Why a command failed. The message is that of the module where it happened.
#[derive(Debug, Error)]
pub enum Error {
    /// The settings of the run.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The text or its tokenizer.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The images.
    #[error(transparent)]
    Images(#[from] ImageError),
    /// An option that a vision model has no use for.
    #[error("{option} is for language models: {reason}")]
    ForText {
        /// The option.
        option: &'static str,
        /// Why a vision model has none.
        reason: &'static str,
    },
    /// The run does not say how its images were read.
    #[error("{} has no context.json, which says how its images are read: train --resume writes it again", dir.display())]
    NoContext {
        /// The directory of the run.
        dir: PathBuf,
    },
    /// The run says how other images than its model's are read.
    #[error("context.json in {} does not have the mean and deviation of {channels} channels, as its model has: train --resume writes it again without it", dir.display())]
    OtherChannels {
        /// The directory of the run.
        dir: PathBuf,
        /// Of the model.
        channels: usize,
    },
    /// `--devices` beside `--launch` or `--nodes`.
    #[error("--devices names {devices} devices for {num_ranks} processes: name one for each")]
    DevicesOfRanks {
        /// Of the processes.
        num_ranks: usize,
        /// Of the devices.
        devices: usize,
    },
    /// `--devices` beside `--launch` or `--nodes` on a CPU.
    #[error("a CPU is one device, which all processes share: leave --devices out")]
    DevicesOfCpu,
    /// The processes of `--launch` cannot be started.
    #[error("cannot start the other ranks: {source}")]
    Launch {
        /// Why.
        source: io::Error,
    },
    /// The device.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The run directory.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The training loop.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The continuation of a prompt.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// The report.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// A Hugging Face checkpoint.
    #[error(transparent)]
    HuggingFace(#[from] moe_models::checkpoint::CheckpointError),
    /// Nothing to continue a prompt with.
    #[error(
        "there is no model: pass the directory of a run as --run, or that of a Hugging Face checkpoint as --checkpoint"
    )]
    NoModel,
    /// A run and a Hugging Face checkpoint at once.
    #[error(
        "{} is the directory of a Hugging Face checkpoint, which needs no --run; of a run there are latest and best",
        dir.display()
    )]
    TwoModels {
        /// What `--checkpoint` says.
        dir: PathBuf,
    },
    /// A Hugging Face checkpoint whose tokens have no meaning.
    #[error(
        "{} holds no tokenizer.json, and its {vocab_size} tokens are not bytes: put the model's own beside config.json, or name it as train --tokenizer",
        dir.display()
    )]
    NoTokenizer {
        /// The directory of the checkpoint.
        dir: PathBuf,
        /// Its tokens.
        vocab_size: usize,
    },
    /// Another tokenizer than the checkpoint's.
    #[error("the checkpoint comes with its tokenizer, {}: leave --tokenizer out", own.display())]
    TwoTokenizers {
        /// That of the checkpoint.
        own: PathBuf,
    },
    /// `--steps` of a resumed run below what the run was planned for.
    #[error("--steps {asked} is less than the {planned} steps of the run: a resumed run can only be made longer")]
    FewerSteps {
        /// Steps asked for.
        asked: usize,
        /// Steps the run was planned for.
        planned: usize,
    },
    /// The data is not what the run began with.
    #[error("the data is not what this run began with ({description}): restore it, or start a new run with --out")]
    ChangedData {
        /// What the run was trained on.
        description: String,
    },
    /// Reading or writing a small file of the run, or printing.
    #[error("{context}: {source}")]
    Io {
        /// What was being done, with the path.
        context: String,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    /// An [`Error::Io`] with what was being done, for use in `map_err`.
    pub fn io(context: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let context = context.into();
        move |source| Self::Io { context, source }
    }

    /// Whether the reader of our output went away (`moe-train generate .. | head`), which is no failure.
    pub fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// The message with every run of white space, line ends included, made one blank.
pub fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_several_lines_becomes_one() {
        assert_eq!(one_line("TOML error\n  |\n1 | x\n"), "TOML error | 1 | x");
    }

    #[test]
    fn a_closed_pipe_is_told_from_other_failures() {
        let closed = Error::io("printing")(io::ErrorKind::BrokenPipe.into());
        let full = Error::io("printing")(io::ErrorKind::StorageFull.into());
        assert!(closed.is_closed_pipe());
        assert!(!full.is_closed_pipe());
    }
}
