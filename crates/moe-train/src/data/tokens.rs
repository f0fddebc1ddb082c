//! A long sequence of tokens.

/// Token ids of a text, and how many bytes of text they stand for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tokens {
    /// Every byte is a token.
    Bytes(Vec<u8>),
    /// Tokens of a tokenizer.
    Ids {
        /// The tokens.
        ids: Vec<u32>,
        /// Length of the text in bytes.
        bytes: u64,
    },
}

impl Tokens {
    /// Number of tokens.
    pub fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Ids { ids, .. } => ids.len(),
        }
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Length of the text in bytes.
    pub fn text_bytes(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Ids { bytes, .. } => *bytes,
        }
    }

    /// Mean bytes of text per token; 1 for bytes and for no token.
    pub fn bytes_per_token(&self) -> f64 {
        if self.is_empty() { 1.0 } else { self.text_bytes() as f64 / self.len() as f64 }
    }

    /// `len` tokens from `start` on.
    ///
    /// # Panics
    ///
    /// Panics if `start + len` is beyond the end.
    pub fn window(&self, start: usize, len: usize) -> Vec<u32> {
        let end = start + len;
        assert!(end <= self.len(), "window {start}..{end} is beyond the end of {} tokens", self.len());
        match self {
            Self::Bytes(bytes) => bytes[start..end].iter().map(|&byte| u32::from(byte)).collect(),
            Self::Ids { ids, .. } => ids[start..end].to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_holds_the_tokens_in_their_order() {
        assert_eq!(Tokens::Bytes(b"abcd".to_vec()).window(1, 2), [98, 99]);
        assert_eq!(Tokens::Ids { ids: vec![7, 8, 9], bytes: 12 }.window(0, 3), [7, 8, 9]);
    }

    #[test]
    fn bytes_per_token_is_the_mean_length_of_a_token() {
        assert_eq!(Tokens::Bytes(b"abcd".to_vec()).bytes_per_token(), 1.0);
        assert_eq!(Tokens::Ids { ids: vec![7, 8, 9], bytes: 12 }.bytes_per_token(), 4.0);
    }

    #[test]
    #[should_panic(expected = "window 3..5 is beyond the end of 4 tokens")]
    fn a_window_beyond_the_end_panics() {
        Tokens::Bytes(b"abcd".to_vec()).window(3, 2);
    }
}
