//! Tokens back into text while they come, never showing half a character.

use std::mem;

use tokenizers::Tokenizer;

use super::Vocab;

/// What stands in the place of bytes that are no character.
const REPLACEMENT: char = '\u{FFFD}';

/// Collects tokens and gives out text as soon as it is certain.
#[derive(Debug)]
pub enum TextStream<'a> {
    /// Bytes that do not make a whole character yet.
    Bytes(Vec<u8>),
    /// Tokens of a tokenizer.
    Tokenizer {
        /// The tokenizer.
        tokenizer: &'a Tokenizer,
        /// The tokens of the last text given out, or of what comes before the first, which decide how the next ones look (a
        /// leading space, say), and those after them.
        ids: Vec<u32>,
        /// How many of `ids` have been given out.
        shown: usize,
    },
}

impl<'a> TextStream<'a> {
    /// After the tokens `before`, which are not shown.
    pub(super) fn new(vocab: &'a Vocab, before: &[u32]) -> Self {
        match vocab {
            Vocab::Bytes => Self::Bytes(Vec::new()),
            Vocab::Tokenizer(tokenizer) => Self::Tokenizer { tokenizer, ids: before.to_vec(), shown: before.len() },
        }
    }

    /// The text that a token completes; empty inside a character. A token that is no byte, and bytes that are no
    /// character, give U+FFFD.
    pub fn push(&mut self, token: u32) -> String {
        match self {
            Self::Bytes(pending) => {
                match u8::try_from(token) {
                    Ok(byte) => pending.push(byte),
                    Err(_) => pending.extend(REPLACEMENT.to_string().bytes()),
                }
                take_characters(pending)
            }
            Self::Tokenizer { ids, .. } => {
                ids.push(token);
                let text = self.unseen();
                if text.ends_with(REPLACEMENT) { String::new() } else { self.show(text) }
            }
        }
    }

    /// What is left when no more tokens come: half a character becomes U+FFFD.
    pub fn finish(mut self) -> String {
        match &mut self {
            Self::Bytes(pending) => String::from_utf8_lossy(pending).into_owned(),
            Self::Tokenizer { .. } => self.unseen(),
        }
    }

    /// Text of the tokens after `shown`, given those before.
    fn unseen(&self) -> String {
        let Self::Tokenizer { tokenizer, ids, shown } = self else { return String::new() };
        let decode = |ids: &[u32]| tokenizer.decode(ids, false).unwrap_or_default();
        let (before, all) = (decode(&ids[..*shown]), decode(ids));
        all.get(before.len()..).unwrap_or_default().to_string()
    }

    fn show(&mut self, text: String) -> String {
        if let Self::Tokenizer { ids, shown, .. } = self {
            // After a token without a text the next one looks as it does after those before.
            if !text.is_empty() {
                ids.drain(..*shown);
            }
            *shown = ids.len();
        }
        text
    }
}

/// Takes the whole characters off the front; keeps bytes that may still become one.
fn take_characters(pending: &mut Vec<u8>) -> String {
    let keep = incomplete_tail(pending);
    let rest = pending.split_off(pending.len() - keep);
    String::from_utf8_lossy(&mem::replace(pending, rest)).into_owned()
}

/// Length of a character at the end whose last bytes are missing.
fn incomplete_tail(bytes: &[u8]) -> usize {
    let mut start = 0;
    while let Err(error) = std::str::from_utf8(&bytes[start..]) {
        start += error.valid_up_to();
        match error.error_len() {
            Some(len) => start += len,
            None => return bytes.len() - start,
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(bytes: &[u8]) -> (Vec<String>, String) {
        let mut stream = Vocab::Bytes.stream(&[]);
        let texts = bytes.iter().map(|&byte| stream.push(u32::from(byte))).collect();
        (texts, stream.finish())
    }

    #[test]
    fn a_character_of_several_bytes_comes_whole() {
        assert_eq!(stream("a€b".as_bytes()).0, ["a", "", "", "€", "b"]);
    }

    #[test]
    fn bytes_that_are_no_character_are_replaced_at_once() {
        assert_eq!(stream(b"\xffa").0, ["\u{FFFD}", "a"]);
        assert_eq!(stream(b"\xe2a").0, ["", "\u{FFFD}a"]);
    }

    #[test]
    fn half_a_character_at_the_end_is_replaced() {
        assert_eq!(stream(b"a\xe2\x82"), (vec!["a".into(), String::new(), String::new()], "\u{FFFD}".into()));
    }

    #[test]
    fn streamed_text_is_the_decoded_whole() {
        let bytes = "naïve € 🦀 text".as_bytes();
        let (texts, rest) = stream(bytes);
        assert_eq!(texts.concat() + &rest, String::from_utf8_lossy(bytes));
    }

    #[test]
    fn tokens_of_a_tokenizer_come_as_whole_characters() {
        let vocab = crate::data::vocab::byte_level_tokenizer(&["a", "â", "Ĥ", "¬", "Ġa"]);
        let mut stream = vocab.stream(&[]);
        let texts: Vec<String> = [0, 4, 1, 2, 3, 0].map(|id| stream.push(id)).to_vec();
        assert_eq!(texts, ["a", " a", "", "", "€", "a"]);
        assert_eq!(stream.finish(), "");
    }
    #[test]
    fn a_word_after_a_prompt_keeps_the_blank_before_it() {
        let vocab = crate::data::sentence_piece_tokenizer(&["▁It", "▁was", "▁a", "▁dog", "s", "<0xC3>", "<0xA4>"]);
        let text = |before: &[u32], ids: &[u32]| {
            let mut stream = vocab.stream(before);
            let texts: String = ids.iter().map(|&id| stream.push(id)).collect();
            texts + &stream.finish()
        };
        assert_eq!(text(&[1, 3, 4], &[5, 6, 7, 6]), " a dogs dog");
        assert_eq!(text(&[1, 3, 4], &[8, 9, 5]), "ä a");
        assert_eq!(text(&[1, 3, 6], &[7, 4]), "s was", "inside a word");
        assert_eq!(text(&[], &[5, 6]), "a dog", "at the beginning");
        assert_eq!(text(&[1, 3], &[99, 4, 99, 5]), " was a", "after tokens that are not in the vocabulary");
    }
}
