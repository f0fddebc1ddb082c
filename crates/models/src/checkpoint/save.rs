//! From a model to a directory, one tensor at a time.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use burn::tensor::backend::Backend;
use moe_kernels::MoeBackend;
use safetensors::tensor::{SafeTensorError, View, serialize_to_file};
use serde_json::{Value, json};

use super::layout::{ExpertTensors, Parameter, parameters};
use super::load::CONFIG_FILE;
use super::shards::{INDEX_FILE, SINGLE_FILE};
use super::weights::{Weights, by_path};
use super::{CheckpointError, TokenIds, WeightDtype, config};
use crate::lm::Lm;

/// Largest shard unless told otherwise, in bytes.
const MAX_SHARD_BYTES: usize = 5_000_000_000;

/// How a model is written as a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HfExport {
    dtype: WeightDtype,
    max_shard_bytes: usize,
    token_ids: TokenIds,
    files: Vec<(String, PathBuf)>,
}

impl Default for HfExport {
    fn default() -> Self {
        Self {
            dtype: WeightDtype::F32,
            max_shard_bytes: MAX_SHARD_BYTES,
            token_ids: TokenIds::default(),
            files: Vec::new(),
        }
    }
}

impl HfExport {
    /// In f32, in shards of at most 5 GB.
    pub fn new() -> Self {
        Self::default()
    }

    /// With weights rounded to `dtype`.
    pub fn with_dtype(self, dtype: WeightDtype) -> Self {
        Self { dtype, ..self }
    }

    /// In shards of at most so many bytes of weights, but at least one tensor each.
    pub fn with_max_shard_bytes(self, max_shard_bytes: usize) -> Self {
        Self { max_shard_bytes, ..self }
    }

    /// With these special tokens; without any unless told.
    pub fn with_token_ids(self, token_ids: TokenIds) -> Self {
        Self { token_ids, ..self }
    }

    /// With a copy of the file `source`, called `name`: a tokenizer, for instance.
    pub fn with_file(mut self, name: &str, source: &Path) -> Self {
        self.files.push((name.into(), source.into()));
        self
    }

    /// Writes `model` to `dir`, which must not exist or be empty.
    ///
    /// The family is [that](super::Family::of) of its configuration. What `transformers` loads computes the same; training it
    /// there is another matter: it knows neither the router z-loss nor the importance loss nor a balance loss other than its own, so in another
    /// [convention](moe_layers::BalanceConvention) `router_aux_loss_coef` becomes 0.
    ///
    /// All is written beside `dir` and renamed at the end: an error leaves nothing behind.
    ///
    /// # Errors
    ///
    /// A model that no family describes, a number that the dtype cannot hold, a directory in use, a write that fails.
    pub fn save<B: MoeBackend>(&self, model: &Lm<B>, dir: impl AsRef<Path>) -> Result<(), CheckpointError> {
        let dir = dir.as_ref();
        let (family, config) = config::write(model.config(), &self.token_ids, self.dtype)?;
        let layout: Vec<_> = parameters(family, model.config(), ExpertTensors::Separate).collect();
        refuse_used(dir)?;
        let temporary = hidden_sibling(dir)?;
        remove(&temporary)?;
        fs::create_dir_all(&temporary).map_err(CheckpointError::io("create", &temporary))?;
        write_json(&temporary.join(CONFIG_FILE), &config)
            .and_then(|()| self.copy_files(&temporary))
            .and_then(|()| self.write_weights(model, &layout, &temporary))
            .and_then(|()| put_in_place(&temporary, dir))
            // Best effort: what failed stays as if it had not been tried.
            .inspect_err(|_| drop(fs::remove_dir_all(&temporary)))
    }

    fn copy_files(&self, dir: &Path) -> Result<(), CheckpointError> {
        self.files.iter().try_for_each(|(name, source)| {
            let copy = dir.join(name);
            fs::copy(source, &copy).map_err(CheckpointError::io("copy", source))?;
            sync(&copy)
        })
    }

