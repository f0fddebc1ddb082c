//! `moe-train train vit` and `eval` of its runs.

use std::path::Path;

use burn::module::Module;
use default_moe::optimizer::HasDefaultVectors;
use moe_models::lm::MoeLayers;
use moe_models::vit::{Vit, VitConfig};

use super::{
    eval::say_layers,
    nodes, say,
    train::{absolute, free_directory, grouped, overrides, resumed},
};
use crate::{
    backend::{self, Device, DeviceChoice, Plain, Training},
    cli::{EvalArgs, TrainArgs},
    config::Dtype,
    error::Error,
    images::{ImageData, ImageSource, VitTrainConfig, evaluate_images, linear_accuracy},
    optim::{Freeze, paths_in},
    parallel::NodeSeat,
    progress,
    report::write_report,
    run::{Checkpoints, ImageContext, Run, Which, read_context},
    trainer::{Summary, follow_vit, train_vit_on},
};

pub(super) fn train(args: &TrainArgs, seat: Option<&NodeSeat>) -> Result<(), Error> {
    if let Some(seat) = seat.filter(|seat| seat.rank > 0) {
        return follow(args, seat);
    }
    let job = match &args.resume {
        Some(dir) => Job::resume(dir, args)?,
        None => Job::new(args)?,
    };
    job.run(args, seat)
}

/// The part of a process that is not rank 0.
fn follow(args: &TrainArgs, seat: &NodeSeat) -> Result<(), Error> {
    let device = backend::open(args.device_choices()[0], Dtype::F32)?;
    let (config, data, checkpoints) = match nodes::checkpoints(args)? {
        Some((checkpoints, config)) => {
            let dir = args.resume.as_deref().expect("it is resumed");
            let (config, _) = resumed::<VitTrainConfig>(config, dir, args)?;
            let data = load(&config)?;
            (config, data, Some(checkpoints))
        }
        None => {
            let (config, data) = settings(args)?;
            (config, data, None)
        }
    };
    nodes::announce(seat)?;
    Ok(follow_vit::<Training>(&config, &data, checkpoints.as_ref(), &device, seat)?)
}

/// The settings of a new run, free of contradictions, and its images.
fn settings(args: &TrainArgs) -> Result<(VitTrainConfig, ImageData), Error> {
    refuse_text_options(args)?;
    let overrides = overrides(args)?;
    let mut config = VitTrainConfig::resolve(&args.preset, &overrides)?;
    absolute([&mut config.data.path, &mut config.data.valid_path])?;
    config.validate()?;
    config.fit_source(&ImageSource::find(&config.data)?, &overrides);
    let data = load(&config)?;
    config.fit(&data, &overrides)?;
    config.validate()?;
    Ok((config, data))
}

/// A run with everything it needs.
struct Job {
    config: VitTrainConfig,
    /// Of every rank; most things need only the first.
    devices: Vec<Device>,
    data: ImageData,
    context: ImageContext,
    run: Run,
}

impl Job {
    /// Checks settings, device and images before a directory is made.
    fn new(args: &TrainArgs) -> Result<Self, Error> {
        let devices = backend::open_all(args.device_choices(), Dtype::F32)?;
        let (config, data) = settings(args)?;
        config.check_ranks(args.num_ranks())?;
        check_freeze(&config, &devices[0])?;
        let context = ImageContext::new(&data, linear_accuracy::<Training>(&data, &devices[0]));
        let preset = format!("vit-{}", args.preset);
        let dir = args.out.clone().unwrap_or_else(|| free_directory(&preset, config.train.seed));
        let run = Run::create(&dir, &config)?;
        run.write_context(&context)?;
        let job = Self { config, devices, data, context, run };
        job.announce(args.device_choices())?;
        Ok(job)
    }

