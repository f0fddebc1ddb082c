//! `cargo xtask train|eval|generate|export|report|bench|reproduce`: build `moe-train`, `moe-bench` or `moe-reproduce` with one backend and become it.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use crate::Result;
use crate::backend::Backend;
use crate::{built_from, cargo, help};

/// The subcommands of `moe-train`, `moe-bench` and `moe-reproduce`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    Train,
    Eval,
    Generate,
    Export,
    Report,
    Bench,
    Reproduce,
}

impl Program {
    pub(crate) const ALL: [Self; 7] =
        [Self::Train, Self::Eval, Self::Generate, Self::Export, Self::Report, Self::Bench, Self::Reproduce];

    /// The package whose program it is; the program has the same name.
    pub(crate) fn package(self) -> &'static str {
        match self {
            Self::Bench => "moe-bench",
            Self::Reproduce => "moe-reproduce",
            _ => "moe-train",
        }
    }

    /// Whether it is built with the release profile without being asked: only that is worth measuring and waiting for.
    pub(crate) fn always_release(self) -> bool {
        self.package() != "moe-train"
    }

    /// What comes before the user's arguments.
    fn subcommand(self) -> Option<&'static str> {
        (self.package() == "moe-train").then(|| self.name())
    }

    /// The subcommand's name, for us and, if it is one of its, for `moe-train`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Eval => "eval",
            Self::Generate => "generate",
            Self::Export => "export",
            Self::Report => "report",
            Self::Bench => "bench",
            Self::Reproduce => "reproduce",
        }
    }
}

/// A command line, taken apart: what to build, and what to hand to the program.
#[derive(Debug, PartialEq)]
pub(crate) struct Request {
    pub(crate) backend: Backend,
    pub(crate) release: bool,
    pub(crate) help: bool,
    pub(crate) rest: Vec<OsString>,
}

/// Builds the program and replaces this process by it, so that signals and the exit code are the program's own.
pub(crate) fn run(program: Program, args: impl Iterator<Item = OsString>) -> Result<()> {
    let mut request = split(args)?;
    if request.help {
        print!("{}", help::text(program));
        return Ok(());
    }
    request.release |= program.always_release();
    let path = build(program.package(), &request)?;
    become_program(Command::new(path).args(program.subcommand()).args(request.rest))
}

/// Takes `--backend NAME`, `--backend=NAME` and `--release` out, wherever they stand before a `--`.
pub(crate) fn split(args: impl Iterator<Item = OsString>) -> Result<Request> {
    let mut args = args;
    let mut request = Request { backend: Backend::Flex, release: false, help: false, rest: Vec::new() };
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--") => break,
            Some("--release") => request.release = true,
            Some("--help" | "-h") => request.help = true,
            Some("--backend") => request.backend = backend(args.next())?,
            Some(text) if text.starts_with("--backend=") => {
                request.backend = Backend::parse(&text["--backend=".len()..])?;
            }
            _ => request.rest.push(arg),
        }
    }
    request.rest.extend(args);
    Ok(request)
}

fn backend(value: Option<OsString>) -> Result<Backend> {
    let value = value.ok_or("--backend needs a value: flex, ndarray, wgpu or cuda")?;
    Backend::parse(&value.to_string_lossy())
}

/// Builds the program of `package` and returns where it is.
pub(crate) fn build(package: &str, request: &Request) -> Result<std::path::PathBuf> {
    let mut command = command(&[package], request.backend);
    if request.release {
        command.arg("--release");
    }
    let built = cargo::build_of(package, &mut command)?;
    built.into_iter().next().ok_or_else(|| format!("cargo built no program for the package {package}"))
}

/// `cargo build` of the programs of these packages, each named as its package, with one backend.
pub(crate) fn command(packages: &[&str], backend: Backend) -> Command {
    let mut command = backend.alone("build", packages);
    for package in packages {
        command.args(["--bin", package]);
    }
    built_from::note(&mut command);
    command
}

#[cfg(unix)]
fn become_program(command: &mut Command) -> Result<()> {
    use std::os::unix::process::CommandExt;

    let error = command.exec();
    Err(format!("cannot start {}: {error}", Path::new(command.get_program()).display()))
}

#[cfg(not(unix))]
fn become_program(command: &mut Command) -> Result<()> {
    let name = Path::new(command.get_program()).display().to_string();
    let status = command.status().map_err(|error| format!("cannot start {name}: {error}"))?;
    std::process::exit(status.code().unwrap_or(1));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(line: &str) -> Result<Request> {
        split(line.split_whitespace().map(OsString::from))
    }

    fn rest(line: &str) -> Vec<OsString> {
        request(line).unwrap().rest
    }

    #[test]
    fn nothing_said_means_flex_and_no_arguments() {
        let expected = Request { backend: Backend::Flex, release: false, help: false, rest: vec![] };
        assert_eq!(request(""), Ok(expected));
    }

    #[test]
    fn the_backend_is_found_wherever_it_stands() {
        for line in [
            "--backend wgpu --data x --steps 10",
            "--data x --backend=wgpu --steps 10",
            "--data x --steps 10 --backend wgpu",
        ] {
            assert_eq!(request(line).unwrap().backend, Backend::Wgpu, "{line}");
            assert_eq!(rest(line), ["--data", "x", "--steps", "10"], "{line}");
        }
    }

    #[test]
    fn release_is_ours_and_the_rest_keeps_its_order() {
        assert!(request("lm --release --seed 7").unwrap().release);
        assert_eq!(rest("lm --release --seed 7"), ["lm", "--seed", "7"]);
    }

    #[test]
    fn what_follows_two_dashes_is_the_programs_own() {
        let request = request("--seed 7 -- --backend wgpu --help").unwrap();
        assert_eq!(request.backend, Backend::Flex);
        assert!(!request.help);
        assert_eq!(request.rest, ["--seed", "7", "--backend", "wgpu", "--help"]);
    }

    #[test]
    fn benchmarks_and_studies_have_packages_of_their_own_and_always_the_release_profile() {
        let theirs = |program: Program| (program.package(), program.always_release(), program.subcommand());
        assert_eq!(theirs(Program::Train), ("moe-train", false, Some("train")));
        assert_eq!(theirs(Program::Bench), ("moe-bench", true, None));
        assert_eq!(theirs(Program::Reproduce), ("moe-reproduce", true, None));
    }

    #[test]
    fn programs_are_built_together_with_one_backend() {
        let command = command(&["moe-train", "moe-bench"], Backend::Cuda);
        let line: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        assert!(line.join(" ").ends_with("--bin moe-train --bin moe-bench"), "{line:?}");
    }

    #[test]
    fn a_backend_without_a_value_is_an_error() {
        assert!(request("--steps 3 --backend").unwrap_err().contains("needs a value"));
        assert!(request("--backend --steps").unwrap_err().contains("unknown backend `--steps`"));
    }

    #[test]
    fn help_is_answered_without_a_build() {
        assert!(request("--steps 3 -h").unwrap().help);
    }

    #[cfg(unix)]
    #[test]
    fn an_argument_that_is_not_utf8_is_passed_on_unchanged() {
        use std::os::unix::ffi::OsStringExt;

        let path = OsString::from_vec(vec![b'a', 0xff]);
        assert_eq!(split([path.clone()].into_iter()).unwrap().rest, [path]);
    }
}
