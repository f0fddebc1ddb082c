//! Calls of cargo: where the workspace is, how a step is run, and which programs a build has made.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::Result;

/// The folder of the workspace's `Cargo.toml`.
pub(crate) fn root() -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let here = PathBuf::from(here);
    here.parent().map_or_else(|| here.clone(), Path::to_path_buf)
}

/// The cargo that runs us, in the folder of the workspace.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Runs a command that prints for itself.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().map_err(|error| format!("cannot start {}: {error}", line(command)))?;
    if status.success() { Ok(()) } else { Err(format!("{} failed ({status})", line(command))) }
}

/// Runs a command and returns what it prints on stdout; stderr goes to the terminal.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cannot start {}: {error}", line(command)))?;
    if !output.status.success() {
        return Err(format!("{} failed ({})", line(command), output.status));
    }
    String::from_utf8(output.stdout).map_err(|_| format!("{} printed text that is not UTF-8", line(command)))
}

/// An executable that cargo has built.
#[derive(Debug, PartialEq)]
pub(crate) struct Built {
    /// The package it belongs to.
    pub(crate) package: String,
    pub(crate) path: PathBuf,
}

/// Builds, and returns the executables. All of cargo's own words go to stderr.
pub(crate) fn build(command: &mut Command) -> Result<Vec<Built>> {
    let messages = output(command.arg("--message-format=json-render-diagnostics"))?;
    Ok(messages.lines().filter_map(executable).collect())
}

/// Builds, and returns the executables of `package`.
pub(crate) fn build_of(package: &str, command: &mut Command) -> Result<Vec<PathBuf>> {
    let built = build(command)?;
    Ok(built.into_iter().filter(|built| built.package == package).map(|built| built.path).collect())
}

/// The program named by one line of cargo's JSON messages.
fn executable(message: &str) -> Option<Built> {
    let message: Value = serde_json::from_str(message).ok()?;
    let path = message["executable"].as_str()?.into();
    Some(Built { package: package_name(message["package_id"].as_str()?).into(), path })
}

/// `moe-train` of `path+file:///x/crates/moe-train#0.1.0`, `moe-models` of `path+file:///x/crates/models#moe-models@0.1.0`.
fn package_name(id: &str) -> &str {
    let (source, fragment) = id.split_once('#').unwrap_or((id, ""));
    match fragment.split_once('@') {
        Some((name, _)) => name,
        None => source.rsplit('/').next().unwrap_or(source),
    }
}

fn line(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words = std::iter::once(program).chain(command.get_args());
    format!("`{}`", words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARTIFACT: &str = r#"{"reason":"compiler-artifact","package_id":"path+file:///x/crates/moe-train#0.1.0",
        "executable":"/x/target/debug/moe-train"}"#;

    #[test]
    fn the_executable_and_its_package_are_read_from_the_message() {
        let built = Built { package: "moe-train".into(), path: "/x/target/debug/moe-train".into() };
        assert_eq!(executable(ARTIFACT), Some(built));
        assert_eq!(executable(r#"{"reason":"build-finished","success":true}"#), None);
        assert_eq!(executable("not JSON"), None);
    }

    #[test]
    fn a_package_is_named_by_its_folder_or_after_the_hash() {
        assert_eq!(package_name("path+file:///x/crates/moe-train#0.1.0"), "moe-train");
        assert_eq!(package_name("path+file:///x/crates/models#moe-models@0.1.0"), "moe-models");
    }

    #[test]
    fn a_failed_command_is_named_in_the_error() {
        let message = run(cargo().arg("no-such-subcommand").stderr(Stdio::null())).unwrap_err();
        assert!(message.contains("cargo no-such-subcommand` failed"), "{message}");
    }
}
