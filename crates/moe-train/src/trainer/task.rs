//! What a run trains on and how it is judged, apart from the loop that is the same for all.

use moe_kernels::AutodiffMoeBackend;

use crate::config::{LoopConfig, OptimConfig, TrainConfig};
use crate::data::{Batch, TextData, train_batch};
use crate::evaluate::evaluate;
use crate::images::{ImageBatch, ImageData, ImageOrder, VitTrainConfig, evaluate_images};
use crate::model::{Learns, Trainable};
use crate::run::Subject;

/// The settings of a loop.
pub(super) struct Course<'a> {
    pub(super) optim: &'a OptimConfig,
    pub(super) seed: u64,
    pub(super) pace: Pace,
}

/// How long a loop is and what happens when, in optimizer steps.
#[derive(Clone, Copy)]
pub(super) struct Pace {
    pub(super) steps: usize,
    pub(super) grad_accumulation: usize,
    /// Tokens of one step.
    pub(super) tokens: usize,
    pub(super) log_every: usize,
    pub(super) valid_every: usize,
    pub(super) checkpoint_every: usize,
}

/// What a validation measured.
pub(super) struct Validation {
    /// Mean cross-entropy, nats per token or per image.
    pub(super) loss: f64,
    /// Bits per byte of text, or the part of the images whose class was found.
    pub(super) score: f64,
}

/// A model's task: batches to learn from, and a part that is held out.
pub(super) trait Task<B: AutodiffMoeBackend, M: Trainable<B>>: Sync {
    fn course(&self) -> Course<'_>;

    /// What is counted and how it is judged.
    fn subject(&self) -> Subject;

    /// Settings and data in text, equal for ranks that train the same. Where they lie may differ from machine to machine.
    fn settings(&self) -> String;

    /// A micro-batch of a step; a pure function of both.
    fn batch(&self, step: usize, micro: usize) -> <M as Learns<B>>::Batch;

    fn validate(&self, model: &M::InnerModule, device: &B::Device) -> Validation;
}

/// To predict the next token of a text.
pub(super) struct TextTask<'a> {
    pub(super) config: &'a TrainConfig,
    pub(super) data: &'a TextData,
}

impl<B: AutodiffMoeBackend> Task<B, moe_models::lm::Lm<B>> for TextTask<'_> {
    fn course(&self) -> Course<'_> {
        Course { optim: &self.config.optim, seed: self.config.train.seed, pace: Pace::of_text(&self.config.train) }
    }

    fn subject(&self) -> Subject {
        Subject::Text
    }

    fn settings(&self) -> String {
        let mut train = self.config.train.clone();
        train.init_from = None;
        let data = self.data.checksum();
        serde_json::json!([self.config.model, self.config.optim, train, data]).to_string()
    }

    fn batch(&self, step: usize, micro: usize) -> Batch {
        train_batch(&self.data.train, &self.config.train, step, micro)
    }

    fn validate(&self, model: &moe_models::lm::Lm<B::InnerBackend>, device: &B::Device) -> Validation {
        let config = &self.config.train;
        let result = evaluate(model, &self.data.valid, config, Some(config.valid_batches), device);
        Validation { loss: result.loss, score: result.bpb }
    }
}

impl Pace {
    pub(super) fn of_text(train: &LoopConfig) -> Self {
        Self {
            steps: train.steps,
            grad_accumulation: train.grad_accumulation,
            tokens: train.tokens_per_step(),
            log_every: train.log_every,
            valid_every: train.valid_every,
            checkpoint_every: train.checkpoint_every,
        }
    }
}

/// To name the class of an image.
pub(super) struct ImageTask<'a> {
    config: &'a VitTrainConfig,
    data: &'a ImageData,
    order: ImageOrder,
}

impl<'a> ImageTask<'a> {
    pub(super) fn new(config: &'a VitTrainConfig, data: &'a ImageData) -> Self {
        Self { config, data, order: ImageOrder::new(config.train.seed, data.train.len()) }
    }
}

impl<B: AutodiffMoeBackend> Task<B, moe_models::vit::Vit<B>> for ImageTask<'_> {
    fn course(&self) -> Course<'_> {
        let train = &self.config.train;
        let pace = Pace {
            steps: train.steps,
            grad_accumulation: train.grad_accumulation,
            tokens: train.images_per_step() * self.config.model.num_tokens(),
            log_every: train.log_every,
            valid_every: train.valid_every,
            checkpoint_every: train.checkpoint_every,
        };
        Course { optim: &self.config.optim, seed: train.seed, pace }
    }

    fn subject(&self) -> Subject {
        self.config.subject()
    }

    fn settings(&self) -> String {
        let VitTrainConfig { model, data, optim, train } = self.config;
        let augmentation = (data.crop_padding, data.flip);
        serde_json::json!([model, optim, train, augmentation, self.data.checksum()]).to_string()
    }

    fn batch(&self, step: usize, micro: usize) -> ImageBatch {
        let train = &self.config.train;
        let first = (step * train.grad_accumulation + micro) * train.batch_size;
        let indices = self.order.take(first, train.batch_size);
        ImageBatch::augmented(self.data, &indices, &self.config.data, (train.seed, step, micro))
    }

    fn validate(&self, model: &moe_models::vit::Vit<B::InnerBackend>, device: &B::Device) -> Validation {
        let train = &self.config.train;
        let (set, standard) = (&self.data.valid, &self.data.standard);
        let result = evaluate_images(model, set, standard, train.batch_size, Some(train.valid_batches), device);
        Validation { loss: result.loss, score: result.accuracy }
    }
}
