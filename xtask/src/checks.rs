//! `cargo xtask check`: what must hold for every commit. The continuous integration runs the same list.

use std::process::Command;
use std::time::{Duration, Instant};

use clap::ValueEnum;

use crate::backend::Backend;
use crate::{Result, built_from, cargo, help, layers, metadata, paths, suite};

/// One check, named as on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Check {
    /// Sources are formatted
    Fmt,
    /// No crate sees a crate above it
    Layers,
    /// No file names a folder of one machine
    Paths,
    /// clippy has nothing to say, with the GPU code and its tests compiled in
    Clippy,
    /// The documentation builds without a warning
    Doc,
    /// `cargo xtask train --help` shows the options the program has
    Help,
    /// `moe-train` and `moe-bench` compile with each backend alone, and link where it brings libraries
    Features,
    /// Every published crate builds from its own package
    Package,
}

/// The feature that brings the CubeCL code of all crates under the eyes of clippy and rustdoc.
const WITH_GPU_CODE: [&str; 2] = ["--features", "moe-kernels/cube"];

/// Runs `checks`, or all of them if none is named, and fails after the last if any failed.
pub(crate) fn run(checks: &[Check]) -> Result<()> {
    let checks = if checks.is_empty() { Check::value_variants() } else { checks };
    let results: Vec<_> = checks.iter().map(|&check| timed(check)).collect();
    eprintln!("\n{}", summary(&results));
    let failed = results.iter().filter(|(_, _, passed)| !passed).count();
    if failed == 0 { Ok(()) } else { Err(format!("{failed} of {} checks failed", results.len())) }
}

fn timed(check: Check) -> (Check, Duration, bool) {
    eprintln!("\n--- check {}", name(check));
    let start = Instant::now();
    let result = perform(check);
    if let Err(message) = &result {
        eprintln!("error: {message}");
    }
    (check, start.elapsed(), result.is_ok())
}

fn perform(check: Check) -> Result<()> {
    match check {
        Check::Fmt => cargo::run(cargo::cargo().args(["fmt", "--all", "--check"])),
        Check::Layers => layers::check(),
        Check::Paths => paths::check(),
        Check::Clippy => [clippy(), clippy_of_gpu_tests()].iter_mut().try_for_each(cargo::run),
        Check::Doc => cargo::run(&mut doc()),
        Check::Help => help::compare(false),
        Check::Features => features(),
        Check::Package => package(),
    }
}

fn clippy() -> Command {
    let mut command = cargo::cargo();
    command.args(["clippy", "--workspace", "--all-targets"]).args(WITH_GPU_CODE).args(["--", "-D", "warnings"]);
    command
}

/// What only compiles with a GPU's runtime: the tests of single kernels, and the side of the benchmark that runs there.
///
/// The suite is written for every `AutodiffMoeBackend`, so this is where the compiler sees that each runtime is one, with
/// Fusion and without. No toolkit is needed to compile.
fn clippy_of_gpu_tests() -> Command {
    let mut command = cargo::cargo();
    command.args([
        "clippy",
        "--package",
        "moe-tests",
        "--package",
        "moe-bench",
        "--all-targets",
        "--no-default-features",
    ]);
    let runtimes = ["wgpu", "cuda", "rocm", "metal"].map(|runtime| format!("moe-tests/{runtime}"));
    command.args(["--features", &runtimes.join(","), "--features", "moe-bench/wgpu", "--", "-D", "warnings"]);
    command
}

fn doc() -> Command {
    let mut command = cargo::cargo();
    command.args(["doc", "--workspace", "--no-deps"]).args(WITH_GPU_CODE).env("RUSTDOCFLAGS", "-D warnings");
    command
}

/// The backends of a CPU bring nothing to link, and `cargo test` has linked both together.
fn features() -> Result<()> {
    [Backend::Flex, Backend::Ndarray].into_iter().try_for_each(|backend| build_with("check", backend))?;
    [Backend::Wgpu, Backend::Cuda].into_iter().try_for_each(|backend| build_with("build", backend))
}

fn build_with(verb: &str, backend: Backend) -> Result<()> {
    let mut command = backend.alone(verb, &suite::PACKAGES);
    built_from::note(&mut command);
    cargo::run(command.arg("--bins"))
}

/// Packs every published crate and builds each from its package, in the order of their dependencies.
fn package() -> Result<()> {
    let mut command = cargo::cargo();
    command.args(["package", "--allow-dirty", "--no-metadata"]);
    // The packages are built outside the workspace: the same profile and folder let them share what is built already. Nothing is
    // run, so nothing is optimised: with their default features alone they need another burn than the workspace.
    command
        .args(["--config", "Cargo.toml", "--config", "profile.dev.opt-level=0"])
        .env("CARGO_TARGET_DIR", cargo::root().join("target"));
    for package in metadata::packages()?.iter().filter(|package| package.published) {
        command.args(["--package", &package.name]);
    }
    cargo::run(&mut command)
}

fn name(check: Check) -> String {
    check.to_possible_value().map(|value| value.get_name().into()).unwrap_or_default()
}

fn summary(results: &[(Check, Duration, bool)]) -> String {
    let line = |(check, time, passed): &(Check, Duration, bool)| {
        let verdict = if *passed { "ok    " } else { "FAILED" };
        format!("{verdict} {:<9}{:>7.1} s", name(*check), time.as_secs_f64())
    };
    results.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_has_one_line_for_each_check() {
        let results = [(Check::Fmt, Duration::from_millis(1250), true), (Check::Layers, Duration::ZERO, false)];
        assert_eq!(summary(&results), "ok     fmt          1.2 s\nFAILED layers       0.0 s");
    }
}
