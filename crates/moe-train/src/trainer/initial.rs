//! The weights that a run starts from: those of a checkpoint of `transformers`, whose feed-forward networks become experts where
//! the run has some and the checkpoint has none.

use std::path::Path;

use moe_kernels::MoeBackend;
use moe_layers::upcycle::Upcycling;
use moe_models::checkpoint::{CheckpointError, HfCheckpoint, TokenIds};
use moe_models::lm::{Lm, LmConfig, MoeLayers, UpcycleError};
use thiserror::Error;

use super::TrainError;
use crate::config::TrainConfig;

/// Why a run cannot start from a checkpoint.
#[derive(Debug, Error)]
pub enum InitError {
    /// The checkpoint cannot be read, or is of another model.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Its dense networks do not make up the experts.
    #[error(transparent)]
    Upcycle(#[from] UpcycleError),
}

/// A checkpoint that fits the model of a run.
pub(crate) struct InitialWeights<'a> {
    config: &'a TrainConfig,
    dir: &'a Path,
    checkpoint: HfCheckpoint,
    /// How its networks become experts, if they do.
    upcycling: Option<Upcycling>,
}

impl<'a> InitialWeights<'a> {
    /// The checkpoint in `dir`; reads no weights yet.
    ///
    /// # Errors
    ///
    /// [`TrainError::Init`]: it is not whole, or does not fit.
    pub(crate) fn open(config: &'a TrainConfig, dir: &'a Path) -> Result<Self, TrainError> {
        Self::fitting(config, dir).map_err(|source| TrainError::Init { dir: dir.into(), source })
    }

    fn fitting(config: &'a TrainConfig, dir: &'a Path) -> Result<Self, InitError> {
        let checkpoint = HfCheckpoint::open(dir)?;
        if !becomes_experts(checkpoint.config(), &config.model) {
            let checkpoint = checkpoint.with_config(config.model.clone())?;
            return Ok(Self { config, dir, checkpoint, upcycling: None });
        }
        let checkpoint = checkpoint.with_config(config.model.clone().with_moe_layers(MoeLayers::None))?;
        let method = config.train.upcycling;
        config.model.check_upcycling(checkpoint.config(), method)?;
        Ok(Self { config, dir, checkpoint, upcycling: Some(method) })
    }

    /// Its special tokens.
    pub(crate) fn token_ids(&self) -> &TokenIds {
        self.checkpoint.token_ids()
    }

    /// The model of the run. Routers and what else is drawn for new experts depend on the seed of the run alone.
    ///
    /// # Errors
    ///
    /// [`TrainError::Init`]: a file can no longer be read.
    pub(crate) fn load<B: MoeBackend>(&self, device: &B::Device) -> Result<Lm<B>, TrainError> {
        let model = self.load_f32(device).map_err(|source| TrainError::Init { dir: self.dir.into(), source })?;
        Ok(model.with_dtype(self.config.train.dtype.into()))
    }

    fn load_f32<B: MoeBackend>(&self, device: &B::Device) -> Result<Lm<B>, InitError> {
        let loaded = self.checkpoint.load(device)?;
        let Some(method) = self.upcycling else { return Ok(loaded) };
        B::seed(device, self.config.train.seed);
        Ok(self.config.model.upcycle(&loaded, method)?)
    }
}

/// Whether a run of `wanted` that starts from a model of `checkpoint` has experts that it has not.
pub(crate) fn becomes_experts(checkpoint: &LmConfig, wanted: &LmConfig) -> bool {
    checkpoint.num_moe_layers() == 0 && wanted.num_moe_layers() > 0
}
