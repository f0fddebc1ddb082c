//! Repeats the studies of papers: `cargo xtask reproduce excitation --data DIR`.

mod cell;
mod cifar;
mod grid;
mod order;
mod report;
mod schedule;
mod train;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::cell::{Cell, Finished};
use crate::cifar::Cifar;
use crate::grid::Scale;
use crate::schedule::Schedule;

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
    #[arg(long)]
    data: PathBuf,
    /// How much of it
    #[arg(long, value_enum, default_value_t = Scale::Cpu)]
    scale: Scale,
    /// Where results and report go; runs that are finished there are not made again
    #[arg(long, default_value = "runs/reproduce-excitation")]
    out: PathBuf,
    /// Runs side by side, one thread each
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Only these tables: search, headline, batch, sparsity, optimizer, confusion. Default: all
    #[arg(long, value_delimiter = ',')]
    tables: Vec<String>,
    /// Learning rate of SGD, instead of the one that a search settles
    #[arg(long)]
    lr: Option<f64>,
    /// Passes over the training set, instead of the scale's
    #[arg(long)]
    epochs: Option<usize>,
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
    Cifar::load(&args.data)?;
    std::fs::create_dir_all(&args.out).map_err(|error| format!("cannot make {}: {error}", args.out.display()))?;
    let schedule = Schedule { results: args.out.join("results.jsonl"), data: &args.data, jobs: args.jobs };
    let mut settings = args.scale.settings();
    settings.epochs = args.epochs.unwrap_or(settings.epochs);

    let stage = |cells: Vec<Cell>| {
        let wanted = |cell: &Cell| args.tables.is_empty() || args.tables.contains(&cell.table);
        schedule.run(&cells.into_iter().filter(wanted).collect::<Vec<_>>())
    };
    let lr = match args.lr {
        Some(lr) => lr,
        None => {
            schedule.run(&grid::search(&settings))?;
            grid::settled_rate(&schedule.finished()?).ok_or("the search has no run")?
        }
    };
    println!("learning rate {lr}");
    stage(grid::study(&settings, lr))?;
    stage(grid::matched(&settings, lr, &schedule.finished()?))?;
    write_report(&args.out, &schedule.finished()?)
}

fn write_report(out: &Path, finished: &[Finished]) -> Result<(), String> {
    let path = out.join("report.md");
    std::fs::write(&path, report::render(finished))
        .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    println!("report: {}", path.display());
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
