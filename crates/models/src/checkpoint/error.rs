//! What can be wrong with a checkpoint, or with a model that is to become one.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::lm::LmConfigError;

/// Why a checkpoint cannot be read or written.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// The operating system refuses.
    #[error("cannot {action} {}: {source}; check the path, its permissions and the space on the disk", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file of JSON that is not what it should be.
    #[error("{} is not {expected}: {reason}; download or save the checkpoint again", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A field of `config.json` that nothing here knows.
    #[error(
        "config.json: the field `{field}` is not known, so what it changes would be lost; remove it if it does not matter \
         for the function of the model"
    )]
    UnknownField {
        /// Its name, with a dot inside a table.
        field: String,
    },
    /// A value in `config.json` of the wrong type, or one that asks for what these models do not have.
    #[error("config.json: `{field}` = {value} is not supported: {advice}")]
    Value {
        /// Name of the field, with a dot inside a table.
        field: String,
        /// What it is.
        value: String,
        /// What it may be.
        advice: String,
    },
    /// `config.json` describes no model.
    #[error("config.json: {0}")]
    Model(#[from] LmConfigError),
    /// No weights in safetensors.
    #[error(
        "{} holds neither model.safetensors nor model.safetensors.index.json; save the model with `save_pretrained`, which \
         writes them",
        dir.display()
    )]
    NoWeights {
        /// The directory.
        dir: PathBuf,
    },
    /// Weights in two places.
    #[error(
        "{} holds both model.safetensors and model.safetensors.index.json; remove the one that is not the model",
        dir.display()
    )]
    TwoWeights {
        /// The directory.
        dir: PathBuf,
    },
    /// A shard that is not a plain file name.
    #[error("the index names the shard `{shard}`, which is not a file name; shards must lie beside their index")]
    ShardName {
        /// What the index says.
        shard: String,
    },
    /// A shard is not there.
    #[error("the index names the shard {}, which is not there; download the checkpoint again", path.display())]
    MissingShard {
        /// Where it should be.
        path: PathBuf,
    },
    /// A file of weights that is cut short, or no safetensors at all.
    #[error("{} is damaged: {reason}; download or save it again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Index and shards contradict each other.
    #[error("the index has the tensor `{name}` in `{listed}`, but it is in `{found}`; download the checkpoint again")]
    Misplaced {
        /// The tensor.
        name: String,
        /// Where the index has it, or "no shard".
        listed: String,
        /// Where it is, or "no shard".
        found: String,
    },
    /// Tensors that the model needs.
    #[error(
        "the tensor `{name}` is missing{}; the weights belong to another config.json, or were saved in part",
        and_more(*more)
    )]
    MissingTensor {
        /// Name of the first.
        name: String,
        /// How many are missing beside it, at least.
        more: usize,
    },
    /// Experts with tensors of their own beside experts that share theirs.
    #[error(
        "`{fused}` holds matrices of all experts of a layer, `{separate}` one of a single expert; a checkpoint has one of \
         the two kinds: save it again with `save_pretrained`"
    )]
    MixedExperts {
        /// A tensor of all experts.
        fused: String,
        /// A tensor of one.
        separate: String,
    },
    /// A tensor that the model has no place for.
    #[error(
        "the model has no place for the tensor `{name}`; the weights belong to another config.json, or the tensor must be \
         removed"
    )]
    UnknownTensor {
        /// Its name.
        name: String,
    },
    /// A tensor of another shape.
    #[error("the tensor `{name}` has shape {found:?}, and config.json makes it {expected:?}; one of the two is wrong")]
    Shape {
        /// The tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// What the configuration says.
        expected: Vec<usize>,
    },
    /// A tensor of numbers that are no weights.
    #[error("the tensor `{name}` is {found}; save the model in float32, bfloat16 or float16")]
    Dtype {
        /// The tensor.
        name: String,
        /// Its dtype, in the words of safetensors.
        found: String,
    },
    /// A model that no family describes.
    #[error("not a {family} model: {reason}")]
    NoEquivalent {
        /// The nearest family.
        family: &'static str,
        /// Which setting, and what it would have to be.
        reason: String,
    },
    /// There is something where a checkpoint should go.
    #[error("{} is not an empty directory; choose one that does not exist yet", dir.display())]
    NotEmpty {
        /// The path.
        dir: PathBuf,
    },
    /// A number that the dtype of the checkpoint cannot hold.
    #[error("the tensor `{name}` has a number beyond {dtype}; save it in f32 or bf16")]
    Overflow {
        /// The tensor.
        name: String,
        /// The dtype.
        dtype: &'static str,
    },
}

fn and_more(more: usize) -> String {
    if more == 0 { String::new() } else { format!(", and at least {more} more") }
}

impl CheckpointError {
    /// An [`Io`](Self::Io), for use in `map_err`.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }

    /// A [`Value`](Self::Value).
    pub(super) fn value(field: &str, value: impl ToString, advice: impl Into<String>) -> Self {
        Self::Value { field: field.into(), value: value.to_string(), advice: advice.into() }
    }
}