    fn resume(dir: &Path, args: &TrainArgs) -> Result<Self, Error> {
        let (mut run, config) = Run::open(dir)?;
        let (config, longer) = resumed::<VitTrainConfig>(config, dir, args)?;
        let devices = backend::open_all(args.device_choices(), Dtype::F32)?;
        config.check_ranks(args.num_ranks())?;
        let data = load(&config)?;
        config.check_fit(&data)?;
        let context = match image_context(dir, &config)? {
            Some(context) if context.images_crc32 == data.checksum() => context,
            Some(context) => return Err(Error::ChangedData { description: context.data }),
            None => {
                let context = ImageContext::new(&data, linear_accuracy::<Training>(&data, &devices[0]));
                run.write_context(&context)?;
                context
            }
        };
        if longer {
            run.update_config(&config)?;
        }
        let job = Self { config, devices, data, context, run };
        job.announce(args.device_choices())?;
        Ok(job)
    }

    fn run(mut self, args: &TrainArgs, seat: Option<&NodeSeat>) -> Result<(), Error> {
        let summary = self.train(args, seat)?;
        let dir = self.run.dir().to_path_buf();
        if summary.interrupted {
            say(format!("stopped early; go on with: train --resume {}", dir.display()))?;
        } else {
            self.measure_classes()?;
        }
        let report = write_report(&dir)?;
        say(format!("report: {}", report.display()))?;
        say(summary)
    }

    fn train(&mut self, args: &TrainArgs, seat: Option<&NodeSeat>) -> Result<Summary, Error> {
        let Self { config, data, run, devices, .. } = self;
        let _launched = seat.map(|seat| nodes::start(&args.ranks, seat)).transpose()?;
        let party = nodes::party(&args.ranks, seat, devices);
        let mut progress = progress::for_terminal(config.subject());
        Ok(train_vit_on::<Training>(config, data, run, progress.as_mut(), party)?)
    }

    /// Measures on all held-out images which classes the experts serve, for the report.
    fn measure_classes(&self) -> Result<(), Error> {
        let model = load_model(self.run.checkpoints(), &self.config.model, Which::Latest, &self.devices[0])?.0;
        let batch_size = self.config.train.batch_size;
        let result = evaluate_images(&model, &self.data.valid, &self.data.standard, batch_size, None, &self.devices[0]);
        self.run.write_class_loads(&result.class_loads)?;
        say(format!(
            "held out: {:.2} % of {} images right; a linear model on the pixels: {:.2} %",
            100.0 * result.accuracy,
            grouped(result.images),
            100.0 * self.context.linear_accuracy,
        ))
    }

    /// Says what is about to happen.
    fn announce(&self, devices: &[DeviceChoice]) -> Result<(), Error> {
        let (model, train) = (&self.config.model, &self.config.train);
        let parameters = model.init::<Plain>(&self.devices[0]).num_params() as u64;
        say(format!(
            "model   {} layers of width {}, {} tokens an image, {} parameters",
            model.num_layers,
            model.d_model,
            model.num_tokens(),
            grouped(parameters),
        ))?;
        if model.moe_layers != MoeLayers::None {
            say(format!("experts {}", experts(model)))?;
        }
        say(format!(
            "train   {} steps of {} images, f32 on {} (device {})",
            grouped(train.steps as u64),
            grouped(train.images_per_step() as u64),
            backend::NAME,
            backend::names(devices),
        ))?;
        say(format!("images  {}", self.context.data))?;
        let [train, valid] = [&self.data.train, &self.data.valid].map(|set| grouped(set.len() as u64));
        say(format!("        {train} to train on, {valid} held out, in {} classes", self.context.classes.len()))?;
        say(format!(
            "scale   held-out images: chance {:.2} %, a linear model on the pixels {:.2} %",
            100.0 / self.context.classes.len() as f64,
            100.0 * self.context.linear_accuracy,
        ))?;
        say(format!("run     {}", self.run.dir().display()))
    }
}

fn experts(model: &VitConfig) -> String {
    let (layers, moe) = (&model.moe_layers, &model.moe);
    let kind = match model.soft_slots {
        0 => format!("router {}", setting(moe.router)),
        slots => format!("{slots} slots each"),
    };
    format!("{} of width {} in layers {layers}, {kind}", moe.num_experts, moe.d_hidden)
}

