//! What a token stands for: a byte, or an entry of a tokenizer.

use std::{fs, path::Path};

use serde_json::Value;
use tokenizers::Tokenizer;

use super::{DataError, TextStream, Tokens, template};

/// A text is encoded in pieces of about this many bytes,
const PIECE_BYTES: usize = 1 << 16;

/// and so many pieces at a time, which bounds the memory the tokenizer takes on top of its result.
const PIECES_AT_A_TIME: usize = 32;

/// Values a byte can have: the tokens of a vocabulary without a tokenizer.
pub const BYTES: usize = 256;

/// The vocabulary of a text.
#[derive(Clone, Debug)]
pub enum Vocab {
    /// Every byte is a token: 256 of them.
    Bytes,
    /// The `tokenizers` library.
    Tokenizer(Box<Tokenizer>),
}

impl Vocab {
    /// Bytes for `None`, else the tokenizer of a `tokenizer.json`.
    ///
    /// # Errors
    ///
    /// [`DataError`] if the file is missing or is no tokenizer.
    pub fn load(path: Option<&Path>) -> Result<Self, DataError> {
        let Some(path) = path else { return Ok(Self::Bytes) };
        if !path.exists() {
            return Err(DataError::Missing(path.into()));
        }
        let fault = |reason: String| DataError::Tokenizer { path: path.into(), reason };
        let text = fs::read(path).map_err(|error| fault(error.to_string()))?;
        // Read as JSON first, strings and all: where a file is none the library panics.
        let json: Value = serde_json::from_slice(&text).map_err(|error| fault(error.to_string()))?;
        if let Some(reason) = template::fault(&json["post_processor"]) {
            return Err(fault(reason));
        }
        if json["model"]["dropout"].as_f64().is_some_and(|dropout| dropout > 0.0) {
            return Err(fault("its model.dropout makes other tokens of a text every time: write null".into()));
        }
        let mut tokenizer = Tokenizer::from_bytes(text).map_err(|error| fault(error.to_string()))?;
        tokenizer.with_truncation(None).map_err(|error| fault(error.to_string()))?.with_padding(None);
        Ok(Self::Tokenizer(Box::new(tokenizer)))
    }

    /// Number of tokens: the largest id and one.
    pub fn size(&self) -> usize {
        match self {
            Self::Bytes => BYTES,
            Self::Tokenizer(tokenizer) => {
                tokenizer.get_vocab(true).values().max().map_or(0, |&largest| largest as usize + 1)
            }
        }
    }

    /// Makes sure that a model with `vocab_size` embeddings has one for every token.
    ///
    /// # Errors
    ///
    /// [`DataError::VocabTooLarge`].
    pub fn check_model(&self, vocab_size: usize) -> Result<(), DataError> {
        let vocab = self.size();
        if vocab > vocab_size { Err(DataError::VocabTooLarge { vocab, model: vocab_size }) } else { Ok(()) }
    }

    /// Turns a text to train on into tokens, without special tokens at its ends.
    ///
    /// A tokenizer gets the text in pieces, in parallel, cut where a line ends in a letter or a digit; for a tokenizer
    /// that looks at words and the space before them (GPT-2's and its descendants) this gives what the whole text would.
    ///
    /// # Errors
    ///
    /// [`DataError`] if a tokenizer gets something else than UTF-8, or cannot process it.
    pub fn encode(&self, text: Vec<u8>) -> Result<Tokens, DataError> {
        let Self::Tokenizer(tokenizer) = self else { return Ok(Tokens::Bytes(text)) };
        let text = std::str::from_utf8(&text).map_err(|error| DataError::NotUtf8(error.valid_up_to()))?;
        let mut ids = Vec::with_capacity(text.len() / 3);
        for pieces in pieces(text, PIECE_BYTES).chunks(PIECES_AT_A_TIME) {
            let encodings = tokenizer
                .encode_batch_fast(pieces.to_vec(), false)
                .map_err(|error| DataError::Encode(error.to_string()))?;
            encodings.iter().for_each(|encoding| ids.extend_from_slice(encoding.get_ids()));
        }
        Ok(Tokens::Ids { ids, bytes: text.len() as u64 })
    }

