//! `cargo xtask train --help`, answered without building anything.
//!
//! The options of `moe-train` are kept as text files in `xtask/help`; `cargo xtask check help` builds the program and
//! compares them, `cargo xtask help-texts --write` makes them again.

use std::path::PathBuf;
use std::process::Command;

use crate::Result;
use crate::backend::Backend;
use crate::cargo;
use crate::program::{self, Program, Request};

/// What `cargo xtask PROGRAM --help` prints: our own two options, then those of `moe-train`.
pub(crate) fn text(program: Program) -> String {
    let name = program.name();
    let theirs = kept(program);
    format!(
        "Builds moe-train with one backend and runs `moe-train {name}` with all other arguments.

Usage: cargo xtask {name} [--backend BACKEND] [--release] [ARGUMENTS of moe-train]

Options of xtask:
      --backend <BACKEND>  flex (default), ndarray, wgpu or cuda: the one that is compiled in
      --release            Build with the release profile
      --                   Pass everything that follows to moe-train

The same arguments without xtask:

{theirs}"
    )
}

/// The kept help text of one subcommand of `moe-train`.
fn kept(program: Program) -> &'static str {
    match program {
        Program::Train => include_str!("../help/train.txt"),
        Program::Eval => include_str!("../help/eval.txt"),
        Program::Generate => include_str!("../help/generate.txt"),
        Program::Report => include_str!("../help/report.txt"),
    }
}

/// Builds `moe-train` and compares its help with the kept texts, or writes them.
pub(crate) fn compare(write: bool) -> Result<()> {
    let request = Request { backend: Backend::Flex, release: false, help: false, rest: Vec::new() };
    let binary = program::build(&request)?;
    let mut stale = Vec::new();
    for program in Program::ALL {
        let path = file(program);
        let now = cargo::output(Command::new(&binary).args([program.name(), "--help"]))?;
        if write {
            std::fs::write(&path, &now).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        } else if std::fs::read_to_string(&path).ok().as_ref() != Some(&now) {
            stale.push(program.name());
        }
    }
    if stale.is_empty() {
        return Ok(());
    }
    Err(format!(
        "the kept help of {} differs from the program's: run `cargo xtask help-texts --write`",
        stale.join(", ")
    ))
}

fn file(program: Program) -> PathBuf {
    cargo::root().join("xtask/help").join(program.name()).with_extension("txt")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_names_our_options_and_shows_those_of_the_program() {
        for program in Program::ALL {
            let text = text(program);
            assert!(text.contains("--backend <BACKEND>") && text.contains("--release"));
            assert!(text.contains(&format!("Usage: moe-train {} ", program.name())), "{text}");
        }
    }
}
