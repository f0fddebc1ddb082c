//! `cargo xtask reproduce default-moe`: a grid of training runs that resumes where it stopped, its raw results, a report.
//!
//! Every run is a call of `moe-train`, so a figure of the report can be made again by hand. Results are one line each
//! in `results.jsonl`, appended when a run has ended and been measured; the report is a function of that file.

mod default_moe;
mod grid;
mod report;
mod results;
mod runner;
mod statistics;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::backend::Backend;
use crate::program::{self, Request};
use crate::{Result, built_from, cargo, files};

use results::Results;

/// For which machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scale {
    /// At most 3 hours on 2 cores, two runs side by side
    Cpu,
    /// 25 minutes on one H200: what is not done by then is left out, as the whole grid has not been timed there
    Gpu,
}

/// Options of `cargo xtask reproduce default-moe`.
#[derive(Args, Debug)]
pub(crate) struct ReproduceArgs {
    /// For which machine
    #[arg(long, value_enum, default_value = "cpu")]
    scale: Scale,
    /// The text: a directory with train/ and valid/, or whatever `train --data` takes
    #[arg(long, value_name = "FILE|DIR")]
    data: Option<PathBuf>,
    /// Where results.jsonl and report.md go [default: benchmarks/STUDY/SCALE]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Where the runs themselves go [default: target/reproduce/STUDY/SCALE]
    #[arg(long, value_name = "DIR")]
    runs: Option<PathBuf>,
    /// Runs side by side, on a CPU one thread each [default: 2, on a GPU 4]
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// Begin no run that would not end within that time; the same command goes on later [default: on a GPU 25]
    #[arg(long, value_name = "MINUTES")]
    within: Option<u64>,
    /// A moe-train for that machine, instead of building one
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Steps of each run, fewer for a look
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// Only runs whose name contains this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Write the report from the results there are, run nothing
    #[arg(long)]
    report: bool,
    /// Show the runs of the grid that are left, run nothing
    #[arg(long, conflicts_with = "report")]
    list: bool,
}

impl Scale {
    fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Gpu => "gpu",
        }
    }

    fn backend(self) -> Backend {
        match self {
            Self::Cpu => Backend::Flex,
            Self::Gpu => Backend::Cuda,
        }
    }

    fn jobs(self) -> usize {
        match self {
            Self::Cpu => 2,
            Self::Gpu => 4,
        }
    }

    fn minutes(self) -> Option<u64> {
        match self {
            Self::Cpu => None,
            Self::Gpu => Some(25),
        }
    }
}

/// Runs what is left of the grid and writes the report.
pub(crate) fn run(args: &ReproduceArgs) -> Result<()> {
    let out = args.out.clone().unwrap_or_else(|| folder("benchmarks", args.scale));
    files::at(&out, std::fs::create_dir_all(&out))?;
    let mut results = Results::open(&out.join("results.jsonl"))?;
    if !args.report {
        let grid = default_moe::grid(args.scale, args.steps);
        let only = args.only.as_deref().unwrap_or_default();
        let left: Vec<_> = grid.into_iter().filter(|run| run.name().contains(only) && !results.has(run)).collect();
        if args.list {
            left.iter().for_each(|run| println!("{}", run.name()));
            return Ok(());
        }
        let left = runner::run_all(left, &setting(args)?, &mut results)?;
        if left > 0 {
            eprintln!("{left} runs are left, as there was no time for them (--within): the same command goes on");
        }
    }
    let path = out.join("report.md");
    files::at(&path, std::fs::write(&path, report::markdown(&results, args.scale, args.steps)))?;
    println!("{}", path.display());
    Ok(())
}

fn folder(parent: &str, scale: Scale) -> PathBuf {
    cargo::root().join(parent).join("default-moe").join(scale.name())
}

fn setting(args: &ReproduceArgs) -> Result<runner::Setting> {
    let missing = "--data is missing: name the text to train on, a folder with train/ and valid/";
    let data = args.data.clone().ok_or(missing)?;
    let request = Request { backend: args.scale.backend(), release: true, help: false, rest: Vec::new() };
    Ok(runner::Setting {
        program: match &args.program {
            Some(path) => files::at(path, path.canonicalize())?,
            None => program::build("moe-train", &request)?,
        },
        data: files::at(&data, data.canonicalize())?,
        runs: args.runs.clone().unwrap_or_else(|| folder("target/reproduce", args.scale)),
        jobs: args.jobs.unwrap_or_else(|| args.scale.jobs()).max(1),
        threads: (args.scale == Scale::Cpu).then_some(1),
        commit: args.program.is_none().then(built_from::checkout).flatten(),
        within: args.within.or(args.scale.minutes()).map(|minutes| Duration::from_secs(60 * minutes)),
    })
}
