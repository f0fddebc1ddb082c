//! Every program runs to its end in the time and says what its README promises.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// Longest run of a program, on a machine that has other work to do as well.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs a program in a folder of its own, with a standard output that is no terminal, and returns what it printed.
fn run(program: &str) -> String {
    let folder = tempfile::tempdir().expect("a folder for what it writes");
    let start = Instant::now();
    let output = command(program, folder.path());
    assert!(start.elapsed() < LIMIT, "{program} took {:?}", start.elapsed());
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn command(program: &str, folder: &Path) -> Output {
    Command::new(program).current_dir(folder).env("TMPDIR", folder).output().expect("cargo built it")
}

/// The number after `before` in the last line that has it.
fn number_after(text: &str, before: &str) -> f64 {
    let (_, rest) = text.rsplit_once(before).unwrap_or_else(|| panic!("`{before}` is not in:\n{text}"));
    let digits: String = rest.trim_start().chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    digits.parse().unwrap_or_else(|_| panic!("no number after `{before}` in:\n{text}"))
}

#[test]
fn replace_feed_forward_lowers_the_error() {
    let text = run(env!("CARGO_BIN_EXE_replace-feed-forward"));
    assert!(number_after(&text, "held-out mean squared error") < 0.05);
}

#[test]
fn learner_prints_a_line_per_epoch_with_every_metric_and_beats_chance() {
    let text = run(env!("CARGO_BIN_EXE_learner"));
    let epochs: Vec<_> = text.lines().filter(|line| line.starts_with("epoch ")).collect();
    assert_eq!(epochs.len(), 10, "{text}");
    for metric in ["Accuracy", "Dead experts", "Expert load ratio", "Loss", "Router entropy"] {
        assert!(epochs.iter().all(|line| line.contains(metric)), "{metric} in:\n{text}");
    }
    assert!(number_after(&text, "accuracy on new points") > 2.0 * number_after(&text, "by chance"));
}

#[test]
fn upcycle_goes_on_from_the_same_loss() {
    let text = run(env!("CARGO_BIN_EXE_upcycle"));
    let table: Vec<Vec<f64>> = text.lines().skip(2).map(numbers).collect();
    let (first, last) = (&table[0], table.last().expect("a table"));
    assert_eq!((first[0], last[0]), (200.0, 400.0), "{text}");
    for way in 1..=3 {
        assert!((first[way] - first[1]).abs() <= 1e-4 + 1e-9, "{text}");
        assert!(last[way] < first[way], "{text}");
    }
}

fn numbers(line: &str) -> Vec<f64> {
    line.split_whitespace().map(|word| word.parse().unwrap_or_else(|_| panic!("`{word}` in `{line}`"))).collect()
}

#[test]
fn own_optimizer_lowers_the_error() {
    let text = run(env!("CARGO_BIN_EXE_own-optimizer"));
    assert!(number_after(&text, "error on new points") < number_after(&text, "before training") / 2.0, "{text}");
}

#[test]
fn excitation_toy_writes_its_picture() {
    let text = run(env!("CARGO_BIN_EXE_excitation-toy"));
    assert!(text.contains("excitation-toy.svg"), "{text}");
}

#[test]
fn every_program_is_in_the_readme() {
    let readme = include_str!("../README.md");
    for program in ["replace-feed-forward", "learner", "upcycle", "own-optimizer", "excitation-toy"] {
        assert!(readme.contains(&format!("| `{program}`")), "{program}");
    }
}