    /// The tokens of a prompt; with `special`, those too that a tokenizer puts before a text or after it.
    ///
    /// # Errors
    ///
    /// [`DataError::Encode`] if the tokenizer cannot process it.
    pub fn encode_prompt(&self, prompt: &str, special: bool) -> Result<Vec<u32>, DataError> {
        match self {
            Self::Bytes => Ok(prompt.bytes().map(u32::from).collect()),
            Self::Tokenizer(tokenizer) => {
                let encoding =
                    tokenizer.encode_fast(prompt, special).map_err(|error| DataError::Encode(error.to_string()))?;
                Ok(encoding.get_ids().to_vec())
            }
        }
    }

    /// Turns tokens back into text one by one, as they look after the tokens `before`, which are not shown.
    pub fn stream(&self, before: &[u32]) -> TextStream<'_> {
        TextStream::new(self, before)
    }
}

/// Cuts a text into pieces of at least `size` bytes, each but the last ending in a letter or digit before a line end.
fn pieces(text: &str, size: usize) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(place) = cut(rest, size) {
        let (piece, after) = rest.split_at(place);
        pieces.push(piece);
        rest = after;
    }
    if !rest.is_empty() {
        pieces.push(rest);
    }
    pieces
}

fn cut(text: &str, size: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    let places = size.max(1)..bytes.len();
    places.into_iter().find(|&place| bytes[place] == b'\n' && bytes[place - 1].is_ascii_alphanumeric())
}

/// A tokenizer of the given tokens, numbered from 0, written in GPT-2's alphabet for bytes; `ab` is number 9.
#[cfg(test)]
pub(super) fn byte_level_tokenizer(tokens: &[&str]) -> Vocab {
    let mut vocab: serde_json::Map<_, _> = tokens.iter().zip(0..).map(|(t, id)| (t.to_string(), id.into())).collect();
    let mut merges = Vec::new();
    if tokens.starts_with(&["a", "b"]) {
        vocab.insert("ab".into(), 9.into());
        merges.push(["a", "b"]);
    }
    let bytes =
        serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let json = serde_json::json!({
        "version": "1.0", "added_tokens": [], "pre_tokenizer": bytes, "decoder": bytes,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    });
    let tokenizer = Tokenizer::from_bytes(json.to_string()).expect("the test wrote a tokenizer");
    Vocab::Tokenizer(Box::new(tokenizer))
}