/// A setting as it is written.
fn setting(value: impl serde::Serialize) -> String {
    let value = serde_json::to_value(value).expect("plain data");
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

fn load(config: &VitTrainConfig) -> Result<ImageData, Error> {
    let model = &config.model;
    let source = ImageSource::find(&config.data)?;
    Ok(source.load(config.data.valid_fraction, model.channels, model.image_size)?)
}

/// Finds out before the run has a directory whether what is frozen is there.
fn check_freeze(config: &VitTrainConfig, device: &Device) -> Result<(), Error> {
    if config.optim.freeze.is_empty() {
        return Ok(());
    }
    Ok(Freeze::new(&config.optim.freeze).check(&paths_in(&config.model.init::<Plain>(device)))?)
}

fn refuse_text_options(args: &TrainArgs) -> Result<(), Error> {
    let options = [
        (args.tokenizer.is_some(), "--tokenizer", "images have no tokenizer"),
        (args.init_from.is_some(), "--init-from", "it reads checkpoints of text models"),
        (args.dtype.is_some_and(|dtype| dtype != Dtype::F32), "--dtype", "vision models are trained in f32"),
    ];
    match options.into_iter().find(|(given, ..)| *given) {
        Some((_, option, reason)) => Err(Error::ForText { option, reason }),
        None => Ok(()),
    }
}

/// A trained model, without gradients.
fn load_model(
    checkpoints: &Checkpoints,
    config: &VitConfig,
    which: Which,
    device: &Device,
) -> Result<(Vit<Plain>, usize), Error> {
    let (model, state) = checkpoints.load_model(which, config.init::<Plain>(device), device)?;
    Ok((model, state.step))
}

/// How the images of the run in `dir` are read, if that was stored.
fn image_context(dir: &Path, config: &VitTrainConfig) -> Result<Option<ImageContext>, Error> {
    let context = read_context::<ImageContext>(dir)?;
    let (channels, fits) = (config.model.channels, |context: &ImageContext| {
        let standard = &context.standard;
        [standard.mean.len(), standard.std.len()] == [config.model.channels; 2]
    });
    match context.as_ref().is_none_or(fits) {
        true => Ok(context),
        false => Err(Error::OtherChannels { dir: dir.into(), channels }),
    }
}

/// `moe-train eval` of a vision model.
pub(super) fn eval(args: &EvalArgs, checkpoints: &Checkpoints, config: &VitTrainConfig) -> Result<(), Error> {
    let no_context = || Error::NoContext { dir: args.run.clone() };
    let context = image_context(&args.run, config)?.ok_or_else(no_context)?;
    let device = backend::open(args.device, Dtype::F32)?;
    let (mut model, step) = load_model(checkpoints, &config.model, args.checkpoint.into(), &device)?;
    if let Some(choice) = args.default_vectors {
        model.set_evaluation(choice.into());
    }
    let (channels, size) = (config.model.channels, config.model.image_size);
    let (set, description) = match &args.data {
        Some(path) => {
            let set = ImageSource::load_whole(path, &context.classes, channels, size)?;
            (set, path.display().to_string())
        }
        None => (load(config)?.valid, format!("held out of {}", context.data)),
    };
    say(format!("images {description}"))?;
    let batches = args.batches.map(|batches| batches as usize);
    let result = evaluate_images(&model, &set, &context.standard, config.train.batch_size, batches, &device);
    say_layers(&result.layers)?;
    say(format!("eval: step={step} images={} loss={:.4} accuracy={:.4}", result.images, result.loss, result.accuracy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_for_text_are_refused_by_name() {
        let refused = |args: TrainArgs| refuse_text_options(&args).expect_err("it is for text").to_string();
        assert!(refused(TrainArgs { tokenizer: Some("t".into()), ..TrainArgs::default() }).starts_with("--tokenizer"));
        assert!(refused(TrainArgs { init_from: Some("d".into()), ..TrainArgs::default() }).starts_with("--init-from"));
        assert!(refused(TrainArgs { dtype: Some(Dtype::Bf16), ..TrainArgs::default() }).starts_with("--dtype"));
        assert!(refuse_text_options(&TrainArgs { dtype: Some(Dtype::F32), ..TrainArgs::default() }).is_ok());
    }
}
