//! The command line.

use std::{convert::Infallible, path::PathBuf, str::FromStr};

use clap::{Args, Parser, Subcommand, ValueEnum};
use moe_models::checkpoint::WeightDtype;

use crate::{
    backend::{self, DeviceChoice},
    config::Dtype,
    error::Error,
};

/// Trains, evaluates and samples Mixture-of-Experts models.
#[derive(Parser, Debug)]
#[command(name = "moe-train", version, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// One command of the program.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Train a model; the last line on stdout sums the run up
    Train(Box<TrainArgs>),
    /// Measure a trained model on what was held out of its data, or on other data
    Eval(EvalArgs),
    /// Continue a prompt with a trained model
    Generate(GenerateArgs),
    /// Write a trained model as a Hugging Face checkpoint
    Export(ExportArgs),
    /// Write report.html of a run directory again
    Report(ReportArgs),
}

/// Kinds of model the program trains.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ModelKind {
    /// A decoder-only language model.
    #[default]
    Lm,
    /// A vision transformer that names the class of an image.
    Vit,
}

/// Which of a run's checkpoints.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CheckpointChoice {
    /// The one with the most steps.
    #[default]
    Latest,
    /// The one with the lowest validation loss.
    Best,
}

/// Which weights a prompt is continued with; in text `latest`, `best` or a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Weights {
    /// Those of a checkpoint of the run.
    OfRun(CheckpointChoice),
    /// Those in the directory of a Hugging Face checkpoint.
    HuggingFace(PathBuf),
}

impl FromStr for Weights {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match CheckpointChoice::from_str(text, false) {
            Ok(choice) => Self::OfRun(choice),
            Err(_) => Self::HuggingFace(text.into()),
        })
    }
}

/// What default vectors do in a measurement.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum EvaluationChoice {
    /// They stand in for experts, as they did in training.
    Frozen,
    /// Nothing: plain top-K.
    TopK,
}

/// Options of `moe-train train`.
#[derive(Args, Debug, Default)]
pub struct TrainArgs {
    /// What to train; without it, a language model, or what the resumed run trains
    #[arg(value_enum)]
    pub model: Option<ModelKind>,
    /// Settings to start from: tiny, small, nanogpt-dense, nanogpt-moe or a model preset (default-moe-8c1 and -32c4 are sizes, with plain top-K
    /// unless moe.router=default is set); of vit, tiny or small
    #[arg(long, value_name = "NAME", default_value = crate::presets::DEFAULT)]
    pub preset: String,
    /// TOML or JSON file with settings that replace those of the preset
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// One setting, e.g. optim.lr=3e-4 or moe.top_k=2; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Text to train on, or images: CIFAR-10's binary files, IDX files, or a folder for each class; without it, the Rust sources of the
    /// workspace's dependencies, or drawn shapes
    #[arg(long, value_name = "FILE|DIR")]
    pub data: Option<PathBuf>,
    /// Held-out text or images; without it, a part of the data
    #[arg(long, value_name = "FILE|DIR")]
    pub valid: Option<PathBuf>,
    /// A tokenizer.json of the tokenizers library; without it, bytes are tokens
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// A Hugging Face checkpoint to start from: its weights, its architecture and its tokenizer.json
    #[arg(long, value_name = "DIR")]
    pub init_from: Option<PathBuf>,
    /// Optimizer steps of the whole run
    #[arg(long, value_name = "N")]
    pub steps: Option<usize>,
    /// Seed of the weights and of the order of the data
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Directory of the run; without it, a new one under runs/
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Go on with this run; only --steps (upwards) and what says where to train may be given beside it
    #[arg(long, value_name = "DIR", conflicts_with_all = ["preset", "config", "set", "data", "valid", "tokenizer", "init_from", "seed", "out", "dtype"])]
    pub resume: Option<PathBuf>,
    /// Type of the activations; weights and the optimizer stay f32
    #[arg(long, value_enum)]
    pub dtype: Option<Dtype>,
    /// Device: default, cpu (a software adapter of wgpu) or the number of a GPU
    #[arg(long, value_name = "DEVICE", default_value = "default")]
    pub device: DeviceChoice,
    /// Devices to train on together, as 0,1: each takes an equal part of the rows of every batch. On a CPU their number is the number of threads
    /// that do so. With --launch or --nodes: the device of each process, in the order of the ranks
    #[arg(long, value_name = "DEVICE,..", value_delimiter = ',', conflicts_with = "device")]
    pub devices: Vec<DeviceChoice>,
    /// Several processes.
    #[command(flatten)]
    pub ranks: RankArgs,
}

