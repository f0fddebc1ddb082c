//! The files of safetensors in a directory: what is in them, and a part of one tensor at a time.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

use safetensors::tensor::{Metadata, TensorInfo};
use serde::Deserialize;

use super::CheckpointError;

/// A checkpoint in one file.
pub(super) const SINGLE_FILE: &str = "model.safetensors";
/// Says which tensor is in which shard.
pub(super) const INDEX_FILE: &str = "model.safetensors.index.json";
/// No header is larger; the format's own limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Bytes of the header's length.
const LENGTH_BYTES: u64 = 8;

/// The index of a sharded checkpoint; what else stands there is not needed.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// One open file with its header.
#[derive(Debug)]
struct Shard {
    path: PathBuf,
    file: File,
    /// Where the numbers begin.
    data: u64,
    header: Metadata,
}

/// All tensors of a checkpoint. Only headers are in memory.
#[derive(Debug)]
pub(super) struct Shards {
    shards: Vec<Shard>,
    /// Name of a tensor to its shard.
    tensors: BTreeMap<String, usize>,
}

impl Shards {
    /// Opens the weights in `dir`.
    ///
    /// # Errors
    ///
    /// No weights or two sets of them, a file that is missing, cut short or damaged, an index that contradicts its shards.
    pub(super) fn open(dir: &Path) -> Result<Self, CheckpointError> {
        let (single, index) = (dir.join(SINGLE_FILE), dir.join(INDEX_FILE));
        match (single.exists(), index.exists()) {
            (true, false) => Self::open_files(&[single]),
            (false, true) => Self::open_index(dir, &index),
            (true, true) => Err(CheckpointError::TwoWeights { dir: dir.into() }),
            (false, false) => Err(CheckpointError::NoWeights { dir: dir.into() }),
        }
    }

    fn open_index(dir: &Path, path: &Path) -> Result<Self, CheckpointError> {
        let text = std::fs::read(path).map_err(CheckpointError::io("read", path))?;
        let index: Index = serde_json::from_slice(&text).map_err(|error| CheckpointError::Json {
            path: path.into(),
            expected: "an index of shards",
            reason: error.to_string(),
        })?;
        let mut names: Vec<&String> = index.weight_map.values().collect();
        names.sort();
        names.dedup();
        let paths = names.into_iter().map(|name| shard_path(dir, name)).collect::<Result<Vec<_>, _>>()?;
        let shards = Self::open_files(&paths)?;
        shards.check_index(&index)?;
        Ok(shards)
    }

    fn open_files(paths: &[PathBuf]) -> Result<Self, CheckpointError> {
        let shards = paths.iter().map(|path| Shard::open(path)).collect::<Result<Vec<_>, _>>()?;
        let mut tensors = BTreeMap::new();
        for (number, shard) in shards.iter().enumerate() {
            for name in shard.header.offset_keys() {
                if let Some(other) = tensors.insert(name.clone(), number) {
                    return Err(misplaced(&name, &shards[other].name(), &shard.name()));
                }
            }
        }
        Ok(Self { shards, tensors })
    }

    /// Index and headers must say the same.
    fn check_index(&self, index: &Index) -> Result<(), CheckpointError> {
        let shard_of =
            |name: &str| self.tensors.get(name).map_or("no shard".into(), |&shard| self.shards[shard].name());
        let differs = |(name, listed): &(&String, &String)| shard_of(name) != **listed;
        if let Some((name, listed)) = index.weight_map.iter().find(differs) {
            return Err(misplaced(name, listed, &shard_of(name)));
        }
        match self.tensors.keys().find(|name| !index.weight_map.contains_key(*name)) {
            Some(name) => Err(misplaced(name, "no shard", &shard_of(name))),
            None => Ok(()),
        }
    }

    /// Names of all tensors.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.tensors.keys().map(String::as_str)
    }

    /// Shape and dtype of a tensor.
    pub(super) fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.shards[*self.tensors.get(name)?].header.info(name)
    }

    /// So many bytes of a tensor that has them, from the byte `from` on.
    pub(super) fn read(&self, name: &str, from: usize, len: usize) -> Result<Vec<u8>, CheckpointError> {
        let shard = &self.shards[self.tensors[name]];
        let info = shard.header.info(name).expect("the map of tensors comes from the headers");
        let start = info.data_offsets.0 + from;
        let mut bytes = vec![0; len];
        let mut file = &shard.file;
        file.seek(SeekFrom::Start(shard.data + start as u64))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(CheckpointError::io("read", &shard.path))?;
        Ok(bytes)
    }
}

impl Shard {
    fn open(path: &Path) -> Result<Self, CheckpointError> {
        if !path.exists() {
            return Err(CheckpointError::MissingShard { path: path.into() });
        }
        let mut file = File::open(path).map_err(CheckpointError::io("open", path))?;
        let len = file.metadata().map_err(CheckpointError::io("read", path))?.len();
        let damaged = |reason: String| CheckpointError::Damaged { path: path.into(), reason };
        let header = read_header(&mut file, len).map_err(damaged)?;
        let metadata: Metadata = serde_json::from_slice(&header).map_err(|error| damaged(error.to_string()))?;
        let data = LENGTH_BYTES + header.len() as u64;
        let asked = metadata.data_len() as u64;
        if data.checked_add(asked) != Some(len) {
            return Err(damaged(format!(
                "its header of {data} bytes is followed by {}, and asks for {asked}",
                len - data
            )));
        }
        Ok(Self { path: path.into(), file, data, header: metadata })
    }

    fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// The header of a file of `len` bytes, or what is wrong with it.
fn read_header(file: &mut File, len: u64) -> Result<Vec<u8>, String> {
    let mut length = [0; LENGTH_BYTES as usize];
    file.read_exact(&mut length).map_err(|_| "it is too short for a header".to_string())?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES || length > len - LENGTH_BYTES {
        return Err(format!("a header of {length} bytes does not fit into its {len}"));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).map_err(|error| error.to_string())?;
    Ok(header)
}

/// The file called `name` beside the index.
fn shard_path(dir: &Path, name: &str) -> Result<PathBuf, CheckpointError> {
    let mut parts = Path::new(name).components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(_)), None) if !name.ends_with('/') => Ok(dir.join(name)),
        _ => Err(CheckpointError::ShardName { shard: name.into() }),
    }
}

fn misplaced(name: &str, listed: &str, found: &str) -> CheckpointError {
    CheckpointError::Misplaced { name: name.into(), listed: listed.into(), found: found.into() }
}
