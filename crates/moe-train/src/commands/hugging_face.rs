//! What the commands have in common that read a checkpoint of `transformers`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use moe_models::checkpoint::{HfCheckpoint, TokenIds, read_config};
use moe_models::lm::LmConfig;
use serde::{Deserialize, de::DeserializeOwned};

use super::{TOKENIZER_FILE, generate::Writer, keep_copy};
use crate::{
    backend::Device,
    config::{ConfigError, TrainConfig},
    data::{BYTES, Vocab},
    error::Error,
    overrides::Overrides,
    run::{RunError, write_atomic},
    trainer::becomes_experts,
};

/// Name of the special tokens of a run that started from a checkpoint.
const TOKEN_IDS_FILE: &str = "token_ids.json";

const GENERATION_FILE: &str = "generation_config.json";

/// Files of a checkpoint that say how a text is put to the model and gone on with; a run that starts there passes them on.
const COMPANIONS: [&str; 4] =
    ["tokenizer_config.json", "special_tokens_map.json", GENERATION_FILE, "chat_template.jinja"];

/// Settings of the model that do not change what its weights compute.
const FREE: [&str; 4] = ["balance", "balance_coef", "z_coef", "max_seq_len"];

/// The model of the checkpoint in `dir`, with its vocabulary.
pub(super) fn load(dir: &Path, device: &Device) -> Result<Writer, Error> {
    let checkpoint = HfCheckpoint::open(dir)?;
    let vocab = Vocab::load(tokenizer(dir, checkpoint.config(), None)?.as_deref())?;
    vocab.check_model(checkpoint.config().vocab_size)?;
    let special = Some(for_texts(dir, checkpoint.token_ids().clone())?);
    Ok(Writer { model: checkpoint.load(device)?, vocab, special })
}

/// The settings of a run that starts from the checkpoint in `dir`: `base` with its model, and its tokenizer, and the changes on
/// top.
///
/// # Errors
///
/// A change that contradicts the checkpoint, whose networks may become experts if it has none; a checkpoint whose configuration cannot be read; a vocabulary that is not known.
pub(super) fn settings(base: &TrainConfig, overrides: &Overrides, dir: &Path) -> Result<TrainConfig, Error> {
    let model = read_config(dir)?.model;
    let mut config = TrainConfig::resolve_on(&TrainConfig { model: model.clone(), ..base.clone() }, overrides)?;
    if let Some(key) = contradiction(&with_experts_of(&config.model, &model), &config.model) {
        let reason = match key.starts_with("moe.") && model.num_moe_layers() == 0 {
            true => format!("the checkpoint in {} has no experts; set model.moe_layers to give it some", dir.display()),
            false => format!("the checkpoint in {} has another value; leave the setting out", dir.display()),
        };
        let value = pointed(&config.model, &key).to_string();
        return Err(ConfigError::BadValue { key: format!("model.{key}"), value, reason }.into());
    }
    config.data.tokenizer = tokenizer(dir, &model, config.data.tokenizer.take())?;
    Ok(config)
}

/// The model of a checkpoint; with the experts that the run has where it has none.
fn with_experts_of(wanted: &LmConfig, checkpoint: &LmConfig) -> LmConfig {
    match becomes_experts(checkpoint, wanted) {
        true => LmConfig { moe_layers: wanted.moe_layers.clone(), moe: wanted.moe.clone(), ..checkpoint.clone() },
        false => checkpoint.clone(),
    }
}

/// Copies into the run what the checkpoint in `start` has beside weights and tokenizer, for texts and the export of the run; what
/// is there stays.
pub(super) fn keep_companions(start: &Path, run: &Path) -> Result<(), Error> {
    keep_token_ids(start, run)?;
    companions(start).try_for_each(|(name, source)| keep_copy(&source, &run.join(name)))
}

/// Names and paths of such files in `dir`, a run or a checkpoint.
pub(super) fn companions(dir: &Path) -> impl Iterator<Item = (&'static str, PathBuf)> {
    COMPANIONS.into_iter().map(|name| (name, dir.join(name))).filter(|(_, path)| path.is_file())
}

fn keep_token_ids(start: &Path, run: &Path) -> Result<(), Error> {
    let path = run.join(TOKEN_IDS_FILE);
    if path.is_file() {
        return Ok(());
    }
    let text = serde_json::to_vec_pretty(&read_config(start)?.token_ids).expect("plain data");
    Ok(write_atomic(&path, &text).map_err(RunError::from)?)
}

/// The special tokens that the configuration of the checkpoint has that a run started from; `None` for another run.
pub(super) fn token_ids(run: &Path) -> Result<Option<TokenIds>, Error> {
    read_json(&run.join(TOKEN_IDS_FILE))
}

/// The special tokens for texts of a run that started from a checkpoint; `None` for another run.
pub(super) fn special_tokens(run: &Path) -> Result<Option<TokenIds>, Error> {
    token_ids(run)?.map(|ids| for_texts(run, ids)).transpose()
}

/// The special tokens for texts, of the checkpoint or run in `dir`: those of its `generation_config.json`, else `ids`.
pub(super) fn for_texts(dir: &Path, ids: TokenIds) -> Result<TokenIds, Error> {
    let own: GenerationConfig = read_json(&dir.join(GENERATION_FILE))?.unwrap_or_default();
    let eos = own.eos_token_id.map_or(ids.eos, |eos| match eos {
        OneOrMore::One(id) => vec![id],
        OneOrMore::More(ids) => ids,
    });
    Ok(TokenIds { bos: own.bos_token_id.or(ids.bos), eos, pad: ids.pad })
}

/// What `generation_config.json` says about special tokens.
#[derive(Deserialize, Default)]
struct GenerationConfig {
    bos_token_id: Option<u32>,
    eos_token_id: Option<OneOrMore>,
}

/// One number or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(u32),
    More(Vec<u32>),
}

/// The content of a file; `None` where there is none.
fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    let context = format!("cannot read `{}`", path.display());
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(context)(error)),
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| Error::io(context)(error.into())),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tokens_of_texts_are_those_of_the_generation_config_where_it_has_any() {
        let dir = tempfile::tempdir().unwrap();
        let read = |text: &str| {
            fs::write(dir.path().join(GENERATION_FILE), text).unwrap();
            for_texts(dir.path(), TokenIds { bos: Some(1), eos: vec![2], pad: Some(3) }).map(|ids| (ids.bos, ids.eos))
        };
        assert_eq!(read(r#"{"eos_token_id": [5, 6], "top_k": 20}"#).unwrap(), (Some(1), vec![5, 6]));
        assert_eq!(read(r#"{"eos_token_id": 7, "bos_token_id": 8}"#).unwrap(), (Some(8), vec![7]));
        assert_eq!(read(r#"{"eos_token_id": null}"#).unwrap(), (Some(1), vec![2]));
        let message = read(r#"{"eos_token_id": "</s>"}"#).expect_err("no number").to_string();
        assert!(message.contains(GENERATION_FILE), "{message}");
        fs::remove_file(dir.path().join(GENERATION_FILE)).unwrap();
        assert_eq!(for_texts(dir.path(), TokenIds::default()).unwrap(), TokenIds::default());
    }
}
