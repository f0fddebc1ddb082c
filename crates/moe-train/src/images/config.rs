//! Everything that makes one run of a vision model what it is.

use std::path::PathBuf;

use moe_layers::Activation;
use moe_models::lm::{LmMoeConfig, MoeLayers};
use moe_models::vit::VitConfig;
use serde::{Deserialize, Serialize};

use super::{ImageData, ImageError, ImageSource, shapes};
use crate::config::{ConfigError, OptimConfig, ensure, ensure_counts};
use crate::overrides::Overrides;
use crate::parallel;
use crate::presets::{adamw, shorten_warmup};
use crate::run::Subject;

/// Everything about one training run of a vision model.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct VitTrainConfig {
    /// The model. Image size, channels and number of classes follow from the images unless they are set.
    pub model: VitConfig,
    /// The images.
    pub data: ImageConfig,
    /// The optimizer and its learning rate.
    pub optim: OptimConfig,
    /// The training loop.
    pub train: ImageLoopConfig,
}

/// Where the images come from and what is done to them.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct ImageConfig {
    /// A directory of images, see [`ImageSource`](super::ImageSource); `None` draws shapes.
    pub path: Option<PathBuf>,
    /// Held-out images, where they are elsewhere.
    pub valid_path: Option<PathBuf>,
    /// Part of every class that is held out where a source has no held-out part of its own, in (0, 1).
    pub valid_fraction: f64,
    /// Whether training images are mirrored, every other time. Default: yes, except those of IDX files.
    pub flip: bool,
    /// Pixels that training images are moved by at most, in both directions; 0 leaves them where they are.
    pub crop_padding: usize,
}

impl Default for ImageConfig {
    fn default() -> Self {
        Self { path: None, valid_path: None, valid_fraction: 0.1, flip: true, crop_padding: 2 }
    }
}

/// The training loop: how much, in which portions, and what is recorded when.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct ImageLoopConfig {
    /// Optimizer steps of the whole run.
    pub steps: usize,
    /// Images per micro-batch.
    pub batch_size: usize,
    /// Micro-batches per optimizer step.
    pub grad_accumulation: usize,
    /// Seed of the weights, of the order of the images and of their augmentation.
    pub seed: u64,
    /// Steps between two lines of the metrics.
    pub log_every: usize,
    /// Steps between two validations; the last step always validates.
    pub valid_every: usize,
    /// Batches per validation, spread evenly over the held-out images (all of them if they are fewer).
    pub valid_batches: usize,
    /// Steps between two checkpoints; the last step always writes one.
    pub checkpoint_every: usize,
    /// Newest checkpoints that are kept, beside the best one.
    pub keep_last: usize,
}

impl ImageLoopConfig {
    /// Images of one optimizer step.
    pub fn images_per_step(&self) -> usize {
        self.batch_size * self.grad_accumulation
    }
}

/// Names of the presets of vision models.
const PRESETS: [&str; 2] = ["tiny", "small"];

impl VitTrainConfig {
    /// Whether so many ranks can train this together.
    ///
    /// # Errors
    ///
    /// As [`parallel::check`].
    pub fn check_ranks(&self, num_ranks: usize) -> Result<(), ConfigError> {
        let routed = self.model.moe_layers != MoeLayers::None && self.model.soft_slots == 0;
        parallel::check(routed.then_some(&self.model.moe), self.train.batch_size, num_ranks)
    }

    /// The settings of a preset: `tiny`, minutes on two cores, or `small`, of the size for CIFAR-10 on a GPU.
    ///
    /// # Errors
    ///
    /// [`ConfigError::UnknownPreset`] with the names there are.
    pub fn preset(name: &str) -> Result<Self, ConfigError> {
        match name {
            "tiny" => Ok(tiny()),
            "small" => Ok(small()),
            other => Err(ConfigError::UnknownPreset { name: other.into(), known: PRESETS.join(", ") }),
        }
    }

    /// The settings of a preset with changes on top, not yet checked for contradictions; as
    /// [`TrainConfig::resolve`](crate::config::TrainConfig::resolve).
    ///
    /// # Errors
    ///
    /// An unknown preset or key, or a value that does not fit, each naming it.
    pub fn resolve(preset: &str, overrides: &Overrides) -> Result<Self, ConfigError> {
        let mut config = overrides.apply(&Self::preset(preset)?)?;
        shorten_warmup(&mut config.optim, config.train.steps, overrides);
        Ok(config)
    }

    /// Mirrors no images whose class that may change, unless `overrides` say so.
    pub(crate) fn fit_source(&mut self, source: &ImageSource, overrides: &Overrides) {
        if !overrides.names("data.flip") {
            self.data.flip &= source.can_be_mirrored();
        }
    }

