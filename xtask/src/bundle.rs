//! `cargo xtask gpu-bundle`: the programs a machine with an NVIDIA GPU needs, built on a machine that has none.
//!
//! The bundle holds the suite (`bin/suite-*`), `bin/moe-bench`, `bin/moe-train`, this program (`bin/xtask`), a text to train on and
//! `run.sh`, which runs all of them, or the study of Default MoE. It was linked without CUDA: the libraries are looked up when the programs start.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::backend::Backend;
use crate::files::{self, at};
use crate::{Result, cargo, program, suite};

/// CUDA version whose functions the bundle may call, as the `cudarc` crate writes it: 13.0.
const CUDA_VERSION: &str = "13000";
const CUDA_VERSION_VARIABLE: &str = "CUDARC_CUDA_VERSION";
const RUN_SCRIPT: &str = include_str!("bundle/run.sh");
const PROGRAMS: [&str; 2] = ["moe-bench", "moe-train"];
/// Length of the default text: enough to train on for a minute, small enough to send.
const TEXT_BYTES: usize = 256 * 1024;

/// Builds the programs and lays them out in `out`.
pub(crate) fn build(out: &Path, text: Option<&Path>) -> Result<()> {
    let text = match text {
        Some(path) => at(path, fs::read_to_string(path))?,
        None => workspace_text()?,
    };
    let suites = cargo::build_of("moe-tests", &mut suite_build()?)?;
    let programs = cargo::build(&mut program_build())?;
    clear(out)?;
    let bin = out.join("bin");
    at(&bin, fs::create_dir_all(&bin))?;
    for path in &suites {
        copy(path, &bin.join(format!("suite-{}", stem(path))))?;
    }
    for built in &programs {
        copy(&built.path, &bin.join(&built.package))?;
    }
    let this = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    copy(&this, &bin.join("xtask"))?;
    at(out, fs::write(out.join("text.txt"), text))?;
    write_script(&out.join("run.sh"))?;
    println!("{} holds {} test programs, {} and run.sh", out.display(), suites.len(), PROGRAMS.join(", "));
    Ok(())
}

fn suite_build() -> Result<Command> {
    let mut command = suite::command(Backend::Cuda)?;
    release(command.arg("--no-run"));
    Ok(command)
}

fn program_build() -> Command {
    let mut command = program::command(&PROGRAMS, Backend::Cuda);
    release(&mut command);
    command
}

fn release(command: &mut Command) {
    command.args(["--release", "--config", "profile.release.strip=\"symbols\""]);
    if std::env::var_os(CUDA_VERSION_VARIABLE).is_none() {
        command.env(CUDA_VERSION_VARIABLE, CUDA_VERSION);
    }
}

/// Removes an earlier bundle, and nothing that is not one.
fn clear(out: &Path) -> Result<()> {
    if !out.exists() {
        return Ok(());
    }
    if !out.join("run.sh").exists() && at(out, fs::read_dir(out))?.next().is_some() {
        return Err(format!("{} is not an earlier bundle: choose another --out", out.display()));
    }
    at(out, fs::remove_dir_all(out))
}

/// The Rust sources below `crates`, in the order of their paths, cut to [`TEXT_BYTES`].
fn workspace_text() -> Result<String> {
    let mut text = String::new();
    for file in files::below(&cargo::root().join("crates"))? {
        if file.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&at(&file, fs::read_to_string(&file))?);
        }
    }
    text.truncate(text.floor_char_boundary(TEXT_BYTES));
    Ok(text)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    at(from, fs::copy(from, to)).map(drop)
}

fn write_script(path: &Path) -> Result<()> {
    at(path, fs::write(path, RUN_SCRIPT))?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        at(path, fs::set_permissions(path, fs::Permissions::from_mode(0o755)))?;
    }
    Ok(())
}

