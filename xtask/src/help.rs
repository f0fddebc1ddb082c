//! `cargo xtask train --help`, answered without building anything.
//!
//! The options of the programs are kept as text files in `xtask/help`; `cargo xtask check help` builds the programs and
//! compares them, `cargo xtask help-texts --write` makes them again.

use std::path::PathBuf;
use std::process::Command;

use crate::Result;
use crate::cargo::{self, Built};
use crate::program::Program;

/// What `cargo xtask PROGRAM --help` prints: our own options, then those of the program.
pub(crate) fn text(program: Program) -> String {
    let (name, package, theirs) = (program.name(), program.package(), kept(program));
    let release = if program.always_release() { "" } else { RELEASE };
    let usage = if program.always_release() { "" } else { " [--release]" };
    format!(
        "Builds {package} with one backend and runs it with all other arguments.

Usage: cargo xtask {name} [--backend BACKEND]{usage} [ARGUMENTS of {package}]

Options of xtask:
      --backend <BACKEND>  flex (default), ndarray, wgpu or cuda: the one that is compiled in
{release}      --                   Pass everything that follows to {package}

The same arguments without xtask:

{theirs}"
    )
}

const RELEASE: &str = "      --release            Build with the release profile\n";

/// The kept help text of one subcommand of `moe-train`, or of all of `moe-bench`.
fn kept(program: Program) -> &'static str {
    match program {
        Program::Train => include_str!("../help/train.txt"),
        Program::Eval => include_str!("../help/eval.txt"),
        Program::Generate => include_str!("../help/generate.txt"),
        Program::Export => include_str!("../help/export.txt"),
        Program::Report => include_str!("../help/report.txt"),
        Program::Bench => include_str!("../help/bench.txt"),
        Program::Reproduce => include_str!("../help/reproduce.txt"),
    }
}

/// The subcommands whose help makes up one kept text.
fn subcommands(program: Program) -> &'static [&'static str] {
    match program {
        Program::Train => &["train"],
        Program::Eval => &["eval"],
        Program::Generate => &["generate"],
        Program::Export => &["export"],
        Program::Report => &["report"],
        Program::Bench => &["layer", "grouped", "step", "default-moe", "excitation"],
        Program::Reproduce => &["excitation"],
    }
}

/// Builds all programs and compares their help with the kept texts, or writes them.
pub(crate) fn compare(write: bool) -> Result<()> {
    let binaries = binaries()?;
    let mut stale = Vec::new();
    for program in Program::ALL {
        let path = file(program);
        let now = current(program, &binaries)?;
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

/// Builds every program of the workspace with its default features, which `cargo test --workspace` has done but for linking.
fn binaries() -> Result<Vec<Built>> {
    cargo::build(cargo::cargo().args(["build", "--workspace", "--bins"]))
}

fn current(program: Program, binaries: &[Built]) -> Result<String> {
    let package = program.package();
    let built = binaries.iter().find(|built| built.package == package);
    let built = built.ok_or_else(|| format!("cargo built no program for the package {package}"))?;
    let help = |name: &&str| cargo::output(Command::new(&built.path).args([*name, "--help"]));
    let texts: Result<Vec<_>> = subcommands(program).iter().map(help).collect();
    texts.map(|texts| texts.join("\n"))
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
            assert!(text.contains("--backend <BACKEND>"));
            assert_eq!(text.contains("--release"), !program.always_release(), "{text}");
            for name in subcommands(program) {
                assert!(text.contains(&format!("Usage: {} {name} ", program.package())), "{text}");
            }
        }
    }
}
