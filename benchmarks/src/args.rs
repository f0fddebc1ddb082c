//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use moe_train::backend::DeviceChoice;
use moe_train::config::Dtype;

use crate::layer::Shape;
use crate::step::Preset;

/// Measures layers and training steps, against the bare matrix products and against PyTorch.
#[derive(Parser, Debug)]
#[command(name = "moe-bench", version, max_term_width = 110)]
pub(crate) struct Cli {
    /// What to measure.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What can be measured.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// One layer, forward and backward, beside the bare matrix products of its shape
    Layer(LayerArgs),
    /// Each kernel of the grouped product by itself, beside a dense product of the same FLOPs: on a GPU
    Grouped(GroupedArgs),
    /// A whole training step of a small language model, in tokens per second
    Step(StepArgs),
    /// What default vectors cost beside plain top-K: layers, and training steps of a preset of moe-train
    DefaultMoe(DefaultMoeArgs),
    /// What Excitation adds to an optimizer's step: a top-K network and language models
    Excitation(CommonArgs),
}

/// Options of `moe-bench layer`.
#[derive(Args, Debug)]
pub(crate) struct LayerArgs {
    /// A letter of the catalogue, or five numbers T,D,F,E,K: tokens, token width, expert width, experts, experts per
    /// token. Default: A B C D
    #[arg(long, value_name = "T,D,F,E,K|LETTER", num_args = 1.., conflicts_with = "gpu_shapes")]
    pub(crate) shape: Vec<Shape>,
    /// The catalogue's shapes for a GPU, G and H, instead of A to D
    #[arg(long)]
    pub(crate) gpu_shapes: bool,
    /// How uneven the experts' loads are: the router prefers expert e by -X ln(e + 1). 0 is even
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = skew)]
    pub(crate) skew: f64,
    /// Type of tokens and products; weights and routing are f32
    #[arg(long, value_enum, default_value_t)]
    pub(crate) dtype: Dtype,
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// Options of `moe-bench grouped`.
#[derive(Args, Debug)]
#[cfg_attr(not(feature = "cube"), allow(dead_code, reason = "a processor has no kernels to choose from"))]
pub(crate) struct GroupedArgs {
    /// A letter of the catalogue, or five numbers T,D,F,E,K. Default: G H
    #[arg(long, value_name = "T,D,F,E,K|LETTER", num_args = 1..)]
    pub(crate) shape: Vec<Shape>,
    /// How uneven the experts' loads are: expert e has a share of 1 / (e + 1)^X. 0 is even
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = skew)]
    pub(crate) skew: f64,
    /// Only products whose name contains this, such as "W_in"
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) only: String,
    /// Only kernels whose name contains this, such as "bulk"
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) kernel: String,
    /// Type of the products
    #[arg(long, value_enum, default_value_t = Dtype::Bf16)]
    pub(crate) dtype: Dtype,
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// Options of `moe-bench step`.
#[derive(Args, Debug)]
pub(crate) struct StepArgs {
    /// Which models to train. Default: all
    #[arg(long, value_enum, value_name = "NAME", num_args = 1..)]
    pub(crate) config: Vec<Preset>,
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// Options of `moe-bench default-moe`.
#[derive(Args, Debug)]
pub(crate) struct DefaultMoeArgs {
    /// A letter of the catalogue, or five numbers T,D,F,E,K. Default: A B C D
    #[arg(long, value_name = "T,D,F,E,K|LETTER", num_args = 1..)]
    pub(crate) shape: Vec<Shape>,
    /// The preset of moe-train whose training steps are measured; none: only layers
    #[arg(long, value_name = "PRESET", default_value = "small")]
    pub(crate) preset: String,
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// Options of every benchmark.
#[derive(Args, Debug)]
pub(crate) struct CommonArgs {
    /// Threads of either side
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    pub(crate) threads: usize,
    /// The device: default, cpu or a number
    #[arg(long, value_name = "DEVICE", default_value = "default")]
    pub(crate) device: DeviceChoice,
    /// Timed repetitions of everything
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = at_least_one)]
    pub(crate) rounds: usize,
    /// 3 repetitions: a look, not a record
    #[arg(long, conflicts_with = "rounds")]
    pub(crate) quick: bool,
    /// Write machine, medians and spreads as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// A Python with torch and transformers; PyTorch then takes turns with us
    #[arg(long, value_name = "PYTHON")]
    pub(crate) torch: Option<PathBuf>,
}

impl CommonArgs {
    /// Repetitions that are timed.
    pub(crate) fn rounds(&self) -> usize {
        if self.quick { 3 } else { self.rounds }
    }

    /// Repetitions before those.
    pub(crate) fn warm_up(&self) -> usize {
        if self.quick { 1 } else { 2 }
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("at least 1".into()),
        Ok(number) => Ok(number),
        Err(_) => Err("expected a whole number, 1 or more".into()),
    }
}

fn skew(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(skew) if skew >= 0.0 && skew.is_finite() => Ok(skew),
        _ => Err("expected a number, 0 or more".into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn layer(line: &str) -> Result<LayerArgs, String> {
        let words = ["moe-bench", "layer"].into_iter().chain(line.split_whitespace());
        match Cli::try_parse_from(words).map_err(|error| error.to_string())?.command {
            Command::Layer(args) => Ok(args),
            _ => unreachable!("the line says layer"),
        }
    }

    fn names(line: &str) -> Vec<String> {
        layer(line).unwrap().shape.into_iter().map(|shape| shape.name).collect()
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn several_shapes_may_follow_one_option() {
        assert_eq!(names("--shape 13,7,9,5,3 B --threads 2"), ["13,7,9,5,3", "B"]);
        assert_eq!(names("--shape A --shape 8,8,8,4,4"), ["A", "8,8,8,4,4"]);
    }

    #[test]
    fn what_is_no_shape_is_refused_with_its_reason() {
        assert!(layer("--shape 13,7,9,5").unwrap_err().contains("five numbers"));
        assert!(layer("--shape 13,7,9,2,3").unwrap_err().contains("K 3 is more than E 2"));
        assert!(layer("--shape A --gpu-shapes").unwrap_err().contains("cannot be used with"));
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        for line in ["--threads 0", "--rounds 0", "--skew -1", "--skew nan", "--threads two"] {
            assert!(layer(line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_quick_look_has_fewer_rounds() {
        assert_eq!(layer("--quick").unwrap().common.rounds(), 3);
        assert_eq!(layer("").unwrap().common.rounds(), 15);
        assert!(layer("--quick --rounds 5").is_err());
    }
}
