//! How well a linear model does on the pixels: what an accuracy is worth.

use burn::module::AutodiffModule;
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::{Initializer, Linear, LinearConfig};
use burn::optim::{AdamConfig, GradientsParams, Optimizer};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{ElementConversion, Int, Tensor};

use super::batch::spread;
use super::{ImageBatch, ImageData, ImageOrder};

const PASSES: usize = 5;
const BATCH: usize = 128;
const RATE: f64 = 1e-3;
/// Numbers that all passes together read at most, so that large images take seconds, not hours.
const BUDGET: usize = 1 << 30;

/// Accuracy on the held-out images of logistic regression: every class one linear function of the pixels, trained by Adam for five
/// passes over the training images (of very large sets, over a part).
pub fn linear_accuracy<B: AutodiffBackend>(data: &ImageData, device: &B::Device) -> f64 {
    let numbers = data.train.numbers();
    let config = LinearConfig::new(numbers, data.classes.len()).with_initializer(Initializer::Zeros);
    let (mut model, mut optim) = (config.init::<B>(device), AdamConfig::new().init());
    let criterion = CrossEntropyLossConfig::new().init(device);
    let order = ImageOrder::new(0, data.train.len());
    let images = (PASSES * data.train.len()).min(BUDGET / numbers).max(BATCH);
    for first in (0..images).step_by(BATCH) {
        let batch = ImageBatch::plain(&data.train, &data.standard, &order.take(first, BATCH));
        let (scores, labels) = scores(&model, &batch, device);
        let gradients = criterion.forward(scores, labels).backward();
        model = optim.step(RATE, model.clone(), GradientsParams::from_grads(gradients, &model));
    }
    let model = model.valid();
    let right = spread(data.valid.len(), BATCH, None).map(|indices| {
        let batch = ImageBatch::plain(&data.valid, &data.standard, &indices);
        let (scores, labels) = scores(&model, &batch, device);
        number_right(scores, labels)
    });
    right.sum::<u64>() as f64 / data.valid.len() as f64
}

/// `[B, classes]` and `[B]`.
fn scores<B: Backend>(model: &Linear<B>, batch: &ImageBatch, device: &B::Device) -> (Tensor<B, 2>, Tensor<B, 1, Int>) {
    let (images, labels) = batch.to_tensors::<B>(device);
    (model.forward(images.flatten(1, 3)), labels)
}

/// Rows of scores `[B, classes]` whose largest is that of their label.
pub(super) fn number_right<B: Backend>(scores: Tensor<B, 2>, labels: Tensor<B, 1, Int>) -> u64 {
    let [rows, _] = scores.dims();
    let found = scores.argmax(1).reshape([rows]);
    found.equal(labels).int().sum().into_scalar().elem::<i64>() as u64
}

#[cfg(test)]
mod tests {
    use burn::backend::{Autodiff, Flex};

    use super::*;
    use crate::images::{ImageSet, ImageSource};

    /// Images of four pixels that are bright where their label says, or not.
    fn data(tells: bool) -> ImageData {
        let mut train = ImageSet::new(1, 2);
        for index in 0..200 {
            let label = index % 4;
            let pixel = |at: usize| if tells && at == label { 200 } else { (index * 37 + at * 11) as u8 % 100 };
            train.push((0..4).map(pixel), label as u32);
        }
        let classes = (0..4).map(|class| class.to_string()).collect();
        ImageData { standard: train.standard(), valid: train.clone(), train, classes, description: String::new() }
    }

    #[test]
    fn what_is_linear_is_found_and_where_nothing_is_there_is_little() {
        let of = |tells| linear_accuracy::<Autodiff<Flex>>(&data(tells), &Default::default());
        assert!(of(true) > 0.9 && of(false) < 0.6, "{} {}", of(true), of(false));
    }
    /// Chance is a tenth. Recorded: 15.65 %.
    #[test]
    fn of_the_drawn_shapes_a_linear_model_learns_little() {
        let shapes = ImageSource::Shapes.load(0.1, 3, 24).expect("drawn");
        let accuracy = linear_accuracy::<Autodiff<Flex>>(&shapes, &Default::default());
        assert!((0.05..0.2).contains(&accuracy), "{accuracy}");
    }
}
