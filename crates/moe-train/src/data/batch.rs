//! Batches of next-token prediction: `B` sequences of `S` tokens, and the same moved on by one.

use std::ops::Range;

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Tokens;
use crate::config::LoopConfig;

/// Sequences on the host, row after row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// `[B, S]` tokens.
    pub inputs: Vec<u32>,
    /// `[B, S]` tokens, each the one that follows in the text.
    pub targets: Vec<u32>,
    /// `B`.
    pub batch_size: usize,
    /// `S`.
    pub seq_len: usize,
}

/// The rows of the `part`-th of `parts` equal parts of a batch.
///
/// # Panics
///
/// Panics when there is no such part, or the rows cannot be split so.
pub(crate) fn rows_of_part(rows: usize, part: usize, parts: usize) -> Range<usize> {
    assert!(part < parts && rows.is_multiple_of(parts), "a batch of {rows} rows has no part {part} of {parts}");
    let len = rows / parts;
    part * len..(part + 1) * len
}

impl Batch {
    /// Cuts sequences of `seq_len` tokens out of the text, one at each start.
    fn cut(tokens: &Tokens, starts: &[usize], seq_len: usize) -> Self {
        let windows: Vec<Vec<u32>> = starts.iter().map(|&start| tokens.window(start, seq_len + 1)).collect();
        Self {
            inputs: windows.iter().flat_map(|window| &window[..seq_len]).copied().collect(),
            targets: windows.iter().flat_map(|window| &window[1..]).copied().collect(),
            batch_size: starts.len(),
            seq_len,
        }
    }

    /// The `part`-th of `parts` equal parts of the rows.
    ///
    /// # Panics
    ///
    /// Panics when there is no such part, or the rows cannot be split so.
    pub fn part(&self, part: usize, parts: usize) -> Self {
        let rows = rows_of_part(self.batch_size, part, parts);
        let tokens = rows.start * self.seq_len..rows.end * self.seq_len;
        Self {
            inputs: self.inputs[tokens.clone()].to_vec(),
            targets: self.targets[tokens].to_vec(),
            batch_size: rows.len(),
            seq_len: self.seq_len,
        }
    }

    /// Tokens that are predicted, `B * S`.
    pub fn num_tokens(&self) -> usize {
        self.batch_size * self.seq_len
    }

    /// Inputs and targets on a device, `[B, S]` each.
    pub fn to_tensors<B: Backend>(&self, device: &B::Device) -> (Tensor<B, 2, Int>, Tensor<B, 2, Int>) {
        let shape = [self.batch_size, self.seq_len];
        let tensor = |ids: &[u32]| {
            let ids: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
            Tensor::from_data(TensorData::new(ids, shape), device)
        };
        (tensor(&self.inputs), tensor(&self.targets))
    }
}

/// The micro-batch of a step: sequences from random places, with replacement.
///
/// A pure function: `seed`, `step` and `micro` together are the key of the random numbers.
///
/// # Panics
///
/// Panics if the text has no sequence of `seq_len` tokens with a token after it.
pub fn train_batch(tokens: &Tokens, config: &LoopConfig, step: usize, micro: usize) -> Batch {
    let places = tokens.len().saturating_sub(config.seq_len);
    assert!(places > 0, "{} tokens hold no sequence of {} and the token after it", tokens.len(), config.seq_len);
    let mut random = ChaCha8Rng::from_seed(key(config.seed, step, micro));
    let starts: Vec<usize> = (0..config.batch_size).map(|_| random.random_range(0..places as u64) as usize).collect();
    Batch::cut(tokens, &starts, config.seq_len)
}

/// 32 bytes: seed, step, micro-batch, and a constant that sets these numbers apart from other uses of the seed.
fn key(seed: u64, step: usize, micro: usize) -> [u8; 32] {
    let parts = [seed, step as u64, micro as u64, u64::from_le_bytes(*b"windows\0")];
    let mut key = [0; 32];
    for (place, part) in key.chunks_exact_mut(8).zip(parts) {
        place.copy_from_slice(&part.to_le_bytes());
    }
    key
}

