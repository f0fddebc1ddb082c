//! The run directory: everything that a run leaves behind.
//!
//! ```text
//! config.json     everything needed to repeat the run, and the kind of its model
//! context.json    what the data is, and reference figures for what is held out
//! metrics.jsonl   one object for every logged step
//! checkpoints/    step-00000100/{model.mpk, optim.mpk, state.json} ..
//! classes.json    of a vision model: which classes its experts serve, measured at the end
//! report.html     written at the end
//! .lock           held by the program that trains here
//! ```
//!
//! Every file is replaced as a whole or appended to with one write, so the directory is good for
//! `--resume` whenever the program or the machine stopped.

mod checkpoint;
mod config;
mod context;
mod files;
mod lock;
mod manifest;
mod metrics;
mod record;
mod sealed;
mod subject;

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use burn::{
    module::{AutodiffModule, Module},
    optim::Optimizer,
    tensor::backend::{AutodiffBackend, Backend},
};

use serde::{Serialize, de::DeserializeOwned};

use crate::config::ConfigError;
use crate::images::ClassLoad;

pub use checkpoint::{CheckpointError, Checkpoints, Which};
pub use config::{RunConfig, Settings};
pub use context::{Context, ImageContext, Reference};
pub use files::FileError;
pub use manifest::TrainState;
pub use metrics::{LayerRecord, MetricsError, StepRecord, read_metrics};
pub use subject::Subject;

pub(crate) use config::TASK;
pub(crate) use files::write_atomic;
#[cfg(test)]
pub(crate) use metrics::tests::record as test_record;
pub(crate) use sealed::SEAL;

use lock::{LOCK_FILE, LockError, RunLock};
use metrics::MetricsLog;

const CONFIG_FILE: &str = "config.json";
const CONTEXT_FILE: &str = "context.json";
const METRICS_FILE: &str = "metrics.jsonl";
const CLASSES_FILE: &str = "classes.json";
const CHECKPOINT_DIR: &str = "checkpoints";

/// Why a run directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A file of it.
    #[error(transparent)]
    File(#[from] FileError),
    /// The metrics.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The leftovers of a checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A new run was to go where there is one.
    #[error(
        "{} already holds a run: go on with it by --resume {}, or choose another --out",
        dir.display(), dir.display()
    )]
    Exists {
        /// The directory.
        dir: PathBuf,
    },
    /// A new run was to go among other files.
    #[error("{} holds other files, such as {found}: choose a new or empty directory as --out", dir.display())]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
        /// One of the files.
        found: String,
    },
    /// Something else than a directory is in the way.
    #[error("{} is not a directory: choose another --out", dir.display())]
    NotADirectory {
        /// The path.
        dir: PathBuf,
    },
    /// There is no run.
    #[error("{} holds no run: there is no {CONFIG_FILE} in it", dir.display())]
    NotARun {
        /// The directory.
        dir: PathBuf,
    },
    /// It is what `transformers` writes.
    #[error(
        "{} holds a Hugging Face checkpoint, not a run: `generate --checkpoint` and `train --init-from` read it",
        dir.display()
    )]
    HuggingFace {
        /// The directory.
        dir: PathBuf,
    },
    /// It is a run of another kind of model.
    #[error("{} is the run of a {found} model, and a {wanted} model is needed here", dir.display())]
    OtherTask {
        /// The directory.
        dir: PathBuf,
        /// What it is.
        found: &'static str,
        /// What is asked for.
        wanted: &'static str,
    },
    /// The settings are of no model, or of no training.
    #[error("{}: {source}", path.display())]
    Contradiction {
        /// The file.
        path: PathBuf,
        /// The first contradiction.
        source: ConfigError,
    },
    /// A small file of the run is not what was written.
    #[error("{} is not what this program wrote: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// `config.json` or `context.json` holds other values than were written.
    #[error(
        "{} does not match its checksum: restore it, or remove its entry \"crc32\" if what it says now is meant",
        path.display()
    )]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// `config.json` is not what was written.
    #[error("{} is not the configuration of a run: {source}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Another program trains here.
    #[error("{} is in use by another program (process {holder}): stop it first", dir.display())]
    Locked {
        /// The directory.
        dir: PathBuf,
        /// Its process id, or "unknown".
        holder: String,
    },
}

/// An open run directory, locked against a second program until it is dropped.
#[derive(Debug)]
pub struct Run {
    dir: PathBuf,
    keep_last: usize,
    checkpoint_every: usize,
    checkpoints: Checkpoints,
    metrics: MetricsLog,
    _lock: RunLock,
}

