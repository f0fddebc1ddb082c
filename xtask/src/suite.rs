//! `cargo xtask test`: the cross-backend suite with exactly one backend compiled in.

use std::process::Command;

use crate::backend::Backend;
use crate::{Result, cargo, metadata};

const SUITE: &str = "moe-tests";

/// Runs the suite; `args` go to the test runner.
pub(crate) fn run(backend: Backend, args: &[String]) -> Result<()> {
    let mut command = command(backend)?;
    if !args.is_empty() {
        command.arg("--").args(args);
    }
    cargo::run(&mut command)
}

/// `cargo test` for the suite on one backend.
///
/// `moe-train` is named beside the suite though none of its tests are: features are chosen for both together, so burn
/// is built once for the suite and for the program.
pub(crate) fn command(backend: Backend) -> Result<Command> {
    let feature = backend.feature();
    let mut command = cargo::cargo();
    command.args(["test", "--package", SUITE, "--package", "moe-train", "--no-default-features"]);
    command.args(["--features", &format!("{SUITE}/{feature},moe-train/{feature}")]);
    for test in tests()? {
        command.args(["--test", &test]);
    }
    Ok(command)
}

/// The tests of the suite by name. One of this name in `moe-train` would be taken too; there is none.
fn tests() -> Result<Vec<String>> {
    let mut packages = metadata::packages()?.into_iter();
    let suite = packages.find(|package| package.name == SUITE);
    suite.map(|package| package.tests).ok_or_else(|| format!("the workspace has no package {SUITE}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_suite_is_built_with_one_backend_and_without_the_tests_of_the_program() {
        let command = command(Backend::Wgpu).unwrap();
        let line: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        let line = line.join(" ");
        assert!(line.contains("--no-default-features --features moe-tests/wgpu,moe-train/wgpu --test "), "{line}");
    }

    #[test]
    fn no_test_of_the_program_has_the_name_of_one_of_the_suite() {
        let packages = metadata::packages().unwrap();
        let program = packages.iter().find(|package| package.name == "moe-train").unwrap();
        let suite = super::tests().unwrap();
        assert!(program.tests.iter().all(|name| !suite.contains(name)), "{:?}", program.tests);
    }
}
