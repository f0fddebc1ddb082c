//! A run that is killed at any moment and resumed gives the losses of one that was not, bit for bit.
//!
//! `cargo xtask crash-test` does the same hundreds of times, with models of both kinds.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{Place, last_checkpoint, metrics, output, records, succeed};

const STEPS: usize = 240;
const KILLS: usize = 12;

/// Names of everything in a run.
fn files(run: &Path) -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    let mut left = vec![run.to_path_buf()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).expect("readable") {
            let path = entry.expect("readable").path();
            files.insert(path.strip_prefix(run).expect("below it").to_path_buf());
            if path.is_dir() {
                left.push(path);
            }
        }
    }
    files
}

/// Waits until a part of a checkpoint is there, or the program has ended.
fn wait_for_half_a_checkpoint(run: &Path, child: &mut Child) {
    let is_half = |name: &str| name.starts_with(".step-") && name.ends_with(".tmp");
    while child.try_wait().expect("it can be asked").is_none() {
        let entries = fs::read_dir(run.join("checkpoints")).into_iter().flatten();
        if entries.flatten().any(|entry| entry.file_name().to_str().is_some_and(is_half)) {
            return;
        }
        sleep(Duration::from_micros(50));
    }
}

#[test]
fn a_killed_and_resumed_run_equals_an_undisturbed_one() {
    let place = Place::new();
    let start = Instant::now();
    succeed(place.train("undisturbed", STEPS));
    let whole = start.elapsed();
    let (run, undisturbed) = (place.path("killed"), place.path("undisturbed"));
    let begin_or_resume = || match run.join("config.json").exists() {
        true => place.resume("killed"),
        false => place.train("killed", STEPS),
    };

    // The moments are spread over a run's length by the golden ratio, so they fall in any phase of a step; every third
    // one is then put off until a checkpoint is being written.
    let moment = |kill: usize| whole.mul_f64((kill as f64 * 0.618_034).fract() * 0.4 + 0.02);
    let mut killed = 0;
    for kill in 0..KILLS {
        let mut command = begin_or_resume();
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program starts");
        sleep(moment(kill).max(Duration::from_millis(30)));
        if kill % 3 == 2 {
            wait_for_half_a_checkpoint(&run, &mut child);
        }
        child.kill().expect("it can be killed");
        killed += usize::from(!child.wait().expect("it ends").success());
    }
    assert!(killed > 0, "no run was killed before its end");

    assert!(succeed(begin_or_resume()).contains(&format!("final: steps={STEPS} ")));
    assert_eq!(records(&run), records(&undisturbed), "after {killed} kills");
    assert_eq!(files(&run), files(&undisturbed), "after {killed} kills");
    // What the optimizer remembers is the same too: further steps are.
    for name in ["killed", "undisturbed"] {
        let mut command = place.resume(name);
        command.args(["--steps", &(STEPS + 5).to_string()]);
        succeed(command);
    }
    assert_eq!(records(&run), records(&undisturbed), "after {killed} kills and 5 steps more");
}

#[test]
fn a_finished_run_goes_on_when_it_gets_more_steps() {
    let place = Place::new();
    succeed(place.train("run", 10));
    let before = records(&place.path("run"));
    let mut command = place.resume("run");
    command.args(["--steps", "15"]);
    succeed(command);
    let after = records(&place.path("run"));
    assert_eq!((after.len(), last_checkpoint(&place.path("run"))), (15, Some(15)));
    assert_eq!(after[..10], before);
}

#[test]
fn a_run_that_was_killed_before_it_had_its_tokenizer_gets_it_when_it_is_resumed() {
    let place = Place::new();
    let letters = ('a'..='z').chain([' ', '.', '\n']).zip(0..);
    let vocab: serde_json::Map<_, _> = letters.map(|(letter, id)| (letter.to_string(), id.into())).collect();
    let model = serde_json::json!({"type": "BPE", "vocab": vocab, "merges": []});
    let tokenizer = serde_json::json!({"version": "1.0", "added_tokens": [], "model": model}).to_string();
    fs::write(place.path("letters.json"), &tokenizer).expect("writable");
    let mut command = place.train("run", 5);
    command.arg("--tokenizer").arg(place.path("letters.json"));
    succeed(command);
    let copy = place.path("run/tokenizer.json");
    fs::remove_file(&copy).expect("there is a copy");
    succeed(place.resume("run"));
    assert_eq!(fs::read_to_string(&copy).expect("it is back"), tokenizer);
}

#[test]
fn two_programs_on_one_run_directory_are_refused() {
    let place = Place::new();
    let mut first = place.train("run", 100_000).stdout(Stdio::null()).spawn().expect("the program starts");
    for _ in 0..600 {
        if last_checkpoint(&place.path("run")).is_some() {
            break;
        }
        sleep(Duration::from_millis(50));
    }
    let before = metrics(&place.path("run")).len();
    for second in [place.resume("run"), place.train("run", 5)] {
        let second = output(second);
        let message = String::from_utf8_lossy(&second.stderr);
        assert_eq!(second.status.code(), Some(1), "{message}");
        assert!(message.contains("in use by another program") || message.contains("already holds a run"), "{message}");
    }
    // The first one is not disturbed.
    sleep(Duration::from_millis(200));
    assert!(first.try_wait().expect("it can be asked").is_none());
    first.kill().expect("it can be killed");
    first.wait().expect("it ends");
    let log = fs::read_to_string(place.path("run/metrics.jsonl")).expect("readable");
    let steps: Vec<u64> = log
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON")["step"].as_u64().expect("a step"))
        .collect();
    assert!(steps.len() > before && steps.iter().zip(1..).all(|(step, expected)| *step == expected));
}