impl Run {
    /// Starts a run in `dir`, which is created with its parents if it does not exist.
    ///
    /// # Errors
    ///
    /// Refuses a directory that holds a run or any other file, and one that cannot be written.
    pub fn create(dir: &Path, config: impl Into<RunConfig>) -> Result<Self, RunError> {
        let config = config.into();
        refuse_used(dir)?;
        files::create_dirs_synced(dir)?;
        let lock = acquire(dir)?;
        // Again: another program may have been faster.
        refuse_used(dir)?;
        files::create_dirs(&dir.join(CHECKPOINT_DIR))?;
        write_config(dir, &config)?;
        Self::with_lock(dir, &config, lock)
    }

    /// Opens the run in `dir` to go on with it, and settles what a killed program left behind.
    ///
    /// # Errors
    ///
    /// Refuses a directory without a run and one in use by another program.
    pub fn open(dir: &Path) -> Result<(Self, RunConfig), RunError> {
        // Read before locking: a directory without a run stays untouched.
        read_config(dir)?;
        let lock = acquire(dir)?;
        let config = read_config(dir)?;
        let run = Self::with_lock(dir, &config, lock)?;
        run.checkpoints.recover()?;
        Ok((run, config))
    }

    fn with_lock(dir: &Path, config: &RunConfig, lock: RunLock) -> Result<Self, RunError> {
        Ok(Self {
            dir: dir.to_path_buf(),
            keep_last: config.keep_last(),
            checkpoint_every: config.checkpoint_every(),
            checkpoints: checkpoints(dir),
            metrics: MetricsLog::open(dir.join(METRICS_FILE))?,
            _lock: lock,
        })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Replaces `config.json`, e.g. when a resumed run gets more steps.
    pub fn update_config(&mut self, config: impl Into<RunConfig>) -> Result<(), RunError> {
        let config = config.into();
        (self.keep_last, self.checkpoint_every) = (config.keep_last(), config.checkpoint_every());
        write_config(&self.dir, &config)
    }

    /// Stores what is known of the data: a [`Context`] or an [`ImageContext`].
    pub fn write_context(&self, context: &impl Serialize) -> Result<(), RunError> {
        write_sealed(&self.dir.join(CONTEXT_FILE), context)
    }

    /// Stores which classes the experts serve.
    pub fn write_class_loads(&self, loads: &[ClassLoad]) -> Result<(), RunError> {
        write_json(&self.dir.join(CLASSES_FILE), &loads)
    }

    /// Appends a line to `metrics.jsonl`.
    pub fn log(&mut self, record: &StepRecord) -> Result<(), RunError> {
        Ok(self.metrics.append(record)?)
    }

    /// Removes the lines of all steps later than `step`: a resumed run writes them anew.
    pub fn truncate_metrics_after(&mut self, step: usize) -> Result<(), RunError> {
        Ok(self.metrics.truncate_after(step)?)
    }

    /// The checkpoints of this run.
    pub fn checkpoints(&self) -> &Checkpoints {
        &self.checkpoints
    }

    /// Writes a checkpoint and removes all but the newest `keep_last` and the best one. A kill or
    /// an error at any moment leaves every earlier checkpoint as it was.
    pub fn save_checkpoint<B, M, O>(&mut self, model: &M, optim: &O, state: &TrainState) -> Result<(), CheckpointError>
    where
        B: AutodiffBackend,
        M: AutodiffModule<B>,
        O: Optimizer<M, B>,
    {
        // So that the metrics up to a checkpoint survive whatever the checkpoint survives.
        self.metrics.sync()?;
        self.checkpoints.save(model, optim, state, self.keep_last)
    }

    /// Loads the newest checkpoint into a model and an optimizer of the same configuration; `None`
    /// if the run has no checkpoint yet. Then it removes what a kill kept the last save from removing.
    ///
    /// # Errors
    ///
    /// A damaged checkpoint, or one of another model: never falls back to an older one. No checkpoint, though the metrics
    /// are of a run that had one: never starts from the beginning again.
    pub fn load_latest<B, M, O>(
        &self,
        model: M,
        optim: O,
        device: &B::Device,
    ) -> Result<Option<(M, O, TrainState)>, CheckpointError>
    where
        B: AutodiffBackend,
        M: AutodiffModule<B>,
        O: Optimizer<M, B>,
    {
        let loaded = self.checkpoints.load_latest(model, optim, device)?;
        match loaded {
            Some(_) => self.checkpoints.prune(self.keep_last)?,
            // A step is recorded, then its checkpoint is written: what was recorded later had that checkpoint.
            None if self.metrics.last_step().is_some_and(|step| step > self.checkpoint_every) => {
                return Err(self.checkpoints.gone(self.checkpoint_every));
            }
            None => {}
        }
        Ok(loaded)
    }

    /// Loads a model without its optimizer, see [`Checkpoints::load_model`].
    pub fn load_model<B: Backend, M: Module<B>>(
        &self,
        which: Which,
        model: M,
        device: &B::Device,
    ) -> Result<(M, TrainState), CheckpointError> {
        self.checkpoints.load_model(which, model, device)
    }
}

/// The configuration and the checkpoints of the run in `dir`, to read only: takes no lock, changes
/// nothing, and works while the run is still training.
pub fn inspect(dir: &Path) -> Result<(Checkpoints, RunConfig), RunError> {
    Ok((checkpoints(dir), read_config(dir)?))
}

/// The configuration of the run in `dir`, free of contradictions.
pub fn read_config(dir: &Path) -> Result<RunConfig, RunError> {
    let path = dir.join(CONFIG_FILE);
    let bytes = match files::read(&path) {
        Err(error) if error.is_not_found() => {
            return Err(RunError::NotARun { dir: dir.to_path_buf() });
        }
        result => result?,
    };
    if !sealed::is_whole(&bytes) {
        return Err(RunError::Changed { path });
    }
    let config = RunConfig::parse(&bytes).map_err(|source| match is_hugging_face(&bytes) {
        true => RunError::HuggingFace { dir: dir.to_path_buf() },
        false => RunError::Config { path: path.clone(), source },
    })?;
    config.check().map_err(|source| RunError::Contradiction { path, source })?;
    Ok(config)
}

/// Whether this is the `config.json` of a model of `transformers`.
fn is_hugging_face(config: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(config).is_ok_and(|config| config.get("model_type").is_some())
}

/// What the run in `dir` knows of its data, a [`Context`] or an [`ImageContext`]; `None` if nothing was stored.
pub fn read_context<C: DeserializeOwned>(dir: &Path) -> Result<Option<C>, RunError> {
    read_json(dir.join(CONTEXT_FILE))
}

/// Which classes the experts of the run in `dir` serve; `None` if that was not measured.
pub fn read_class_loads(dir: &Path) -> Result<Option<Vec<ClassLoad>>, RunError> {
    let path = dir.join(CLASSES_FILE);
    let loads: Option<Vec<ClassLoad>> = read_json(path.clone())?;
    match loads.iter().flatten().all(ClassLoad::is_table) {
        true => Ok(loads),
        false => {
            let source = serde::de::Error::custom("a layer has not as many experts for every class");
            Err(RunError::Json { path, source })
        }
    }
}

fn read_json<T: DeserializeOwned>(path: PathBuf) -> Result<Option<T>, RunError> {
    let bytes = match files::read(&path) {
        Err(error) if error.is_not_found() => return Ok(None),
        result => result?,
    };
    if !sealed::is_whole(&bytes) {
        return Err(RunError::Changed { path });
    }
    serde_json::from_slice(&bytes).map(Some).map_err(|source| RunError::Json { path, source })
}

fn write_sealed(path: &Path, value: &impl Serialize) -> Result<(), RunError> {
    Ok(write_atomic(path, &sealed::seal(value))?)
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), RunError> {
    let text = serde_json::to_vec_pretty(value).expect("string keys only");
    Ok(write_atomic(path, &text)?)
}

/// The metrics of the run in `dir`, without a line that a kill cut short.
pub fn read_records(dir: &Path) -> Result<Vec<StepRecord>, MetricsError> {
    read_metrics(&dir.join(METRICS_FILE))
}

fn checkpoints(dir: &Path) -> Checkpoints {
    Checkpoints::new(dir.join(CHECKPOINT_DIR))
}

fn write_config(dir: &Path, config: &RunConfig) -> Result<(), RunError> {
    write_sealed(&dir.join(CONFIG_FILE), config)
}

fn acquire(dir: &Path) -> Result<RunLock, RunError> {
    RunLock::acquire(dir).map_err(|error| match error {
        LockError::Held(holder) => RunError::Locked { dir: dir.to_path_buf(), holder },
        LockError::File(error) => error.into(),
    })
}

/// Fails if `dir` holds a run or anything but what a killed [`Run::create`] leaves.
fn refuse_used(dir: &Path) -> Result<(), RunError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) if error.kind() == ErrorKind::NotADirectory => {
            return Err(RunError::NotADirectory { dir: dir.to_path_buf() });
        }
        result => result.map_err(FileError::at("read", dir))?,
    };
    if dir.join(CONFIG_FILE).exists() {
        return Err(RunError::Exists { dir: dir.to_path_buf() });
    }
    for entry in entries {
        let entry = entry.map_err(FileError::at("read", dir))?;
        let found = entry.file_name().to_string_lossy().into_owned();
        // `create` writes these before the configuration, the directory still empty.
        if ![LOCK_FILE, ".config.json.tmp", CHECKPOINT_DIR].contains(&found.as_str()) {
            return Err(RunError::NotEmpty { dir: dir.to_path_buf(), found });
        }
    }
    match checkpoints(dir).steps()?.is_empty() {
        true => Ok(()),
        false => Err(RunError::NotEmpty { dir: dir.to_path_buf(), found: CHECKPOINT_DIR.into() }),
    }
}

#[cfg(test)]
mod tests;
