//! Batches of images, augmented where they are to be learnt from.

use std::sync::{Mutex, PoisonError};

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{ImageConfig, ImageData, ImageSet, Standard};
use crate::data::rows_of_part;

/// Images on the host, as numbers of mean 0 and deviation 1.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageBatch {
    /// `[B, C, height, width]`.
    pub values: Vec<f32>,
    /// `[B]`.
    pub labels: Vec<u32>,
    /// `[B, C, height, width]`.
    pub shape: [usize; 4],
}

/// A part of an image set by a crop of an enlarged image, and its mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct View {
    down: isize,
    right: isize,
    mirrored: bool,
}

/// The image as it is.
const PLAIN: View = View { down: 0, right: 0, mirrored: false };

impl ImageBatch {
    /// Images as they are.
    pub fn plain(set: &ImageSet, standard: &Standard, indices: &[usize]) -> Self {
        Self::cut(set, standard, indices, |_| PLAIN)
    }

    /// Training images, mirrored and moved at random as `config` says. What a move uncovers has the mean colour, 0.
    ///
    /// A pure function: seed, step and micro-batch, the `key`, are all that its random numbers depend on.
    pub fn augmented(data: &ImageData, indices: &[usize], config: &ImageConfig, key: (u64, usize, usize)) -> Self {
        let mut random = ChaCha8Rng::from_seed(seed_of([key.0, key.1 as u64, key.2 as u64], *b"augment\0"));
        let padding = config.crop_padding as i64;
        Self::cut(&data.train, &data.standard, indices, |_| View {
            down: random.random_range(-padding..=padding) as isize,
            right: random.random_range(-padding..=padding) as isize,
            mirrored: config.flip && random.random(),
        })
    }

    fn cut(set: &ImageSet, standard: &Standard, indices: &[usize], mut view: impl FnMut(usize) -> View) -> Self {
        let (channels, size) = (set.channels(), set.size());
        let mut values = Vec::with_capacity(indices.len() * set.numbers());
        for &index in indices {
            let (pixels, view) = (set.pixels(index), view(index));
            for (channel, plane) in pixels.chunks_exact(size * size).enumerate() {
                let number = |at: usize| {
                    let byte = view.pixel(plane, size, at / size, at % size);
                    byte.map_or(0.0, |byte| standard.number(channel, byte))
                };
                values.extend((0..size * size).map(number));
            }
        }
        let labels = indices.iter().map(|&index| set.label(index)).collect();
        Self { values, labels, shape: [indices.len(), channels, size, size] }
    }

    /// The `part`-th of `parts` equal parts of the images.
    ///
    /// # Panics
    ///
    /// Panics when there is no such part, or the images cannot be split so.
    pub fn part(&self, part: usize, parts: usize) -> Self {
        let [count, channels, height, width] = self.shape;
        let rows = rows_of_part(count, part, parts);
        let numbers = channels * height * width;
        Self {
            values: self.values[rows.start * numbers..rows.end * numbers].to_vec(),
            labels: self.labels[rows.clone()].to_vec(),
            shape: [rows.len(), channels, height, width],
        }
    }

    /// Number of images, `B`.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Images `[B, C, height, width]` and labels `[B]` on a device.
    pub fn to_tensors<B: Backend>(&self, device: &B::Device) -> (Tensor<B, 4>, Tensor<B, 1, Int>) {
        let labels: Vec<i32> = self.labels.iter().map(|&label| label as i32).collect();
        let images = Tensor::from_data(TensorData::new(self.values.clone(), self.shape), device);
        (images, Tensor::from_data(TensorData::new(labels, [self.labels.len()]), device))
    }
}

impl View {
    /// What is at a place of the view, if the image reaches there.
    fn pixel(self, plane: &[u8], size: usize, row: usize, column: usize) -> Option<u8> {
        let column = if self.mirrored { size - 1 - column } else { column };
        let (row, column) = (row.checked_add_signed(self.down)?, column.checked_add_signed(self.right)?);
        (row < size && column < size).then(|| plane[row * size + column])
    }
}

/// The order of training images: pass after pass over all of them, each in an order of its own.
#[derive(Debug)]
pub struct ImageOrder {
    seed: u64,
    len: usize,
    /// The pass that was last asked for.
    pass: Mutex<Option<(usize, Vec<u32>)>>,
}

impl ImageOrder {
    /// # Panics
    ///
    /// Panics without an image.
    pub fn new(seed: u64, len: usize) -> Self {
        assert!(len > 0, "an order needs images");
        Self { seed, len, pass: Mutex::new(None) }
    }

    /// The images at places `first..first + count` of the endless order.
    pub fn take(&self, first: usize, count: usize) -> Vec<usize> {
        (first..first + count).map(|place| self.at(place)).collect()
    }

    fn at(&self, place: usize) -> usize {
        let mut cached = self.pass.lock().unwrap_or_else(PoisonError::into_inner);
        let pass = place / self.len;
        if cached.as_ref().is_none_or(|(at, _)| *at != pass) {
            *cached = Some((pass, self.shuffled(pass)));
        }
        let (_, order) = cached.as_ref().expect("it was just made");
        order[place % self.len] as usize
    }

