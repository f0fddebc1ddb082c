//! Runs the real program on texts made here.
#![allow(dead_code, reason = "every test file uses a part of it")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// A model of a few thousand parameters, with everything a large one has.
pub(crate) const MICRO: &[&str] = &[
    "model.d_model=32",
    "model.num_layers=2",
    "model.num_heads=4",
    "model.num_kv_heads=2",
    "model.d_hidden=48",
    "model.max_seq_len=32",
    "moe.num_experts=4",
    "moe.d_hidden=24",
    "train.seq_len=32",
    "train.batch_size=4",
    "train.valid_batches=2",
    "train.valid_every=10",
    "train.checkpoint_every=5",
    "train.log_every=1",
    "train.sample_tokens=8",
];

/// A directory that goes away, with a text in it.
pub(crate) struct Place {
    pub(crate) dir: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().expect("a temporary directory") };
        fs::write(place.text(), sentences(12_000)).expect("writable");
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn text(&self) -> PathBuf {
        self.path("text.txt")
    }

    /// `train` on the text with the micro model, into `out`.
    pub(crate) fn train(&self, out: &str, steps: usize) -> Command {
        let mut command = program();
        command.arg("train").arg("--data").arg(self.text()).arg("--out").arg(self.path(out));
        command.args(["--steps", &steps.to_string()]);
        for setting in MICRO {
            command.args(["--set", setting]);
        }
        command
    }

    pub(crate) fn resume(&self, out: &str) -> Command {
        let mut command = program();
        command.arg("train").arg("--resume").arg(self.path(out));
        command
    }
}

pub(crate) fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_moe-train"))
}

/// English-like text of at least `bytes` bytes, always the same.
fn sentences(bytes: usize) -> String {
    const WORDS: [&str; 8] = ["the router", "an expert", "a token", "chooses", "serves", "learns", "and", "again."];
    let mut state = 1u64;
    let mut text = String::new();
    while text.len() < bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.push_str(WORDS[(state >> 60) as usize % WORDS.len()]);
        text.push(if (state >> 50) & 7 == 0 { '\n' } else { ' ' });
    }
    text
}

pub(crate) fn output(mut command: Command) -> Output {
    command.output().expect("the program starts")
}

/// Runs a command that must succeed; returns its stdout.
pub(crate) fn succeed(command: Command) -> String {
    let output = output(command);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {stderr}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a command that must end with code 1 and exactly one line on stderr; returns the line.
pub(crate) fn fail(command: Command) -> String {
    failure(&output(command))
}

/// The one line on stderr of a command that ended with code 1.
pub(crate) fn failure(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "more or less than one line: {stderr}");
    assert!(stderr.starts_with("error: "), "{stderr}");
    stderr
}

/// The objects of `metrics.jsonl`.
pub(crate) fn metrics(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).expect("metrics were written");
    text.lines().map(|line| serde_json::from_str(line).expect("every line is an object")).collect()
}

/// What the metrics say that must not depend on interruptions: all but the time.
pub(crate) fn records(run: &Path) -> Vec<Value> {
    let mut records = metrics(run);
    for record in &mut records {
        record.as_object_mut().expect("an object").remove("tokens_per_s");
    }
    records
}

/// The last step with a checkpoint, by the names of the directories.
pub(crate) fn last_checkpoint(run: &Path) -> Option<usize> {
    let entries = fs::read_dir(run.join("checkpoints")).ok()?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter_map(|name| name.strip_prefix("step-")?.parse().ok()).max()
}

pub(crate) fn checkpoint(run: &Path, step: usize) -> PathBuf {
    run.join("checkpoints").join(format!("step-{step:08}"))
}
