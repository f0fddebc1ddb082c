//! What the commands have in common that read a checkpoint of `transformers`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use moe_models::checkpoint::{HfCheckpoint, TokenIds, read_config};
use moe_models::lm::{Lm, LmConfig};

use super::TOKENIZER_FILE;
use crate::{
    backend::{Device, Plain},
    config::{ConfigError, TrainConfig},
    data::{BYTES, Vocab},
    error::Error,
    overrides::Overrides,
    run::{RunError, write_atomic},
};

/// Name of the special tokens of a run that started from a checkpoint.
const TOKEN_IDS_FILE: &str = "token_ids.json";

/// Settings of the model that do not change what its weights compute.
const FREE: [&str; 4] = ["balance", "balance_coef", "z_coef", "max_seq_len"];

/// The model of the checkpoint in `dir`, and its vocabulary.
pub(super) fn load(dir: &Path, device: &Device) -> Result<(Lm<Plain>, Vocab), Error> {
    let checkpoint = HfCheckpoint::open(dir)?;
    let vocab = Vocab::load(tokenizer(dir, checkpoint.config(), None)?.as_deref())?;
    vocab.check_model(checkpoint.config().vocab_size)?;
    Ok((checkpoint.load(device)?, vocab))
}

/// The settings of a run that starts from the checkpoint in `dir`: `base` with its model, and its tokenizer, and the changes on
/// top.
///
/// # Errors
///
/// A change that contradicts the checkpoint; a checkpoint whose configuration cannot be read; a vocabulary that is not known.
pub(super) fn settings(base: &TrainConfig, overrides: &Overrides, dir: &Path) -> Result<TrainConfig, Error> {
    let model = read_config(dir)?.model;
    let mut config = TrainConfig::resolve_on(&TrainConfig { model: model.clone(), ..base.clone() }, overrides)?;
    if let Some(key) = contradiction(&model, &config.model) {
        let reason = format!("the checkpoint in {} has another value; leave the setting out", dir.display());
        let value = pointed(&config.model, &key).to_string();
        return Err(ConfigError::BadValue { key: format!("model.{key}"), value, reason }.into());
    }
    config.data.tokenizer = tokenizer(dir, &model, config.data.tokenizer.take())?;
    Ok(config)
}

/// Copies the special tokens of the checkpoint in `start` into the run, for [`token_ids`] of its export, unless they are there.
pub(super) fn keep_token_ids(start: &Path, run: &Path) -> Result<(), Error> {
    let path = run.join(TOKEN_IDS_FILE);
    if path.is_file() {
        return Ok(());
    }
    let text = serde_json::to_vec_pretty(&read_config(start)?.token_ids).expect("plain data");
    Ok(write_atomic(&path, &text).map_err(RunError::from)?)
}

/// The special tokens of a run that started from a checkpoint; none of another.
pub(super) fn token_ids(run: &Path) -> Result<TokenIds, Error> {
    let path = run.join(TOKEN_IDS_FILE);
    let context = format!("cannot read `{}`", path.display());
    match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(TokenIds::default()),
        Err(error) => Err(Error::io(context)(error)),
        Ok(text) => serde_json::from_slice(&text).map_err(|error| Error::io(context)(error.into())),
    }
}

/// The file with the vocabulary of the checkpoint: its own, or `chosen` where it has none; `None` for bytes.
fn tokenizer(dir: &Path, model: &LmConfig, chosen: Option<PathBuf>) -> Result<Option<PathBuf>, Error> {
    let own = dir.join(TOKENIZER_FILE);
    match (own.is_file(), chosen) {
        (true, None) => Ok(Some(own)),
        // The settings of an earlier run name it.
        (true, Some(chosen)) if same(&own, &chosen) => Ok(Some(own)),
        (true, Some(_)) => Err(Error::TwoTokenizers { own }),
        (false, Some(chosen)) => Ok(Some(chosen)),
        (false, None) if model.vocab_size == BYTES => Ok(None),
        (false, None) => Err(Error::NoTokenizer { dir: dir.into(), vocab_size: model.vocab_size }),
    }
}

/// Whether both paths lead to one file.
fn same(one: &Path, other: &Path) -> bool {
    matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

/// The first setting in which two models differ that share their weights.
fn contradiction(checkpoint: &LmConfig, wanted: &LmConfig) -> Option<String> {
    let [checkpoint, wanted] =
        [checkpoint, wanted].map(|config| serde_json::to_value(config).expect("a config is plain data"));
    let mut keys = Vec::new();
    collect_keys("", &checkpoint, &mut keys);
    collect_keys("", &wanted, &mut keys);
    let free = |key: &String| FREE.iter().any(|name| key.rsplit('.').next() == Some(name));
    let value = |config: &serde_json::Value, key: &str| config.pointer(&pointer(key)).cloned().unwrap_or_default();
    keys.into_iter().filter(|key| !free(key)).find(|key| value(&checkpoint, key) != value(&wanted, key))
}

fn collect_keys(prefix: &str, value: &serde_json::Value, keys: &mut Vec<String>) {
    match value.as_object() {
        Some(tree) => tree.iter().for_each(|(name, value)| {
            let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            collect_keys(&key, value, keys);
        }),
        None => keys.push(prefix.to_string()),
    }
}

fn pointed(config: &LmConfig, key: &str) -> serde_json::Value {
    let tree = serde_json::to_value(config).expect("a config is plain data");
    tree.pointer(&pointer(key)).cloned().unwrap_or_default()
}

fn pointer(key: &str) -> String {
    format!("/{}", key.replace('.', "/"))
}
