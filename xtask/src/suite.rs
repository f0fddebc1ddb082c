//! `cargo xtask test`: the cross-backend suite with exactly one backend compiled in.

use std::process::Command;

use crate::backend::Backend;
use crate::{Result, cargo, metadata};

const SUITE: &str = "moe-tests";

/// What is built with one backend, the suite and both programs. Features are chosen for all packages of a command together:
/// only a command that names all of these shares its builds of burn, and of the crates below it, with the next.
pub(crate) const PACKAGES: [&str; 3] = [SUITE, "moe-train", "moe-bench"];

/// Runs the suite; `args` go to the test runner.
pub(crate) fn run(backend: Backend, args: &[String]) -> Result<()> {
    let mut command = command(backend)?;
    if !args.is_empty() {
        command.arg("--").args(args);
    }
    cargo::run(&mut command)
}

/// `cargo test` for the suite on one backend, and for no test of the programs.
///
/// Without the programs' features of the backend it is without autotuning: for a product of burn's own, a tuner compiles some ten kernels
/// of each size, and there it keeps a GPU's compiler busy many times as long as all of ours.
pub(crate) fn command(backend: Backend) -> Result<Command> {
    let mut command = backend.alone_in("test", &PACKAGES, &[SUITE]);
    for test in tests()? {
        command.args(["--test", &test]);
    }
    Ok(command)
}

/// The tests of the suite by name. One of this name in a program would be taken too; there is none.
fn tests() -> Result<Vec<String>> {
    let mut packages = metadata::packages()?.into_iter();
    let suite = packages.find(|package| package.name == SUITE);
    suite.map(|package| package.tests).ok_or_else(|| format!("the workspace has no package {SUITE}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_suite_is_built_with_one_backend_and_without_the_tests_of_the_programs() {
        let command = command(Backend::Wgpu).unwrap();
        let line: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        let line = line.join(" ");
        assert!(line.contains("--package moe-bench --features moe-tests/wgpu --test "), "{line}");
    }

    #[test]
    fn no_test_of_a_program_has_the_name_of_one_of_the_suite() {
        let suite = super::tests().unwrap();
        let packages = metadata::packages().unwrap();
        for program in packages.iter().filter(|package| PACKAGES[1..].contains(&&*package.name)) {
            assert!(program.tests.iter().all(|name| !suite.contains(name)), "{:?}", program.tests);
        }
    }
}
