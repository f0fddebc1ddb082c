//! Keys and values of the tokens seen so far.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

/// What [`Lm::forward_cached`](super::Lm::forward_cached) remembers, so that a new token costs one token's work.
///
/// Room for all `max_seq_len` positions is taken at the first use: `2 * num_layers * B * max_seq_len * C * A` numbers
/// in the activations' dtype. Made by [`Lm::new_cache`](super::Lm::new_cache).
#[derive(Debug, Clone)]
pub struct KvCache<B: Backend> {
    pub(crate) layers: Vec<LayerCache<B>>,
    pub(crate) len: usize,
    capacity: usize,
}

/// Rotated keys and values of one layer, `[B, capacity, C, A]`; `None` before the first token.
#[derive(Debug, Clone)]
pub(crate) struct LayerCache<B: Backend> {
    entries: Option<[Tensor<B, 4>; 2]>,
    capacity: usize,
}

impl<B: Backend> KvCache<B> {
    pub(crate) fn new(num_layers: usize, capacity: usize) -> Self {
        let layer = LayerCache { entries: None, capacity };
        Self { layers: vec![layer; num_layers], len: 0, capacity }
    }

    /// Number of positions remembered.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no position is remembered.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of positions that can be remembered.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets all positions; keeps the memory.
    pub fn clear(&mut self) {
        self.len = 0;
    }
}

impl<B: Backend> LayerCache<B> {
    /// Writes `S` new positions from `start` on; returns positions `0..start + S`.
    ///
    /// # Shapes
    ///
    /// - keys, values: `[B, S, C, A]`
    /// - output: `[B, start + S, C, A]` each
    pub(crate) fn extend(&mut self, start: usize, new: [Tensor<B, 4>; 2]) -> [Tensor<B, 4>; 2] {
        let [batch, len, heads, width] = new[0].dims();
        let end = start + len;
        let shape = [batch, self.capacity, heads, width];
        let empty = || new.clone().map(|new| Tensor::zeros(shape, (&new.device(), new.dtype())));
        let [keys, values] = self.entries.take().unwrap_or_else(empty);
        assert_eq!(keys.dims(), shape, "the cache was filled by a batch of another size; use a new one");

        let [new_keys, new_values] = new;
        let region = [0..batch, start..end, 0..heads, 0..width];
        let entries = [keys.slice_assign(region.clone(), new_keys), values.slice_assign(region, new_values)];
        let seen = entries.clone().map(|entry| entry.slice([0..batch, 0..end, 0..heads, 0..width]));
        self.entries = Some(entries);
        seen
    }
}
