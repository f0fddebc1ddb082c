//! Why a training run ended early.

use std::path::PathBuf;

use crate::config::ConfigError;
use crate::parallel::RankError;
use crate::run::{CheckpointError, RunError};

/// Why [`train`](super::train) stopped. Checkpoints written before are intact.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A number became infinite or NaN. Of a loss or the norm of the gradients the step was not applied; what a held-out loss or the
    /// parameters were found to be after a step is in no checkpoint.
    #[error(
        "the {what} is not finite at step {step} (learning rate {lr:.3e}): start again with a lower optim.lr, a longer \
         optim.warmup_steps or a lower optim.clip_norm; {}",
        last_checkpoint(*.checkpoint)
    )]
    NotFinite {
        /// Which quantity, in words.
        what: &'static str,
        /// The optimizer step it happened in, from 1.
        step: usize,
        /// Learning rate of that step.
        lr: f64,
        /// Step of the last checkpoint, if there is one.
        checkpoint: Option<usize>,
    },
    /// The run directory could not be written.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A checkpoint could not be written, or the one to resume from not be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The settings cannot be trained by several ranks.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A rank ended early, and with it the others.
    #[error("{0}; checkpoints are intact, go on with --resume")]
    Ranks(#[from] RankError),
    /// The run cannot start from the Hugging Face checkpoint.
    #[error("cannot start from {}: {source}", dir.display())]
    Init {
        /// Its directory.
        dir: PathBuf,
        /// Why.
        source: super::InitError,
    },
}

fn last_checkpoint(step: Option<usize>) -> String {
    match step {
        Some(step) => format!("the last checkpoint, of step {step}, is intact"),
        None => "there is no checkpoint yet".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_that_is_not_finite_names_step_remedy_and_checkpoint() {
        let error = |checkpoint| TrainError::NotFinite { what: "loss", step: 17, lr: 0.5, checkpoint };
        assert_eq!(
            error(Some(10)).to_string(),
            "the loss is not finite at step 17 (learning rate 5.000e-1): start again with a lower optim.lr, a longer \
             optim.warmup_steps or a lower optim.clip_norm; the last checkpoint, of step 10, is intact"
        );
        assert!(error(None).to_string().ends_with("; there is no checkpoint yet"));
    }
}
