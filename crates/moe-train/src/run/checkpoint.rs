//! Checkpoints: `checkpoints/step-00000100/` with `model.mpk`, `optim.mpk` and `state.json`.
//!
//! A checkpoint is written into a hidden sibling directory, synced, and renamed, so a directory
//! with a checkpoint's name is whole whenever the program or the machine stopped. Length and
//! CRC-32 of every file are checked on loading all the same: disks and people change files too.
//! Hidden directories are what a killed program left; [`Checkpoints::recover`] settles them.
//!
//! Which checkpoint is the best follows from the states, so there is no note of it that a kill could leave behind.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    files::{self, FileError},
    manifest::{Fault, Manifest, STATE_FILE, TrainState},
    record::{self, RecordError},
};
use burn::{
    module::{AutodiffModule, Module},
    optim::Optimizer,
    tensor::backend::{AutodiffBackend, Backend},
};

const MODEL_FILE: &str = "model.mpk";
const OPTIM_FILE: &str = "optim.mpk";

/// Which checkpoint of a run to load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The one with the most steps.
    Latest,
    /// The one with the lowest validation loss; the latest if the run never validated.
    Best,
}

/// Why a checkpoint could not be written or loaded.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The files themselves.
    #[error(transparent)]
    File(#[from] FileError),
    /// There is nothing to load.
    #[error("{} holds no checkpoint yet: train first, or wait for the first one", dir.display())]
    Missing {
        /// The directory of the checkpoints.
        dir: PathBuf,
    },
    /// There was a checkpoint, and none is left.
    #[error(
        "{} holds no checkpoint, and the run was past step {step}: put the checkpoints back, or start again with \
         another --out",
        dir.display()
    )]
    Gone {
        /// The directory of the checkpoints.
        dir: PathBuf,
        /// A step that had one.
        step: usize,
    },
    /// A checkpoint that is not what was written.
    #[error("checkpoint {} is damaged: {reason}; {advice}", path.display())]
    Damaged {
        /// The checkpoint's directory.
        path: PathBuf,
        /// What is wrong with which file.
        reason: String,
        /// How to go on.
        advice: String,
    },
    /// A whole checkpoint of another model.
    #[error("checkpoint {} does not fit this model: {reason}", path.display())]
    Mismatch {
        /// The checkpoint's directory.
        path: PathBuf,
        /// The first difference.
        reason: String,
    },
    /// burn could not encode a record.
    #[error("cannot encode the checkpoint of step {step}: {reason}")]
    Encode {
        /// The step.
        step: usize,
        /// burn's message.
        reason: String,
    },
}

/// The checkpoints of one run.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    dir: PathBuf,
}

