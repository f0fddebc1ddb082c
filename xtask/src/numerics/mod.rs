//! `cargo xtask numerics`: the worst error of every op and layer against its oracle in f64, per tensor, dtype and backend.
//!
//! The cross-backend suite is what is measured: its comparisons note their errors in a file (`MOE_TEST_ERRORS`), and this reads it.

mod catalogue;
mod worst;

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use crate::backend::Backend;
use crate::files::at;
use crate::{Result, cargo, machine, suite};
use worst::Worst;

const FILE_VARIABLE: &str = "MOE_TEST_ERRORS";

/// Options of the command.
#[derive(Args)]
pub(crate) struct NumericsArgs {
    /// The backend to measure, the only one that is compiled in. Default: flex and ndarray, as `cargo test --workspace` builds them
    #[arg(long, value_enum)]
    backend: Option<Backend>,
    /// Also write every error here, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Runs the suite and prints the table, in Markdown.
pub(crate) fn run(args: &NumericsArgs) -> Result<()> {
    let notes = cargo::root().join("target/numerics.jsonl");
    at(&notes, fs::create_dir_all(notes.with_file_name("")))?;
    at(&notes, fs::write(&notes, ""))?;
    let mut command = match args.backend {
        Some(backend) => suite::command(backend)?,
        None => {
            let mut command = cargo::cargo();
            command.args(["test", "--quiet", "--workspace", "--test", "suite"]);
            command
        }
    };
    eprint!("{}", cargo::output(command.env(FILE_VARIABLE, &notes))?);
    let worst = Worst::read(&at(&notes, fs::read_to_string(&notes))?)?;
    print!("{}", worst.table());
    args.json.as_deref().map_or(Ok(()), |path| write(path, &worst))
}

fn write(path: &Path, worst: &Worst) -> Result<()> {
    let record = json!({
        "machine": machine::here(),
        "error": "max |x - oracle| / max |oracle| over a tensor, the worst of all cases",
        "errors": worst.records(),
    });
    let text = serde_json::to_string_pretty(&record).map_err(|error| error.to_string())?;
    at(path, fs::write(path, text + "\n"))
}
