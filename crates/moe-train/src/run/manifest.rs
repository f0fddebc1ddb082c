//! `state.json`: where a run stood and what the other files of its checkpoint must be.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};

use super::files::{self, FileError};

/// The name of the file; the last one of a checkpoint to be written.
pub(super) const STATE_FILE: &str = "state.json";
/// Raised whenever an older program could not read what this one writes.
const FORMAT: u32 = 1;

/// Where a training run stands, apart from model and optimizer.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct TrainState {
    /// Optimizer steps done.
    pub step: usize,
    /// Tokens trained on.
    pub tokens: u64,
    /// Training time so far, over all sessions of the run.
    pub seconds: f64,
    /// The lowest validation loss so far in nats per token, or per image.
    pub best_valid_loss: Option<f64>,
    /// Loss of the last validation, and bits per byte of text or the accuracy on images.
    pub last_valid: Option<(f64, f64)>,
}

/// The state, with length and CRC-32 of every other file.
#[derive(Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) state: TrainState,
    files: BTreeMap<String, FileSum>,
}

/// What stands in the file.
#[derive(Serialize, Deserialize)]
struct Stored {
    format: u32,
    #[serde(flatten)]
    manifest: Manifest,
    /// CRC-32 of `manifest` as compact JSON.
    crc32: u32,
}

#[derive(Serialize, Deserialize, PartialEq)]
struct FileSum {
    bytes: u64,
    crc32: u32,
}

/// What is wrong with a checkpoint.
pub(super) enum Fault {
    /// The operating system does not let us read it.
    File(FileError),
    /// It is not what was written, in words that name the file.
    Damage(String),
}

impl Manifest {
    /// A manifest without files.
    pub(super) fn new(state: &TrainState) -> Self {
        let mut state = state.clone();
        // JSON has no NaN: a loss that is not finite counts as never measured.
        state.best_valid_loss = state.best_valid_loss.filter(|loss| loss.is_finite());
        state.last_valid = state.last_valid.filter(|(loss, bpb)| loss.is_finite() && bpb.is_finite());
        Self { state, files: BTreeMap::new() }
    }

    /// Writes a file into `dir` and notes it.
    pub(super) fn add(&mut self, dir: &Path, name: &str, bytes: &[u8]) -> Result<(), FileError> {
        files::write_synced(&dir.join(name), bytes)?;
        self.files.insert(name.into(), FileSum::of(bytes));
        Ok(())
    }

    /// Writes the manifest itself into `dir`.
    pub(super) fn write(self, dir: &Path) -> Result<(), FileError> {
        let stored = Stored { format: FORMAT, crc32: self.crc32(), manifest: self };
        let text = serde_json::to_vec_pretty(&stored).expect("string keys only");
        files::write_synced(&dir.join(STATE_FILE), &text)
    }

    /// Reads and checks the manifest in `dir`.
    pub(super) fn read(dir: &Path) -> Result<Self, Fault> {
        let damage = |reason: String| Fault::Damage(format!("{STATE_FILE} {reason}"));
        let stored: Stored = serde_json::from_slice(&read_present(dir, STATE_FILE)?)
            .map_err(|error| damage(format!("does not describe a checkpoint ({error})")))?;
        if stored.format != FORMAT {
            return Err(damage(format!("has format {}, expected {FORMAT}", stored.format)));
        }
        if stored.manifest.crc32() != stored.crc32 {
            return Err(damage("does not match its checksum".into()));
        }
        Ok(stored.manifest)
    }

    /// Reads the file `name` in `dir`, which must be as it was written.
    pub(super) fn load(&self, dir: &Path, name: &str) -> Result<Vec<u8>, Fault> {
        let Some(sum) = self.files.get(name) else {
            return Err(Fault::Damage(format!("{STATE_FILE} does not mention {name}")));
        };
        let bytes = read_present(dir, name)?;
        let found = FileSum::of(&bytes);
        if found.bytes != sum.bytes {
            return Err(Fault::Damage(format!("{name} has {} bytes instead of {}", found.bytes, sum.bytes)));
        }
        if found != *sum {
            return Err(Fault::Damage(format!("{name} does not match its checksum")));
        }
        Ok(bytes)
    }

    /// Whether every file in `dir` is as it was written.
    pub(super) fn is_whole(dir: &Path) -> bool {
        Self::read(dir).is_ok_and(|manifest| manifest.files.keys().all(|name| manifest.load(dir, name).is_ok()))
    }

    fn crc32(&self) -> u32 {
        crc32fast::hash(&serde_json::to_vec(self).expect("string keys only"))
    }
}

impl FileSum {
    fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.len() as u64, crc32: crc32fast::hash(bytes) }
    }
}

fn read_present(dir: &Path, name: &str) -> Result<Vec<u8>, Fault> {
    files::read(&dir.join(name)).map_err(|error| match error.is_not_found() {
        true => Fault::Damage(format!("{name} is missing")),
        false => Fault::File(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_comes_back_to_the_last_bit() {
        let dir = tempfile::tempdir().unwrap();
        let state = TrainState {
            step: 3,
            tokens: u64::MAX,
            seconds: 0.1 + 0.2,
            best_valid_loss: Some(1.0 / 3.0),
            last_valid: Some((f64::MIN_POSITIVE, 1e300)),
        };
        Manifest::new(&state).write(dir.path()).unwrap();
        assert_eq!(Manifest::read(dir.path()).ok().unwrap().state, state);
    }

    #[test]
    fn a_loss_that_is_no_number_counts_as_never_measured() {
        let state = TrainState {
            best_valid_loss: Some(f64::NAN),
            last_valid: Some((1.0, f64::INFINITY)),
            ..TrainState::default()
        };
        assert_eq!(Manifest::new(&state).state, TrainState::default());
    }

    #[test]
    fn whole_is_what_has_all_files_as_written() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!Manifest::is_whole(dir.path()));
        let mut manifest = Manifest::new(&TrainState::default());
        manifest.add(dir.path(), "a", b"content").unwrap();
        manifest.write(dir.path()).unwrap();
        assert!(Manifest::is_whole(dir.path()));
        std::fs::write(dir.path().join("a"), "contenT").unwrap();
        assert!(!Manifest::is_whole(dir.path()));
    }
}
