//! Images of one size, in memory.

use burn::data::dataset::Dataset;
use serde::{Deserialize, Serialize};

/// Images of one square size with their labels, a byte per number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSet {
    channels: usize,
    size: usize,
    pixels: Vec<u8>,
    labels: Vec<u32>,
}

/// One image of an [`ImageSet`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// `[C, size, size]`, one channel after the other.
    pub pixels: Vec<u8>,
    /// Its class.
    pub label: u32,
}

/// Mean and standard deviation of every channel over a set: what makes numbers of mean 0 and deviation 1 of bytes.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Standard {
    /// Of bytes divided by 255.
    pub mean: Vec<f32>,
    /// Of the same; above 0.
    pub std: Vec<f32>,
}

impl ImageSet {
    /// An empty set for images `[channels, size, size]`.
    pub fn new(channels: usize, size: usize) -> Self {
        Self { channels, size, pixels: Vec::new(), labels: Vec::new() }
    }

    /// Adds an image.
    ///
    /// # Panics
    ///
    /// Panics when there are not `channels * size * size` pixels.
    pub fn push(&mut self, pixels: impl IntoIterator<Item = u8>, label: u32) {
        let before = self.pixels.len();
        self.pixels.extend(pixels);
        assert_eq!(self.pixels.len() - before, self.numbers(), "an image must have channels * size * size pixels");
        self.labels.push(label);
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Numbers of one image.
    pub fn numbers(&self) -> usize {
        self.channels * self.size * self.size
    }

    /// Channels of an image.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Height and width of an image.
    pub fn size(&self) -> usize {
        self.size
    }

    /// `[C, size, size]` of image `index`.
    pub fn pixels(&self, index: usize) -> &[u8] {
        &self.pixels[index * self.numbers()..(index + 1) * self.numbers()]
    }

    /// The class of image `index`.
    pub fn label(&self, index: usize) -> u32 {
        self.labels[index]
    }

    /// Mean and deviation of its channels; a channel that is the same everywhere counts as of deviation 1.
    pub fn standard(&self) -> Standard {
        let plane = self.size * self.size;
        let of_channel = |channel: usize| {
            let planes = self.pixels.chunks_exact(plane).skip(channel).step_by(self.channels);
            // Counts of bytes: exact, however many images there are.
            let mut counts = [0u64; 256];
            planes.flatten().for_each(|&byte| counts[usize::from(byte)] += 1);
            deviation(&counts)
        };
        let (mean, std) = (0..self.channels).map(of_channel).unzip();
        Standard { mean, std }
    }

    pub(super) fn hash(&self, hasher: &mut crc32fast::Hasher) {
        hasher.update(&self.pixels);
        self.labels.iter().for_each(|label| hasher.update(&label.to_le_bytes()));
    }
}

/// Mean and standard deviation of bytes over 255, of which there are so many.
fn deviation(counts: &[u64; 256]) -> (f32, f32) {
    let total = counts.iter().sum::<u64>().max(1) as f64;
    let values = || counts.iter().enumerate().map(|(byte, &count)| (byte as f64 / 255.0, count as f64));
    let mean = values().map(|(value, count)| value * count).sum::<f64>() / total;
    let variance = values().map(|(value, count)| (value - mean).powi(2) * count).sum::<f64>() / total;
    (mean as f32, if variance > 0.0 { variance.sqrt() as f32 } else { 1.0 })
}

impl Dataset<Image> for ImageSet {
    fn get(&self, index: usize) -> Option<Image> {
        (index < self.len()).then(|| Image { pixels: self.pixels(index).to_vec(), label: self.label(index) })
    }

    fn len(&self) -> usize {
        self.len()
    }
}

impl Standard {
    /// A byte of channel `channel` as a number of mean 0 and deviation 1.
    pub fn number(&self, channel: usize, byte: u8) -> f32 {
        (f32::from(byte) / 255.0 - self.mean[channel]) / self.std[channel]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_gives_back_what_was_pushed() {
        let mut set = ImageSet::new(2, 1);
        set.push([1, 2], 5);
        set.push([3, 4], 0);
        assert_eq!((set.len(), set.pixels(1), set.label(1)), (2, [3, 4].as_slice(), 0));
        assert_eq!(set.get(0), Some(Image { pixels: vec![1, 2], label: 5 }));
        assert_eq!(set.get(2), None);
    }

    #[test]
    #[should_panic(expected = "channels * size * size")]
    fn an_image_of_another_shape_panics() {
        ImageSet::new(3, 2).push([0; 11], 0);
    }

    #[test]
    fn every_channel_has_mean_zero_and_deviation_one() {
        let mut set = ImageSet::new(2, 2);
        set.push([0, 255, 255, 0, 7, 7, 7, 7], 0);
        set.push([255, 0, 0, 255, 7, 7, 7, 7], 1);
        let standard = set.standard();
        assert_eq!((standard.mean[0], standard.std[0], standard.std[1]), (0.5, 0.5, 1.0));
        assert_eq!((standard.number(0, 255), standard.number(0, 0)), (1.0, -1.0));
        assert!(standard.number(1, 7).abs() < 1e-6);
    }
}
