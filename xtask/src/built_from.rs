//! Compiler and commit of a build, which a benchmark writes into its records: they reach it through the environment of its compilation.

use std::path::Path;
use std::process::Command;

use crate::cargo;

/// `moe-bench` reads both while it is compiled; cargo compiles it again when they change.
const RUSTC: &str = "MOE_BENCH_RUSTC";
const COMMIT: &str = "MOE_BENCH_COMMIT";

/// Tells a build what it is of. Nothing is said that is not known: outside a checkout there is no commit.
pub(crate) fn note(build: &mut Command) {
    for (variable, value) in [(RUSTC, compiler()), (COMMIT, checkout())] {
        match value {
            Some(value) => build.env(variable, value),
            None => build.env_remove(variable),
        };
    }
}

/// What the compiler calls itself.
pub(crate) fn compiler() -> Option<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    output(Command::new(rustc).arg("--version"))
}

/// The commit of the workspace; ends in `+` when files differ from it.
pub(crate) fn checkout() -> Option<String> {
    commit(&cargo::root())
}

/// The commit that is checked out at `root`; ends in `+` when files differ from it.
fn commit(root: &Path) -> Option<String> {
    let git = |args: &[&str]| output(Command::new("git").args(args).current_dir(root));
    let (commit, changed) = (git(&["rev-parse", "HEAD"])?, git(&["status", "--porcelain"])?);
    Some(if changed.is_empty() { commit } else { commit + "+" })
}

/// What a program prints, if it succeeds.
pub(crate) fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_is_told_its_compiler_and_a_commit_if_there_is_one() {
        let mut build = Command::new("cargo");
        note(&mut build);
        let told = |name: &str| build.get_envs().find(|(variable, _)| *variable == name).and_then(|(_, value)| value);
        assert!(told(RUSTC).expect("there is a compiler").to_string_lossy().starts_with("rustc "));
        if let Some(commit) = told(COMMIT) {
            let commit = commit.to_string_lossy();
            let hash = commit.trim_end_matches('+');
            assert!(hash.len() == 40 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()), "{commit}");
        }
        assert_eq!(commit(Path::new("/")), None);
    }
}