    /// Sets what follows from the images and is not among `overrides`.
    ///
    /// # Errors
    ///
    /// A setting that the images contradict.
    pub(crate) fn fit(&mut self, data: &ImageData, overrides: &Overrides) -> Result<(), ImageError> {
        let (model, images) = (&mut self.model, &data.train);
        let facts = [
            ("image_size", &mut model.image_size, images.size()),
            ("channels", &mut model.channels, images.channels()),
            ("num_classes", &mut model.num_classes, data.classes.len()),
        ];
        for (field, setting, fact) in facts {
            if !overrides.names(&format!("model.{field}")) {
                *setting = fact;
            }
        }
        self.check_fit(data)
    }

    /// # Errors
    ///
    /// Images of another shape than the model's, more classes than it has.
    pub(crate) fn check_fit(&self, data: &ImageData) -> Result<(), ImageError> {
        let (model, images) = (&self.model, &data.train);
        let refused = |field, model, images| Err(ImageError::Shape { field, model, images });
        match (images.size(), images.channels(), data.classes.len()) {
            (size, ..) if size != model.image_size => refused("image_size", model.image_size, size),
            (_, channels, _) if channels != model.channels => refused("channels", model.channels, channels),
            (.., classes) if classes > model.num_classes => refused("num_classes", model.num_classes, classes),
            _ => Ok(()),
        }
    }

    /// What is counted and how it is judged.
    pub fn subject(&self) -> Subject {
        Subject::Images { tokens: self.model.num_tokens() }
    }

    /// Finds contradictions before anything is built.
    ///
    /// # Errors
    ///
    /// The first contradiction, in words that say which setting to change.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.model.validate()?;
        self.data.validate(self.model.image_size)?;
        self.optim.validate()?;
        self.train.validate()?;
        ensure(self.optim.excitation.is_none() || self.has_routed_experts(), || {
            "optim.excitation needs routed experts, and the model has none".to_string()
        })?;
        self.optim.validate_warmup(self.train.steps)
    }

    fn has_routed_experts(&self) -> bool {
        self.model.moe_layers != MoeLayers::None && self.model.soft_slots == 0
    }
}

impl ImageConfig {
    fn validate(&self, image_size: usize) -> Result<(), ConfigError> {
        let fraction = self.valid_fraction;
        ensure(fraction > 0.0 && fraction < 1.0, || {
            format!("data.valid_fraction {fraction} must lie between 0 and 1")
        })?;
        let padding = self.crop_padding;
        ensure(padding < image_size, || {
            format!("data.crop_padding {padding} moves images of {image_size} out of sight: lower it")
        })?;
        ensure(self.valid_path.is_none() || self.path.is_some(), || {
            "data.valid_path needs data.path: pass --data as well".to_string()
        })
    }
}

impl ImageLoopConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        ensure_counts(&[
            ("train.steps", self.steps),
            ("train.batch_size", self.batch_size),
            ("train.grad_accumulation", self.grad_accumulation),
            ("train.log_every", self.log_every),
            ("train.valid_every", self.valid_every),
            ("train.valid_batches", self.valid_batches),
            ("train.checkpoint_every", self.checkpoint_every),
            ("train.keep_last", self.keep_last),
        ])
    }
}

/// The shapes in 36 patches; 8 experts, two for a token, in every second of four blocks.
fn tiny() -> VitTrainConfig {
    let experts = LmMoeConfig::new(8, 2, 128).with_activation(Activation::Gelu);
    let model = VitConfig::new(shapes::SIZE, 4, shapes::CLASSES.len(), 64, 4, 4, 256).with_moe(experts);
    VitTrainConfig {
        model,
        data: ImageConfig::default(),
        optim: OptimConfig { beta2: 0.99, ..adamw(2e-3, 100) },
        train: ImageLoopConfig {
            steps: 1500,
            batch_size: 64,
            grad_accumulation: 1,
            seed: 0,
            log_every: 10,
            valid_every: 200,
            valid_batches: 16,
            checkpoint_every: 200,
            keep_last: 2,
        },
    }
}

/// 64 patches of CIFAR-10's images; 32 small experts, four for a token, in the last two of six blocks, as V-MoE places them.
fn small() -> VitTrainConfig {
    let experts = LmMoeConfig::new(32, 4, 192).with_activation(Activation::Gelu);
    let model = VitConfig::new(32, 4, 10, 192, 6, 3, 768).with_moe(experts).with_moe_layers(MoeLayers::Last(2));
    let tiny = tiny();
    VitTrainConfig {
        model,
        data: ImageConfig { crop_padding: 4, ..tiny.data },
        optim: adamw(1e-3, 500),
        train: ImageLoopConfig {
            steps: 20_000,
            batch_size: 128,
            valid_every: 1000,
            valid_batches: 40,
            checkpoint_every: 1000,
            log_every: 50,
            ..tiny.train
        },
    }
}