    fn shuffled(&self, pass: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.len as u32).collect();
        order.shuffle(&mut ChaCha8Rng::from_seed(seed_of([self.seed, pass as u64, 0], *b"passes\0\0")));
        order
    }
}

/// 32 bytes of three numbers and of what they are for.
fn seed_of(numbers: [u64; 3], purpose: [u8; 8]) -> [u8; 32] {
    let mut seed = [0; 32];
    let parts = numbers.map(u64::to_le_bytes).into_iter().chain([purpose]);
    seed.chunks_exact_mut(8).zip(parts).for_each(|(place, part)| place.copy_from_slice(&part));
    seed
}

/// Batches of images spread evenly over a set of `len`, the same ones every time; `None`: all of it.
pub(super) fn spread(len: usize, batch_size: usize, batches: Option<usize>) -> impl Iterator<Item = Vec<usize>> {
    let wanted = batches.map_or(len, |batches| len.min(batches * batch_size));
    (0..wanted).step_by(batch_size).map(move |first| {
        let rows = first..wanted.min(first + batch_size);
        rows.map(|row| row * len / wanted).collect()
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use burn::backend::Flex;

    use super::*;

    /// One image of `size * size` different bytes.
    fn data(size: usize) -> ImageData {
        let mut train = ImageSet::new(1, size);
        train.push((0..size * size).map(|at| at as u8), 3);
        let standard = Standard { mean: vec![0.0], std: vec![1.0 / 255.0] };
        ImageData { valid: train.clone(), train, classes: Vec::new(), standard, description: String::new() }
    }

    fn bytes(batch: &ImageBatch) -> Vec<i32> {
        batch.values.iter().map(|value| value.round() as i32).collect()
    }

    #[test]
    fn views_are_moved_and_mirrored_images() {
        let plane: Vec<u8> = (1..=9).collect();
        let seen =
            |view: View| -> Vec<u8> { (0..9).map(|at| view.pixel(&plane, 3, at / 3, at % 3).unwrap_or(0)).collect() };
        assert_eq!(seen(PLAIN), plane);
        assert_eq!(seen(View { mirrored: true, ..PLAIN }), [3, 2, 1, 6, 5, 4, 9, 8, 7]);
        assert_eq!(seen(View { down: 1, right: -1, mirrored: false }), [0, 4, 5, 0, 7, 8, 0, 0, 0]);
        assert_eq!(seen(View { down: 0, right: 1, mirrored: true }), [0, 3, 2, 0, 6, 5, 0, 9, 8]);
    }

    #[test]
    fn augmentation_is_a_function_of_its_key_and_reaches_every_view() {
        let data = data(3);
        let config = ImageConfig { crop_padding: 1, flip: true, ..ImageConfig::default() };
        let batch = |step| ImageBatch::augmented(&data, &[0], &config, (7, step, 0));
        assert_eq!(batch(5), batch(5));
        let views: BTreeSet<_> = (0..600).map(|step| bytes(&batch(step))).collect();
        assert_eq!(views.len(), 3 * 3 * 2);
        let off = ImageConfig { crop_padding: 0, flip: false, ..config };
        let plain = ImageBatch::augmented(&data, &[0], &off, (7, 5, 0));
        assert_eq!(plain, ImageBatch::plain(&data.train, &data.standard, &[0]));
        assert_eq!(bytes(&plain), (0..9).collect::<Vec<_>>());
    }

    #[test]
    fn every_pass_has_every_image_once_in_an_order_of_its_own() {
        let order = ImageOrder::new(3, 10);
        let passes: Vec<Vec<usize>> = (0..3).map(|pass| order.take(10 * pass, 10)).collect();
        for pass in &passes {
            assert_eq!(pass.iter().copied().collect::<BTreeSet<_>>(), (0..10).collect());
        }
        assert!(passes[0] != passes[1] && passes[1] != passes[2]);
        // However it is cut, and from wherever it goes on.
        assert_eq!(ImageOrder::new(3, 10).take(7, 6), [&passes[0][7..], &passes[1][..3]].concat());
        assert_ne!(ImageOrder::new(4, 10).take(0, 10), passes[0]);
    }

    #[test]
    fn a_part_is_spread_over_the_whole() {
        let all = |len, size, batches| spread(len, size, batches).collect::<Vec<_>>();
        assert_eq!(all(5, 2, None), [vec![0, 1], vec![2, 3], vec![4]]);
        assert_eq!(all(100, 2, Some(2)), [[0, 25], [50, 75]]);
        assert_eq!(all(3, 2, Some(9)), all(3, 2, None));
    }

    #[test]
    fn tensors_have_the_shape_of_the_batch() {
        let data = data(2);
        let batch = ImageBatch::plain(&data.train, &data.standard, &[0, 0, 0]);
        let (images, labels) = batch.to_tensors::<Flex>(&Default::default());
        assert_eq!((images.dims(), labels.dims()), ([3, 1, 2, 2], [3]));
        assert_eq!(labels.into_data().iter::<u32>().collect::<Vec<_>>(), batch.labels);
    }

    #[test]
    #[should_panic(expected = "an order needs images")]
    fn an_order_of_no_images_panics() {
        ImageOrder::new(3, 0);
    }
}
