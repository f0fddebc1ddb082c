//! Builds and runs the programs and the checks of this workspace: `cargo xtask --help`.
//!
//! The task runner depends on an argument parser, a JSON reader and `moe-plan`, which is arithmetic, so it is there within seconds. It never links
//! burn: it asks cargo to build a program with exactly the backend that was asked for, and runs that.

#![forbid(unsafe_code)]

mod backend;
mod built_from;
mod bundle;
mod cargo;
mod checks;
mod crash_test;
mod files;
mod help;
mod layers;
mod machine;
mod metadata;
mod mutations;
mod numerics;
mod paths;
mod plan;
mod program;
mod reproduce;
mod suite;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::backend::Backend;
use crate::checks::Check;
use crate::program::Program;

/// What went wrong, as one line for the person at the terminal.
pub(crate) type Result<T> = std::result::Result<T, String>;

#[derive(Parser)]
#[command(bin_name = "cargo xtask", about = "Builds and runs the programs and the checks of this workspace")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Trains a language model, or with `train vit` a vision model [--backend flex|ndarray|wgpu|cuda] [--release] [options of moe-train]
    Train(Passed),
    /// Measures a trained model on a text or on images [--backend ..] [--release] [options of moe-train]
    Eval(Passed),
    /// Continues a prompt with a trained model [--backend ..] [--release] [options of moe-train]
    Generate(Passed),
    /// Writes a trained model as a Hugging Face checkpoint [--backend ..] [--release] [options of moe-train]
    Export(Passed),
    /// Writes the report of a run again [--backend ..] [--release] [options of moe-train]
    Report(Passed),
    /// Measures layers, kernels or training steps [--backend ..] layer|grouped|step|default-moe|excitation [options of moe-bench]
    Bench(Passed),
    /// Plans training on many devices by formula: memory, traffic, a bound of the time
    Plan(Box<plan::PlanArgs>),
    /// Carries out a study: a grid of training runs that resumes, its raw results and a report
    #[command(subcommand)]
    Reproduce(Study),
    /// Kills training runs at random moments until they have finished: nothing may be lost
    CrashTest(crash_test::CrashTestArgs),
    /// Runs the cross-backend suite (package `moe-tests`) on one backend
    Test {
        /// The backend to test, the only one that is compiled in
        #[arg(long, value_enum, default_value_t = Backend::Flex)]
        backend: Backend,
        /// Arguments for the test runner, after `--`: a filter, `--nocapture`
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// The worst error of every op and layer against its oracle in f64, out of the cross-backend suite
    Numerics(numerics::NumericsArgs),
    /// Every reader of files against many files that were changed at random, and the record of it
    Mutations(mutations::MutationsArgs),
    /// Runs the checks of the continuous integration: all of them, or those named
    Check {
        /// Which checks, in the order given. Default: all
        #[arg(value_enum)]
        checks: Vec<Check>,
    },
    /// Compares the help texts that `cargo xtask train --help` and its like show with those of the programs
    HelpTexts {
        /// Write them instead of comparing
        #[arg(long)]
        write: bool,
    },
    /// Builds what a machine with an NVIDIA GPU needs to run the CUDA suite, the benchmarks and a short training
    GpuBundle {
        /// The folder to make; an earlier bundle there is replaced
        #[arg(long, default_value = "target/gpu-bundle")]
        out: PathBuf,
        /// The text of the short training. Default: the Rust sources of this workspace
        #[arg(long)]
        text: Option<PathBuf>,
    },
}

/// The study of a paper.
#[derive(Subcommand)]
enum Study {
    /// Top-K against Default MoE on a language model
    DefaultMoe(reproduce::ReproduceArgs),
    /// Excitation on CIFAR-10 [--backend ..] [options of moe-reproduce]
    Excitation(Passed),
}

/// Arguments that `moe-train`, `moe-bench` or `moe-reproduce` parses; [`program::split`] takes out the two that are ours.
#[derive(Args)]
#[command(disable_help_flag = true)]
struct Passed {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    _args: Vec<std::ffi::OsString>,
}

fn main() -> ExitCode {
    match perform(Cli::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> Result<()> {
    match task {
        Task::Train(_) => program::run(Program::Train, arguments()),
        Task::Eval(_) => program::run(Program::Eval, arguments()),
        Task::Generate(_) => program::run(Program::Generate, arguments()),
        Task::Export(_) => program::run(Program::Export, arguments()),
        Task::Report(_) => program::run(Program::Report, arguments()),
        Task::Bench(_) => program::run(Program::Bench, arguments()),
        Task::Plan(args) => plan::run(&args),
        Task::Reproduce(Study::DefaultMoe(args)) => reproduce::run(&args),
        Task::Reproduce(Study::Excitation(_)) => program::run(Program::Reproduce, arguments()),
        Task::CrashTest(args) => crash_test::run(&args),
        Task::Test { backend, args } => suite::run(backend, &args),
        Task::Numerics(args) => numerics::run(&args),
        Task::Mutations(args) => mutations::run(&args),
        Task::Check { checks } => checks::run(&checks),
        Task::HelpTexts { write } => help::compare(write),
        Task::GpuBundle { out, text } => bundle::build(&out, text.as_deref()),
    }
}

/// What follows the task's name, unchanged: an argument parser would drop the first `--`.
fn arguments() -> impl Iterator<Item = std::ffi::OsString> {
    std::env::args_os().skip(2)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_of_the_program_reach_it_unparsed() {
        let line = ["xtask", "train", "lm", "--steps", "3", "--help", "--backend", "wgpu"];
        assert!(matches!(Cli::try_parse_from(line), Ok(Cli { task: Task::Train(_) })));
    }
}
