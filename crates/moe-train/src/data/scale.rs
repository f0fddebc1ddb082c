//! What a loss means: the bits per byte that need no model, on the same held-out text.

use std::io::Write;

use crate::run::Reference;
use flate2::{Compression, write::GzEncoder};

/// Reference values for the held-out text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// Bits per byte of a model that knows how often each byte occurs in the held-out text, and nothing else: the
    /// entropy `-sum p log2 p` of its own bytes, which no such model fitted to another text can beat.
    pub unigram_bpb: f64,
    /// Bits per byte of the held-out text compressed by gzip -9.
    pub gzip_bpb: f64,
}

impl Scale {
    /// Measures a held-out text; compression takes about a second for 20 MB.
    pub fn measure(text: &[u8]) -> Self {
        Self { unigram_bpb: unigram_entropy(text), gzip_bpb: gzip_bits_per_byte(text) }
    }

    /// The reference values for the run directory.
    pub fn references(&self) -> Vec<Reference> {
        let reference = |name: &str, bits_per_byte| Reference { name: name.into(), bits_per_byte };
        vec![reference("unigram entropy", self.unigram_bpb), reference("gzip -9", self.gzip_bpb)]
    }
}

fn unigram_entropy(text: &[u8]) -> f64 {
    let mut counts = [0u64; 256];
    text.iter().for_each(|&byte| counts[usize::from(byte)] += 1);
    let parts = counts.iter().filter(|&&count| count > 0).map(|&count| count as f64 / text.len() as f64);
    parts.map(|p| -p * p.log2()).sum()
}

fn gzip_bits_per_byte(text: &[u8]) -> f64 {
    let mut encoder = GzEncoder::new(Counter(0), Compression::best());
    let counter = encoder.write_all(text).and_then(|()| encoder.finish()).expect("counting bytes cannot fail");
    8.0 * counter.0 as f64 / text.len().max(1) as f64
}

/// Counts what is written to it.
struct Counter(u64);

impl Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entropy_of_equally_frequent_bytes_is_the_log_of_their_number() {
        assert_eq!(unigram_entropy(b"abcdabcd"), 2.0);
        assert_eq!(unigram_entropy(&(0..=255).collect::<Vec<u8>>()), 8.0);
        assert_eq!(unigram_entropy(b"aaaa"), 0.0);
    }

    #[test]
    fn a_text_that_repeats_compresses_well_below_its_entropy() {
        let text = b"the quick brown fox jumps over the lazy dog. ".repeat(200);
        assert!(gzip_bits_per_byte(&text) < 0.1 * unigram_entropy(&text));
    }

    #[test]
    fn an_empty_text_has_no_entropy() {
        assert_eq!(unigram_entropy(b""), 0.0);
    }
}
