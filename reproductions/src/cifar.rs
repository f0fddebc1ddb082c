//! CIFAR-10 in its official binary layout ([Krizhevsky, 2009](https://www.cs.toronto.edu/~kriz/cifar.html)).
//!
//! A record is a label and 3072 pixels, the red plane first. Pixels become `(x / 255 - mean) / std` with the mean and the
//! standard deviation of their colour over the training set \[D: the paper's preprocessing is not known\]. No augmentation.

use std::fs;
use std::path::Path;

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};

/// Numbers of a picture.
pub(crate) const PIXELS: usize = 3072;
pub(crate) const CLASSES: usize = 10;
const PLANE: usize = PIXELS / 3;
const RECORD: usize = PIXELS + 1;

/// Pictures with their labels.
pub(crate) struct Pictures {
    labels: Vec<u8>,
    pixels: Vec<u8>,
}

/// Mean and standard deviation of a colour.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Colour {
    mean: f32,
    std: f32,
}

/// The data set.
pub(crate) struct Cifar {
    pub(crate) train: Pictures,
    pub(crate) test: Pictures,
    pub(crate) colours: [Colour; 3],
}

impl Cifar {
    /// Reads `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`.
    ///
    /// # Errors
    ///
    /// A file that is missing or is no whole number of records with labels below 10.
    pub(crate) fn load(dir: &Path) -> Result<Self, String> {
        let mut train = Pictures { labels: Vec::new(), pixels: Vec::new() };
        for part in 1..=5 {
            train.read(&dir.join(format!("data_batch_{part}.bin")))?;
        }
        let mut test = Pictures { labels: Vec::new(), pixels: Vec::new() };
        test.read(&dir.join("test_batch.bin"))?;
        Ok(Self { colours: train.colours(), train, test })
    }
}

impl Pictures {
    pub(crate) fn len(&self) -> usize {
        self.labels.len()
    }

    fn read(&mut self, path: &Path) -> Result<(), String> {
        let hint = "--data needs the folder with CIFAR-10's data_batch_1.bin to 5 and test_batch.bin";
        let bytes = fs::read(path).map_err(|error| format!("cannot read {}: {error}; {hint}", path.display()))?;
        if bytes.is_empty() || !bytes.len().is_multiple_of(RECORD) {
            return Err(format!("{} is not a list of records of {RECORD} bytes; {hint}", path.display()));
        }
        for record in bytes.chunks_exact(RECORD) {
            if usize::from(record[0]) >= CLASSES {
                return Err(format!("{} has a label {}, there are {CLASSES} classes", path.display(), record[0]));
            }
            self.labels.push(record[0]);
            self.pixels.extend_from_slice(&record[1..]);
        }
        Ok(())
    }

    fn colours(&self) -> [Colour; 3] {
        [0, 1, 2].map(|colour| {
            let planes = self.pixels.chunks_exact(PIXELS).map(|picture| &picture[colour * PLANE..(colour + 1) * PLANE]);
            let values = planes.flatten().map(|&x| f64::from(x) / 255.0);
            let count = (self.len() * PLANE) as f64;
            let (sum, squares) = values.fold((0.0, 0.0), |(sum, squares), x| (sum + x, squares + x * x));
            let mean = sum / count;
            Colour { mean: mean as f32, std: (squares / count - mean * mean).max(f64::MIN_POSITIVE).sqrt() as f32 }
        })
    }

    /// The pictures at `indices` `[T, 3072]` and their labels `[T]`.
    pub(crate) fn batch<B: Backend>(
        &self,
        indices: &[usize],
        colours: &[Colour; 3],
        device: &B::Device,
    ) -> (Tensor<B, 2>, Tensor<B, 1, Int>) {
        let mut values = Vec::with_capacity(indices.len() * PIXELS);
        for &index in indices {
            let picture = &self.pixels[index * PIXELS..(index + 1) * PIXELS];
            for (plane, Colour { mean, std }) in picture.chunks_exact(PLANE).zip(colours) {
                values.extend(plane.iter().map(|&x| (f32::from(x) / 255.0 - mean) / std));
            }
        }
        let labels: Vec<i64> = indices.iter().map(|&index| self.labels[index].into()).collect();
        let pictures = Tensor::from_data(TensorData::new(values, [indices.len(), PIXELS]), device);
        (pictures, Tensor::from_data(labels.as_slice(), device))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use burn::backend::Flex;

    use super::*;

    /// A small data set in the official layout: brightness follows the label.
    pub(crate) fn write(dir: &Path, per_file: usize) {
        for (file, name) in [1, 2, 3, 4, 5].map(|i| format!("data_batch_{i}.bin")).iter().enumerate() {
            fs::write(dir.join(name), records(file, per_file)).expect("writable");
        }
        fs::write(dir.join("test_batch.bin"), records(9, per_file)).expect("writable");
    }

    fn records(file: usize, count: usize) -> Vec<u8> {
        let record = |i: usize| {
            let label = (i + file) % CLASSES;
            let pixel = move |p: usize| if p % CLASSES == label { 200 } else { ((i * 31 + p * 7 + file) % 97) as u8 };
            std::iter::once(label as u8).chain((0..PIXELS).map(pixel))
        };
        (0..count).flat_map(record).collect()
    }

    #[test]
    fn pictures_are_standardised_by_colour_over_the_training_set() {
        let dir = tempfile::tempdir().expect("a directory");
        write(dir.path(), 4);
        let cifar = Cifar::load(dir.path()).expect("it is whole");
        assert_eq!((cifar.train.len(), cifar.test.len()), (20, 4));
        let all: Vec<usize> = (0..20).collect();
        let (pictures, labels) = cifar.train.batch::<Flex>(&all, &cifar.colours, &Default::default());
        assert_eq!(labels.into_data().iter::<i64>().take(5).collect::<Vec<_>>(), [0, 1, 2, 3, 1]);
        for colour in 0..3 {
            let plane = pictures.clone().narrow(1, colour * PLANE, PLANE);
            assert!(plane.clone().mean().into_scalar().abs() < 1e-4);
            assert!((plane.square().mean().into_scalar() - 1.0).abs() < 1e-3);
        }
    }

    #[test]
    fn a_missing_or_torn_file_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let message = |dir: &Path| Cifar::load(dir).err().expect("it is not whole");
        assert!(message(dir.path()).contains("data_batch_1.bin"));
        write(dir.path(), 2);
        fs::write(dir.path().join("test_batch.bin"), [0; 100]).expect("writable");
        assert!(message(dir.path()).contains("test_batch.bin is not a list of records"));
    }
}