/// A tokenizer as Mixtral's, of SentencePiece's alphabet: `<s>` (1) before a text, `</s>` (2), words that carry the blank before
/// them from 3 on.
#[cfg(test)]
pub(crate) fn sentence_piece_tokenizer(words: &[&str]) -> Vocab {
    let special = ["<unk>", "<s>", "</s>"];
    let added: Vec<Value> = special
        .iter()
        .zip(0..)
        .map(|(token, id)| {
            serde_json::json!({"id": id, "content": token, "special": true, "normalized": false,
                "single_word": false, "lstrip": false, "rstrip": false})
        })
        .collect();
    let vocab: serde_json::Map<String, Value> =
        special.iter().chain(words).zip(0..).map(|(token, id)| (token.to_string(), id.into())).collect();
    let replace =
        |from: &str, to: &str| serde_json::json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let json = serde_json::json!({
        "version": "1.0", "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace(" ", "▁")]},
        "pre_tokenizer": {"type": "Split", "pattern": {"String": "▁"}, "behavior": "MergedWithNext", "invert": false},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": [
            replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
    });
    let tokenizer = Tokenizer::from_bytes(json.to_string()).expect("the test wrote a tokenizer");
    Vocab::Tokenizer(Box::new(tokenizer))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer() -> Vocab {
        byte_level_tokenizer(&["a", "b", "Ċ"])
    }

    #[test]
    fn bytes_are_tokens_without_a_tokenizer() {
        let vocab = Vocab::load(None).unwrap();
        assert_eq!(vocab.size(), 256);
        assert_eq!(vocab.encode(b"\xff\x00".to_vec()).unwrap(), Tokens::Bytes(b"\xff\x00".to_vec()));
        assert_eq!(vocab.encode_prompt("ä", true).unwrap(), [0xc3, 0xa4]);
    }

    #[test]
    fn a_tokenizer_gives_its_ids_and_the_length_of_the_text() {
        let tokens = tokenizer().encode(b"abba\nab".to_vec()).unwrap();
        assert_eq!(tokens, Tokens::Ids { ids: vec![9, 1, 0, 2, 9], bytes: 7 });
    }

    #[test]
    fn a_prompt_begins_with_special_tokens_and_a_text_to_train_on_does_not() {
        let vocab = sentence_piece_tokenizer(&["▁It", "▁was"]);
        assert_eq!(vocab.encode_prompt("It was", true).unwrap(), [1, 3, 4]);
        assert_eq!(vocab.encode_prompt("", true).unwrap(), [1]);
        assert_eq!(vocab.encode_prompt("It was", false).unwrap(), [3, 4]);
        let Tokens::Ids { ids, .. } = vocab.encode(b"It was".to_vec()).unwrap() else { panic!("expected ids") };
        assert_eq!(ids, [3, 4]);
    }

    #[test]
    fn the_size_is_the_largest_id_and_one() {
        assert_eq!(tokenizer().size(), 10);
        assert!(tokenizer().check_model(10).is_ok());
        assert!(matches!(tokenizer().check_model(9), Err(DataError::VocabTooLarge { vocab: 10, model: 9 })));
    }

    #[test]
    fn a_broken_or_missing_tokenizer_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        for text in ["{", "{}", "text"] {
            fs::write(&path, text).unwrap();
            assert!(matches!(Vocab::load(Some(&path)), Err(DataError::Tokenizer { .. })), "{text}");
        }
        assert!(matches!(Vocab::load(Some(Path::new("no/tokenizer.json"))), Err(DataError::Missing(_))));
    }

    #[test]
    fn a_tokenizer_cut_short_anywhere_is_refused() {
        let Vocab::Tokenizer(whole) = tokenizer() else { unreachable!("a tokenizer was loaded") };
        let text = whole.to_string(false).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        for len in 0..text.len() {
            fs::write(&path, &text[..text.floor_char_boundary(len)]).unwrap();
            assert!(matches!(Vocab::load(Some(&path)), Err(DataError::Tokenizer { .. })), "{len}");
        }
        fs::write(&path, text).unwrap();
        assert!(Vocab::load(Some(&path)).is_ok());
    }

    #[test]
    fn a_tokenizer_refuses_what_is_not_utf8() {
        assert!(matches!(tokenizer().encode(b"ab\xff".to_vec()), Err(DataError::NotUtf8(2))));
    }

    #[test]
    fn pieces_are_the_text_and_end_in_a_word_before_a_line_end() {
        let text = "ab\n\n\nab.\nab\n  ab\nb \n";
        for size in 1..text.len() + 2 {
            let pieces = pieces(text, size);
            assert_eq!(pieces.concat(), text);
            for pair in pieces.windows(2) {
                assert!(pair[0].ends_with(|c: char| c.is_alphanumeric()) && pair[1].starts_with('\n'), "{pair:?}");
            }
        }
    }

    #[test]
    fn a_text_in_pieces_has_the_tokens_of_the_whole() {
        let text = "ab\nba\nabab\n\nb\na".repeat(3 * PIECE_BYTES / 10);
        let Vocab::Tokenizer(whole) = tokenizer() else { unreachable!("a tokenizer was loaded") };
        let expected = whole.encode_fast(text.as_str(), false).unwrap().get_ids().to_vec();
        let Tokens::Ids { ids, .. } = tokenizer().encode(text.into_bytes()).unwrap() else { panic!("expected ids") };
        assert_eq!(ids, expected);
    }
}
