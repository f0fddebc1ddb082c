//! Files of results.

use std::fs;
use std::io;
use std::path::Path;

use moe_train::backend;
use serde::Serialize;

use crate::args::CommonArgs;
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::machine::Machine;

/// What a record of ours alone begins with.
#[derive(Debug, Serialize)]
pub(crate) struct Head {
    benchmark: &'static str,
    machine: Machine,
    backend: &'static str,
    threads: usize,
    rounds: usize,
    clock: Clock,
}

impl Head {
    pub(crate) fn new(benchmark: &'static str, machine: Machine, args: &CommonArgs, clock: Clock) -> Self {
        Self { benchmark, machine, backend: backend::NAME, threads: args.threads, rounds: args.rounds(), clock }
    }
}

/// Makes sure, before anything is measured, that `path` can be written, and changes nothing that is there.
///
/// # Errors
///
/// When it cannot.
pub(crate) fn check(path: &Path) -> Result<()> {
    make_folder(path)?;
    fs::OpenOptions::new().create(true).append(true).open(path).map(drop).map_err(|error| failed(path, error))
}

/// Writes `record` as JSON, folders included.
///
/// # Errors
///
/// When the file cannot be written.
pub(crate) fn write(path: &Path, record: &impl Serialize) -> Result<()> {
    let json = serde_json::to_string_pretty(record).map_err(|error| Error::of("the record", error))?;
    make_folder(path)?;
    fs::write(path, json + "\n").map_err(|error| failed(path, error))
}

fn make_folder(path: &Path) -> Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all).map_err(|error| failed(path, error))
}

fn failed(path: &Path, error: io::Error) -> Error {
    Error::of(format!("cannot write `{}`", path.display()), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_written_is_named() {
        let message = write(Path::new("Cargo.toml/x.json"), &1).unwrap_err().to_string();
        assert!(message.starts_with("cannot write `Cargo.toml/x.json`"), "{message}");
        assert!(check(Path::new("Cargo.toml/x.json")).is_err());
    }
}