/// `losses` of `deps/losses-0123456789abcdef`.
fn stem(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    name.rsplit_once('-').map_or(name.clone(), |(stem, _)| stem.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_lose_the_hash_in_their_name() {
        assert_eq!(stem(Path::new("x/deps/golden_losses-0123456789abcdef")), "golden_losses");
        assert_eq!(stem(Path::new("moe")), "moe");
    }

    #[test]
    fn the_default_text_is_rust_and_no_longer_than_it_may_be() {
        let text = workspace_text().unwrap();
        assert!(text.contains("//!") && text.len() <= TEXT_BYTES);
    }

    /// A bundle whose programs only say what they were asked, and fail when asked to.
    ///
    /// A shell writes the programs and reads `run.sh`: a file that this process writes cannot be started while another test's
    /// child, which has inherited it, is on its way into its own program.
    #[cfg(unix)]
    fn stub_bundle(name: &str, failing: &str, words: &[&str]) -> (std::path::PathBuf, std::process::Output) {
        const STUBS: &str = r#"mkdir -p "$1/bin" && cd "$1/bin" || exit 1
            for program in suite-a suite-b moe-bench moe-train xtask; do
                code=0; [ "$program" != "$2" ] || code=1
                cat >"$program" <<END && chmod +x "$program" || exit 1
#!/bin/sh
case "$program \$*" in
    suite*--list*) echo one: test ;;
    suite*) echo "test result: ok. 1 passed; 0 failed;"; exit $code ;;
    *) echo $program "\$@"; exit $code ;;
esac
END
            done"#;

        let out = std::env::temp_dir().join(format!("moe-bundle-{name}-{}", std::process::id()));
        let made = Command::new("sh").args(["-c", STUBS, "sh"]).arg(&out).arg(failing).status().unwrap();
        assert!(made.success());
        write_script(&out.join("run.sh")).unwrap();
        let mut run = Command::new("bash");
        let output = run.arg(out.join("run.sh")).args(words).env_remove("OUT").output().unwrap();
        (out, output)
    }

    #[cfg(unix)]
    #[test]
    fn one_command_runs_suites_benchmarks_and_training() {
        let (out, output) = stub_bundle("all", "", &["--torch", "/x/python", "my.txt", "--steps", "3"]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let here = std::env::current_dir().unwrap();
        let training = format!("moe-train train --data {}/my.txt", here.display());
        for line in ["suite-a", "suite-b", "1 passed, 0 failed", &training, "--steps 3", "all passed"] {
            assert!(said.contains(line), "{line}: {said}");
        }
        let records = out.join("results/records");
        for (words, record) in [
            ("grouped --rounds 7", "grouped-bf16"),
            ("layer --gpu-shapes --dtype bf16", "layer-bf16"),
            ("layer --gpu-shapes --dtype f32", "layer-f32"),
            ("layer --gpu-shapes --dtype bf16 --skew 1", "layer-bf16-skewed"),
            ("step", "step"),
        ] {
            let line = format!("moe-bench {words} --torch /x/python --json {}/{record}.json", records.display());
            assert!(said.lines().any(|said| said == line), "{line}: {said}");
        }
        assert!(output.status.success() && records.is_dir());
        fs::remove_dir_all(out).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn a_test_that_fails_is_named_and_stops_nothing() {
        let (out, output) = stub_bundle("failing-suite", "suite-a", &[]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(!output.status.success() && said.contains("failed: one") && said.contains("moe-train train"), "{said}");
        fs::remove_dir_all(out).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn a_program_that_fails_stops_no_other_and_is_told() {
        let (out, output) = stub_bundle("failing", "moe-bench", &[]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(!output.status.success() && said.contains("moe-train train") && said.contains("failed"), "{said}");
        fs::remove_dir_all(out).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn the_study_runs_alone_with_the_program_of_the_bundle() {
        let (out, output) = stub_bundle("study", "", &["--study", "novels"]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let (here, data) = (out.display(), std::env::current_dir().unwrap().join("novels"));
        let line = format!(
            "xtask reproduce default-moe --scale gpu --data {} --program {here}/bin/moe-train --out {here}/results/default-moe \
             --runs {here}/results/default-moe/runs",
            data.display()
        );
        assert!(output.status.success() && said.contains(&line) && !said.contains("suite-a"), "{said}");
        fs::remove_dir_all(out).unwrap();
    }

    #[test]
    fn a_folder_that_is_not_a_bundle_is_left_alone() {
        let folder = cargo::root().join("xtask");
        assert!(clear(&folder).unwrap_err().contains("not an earlier bundle"));
        assert!(folder.join("Cargo.toml").exists());
    }
}
