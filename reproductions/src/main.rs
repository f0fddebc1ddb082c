//! Repeats the studies of papers: `cargo xtask reproduce excitation --data DIR`.

#![forbid(unsafe_code)]

mod cell;
mod cifar;
mod grid;
mod order;
mod report;
mod schedule;
mod settle;
mod statistics;
mod train;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::cell::{Cell, Finished};
use crate::cifar::Cifar;
use crate::grid::Scale;
use crate::schedule::Schedule;
use crate::settle::{Setting, settle};

#[cfg(feature = "cuda")]
pub(crate) type Chosen = burn::backend::Cuda;
#[cfg(all(feature = "wgpu", not(feature = "cuda")))]
pub(crate) type Chosen = burn::backend::Wgpu;
#[cfg(all(feature = "ndarray", not(any(feature = "wgpu", feature = "cuda"))))]
pub(crate) type Chosen = burn::backend::NdArray;
#[cfg(not(any(feature = "ndarray", feature = "wgpu", feature = "cuda")))]
pub(crate) type Chosen = burn::backend::Flex;

#[derive(Parser)]
#[command(about = "Repeats the studies of papers, with their controls")]
struct Cli {
    #[command(subcommand)]
    study: Study,
}

#[derive(Subcommand)]
enum Study {
    /// Excitation's CIFAR-10 study: the paper's comparisons, its controls, and matched learning rates
    Excitation(ExcitationArgs),
    /// One run of a study, printed as JSON
    #[command(hide = true)]
    Cell {
        #[arg(long)]
        data: PathBuf,
        cell: String,
    },
}

#[derive(Args)]
struct ExcitationArgs {
    /// CIFAR-10 in its official binary layout: data_batch_1.bin to 5 and test_batch.bin
    #[arg(long, required_unless_present = "report")]
    data: Option<PathBuf>,
    /// How much of it
    #[arg(long, value_enum, default_value_t = Scale::Cpu)]
    scale: Scale,
    /// Where results and report go; runs that are finished there are not made again [default: benchmarks/excitation/SCALE]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Runs side by side, one thread each
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Only these tables. Default: all
    #[arg(long, value_delimiter = ',', value_parser = ["headline", "rates", "batch", "sparsity", "optimizer", "confusion"])]
    tables: Vec<String>,
    /// Learning rate of SGD, instead of the one that a search settles
    #[arg(long, requires = "epochs")]
    lr: Option<f64>,
    /// Passes over the training set, instead of those that a search settles
    #[arg(long, requires = "lr")]
    epochs: Option<usize>,
    /// Only write the report anew, from the results that are there
    #[arg(long)]
    report: bool,
}

fn main() -> ExitCode {
    let result = match Cli::parse().study {
        Study::Excitation(args) => excitation(&args),
        Study::Cell { data, cell } => run_cell(&data, &cell),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

fn excitation(args: &ExcitationArgs) -> Result<(), String> {
    if args.jobs == 0 {
        return Err("--jobs must be at least 1".into());
    }
    let out = args.out.clone().unwrap_or_else(|| Path::new("benchmarks/excitation").join(args.scale.name()));
    fs::create_dir_all(&out).map_err(|error| format!("cannot make {}: {error}", out.display()))?;
    let results = out.join("results.jsonl");
    if let (Some(data), false) = (&args.data, args.report) {
        Cifar::load(data)?;
        run_stages(args, &Schedule { results: &results, data, jobs: args.jobs })?;
    }
    write_report(&out, &schedule::finished(&results)?, args.lr.is_none())
}

fn run_stages(args: &ExcitationArgs, schedule: &Schedule<'_>) -> Result<(), String> {
    let settings = args.scale.settings();
    let stage = |cells: Vec<Cell>| {
        let wanted = |cell: &Cell| args.tables.is_empty() || args.tables.contains(&cell.table);
        schedule.run(&cells.into_iter().filter(wanted).collect::<Vec<_>>())
    };
    let setting = match (args.lr, args.epochs) {
        (Some(lr), Some(epochs)) => Setting { lr, epochs },
        _ => {
            schedule.run(&grid::search(&settings))?;
            settle(&schedule.finished()?).ok_or("the search has no run")?.setting
        }
    };
    println!("learning rate {}, {} epochs", setting.lr, setting.epochs);
    stage(grid::study(&settings, setting))?;
    stage(grid::matched(&settings, setting, &schedule.finished()?))?;
    stage(grid::confusion(&settings, setting))?;
    stage(grid::matched_confusion(&settings, setting, &schedule.finished()?))
}

fn write_report(out: &Path, finished: &[Finished], searched: bool) -> Result<(), String> {
    let settled = searched.then(|| settle(finished)).flatten();
    let report = ("report.md", report::render(finished, settled));
    for (name, text) in [report].into_iter().chain(report::plots(finished)) {
        let path = out.join(name);
        fs::write(&path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    println!("report: {}", out.join("report.md").display());
    Ok(())
}

fn run_cell(data: &Path, cell: &str) -> Result<(), String> {
    let cell: Cell = serde_json::from_str(cell).map_err(|error| format!("`{cell}` is no run: {error}"))?;
    let outcome = train::run(&cell, &Cifar::load(data)?);
    let finished = serde_json::to_string(&Finished { cell, outcome }).map_err(|error| error.to_string())?;
    println!("{finished}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