/// Options of `moe-train train` for several processes that train together.
#[derive(Args, Clone, Debug, Default)]
pub struct RankArgs {
    /// Train in so many processes on this machine: starts the others, with the same options
    #[arg(long, value_name = "N", value_parser = ranks, conflicts_with = "node")]
    pub launch: Option<usize>,
    /// Which of --nodes processes this is, from 0; all are started with the same options but this one, and 0 alone writes the run
    #[arg(long, value_name = "R", requires_all = ["nodes", "coordinator"])]
    pub node: Option<usize>,
    /// How many processes train together
    #[arg(long, value_name = "N", value_parser = ranks, requires = "node")]
    pub nodes: Option<usize>,
    /// Where they meet: host and port of process 0
    #[arg(long, value_name = "HOST:PORT", requires = "node")]
    pub coordinator: Option<String>,
    /// Seconds without a word after which another rank counts as lost, process 0 after twice that; longer than a validation and a checkpoint take
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..))]
    pub rank_timeout: u32,
    /// Started by --launch: ends when its standard input does, which the process that started it holds open.
    #[arg(long, hide = true, requires = "node")]
    pub launched: bool,
}

impl RankArgs {
    /// Which of several processes this is.
    fn rank(&self) -> Option<usize> {
        self.node.or(self.launch.map(|_| 0))
    }
}

fn ranks(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 2..) => Ok(number),
        _ => Err("expected a number of processes, 2 or more".into()),
    }
}

impl TrainArgs {
    /// Where this process trains, the first one first. Of several processes it has one device; [`check_devices`](Self::check_devices) has seen to that.
    pub fn device_choices(&self) -> &[DeviceChoice] {
        match self.ranks.rank() {
            _ if self.devices.is_empty() => std::slice::from_ref(&self.device),
            Some(rank) => &self.devices[rank..=rank],
            None => &self.devices,
        }
    }

    /// How many ranks there will be.
    pub fn num_ranks(&self) -> usize {
        self.ranks.launch.or(self.ranks.nodes).unwrap_or_else(|| self.device_choices().len())
    }

    /// # Errors
    ///
    /// Of several processes, a list of devices that is not one for each.
    pub fn check_devices(&self) -> Result<(), Error> {
        let (num_ranks, devices) = (self.ranks.launch.or(self.ranks.nodes), self.devices.len());
        match num_ranks {
            Some(num_ranks) if devices > 0 && devices != num_ranks => Err(Error::DevicesOfRanks { num_ranks, devices }),
            Some(_) if devices > 0 && backend::is_cpu() => Err(Error::DevicesOfCpu),
            _ => Ok(()),
        }
    }
}

/// Options of `moe-train eval`.
#[derive(Args, Debug)]
pub struct EvalArgs {
    /// Directory of the run
    #[arg(long, value_name = "DIR")]
    pub run: PathBuf,
    /// Text or images to measure on, all of them (of a directory with a held-out part, that part); without it, what the run held out
    #[arg(long, value_name = "FILE|DIR")]
    pub data: Option<PathBuf>,
    /// Which checkpoint
    #[arg(long, value_enum, default_value_t)]
    pub checkpoint: CheckpointChoice,
    /// Batches to measure, spread over the data; without it, all of it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub batches: Option<u32>,
    /// What default vectors do; without it, what the run's moe.default.evaluation says
    #[arg(long, value_enum)]
    pub default_vectors: Option<EvaluationChoice>,
    /// Device: default, cpu (a software adapter of wgpu) or the number of a GPU
    #[arg(long, value_name = "DEVICE", default_value = "default")]
    pub device: DeviceChoice,
}

/// Options of `moe-train generate`.
#[derive(Args, Debug)]
pub struct GenerateArgs {
    /// Directory of the run
    #[arg(long, value_name = "DIR")]
    pub run: Option<PathBuf>,
    /// Text to go on from; without it, from where a text begins
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub prompt: String,
    /// Tokens to add
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub tokens: usize,
    /// 0 always takes the likeliest token, 1 samples as the model predicts
    #[arg(long, value_name = "F", default_value_t = 0.8, value_parser = temperature)]
    pub temperature: f64,
    /// Sample among the likeliest tokens that together have this probability
    #[arg(long, value_name = "F", default_value_t = 1.0, value_parser = top_p)]
    pub top_p: f64,
    /// Seed of the sampling
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Which checkpoint: the latest or the best of the run, or without a run the directory of a Hugging Face one
    #[arg(long, value_name = "latest|best|DIR", default_value = "latest")]
    pub checkpoint: Weights,
    /// Device: default, cpu (a software adapter of wgpu) or the number of a GPU
    #[arg(long, value_name = "DEVICE", default_value = "default")]
    pub device: DeviceChoice,
}

