//! Text as tokens, in batches.
//!
//! A text is read and split ([`Split`]), or found among the sources of the workspace's dependencies; a [`Vocab`] turns it
//! into [`Tokens`]; batches ([`train_batch`], [`valid_batches`]) are pure functions of tokens, settings and step, so a
//! resumed run sees what an unbroken one would have seen.

mod batch;
mod corpus;
mod scale;
mod source;
mod stream;
mod template;
mod tokens;
mod vocab;

use std::{io, path::PathBuf};

use thiserror::Error;

pub(crate) use batch::rows_of_part;
pub use batch::{Batch, train_batch, valid_batches};
pub use scale::Scale;
pub use source::{Split, load_whole};
pub use stream::TextStream;
pub use tokens::Tokens;
#[cfg(test)]
pub(crate) use vocab::sentence_piece_tokenizer;
pub use vocab::{BYTES, Vocab};

/// A text in tokens, with a part held out.
#[derive(Debug)]
pub struct TextData {
    /// The part to train on.
    pub train: Tokens,
    /// The part that is held out.
    pub valid: Tokens,
    /// What the tokens mean.
    pub vocab: Vocab,
    /// Where the text comes from, in words.
    pub description: String,
}

impl TextData {
    /// Turns both parts of a text into tokens.
    ///
    /// # Errors
    ///
    /// [`DataError`] if the vocabulary needs UTF-8 and the text is not.
    pub fn encode(split: Split, vocab: Vocab) -> Result<Self, DataError> {
        let Split { train, valid, description } = split;
        Ok(Self { train: vocab.encode(train)?, valid: vocab.encode(valid)?, vocab, description })
    }

    /// CRC-32 of the tokens to train on.
    pub fn checksum(&self) -> u32 {
        match &self.train {
            Tokens::Bytes(bytes) => crc32fast::hash(bytes),
            Tokens::Ids { ids, .. } => {
                let mut hasher = crc32fast::Hasher::new();
                ids.iter().for_each(|id| hasher.update(&id.to_le_bytes()));
                hasher.finalize()
            }
        }
    }

    /// Makes sure that both parts hold at least one sequence of `seq_len` tokens and the token after it.
    ///
    /// # Errors
    ///
    /// [`DataError::TooShort`] naming the part.
    pub fn check_length(&self, seq_len: usize) -> Result<(), DataError> {
        check_length("training", &self.train, seq_len)?;
        check_length("held-out", &self.valid, seq_len)
    }
}

/// Makes sure that the text called `part` holds a sequence of `seq_len` tokens and the token after it.
///
/// # Errors
///
/// [`DataError::TooShort`].
pub fn check_length(part: &'static str, tokens: &Tokens, seq_len: usize) -> Result<(), DataError> {
    let (found, needed) = (tokens.len(), seq_len + 1);
    if found < needed { Err(DataError::TooShort { part, found, needed }) } else { Ok(()) }
}

/// Why a text or a tokenizer cannot be used.
#[derive(Debug, Error)]
pub enum DataError {
    /// The path does not exist.
    #[error("`{0}` does not exist: pass an existing file or directory")]
    Missing(PathBuf),
    /// The path exists and cannot be read.
    #[error("cannot read `{path}`: {source}")]
    Unreadable {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file of a directory that is elsewhere.
    #[error("`{0}` is a link that leads out of its directory, or to nothing: copy what it names, or pass that")]
    LinkOut(PathBuf),
    /// No text at all.
    #[error("`{0}` holds no text: pass a text file or a directory of text files")]
    Empty(PathBuf),
    /// Less text than one sequence.
    #[error(
        "the {part} text has {found} tokens, and one sequence needs {needed}: use a longer text or a smaller train.seq_len"
    )]
    TooShort {
        /// Which part.
        part: &'static str,
        /// Its tokens.
        found: usize,
        /// What one sequence needs.
        needed: usize,
    },
    /// A tokenizer needs UTF-8.
    #[error(
        "the text is not UTF-8 at byte {0}, which a tokenizer needs: convert it, or train on bytes without --tokenizer"
    )]
    NotUtf8(usize),
    /// The tokenizer cannot be loaded.
    #[error("cannot use the tokenizer `{path}`: {reason}; pass a tokenizer.json of the tokenizers library")]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The tokenizer cannot process the text.
    #[error("the tokenizer cannot encode the text: {0}")]
    Encode(String),
    /// Tokens the model has no embedding for.
    #[error("the vocabulary has {vocab} tokens and the model only {model}: set model.vocab_size to at least {vocab}")]
    VocabTooLarge {
        /// Tokens of the vocabulary.
        vocab: usize,
        /// Tokens of the model.
        model: usize,
    },
    /// The embedded default cannot be found here.
    #[error(
        "the default text, the sources of the workspace's dependencies, cannot be found: {0}; pass a text with --data"
    )]
    NoCorpus(String),
}