    fn write_weights<B: MoeBackend>(
        &self,
        model: &Lm<B>,
        parameters: &[Parameter],
        dir: &Path,
    ) -> Result<(), CheckpointError> {
        let (tensors, overflow, dtype) = (by_path(model), RefCell::new(None), self.dtype);
        let all = parameters.iter().flat_map(|parameter| {
            let (tensor, overflow) = (&tensors[&parameter.path], &overflow);
            parameter.pieces.iter().map(move |piece| Weights { piece, tensor, dtype, overflow })
        });
        self.write_shards(all.collect(), dir)?;
        match overflow.into_inner() {
            Some(name) => Err(CheckpointError::Overflow { name, dtype: dtype.name() }),
            None => Ok(()),
        }
    }

    fn write_shards<B: Backend>(&self, all: Vec<Weights<'_, B>>, dir: &Path) -> Result<(), CheckpointError> {
        let total: usize = all.iter().map(View::data_len).sum();
        let shards = into_shards(all, self.max_shard_bytes);
        let (mut index, count) = (BTreeMap::new(), shards.len());
        for (number, shard) in shards.into_iter().enumerate() {
            let name = shard_name(number, count);
            index.extend(shard.iter().map(|weights| (weights.piece.name.clone(), name.clone())));
            write_shard(shard, &dir.join(name))?;
        }
        if count == 1 {
            return Ok(());
        }
        write_json(&dir.join(INDEX_FILE), &json!({"metadata": {"total_size": total}, "weight_map": index}))
    }
}

/// Cuts the tensors, in order, into shards of at most `max_bytes`, but at least one tensor each.
fn into_shards<T: View>(all: Vec<T>, max_bytes: usize) -> Vec<Vec<T>> {
    let (mut shards, mut bytes) = (vec![Vec::new()], 0);
    for tensor in all {
        let shard = shards.last_mut().expect("there is always one");
        if !shard.is_empty() && bytes + tensor.data_len() > max_bytes {
            shards.push(vec![]);
            bytes = 0;
        }
        bytes += tensor.data_len();
        shards.last_mut().expect("there is always one").push(tensor);
    }
    shards
}

fn shard_name(number: usize, count: usize) -> String {
    if count == 1 { SINGLE_FILE.into() } else { format!("model-{:05}-of-{count:05}.safetensors", number + 1) }
}

fn write_shard<B: Backend>(shard: Vec<Weights<'_, B>>, path: &Path) -> Result<(), CheckpointError> {
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let named = shard.into_iter().map(|weights| (weights.piece.name.as_str(), weights));
    serialize_to_file(named, Some(metadata), path).map_err(|error| {
        let source = match error {
            SafeTensorError::IoError(source) => source,
            other => io::Error::other(other),
        };
        CheckpointError::io("write", path)(source)
    })?;
    sync(path)
}

fn write_json(path: &Path, value: &Value) -> Result<(), CheckpointError> {
    let text = format!("{value:#}\n");
    fs::write(path, text).map_err(CheckpointError::io("write", path))?;
    sync(path)
}

/// Waits until a file is on the disk.
fn sync(path: &Path) -> Result<(), CheckpointError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(CheckpointError::io("write", path))
}

fn refuse_used(dir: &Path) -> Result<(), CheckpointError> {
    match fs::read_dir(dir).map(|mut entries| entries.next().is_some()) {
        Ok(false) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(true) => Err(CheckpointError::NotEmpty { dir: dir.into() }),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            Err(CheckpointError::NotEmpty { dir: dir.into() })
        }
        Err(error) => Err(CheckpointError::io("read", dir)(error)),
    }
}

/// `parent/name` -> `parent/.name.tmp`
fn hidden_sibling(dir: &Path) -> Result<PathBuf, CheckpointError> {
    let nameless = || CheckpointError::io("write to", dir)(io::Error::other("the path has no name at its end"));
    let name = dir.file_name().ok_or_else(nameless)?.to_string_lossy();
    Ok(dir.with_file_name(format!(".{name}.tmp")))
}

fn put_in_place(temporary: &Path, dir: &Path) -> Result<(), CheckpointError> {
    if dir.exists() {
        fs::remove_dir(dir).map_err(CheckpointError::io("replace", dir))?;
    }
    fs::rename(temporary, dir).map_err(CheckpointError::io("rename to", dir))
}

fn remove(dir: &Path) -> Result<(), CheckpointError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(CheckpointError::io("remove", dir)),
    }
}