/// Options of `moe-train export`.
#[derive(Args, Debug)]
pub struct ExportArgs {
    /// Directory of the run
    #[arg(long, value_name = "DIR")]
    pub run: PathBuf,
    /// Where the checkpoint goes: a directory that does not exist yet
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Type of the weights: f32, bf16 or f16
    #[arg(long, value_name = "DTYPE", default_value_t = WeightDtype::F32)]
    pub dtype: WeightDtype,
    /// Largest file of weights, in bytes
    #[arg(long, value_name = "N", default_value_t = 5_000_000_000)]
    pub max_shard_bytes: usize,
    /// Which checkpoint
    #[arg(long, value_enum, default_value_t)]
    pub checkpoint: CheckpointChoice,
    /// Device: default, cpu (a software adapter of wgpu) or the number of a GPU
    #[arg(long, value_name = "DEVICE", default_value = "default")]
    pub device: DeviceChoice,
}

/// Options of `moe-train report`.
#[derive(Args, Debug)]
pub struct ReportArgs {
    /// Directory of the run
    #[arg(long, value_name = "DIR")]
    pub run: PathBuf,
}

fn temperature(text: &str) -> Result<f64, String> {
    number(text).filter(|t| *t >= 0.0).ok_or_else(|| "expected a number of 0 or more".into())
}

fn top_p(text: &str) -> Result<f64, String> {
    number(text).filter(|p| *p > 0.0 && *p <= 1.0).ok_or_else(|| "expected a number above 0, at most 1".into())
}

fn number(text: &str) -> Option<f64> {
    text.parse().ok().filter(|value: &f64| value.is_finite())
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, error::ErrorKind};

    use super::*;

    fn train(args: &[&str]) -> Result<TrainArgs, clap::Error> {
        let words = ["moe-train", "train"].into_iter().chain(args.iter().copied());
        Cli::try_parse_from(words).map(|cli| match cli.command {
            Command::Train(args) => *args,
            other => panic!("expected train, got {other:?}"),
        })
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn train_without_arguments_is_the_tiny_preset() {
        let args = train(&[]).unwrap();
        assert_eq!((args.model, args.preset.as_str()), (None, "tiny"));
        assert_eq!(train(&["vit"]).unwrap().model, Some(ModelKind::Vit));
        assert_eq!(args.device, DeviceChoice::Default);
    }

    #[test]
    fn settings_repeat_and_keep_their_order() {
        let args = train(&["lm", "--set", "optim.lr=1", "--set", "moe.top_k=2"]).unwrap();
        assert_eq!(args.set, ["optim.lr=1", "moe.top_k=2"]);
    }

    #[test]
    fn a_resumed_run_takes_steps_and_device_only() {
        assert!(train(&["--resume", "r", "--steps", "9", "--device", "0"]).is_ok());
        for other in [
            ["--seed", "1"],
            ["--set", "a=1"],
            ["--data", "x"],
            ["--out", "o"],
            ["--preset", "tiny"],
            ["--init-from", "d"],
        ] {
            let error = train(&["--resume", "r", other[0], other[1]]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ArgumentConflict, "{other:?}");
        }
    }

    #[test]
    fn a_checkpoint_is_one_of_the_run_or_a_directory() {
        let weights = |text: &str| text.parse::<Weights>().expect("any text is one");
        assert_eq!(weights("best"), Weights::OfRun(CheckpointChoice::Best));
        assert_eq!(weights("models/best"), Weights::HuggingFace("models/best".into()));
    }

    #[test]
    fn sampling_options_out_of_range_are_refused() {
        for (option, value) in [("--temperature", "-1"), ("--temperature", "nan"), ("--top-p", "0"), ("--top-p", "1.5")]
        {
            let argument = format!("{option}={value}");
            let words = ["moe-train", "generate", "--run", "r", argument.as_str()];
            assert!(Cli::try_parse_from(words).is_err(), "{argument}");
        }
    }
}