impl Checkpoints {
    /// The checkpoints in `dir`, which need not exist yet.
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The steps that have a checkpoint, whole or damaged, in ascending order.
    pub fn steps(&self) -> Result<Vec<usize>, FileError> {
        let mut steps: Vec<usize> = self.names()?.iter().filter_map(|name| parse_step(name)).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// The step of the checkpoint with the lowest loss in its last validation, the earliest of equal ones; `None` if none
    /// was validated.
    ///
    /// # Errors
    ///
    /// A checkpoint whose state cannot be read: it may be the best.
    pub fn best_step(&self) -> Result<Option<usize>, CheckpointError> {
        let mut losses = Vec::new();
        for step in self.steps()? {
            match self.valid_loss(step) {
                // The program that trains here has just removed it.
                Err(_) if !self.path(step).exists() => {}
                loss => losses.extend(loss?.map(|loss| (step, loss))),
            }
        }
        Ok(lowest(losses))
    }

    /// Loads a model for evaluation. `model` gives the architecture; its values are replaced.
    pub fn load_model<B: Backend, M: Module<B>>(
        &self,
        which: Which,
        model: M,
        device: &B::Device,
    ) -> Result<(M, TrainState), CheckpointError> {
        let latest = self.steps()?.last().copied();
        let step = match which {
            Which::Latest => latest,
            Which::Best => self.best_step()?.or(latest),
        };
        let step = step.ok_or_else(|| CheckpointError::Missing { dir: self.dir.clone() })?;
        let manifest = self.manifest(step)?;
        let model = self.load_into(step, &manifest, model, device)?;
        Ok((model, manifest.state))
    }

    /// The error for a run whose checkpoints, one of which was of step `step`, are not there any more.
    pub(super) fn gone(&self, step: usize) -> CheckpointError {
        CheckpointError::Gone { dir: self.dir.clone(), step }
    }

    /// Loads the newest checkpoint; `None` if there is none. A damaged one is an error, never
    /// skipped: going back is for the user to decide.
    pub(crate) fn load_latest<B, M, O>(
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
        let Some(step) = self.steps()?.last().copied() else { return Ok(None) };
        let manifest = self.manifest(step)?;
        let optim_bytes = self.file(step, &manifest, OPTIM_FILE)?;
        let model = self.load_into(step, &manifest, model, device)?;
        let record = record::decode_state::<B, O::Record>(optim_bytes, &model, device)
            .map_err(|error| self.mismatch(step, &format!("optimizer state: {error}")))?;
        Ok(Some((model, optim.load_record(record), manifest.state)))
    }

    /// Writes a checkpoint and removes all but the `keep_last` newest and the best. An error leaves
    /// every earlier checkpoint as it was.
    pub(crate) fn save<B, M, O>(
        &self,
        model: &M,
        optim: &O,
        state: &TrainState,
        keep_last: usize,
    ) -> Result<(), CheckpointError>
    where
        B: AutodiffBackend,
        M: AutodiffModule<B>,
        O: Optimizer<M, B>,
    {
        let encode_error = |error: RecordError| CheckpointError::Encode { step: state.step, reason: error.to_string() };
        self.write(state, |dir, manifest| {
            let bytes = record::encode_module::<B, _>(model).map_err(encode_error)?;
            manifest.add(dir, MODEL_FILE, &bytes)?;
            drop(bytes);
            let bytes = record::encode::<B, _>(optim.to_record()).map_err(encode_error)?;
            Ok(manifest.add(dir, OPTIM_FILE, &bytes)?)
        })?;
        Ok(self.prune(keep_last)?)
    }

    /// Settles what a killed program left behind: checkpoints that were being written or removed
    /// go, one that was being replaced comes back.
    pub(crate) fn recover(&self) -> Result<(), FileError> {
        for name in self.names()? {
            let path = self.dir.join(&name);
            let replaced = name.strip_prefix('.').and_then(|name| name.strip_suffix(".replaced"));
            match replaced.map(|name| self.dir.join(name)) {
                Some(original) if !original.exists() => files::rename(&path, &original)?,
                _ if is_leftover(&name) => files::remove_dir(&path)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Lets `content` add files to a hidden directory, then puts it in place.
    fn write(
        &self,
        state: &TrainState,
        content: impl FnOnce(&Path, &mut Manifest) -> Result<(), CheckpointError>,
    ) -> Result<(), CheckpointError> {
        let path = self.path(state.step);
        let temporary = files::hidden_sibling(&path, "tmp");
        files::remove_dir(&temporary)?;
        files::create_dirs(&temporary)?;
        let mut manifest = Manifest::new(state);
        content(&temporary, &mut manifest)
            .and_then(|()| Ok(manifest.write(&temporary)?))
            .and_then(|()| Ok(files::sync_dir(&temporary)?))
            .and_then(|()| Ok(self.put_in_place(&temporary, &path)?))
            // Best effort: a full disk should not stay full because of half a checkpoint.
            .inspect_err(|_| drop(fs::remove_dir_all(&temporary)))
    }

    fn put_in_place(&self, temporary: &Path, path: &Path) -> Result<(), FileError> {
        if !path.exists() {
            files::rename(temporary, path)?;
            return files::sync_dir(&self.dir);
        }
        let replaced = files::hidden_sibling(path, "replaced");
        files::remove_dir(&replaced)?;
        files::rename(path, &replaced)?;
        files::rename(temporary, path).inspect_err(|_| drop(fs::rename(&replaced, path)))?;
        files::sync_dir(&self.dir)?;
        files::remove_dir(&replaced)
    }

    /// Removes all but the `keep_last` newest checkpoints and the best. One with a damaged state stays: what it is cannot
    /// be told.
    pub(crate) fn prune(&self, keep_last: usize) -> Result<(), FileError> {
        let steps = self.steps()?;
        let losses: Vec<_> = steps.iter().filter_map(|&step| Some((step, self.valid_loss(step).ok()?))).collect();
        let best = lowest(losses.iter().filter_map(|&(step, loss)| Some((step, loss?))));
        let newest = &steps[steps.len().saturating_sub(keep_last.max(1))..];
        for (step, _) in losses.into_iter().filter(|(step, _)| !newest.contains(step) && Some(*step) != best) {
            // Renamed first, so that a kill never leaves half a checkpoint under its name.
            let path = self.path(step);
            let removed = files::hidden_sibling(&path, "removed");
            files::remove_dir(&removed)?;
            files::rename(&path, &removed)?;
            files::remove_dir(&removed)?;
        }
        Ok(())
    }

    /// The loss of the last validation before this checkpoint.
    fn valid_loss(&self, step: usize) -> Result<Option<f64>, CheckpointError> {
        Ok(self.manifest(step)?.state.last_valid.map(|(loss, _)| loss))
    }

    fn load_into<B: Backend, M: Module<B>>(
        &self,
        step: usize,
        manifest: &Manifest,
        model: M,
        device: &B::Device,
    ) -> Result<M, CheckpointError> {
        let bytes = self.file(step, manifest, MODEL_FILE)?;
        record::load_module(model, bytes, device).map_err(|error| self.mismatch(step, &error.to_string()))
    }

    fn manifest(&self, step: usize) -> Result<Manifest, CheckpointError> {
        let manifest = Manifest::read(&self.path(step)).map_err(|fault| self.explain(step, fault))?;
        match manifest.state.step {
            found if found == step => Ok(manifest),
            found => Err(self.explain(step, Fault::Damage(format!("{STATE_FILE} is that of step {found}")))),
        }
    }

    fn file(&self, step: usize, manifest: &Manifest, name: &str) -> Result<Vec<u8>, CheckpointError> {
        manifest.load(&self.path(step), name).map_err(|fault| self.explain(step, fault))
    }

    fn explain(&self, step: usize, fault: Fault) -> CheckpointError {
        match fault {
            Fault::File(error) => error.into(),
            Fault::Damage(reason) => {
                CheckpointError::Damaged { path: self.path(step), reason, advice: self.advice(step) }
            }
        }
    }

    /// Names the newest whole checkpoint beside `step`.
    fn advice(&self, step: usize) -> String {
        let steps = self.steps().unwrap_or_default();
        let others = steps.iter().rev().filter(|&&other| other != step);
        match others.map(|&other| self.path(other)).find(|path| Manifest::is_whole(path)) {
            Some(other) => {
                format!("{} is intact: move the damaged directory away to go on from there", other.display())
            }
            None => "no other checkpoint is intact: start again with another --out".into(),
        }
    }

    fn mismatch(&self, step: usize, reason: &str) -> CheckpointError {
        CheckpointError::Mismatch { path: self.path(step), reason: reason.into() }
    }

    fn path(&self, step: usize) -> PathBuf {
        self.dir.join(format!("step-{step:08}"))
    }

    fn names(&self) -> Result<Vec<String>, FileError> {
        let entries = match fs::read_dir(&self.dir).map_err(FileError::at("read", &self.dir)) {
            Err(error) if error.is_not_found() => return Ok(Vec::new()),
            result => result?,
        };
        entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<_, _>>()
            .map_err(FileError::at("read", &self.dir))
    }
}

/// The step with the lowest loss, the first of equal ones.
fn lowest(losses: impl IntoIterator<Item = (usize, f64)>) -> Option<usize> {
    let lower = |a: (usize, f64), b: (usize, f64)| if b.1 < a.1 { b } else { a };
    losses.into_iter().reduce(lower).map(|(step, _)| step)
}

/// `step-00000100` -> 100
fn parse_step(name: &str) -> Option<usize> {
    let digits = name.strip_prefix("step-")?;
    let plain = digits.len() >= 8 && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().ok())?
}

fn is_leftover(name: &str) -> bool {
    let suffixes = [".tmp", ".removed", ".replaced"];
    name.starts_with(".step-") && suffixes.iter().any(|suffix| name.ends_with(suffix))
}

#[cfg(test)]
#[cfg(feature = "flex")]
#[path = "checkpoint_tests.rs"]
mod tests;
