//! Notes the compiler's version and the commit for the records.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = output(Command::new(rustc).arg("--version")).unwrap_or_default();
    println!("cargo:rustc-env=MOE_BENCH_RUSTC={version}");

    // A commit writes this log; where there is none, this runs with every build.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]).filter(|log| Path::new(log).exists()) {
        println!("cargo:rerun-if-changed={log}");
    }
    // And a change since the commit is one of these.
    for sources in ["src", "../crates", "../tests/src", "../Cargo.lock"] {
        println!("cargo:rerun-if-changed={sources}");
    }
    println!("cargo:rustc-env=MOE_BENCH_COMMIT={}", commit().unwrap_or_default());
}

/// The commit that is checked out; ends in `+` when files differ from it.
fn commit() -> Option<String> {
    let (commit, changed) = (git(&["rev-parse", "HEAD"])?, git(&["status", "--porcelain"])?);
    Some(if changed.is_empty() { commit } else { commit + "+" })
}

fn git(args: &[&str]) -> Option<String> {
    output(Command::new("git").args(args))
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().into())
}
