//! Keys and values of the tokens seen so far.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

/// What [`Lm::forward_cached`](super::Lm::forward_cached) remembers, so that a new token costs one token's work.
///
/// Room for all positions is taken at the first use: `2 * num_layers * B * capacity * C * A` numbers in the activations'
/// dtype. Made by [`Lm::new_cache`](super::Lm::new_cache) with a capacity of `max_seq_len`.
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

    /// An empty cache like this one with room for `capacity` positions, or for as many as this one where that is less.
    pub fn with_capacity(self, capacity: usize) -> Self {
        Self::new(self.layers.len(), capacity.min(self.capacity))
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
        assert!(end <= self.capacity, "{end} positions are more than the cache has room for, {}", self.capacity);
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

#[cfg(test)]
mod tests {
    use burn::backend::Flex;

    use super::*;
    use crate::lm::LmConfig;

    type Cache = KvCache<Flex>;

    fn pair(len: usize) -> [Tensor<Flex, 4>; 2] {
        [0, 1].map(|_| Tensor::ones([2, len, 3, 4], &Default::default()))
    }

    #[test]
    fn memory_is_taken_for_the_capacity_only() {
        let mut cache = Cache::new(1, 1000).with_capacity(7);
        assert_eq!(cache.capacity(), 7);
        cache.layers[0].extend(0, pair(5));
        let [keys, values] = cache.layers[0].entries.clone().expect("it was used");
        assert_eq!((keys.dims(), values.dims()), ([2, 7, 3, 4], [2, 7, 3, 4]));
    }

    #[test]
    fn a_capacity_beyond_the_context_is_that_of_the_context() {
        assert_eq!(Cache::new(1, 8).with_capacity(9).capacity(), 8);
    }

    #[test]
    #[should_panic(expected = "8 positions are more than the cache has room for, 7")]
    fn more_than_the_capacity_panics() {
        let device = Default::default();
        let model = LmConfig::new(5, 8, 2, 2, 4, 32).init::<Flex>(&device);
        let mut cache = model.new_cache().with_capacity(7);
        model.forward_cached(Tensor::zeros([1, 5], &device), &mut cache);
        model.forward_cached(Tensor::zeros([1, 3], &device), &mut cache);
    }
}