/// Batches of sequences that do not overlap, spread evenly over the text; the same ones every time.
///
/// `batches: None` covers the text but for a rest shorter than a sequence. The last batch may have fewer sequences.
pub fn valid_batches<'a>(
    tokens: &'a Tokens,
    config: &LoopConfig,
    batches: Option<usize>,
) -> impl Iterator<Item = Batch> + use<'a> {
    let (batch_size, seq_len) = (config.batch_size, config.seq_len);
    let available = tokens.len().saturating_sub(1) / seq_len;
    let wanted = batches.map_or(available, |batches| available.min(batches * batch_size));
    (0..wanted).step_by(batch_size).map(move |first| {
        let rows = first..wanted.min(first + batch_size);
        let starts: Vec<usize> = rows.map(|row| row * available / wanted * seq_len).collect();
        Batch::cut(tokens, &starts, seq_len)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{backend::Plain, config::TrainConfig};

    fn config(batch_size: usize, seq_len: usize) -> LoopConfig {
        LoopConfig { batch_size, seq_len, ..TrainConfig::preset("tiny").unwrap().train }
    }

    /// Tokens that tell their own position.
    fn positions(len: u32) -> Tokens {
        Tokens::Ids { ids: (0..len).collect(), bytes: u64::from(len) }
    }

    #[test]
    fn targets_are_the_inputs_moved_on_by_one() {
        let batch = train_batch(&positions(50), &config(4, 8), 0, 0);
        let moved: Vec<u32> = batch.inputs.iter().map(|id| id + 1).collect();
        assert_eq!(batch.targets, moved);
        assert_eq!((batch.inputs.len(), batch.num_tokens()), (32, 32));
    }

    #[test]
    #[should_panic(expected = "a batch of 4 rows has no part 0 of 3")]
    fn rows_that_do_not_make_equal_parts_panic() {
        train_batch(&positions(50), &config(4, 8), 0, 0).part(0, 3);
    }

    #[test]
    #[should_panic(expected = "a batch of 4 rows has no part 2 of 2")]
    fn a_part_that_is_none_panics() {
        train_batch(&positions(50), &config(4, 8), 0, 0).part(2, 2);
    }

    #[test]
    fn a_batch_depends_on_seed_step_and_micro_batch_only() {
        let tokens = positions(10_000);
        let config = config(4, 8);
        let batch = train_batch(&tokens, &config, 3, 1);
        assert_eq!(batch, train_batch(&tokens, &config, 3, 1));
        assert_ne!(batch, train_batch(&tokens, &config, 4, 1));
        assert_ne!(batch, train_batch(&tokens, &config, 3, 2));
        assert_ne!(batch, train_batch(&tokens, &LoopConfig { seed: 1, ..config }, 3, 1));
    }

    #[test]
    fn random_sequences_reach_both_ends_of_the_text() {
        let tokens = positions(12);
        let batches = (0..200).map(|step| train_batch(&tokens, &config(2, 8), step, 0));
        let seen: std::collections::BTreeSet<u32> = batches.flat_map(|b| [b.inputs[0], b.inputs[8]]).collect();
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [0, 1, 2, 3]);
    }

    #[test]
    fn a_text_of_one_sequence_has_one_place() {
        let batch = train_batch(&positions(9), &config(1, 8), 0, 0);
        assert_eq!(batch.targets, (1..9).collect::<Vec<_>>());
    }

    #[test]
    #[should_panic(expected = "8 tokens hold no sequence of 8")]
    fn a_text_without_a_sequence_panics() {
        train_batch(&positions(8), &config(1, 8), 0, 0);
    }

    #[test]
    fn validation_on_everything_covers_the_text_once() {
        for len in [5, 9, 31, 32, 33, 34] {
            let inputs: Vec<u32> = valid_batches(&positions(len), &config(3, 4), None).flat_map(|b| b.inputs).collect();
            assert_eq!(inputs, (0..(len - 1) / 4 * 4).collect::<Vec<_>>(), "length {len}");
        }
    }

    #[test]
    fn a_part_of_the_text_is_spread_over_all_of_it() {
        let starts: Vec<u32> =
            valid_batches(&positions(401), &config(2, 4), Some(2)).flat_map(|b| [b.inputs[0], b.inputs[4]]).collect();
        assert_eq!(starts, [0, 100, 200, 300]);
    }

    #[test]
    fn more_batches_than_the_text_has_are_all_it_has() {
        let tokens = positions(41);
        let all: Vec<Batch> = valid_batches(&tokens, &config(3, 4), None).collect();
        assert_eq!(valid_batches(&tokens, &config(3, 4), Some(99)).collect::<Vec<_>>(), all);
        assert_eq!(all.iter().map(|b| b.batch_size).collect::<Vec<_>>(), [3, 3, 3, 1]);
    }

    #[test]
    fn tensors_have_the_rows_of_the_batch() {
        let batch =
            Batch { inputs: vec![1, 2, 3, 4, 5, 6], targets: vec![2, 3, 4, 5, 6, 7], batch_size: 2, seq_len: 3 };
        let (inputs, targets) = batch.to_tensors::<Plain>(&Default::default());
        assert_eq!((inputs.dims(), targets.dims()), ([2, 3], [2, 3]));
        assert_eq!(targets.into_data().iter::<u32>().collect::<Vec<_>>(), batch.targets);
    }
}