#[cfg(test)]
mod tests {
    use excitation_optim::Variant;

    use super::*;
    use crate::images::{ImageSet, Standard};

    fn refusal(change: impl FnOnce(&mut VitTrainConfig)) -> String {
        let mut config = VitTrainConfig::preset("tiny").expect("a preset");
        change(&mut config);
        config.validate().expect_err("a contradiction").to_string()
    }

    fn resolved(assignments: &[&str]) -> VitTrainConfig {
        VitTrainConfig::resolve("tiny", &overrides(assignments)).expect("settings that exist")
    }

    fn overrides(assignments: &[&str]) -> Overrides {
        let mut overrides = Overrides::default();
        assignments.iter().for_each(|text| overrides.add_assignment(text).expect("an assignment"));
        overrides
    }

    #[test]
    fn every_preset_is_free_of_contradictions_and_survives_json() {
        for name in PRESETS {
            let config = VitTrainConfig::preset(name).expect("a preset");
            config.validate().unwrap_or_else(|error| panic!("{name}: {error}"));
            let text = serde_json::to_string(&config).expect("plain data");
            assert_eq!(serde_json::from_str::<VitTrainConfig>(&text).expect("its own text"), config);
        }
        assert!(VitTrainConfig::preset("huge").expect_err("no preset").to_string().contains("tiny, small"));
    }

    #[test]
    fn settings_are_changed_by_name() {
        let config =
            resolved(&["moe.router=expert-choice", "model.pooling=class-token", "train.steps=20", "data.flip=false"]);
        assert_eq!(config.model.moe.router, moe_models::lm::RouterKind::ExpertChoice);
        assert_eq!((config.model.num_tokens(), config.optim.warmup_steps, config.data.flip), (37, 2, false));
        let error = VitTrainConfig::resolve("tiny", &overrides(&["train.seq_len=8"])).expect_err("images have none");
        assert!(error.to_string().contains("unknown key `train.seq_len`"), "{error}");
    }

    #[test]
    fn digits_are_mirrored_only_when_asked_for() {
        let flip = |source: ImageSource, assignments: &[&str]| {
            let mut config = resolved(assignments);
            config.fit_source(&source, &overrides(assignments));
            config.data.flip
        };
        let digits = || ImageSource::Idx("digits".into());
        assert!(
            !flip(digits(), &[]) && !flip(digits(), &["data.crop_padding=1"]) && flip(digits(), &["data.flip=true"])
        );
        assert!(!flip(ImageSource::Shapes, &["data.flip=false"]));
        let folders = ImageSource::Folders { train: "train".into(), valid: None };
        assert!([ImageSource::Shapes, ImageSource::Cifar("cifar".into()), folders].into_iter().all(|s| flip(s, &[])));
    }

    #[test]
    fn contradictions_are_found() {
        assert!(refusal(|c| c.model.patch_size = 5).contains("patch_size"));
        assert!(refusal(|c| c.data.crop_padding = 24).contains("crop_padding"));
        assert!(refusal(|c| c.train.batch_size = 0).contains("train.batch_size"));
        assert!(refusal(|c| c.optim.warmup_steps = 5000).contains("warmup_steps"));
        let excited_soft = |c: &mut VitTrainConfig| {
            (c.model.soft_slots, c.optim.excitation) = (1, Some(Variant::ZeroSum));
        };
        assert!(refusal(excited_soft).contains("routed experts"));
    }

    fn data(channels: usize, size: usize, classes: usize) -> ImageData {
        let mut train = ImageSet::new(channels, size);
        train.push(vec![0; channels * size * size], 0);
        let classes = (0..classes).map(|class| class.to_string()).collect();
        let standard = Standard { mean: vec![0.0; channels], std: vec![1.0; channels] };
        ImageData { valid: train.clone(), train, classes, standard, description: String::new() }
    }

    #[test]
    fn a_model_follows_its_images_unless_it_was_set() {
        let digits = data(1, 28, 3);
        let fitted = |assignments: &[&str]| {
            let mut config = resolved(assignments);
            config.fit(&digits, &overrides(assignments)).map(|()| config.model)
        };
        let model = fitted(&[]).expect("nothing contradicts");
        assert_eq!((model.image_size, model.channels, model.num_classes), (28, 1, 3));
        assert_eq!(fitted(&["model.num_classes=9"]).expect("more than there are").num_classes, 9);
        let refused = fitted(&["model.channels=3"]).expect_err("another number").to_string();
        assert!(refused.contains("model.channels is 3, and the images have 1"), "{refused}");
        assert!(fitted(&["model.num_classes=2"]).is_err() && fitted(&["model.image_size=24"]).is_err());
    }
}
