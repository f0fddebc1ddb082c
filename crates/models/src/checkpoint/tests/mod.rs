//! Small checkpoints, changed in one place at a time.

mod config;
mod export;
mod files;

use std::fs;
use std::path::PathBuf;

use burn::backend::Flex;
use safetensors::tensor::{TensorView, serialize_to_file};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tempfile::TempDir;

use super::*;
use crate::lm::{Lm, LmConfig, LmMoeConfig, MoeLayers};

/// A model that `family` can describe.
fn small(family: Family) -> LmConfig {
    let moe = LmMoeConfig::new(3, 2, 6).with_normalize_gates(true);
    let config = LmConfig::new(11, 8, 2, 2, 10, 16).with_qk_norm(family.qk_norm());
    match family.has_experts() {
        true => config.with_moe_layers(MoeLayers::All).with_moe(moe),
        false => config.with_moe_layers(MoeLayers::None),
    }
}

/// Another one at every call: all threads of a program share one generator of random numbers.
fn model(config: &LmConfig) -> Lm<Flex> {
    config.init(&Default::default())
}

/// `[V, D]`, in a row.
fn embedding(model: &Lm<Flex>) -> Vec<f32> {
    model.embedding.val().into_data().to_vec().expect("f32")
}

/// Name, dtype, shape and bytes of a tensor in a file.
type Entry = (String, Dtype, Vec<usize>, Vec<u8>);

/// A directory that goes away, with a checkpoint in it.
struct Place {
    _dir: TempDir,
    path: PathBuf,
    /// What the checkpoint was written from.
    model: Lm<Flex>,
}

impl Place {
    fn new(export: &HfExport) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("model");
        let model = model(&small(Family::Olmoe));
        export.save(&model, &path).expect("a small model of the family");
        Self { path, model, _dir: dir }
    }

    /// In one file.
    fn whole() -> Self {
        Self::new(&HfExport::new())
    }

    /// In shards of about three tensors.
    fn sharded() -> Self {
        Self::new(&HfExport::new().with_max_shard_bytes(1000))
    }

    fn change_json(&self, file: &str, change: impl FnOnce(&mut Value)) {
        let path = self.path.join(file);
        let mut value = serde_json::from_slice(&fs::read(&path).expect("readable")).expect("JSON");
        change(&mut value);
        fs::write(path, value.to_string()).expect("writable");
    }

    fn change_tensors(&self, file: &str, change: impl FnOnce(&mut Vec<Entry>)) {
        let path = self.path.join(file);
        let bytes = fs::read(&path).expect("readable");
        let file = SafeTensors::deserialize(&bytes).expect("safetensors");
        let entry = |(name, tensor): (&str, TensorView<'_>)| {
            (name.to_string(), tensor.dtype(), tensor.shape().to_vec(), tensor.data().to_vec())
        };
        let mut entries: Vec<Entry> = file.iter().map(entry).collect();
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        change(&mut entries);
        let views = entries.iter().map(|(name, dtype, shape, bytes)| {
            let view = TensorView::new(*dtype, shape.clone(), bytes).expect("as many bytes as numbers");
            (name.clone(), view)
        });
        serialize_to_file(views, None, &path).expect("writable");
    }

    fn refusal(&self) -> CheckpointError {
        HfCheckpoint::open(&self.path).expect_err("the checkpoint was broken")
    }
}
