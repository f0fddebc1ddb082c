//! Tokens with a part in generation: lost if nobody passes them on. Of the model is only the padding token, whose row of
//! the embedding learns nothing from inputs.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::CheckpointError;
use super::family::Family;
use super::fields::Fields;

/// Tokens that begin, end and fill a sequence; the default are none. What a model does with its padding token is
/// [`LmConfig::padding_id`](crate::lm::LmConfig::padding_id).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenIds {
    /// Before a text.
    pub bos: Option<u32>,
    /// After a text, each of them.
    pub eos: Vec<u32>,
    /// Around texts of different lengths.
    pub pad: Option<u32>,
}

/// One number or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(u32),
    More(Vec<u32>),
}

impl TokenIds {
    /// Takes the fields out; a missing one has the default of the family.
    pub(super) fn take(fields: &mut Fields, family: Family) -> Result<Self, CheckpointError> {
        let default = Self::of(family);
        let eos = fields.take::<Option<OneOrMore>>("eos_token_id")?;
        Ok(Self {
            bos: fields.get("bos_token_id", default.bos)?,
            eos: match eos {
                None => default.eos,
                Some(None) => Vec::new(),
                Some(Some(OneOrMore::One(id))) => vec![id],
                Some(Some(OneOrMore::More(ids))) => ids,
            },
            pad: fields.get("pad_token_id", default.pad)?,
        })
    }

    /// The defaults of `transformers`.
    fn of(family: Family) -> Self {
        match family {
            Family::Mixtral | Family::Llama | Family::Mistral => Self { bos: Some(1), eos: vec![2], pad: None },
            Family::Olmoe => Self { bos: None, eos: vec![50_279], pad: Some(1) },
            Family::Qwen3Moe | Family::Qwen3 => Self::default(),
        }
    }

    /// Adds the fields; all three, since the defaults are those of other vocabularies.
    pub(super) fn write(&self, fields: &mut Value) {
        fields["bos_token_id"] = json!(self.bos);
        fields["eos_token_id"] = match &self.eos[..] {
            [] => Value::Null,
            [id] => json!(id),
            ids => json!(ids),
        };
        fields["pad_token_id"] = json!(self.pad);
    }
}
