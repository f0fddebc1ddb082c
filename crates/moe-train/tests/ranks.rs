//! Several ranks, threads or processes, train as one does; what happens when one is gone.

mod common;

use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{Place, fail, metrics, output, succeed};
use serde_json::Value;

/// Relative, of what a few steps in f32 make of sums in another order.
const RELATIVE: f64 = 1e-3;

/// Default vectors, excitation and a balance loss that counts.
const ALL: &[&str] =
    &["moe.router=default", "optim.excitation=zero-sum", "moe.balance_coef=0.1", "train.grad_accumulation=2"];

fn with(mut command: Command, args: &[&str]) -> Command {
    command.args(args);
    command
}

fn train(place: &Place, out: &str, steps: usize) -> Command {
    let mut command = place.train(out, steps);
    for setting in ALL {
        command.args(["--set", setting]);
    }
    command
}

/// Of every step of a run, what was measured.
fn measured(place: &Place, run: &str) -> Vec<[f64; 4]> {
    let number = |record: &Value, key: &str| record[key].as_f64().expect("a number");
    let of = |record: &Value| ["loss", "balance_loss", "grad_norm", "tokens"].map(|key| number(record, key));
    metrics(&place.path(run)).iter().map(of).collect()
}

fn assert_alike(found: &[[f64; 4]], expected: &[[f64; 4]]) {
    assert_eq!(found.len(), expected.len());
    for (step, (found, expected)) in found.iter().zip(expected).enumerate() {
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() <= RELATIVE * expected.abs(), "record {step}: {found} != {expected}");
        }
    }
}

fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    format!("127.0.0.1:{}", listener.local_addr().expect("bound").port())
}

/// One of two processes that train together, started but not waited for.
fn node(command: Command, rank: usize, address: &str, timeout: &str) -> Child {
    let place = ["--node", &rank.to_string(), "--nodes", "2", "--coordinator", address, "--rank-timeout", timeout];
    started(with(command, &place))
}

/// A program that says to us what it says on stderr, and nothing else to anybody.
fn started(mut command: Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().expect("the program starts")
}

/// Waits until the run has a checkpoint.
fn wait_for_checkpoint(place: &Place, run: &str) {
    let directory = place.path(run).join("checkpoints/step-00000005");
    let start = Instant::now();
    while !directory.exists() {
        assert!(start.elapsed() < Duration::from_secs(120), "no checkpoint");
        sleep(Duration::from_millis(20));
    }
}

/// The one line that a process ends with.
fn last_words(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(text.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{text}");
    text
}

#[test]
fn threads_and_processes_train_as_one_rank_does() {
    let place = Place::new();
    succeed(train(&place, "alone", 12));
    succeed(with(train(&place, "threads", 12), &["--devices", "0,1"]));
    let said = succeed(with(train(&place, "processes", 12), &["--launch", "2"]));
    assert!(said.contains("2 processes") && said.contains("without authentication"), "{said}");
    succeed(with(train(&place, "again", 12), &["--launch", "2"]));
    succeed(with(train(&place, "four", 12), &["--launch", "4"]));
    let alone = measured(&place, "alone");
    assert_eq!(alone.len(), 12);
    for run in ["threads", "processes", "four"] {
        assert_alike(&measured(&place, run), &alone);
    }
    assert_eq!(measured(&place, "again"), measured(&place, "processes"));
}

/// Whether rank 1 of 2 was gone before a run of 20 steps was done.
fn stopped_by_a_rank_that_is_gone(place: &Place, run: &str) -> bool {
    let address = free_address();
    let first = node(train(place, run, 20), 0, &address, "60");
    let mut second = node(train(place, "unused", 20), 1, &address, "60");
    wait_for_checkpoint(place, run);
    second.kill().expect("it can be killed");
    second.wait().expect("it ends");
    let ended = first.wait_with_output().expect("it ends");
    if ended.status.success() {
        return false;
    }
    let said = last_words(&ended);
    assert!(said.contains("rank 0 cannot train with the others: rank 1 ") && said.contains("--resume"), "{said}");
    metrics(&place.path(run)).len() < 20
}

#[test]
fn a_run_goes_on_with_another_number_of_ranks() {
    let place = Place::new();
    succeed(train(&place, "alone", 20));
    // With as many steps planned, so that the learning rates are the same; a run may be done before the kill.
    let mut runs = (0..20).map(|attempt| format!("run-{attempt}"));
    let run =
        runs.find(|run| stopped_by_a_rank_that_is_gone(&place, run)).expect("one of them is stopped before its end");
    succeed(with(place.resume(&run), &["--devices", "0,1,2,3"]));
    assert_alike(&measured(&place, &run), &measured(&place, "alone"));
    assert!(!place.path("unused").exists(), "only rank 0 writes");
}

#[test]
fn a_frozen_rank_ends_the_others_in_time() {
    let place = Place::new();
    let address = free_address();
    let first = node(train(&place, "run", 100_000), 0, &address, "10");
    let mut second = node(train(&place, "run", 100_000), 1, &address, "10");
    wait_for_checkpoint(&place, "run");
    let stopped = Command::new("kill").args(["-STOP", &second.id().to_string()]).status().expect("there is a kill");
    assert!(stopped.success());
    let start = Instant::now();
    let said = last_words(&first.wait_with_output().expect("it ends"));
    assert!(said.contains("rank 1 has been silent for 10 s"), "{said}");
    assert!(start.elapsed() < Duration::from_secs(60));
    second.kill().expect("it can be killed");
    second.wait().expect("it ends");
    let checkpoints = std::fs::read_dir(place.path("run/checkpoints")).expect("they are there").count();
    assert!(checkpoints > 0);
}

/// The ids of the processes that `parent` has started.
#[cfg(target_os = "linux")]
fn children_of(parent: u32) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").expect("this is Linux").flatten();
    let ids = processes.filter_map(|process| process.file_name().into_string().ok());
    ids.filter(|id| state_and_parent(id).is_some_and(|(_, of)| of == parent.to_string())).collect()
}

#[test]
#[cfg(target_os = "linux")]
fn a_frozen_launched_rank_is_named_and_not_left_behind() {
    let place = Place::new();
    let first = started(with(train(&place, "run", 100_000), &["--launch", "2", "--rank-timeout", "5"]));
    wait_for_checkpoint(&place, "run");
    let children = children_of(first.id());
    assert_eq!(children.len(), 1);
    assert!(Command::new("kill").args(["-STOP", &children[0]]).status().expect("there is a kill").success());
    let start = Instant::now();
    let said = last_words(&first.wait_with_output().expect("it ends"));
    assert!(said.contains("rank 1 has been silent for 5 s"), "{said}");
    assert!(start.elapsed() < Duration::from_secs(60));
    assert!(state_and_parent(&children[0]).is_none_or(|(state, _)| state == "Z"), "it is still there");
}

#[test]
fn a_killed_first_rank_ends_the_others() {
    let place = Place::new();
    let address = free_address();
    let mut first = node(train(&place, "run", 100_000), 0, &address, "60");
    let second = node(train(&place, "run", 100_000), 1, &address, "60");
    wait_for_checkpoint(&place, "run");
    first.kill().expect("it can be killed");
    first.wait().expect("it ends");
    let said = last_words(&second.wait_with_output().expect("it ends"));
    assert!(said.contains("rank 1 cannot train with the others: rank 0 "), "{said}");
}

/// Of a process that is there: what it does, in a letter, and the id of its parent.
#[cfg(target_os = "linux")]
fn state_and_parent(id: &str) -> Option<(String, String)> {
    let text = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // Behind its name in brackets, which may hold anything.
    let mut words = text.rsplit_once(')')?.1.split_whitespace().map(str::to_string);
    words.next().zip(words.next())
}

#[test]
#[cfg(target_os = "linux")]
fn launched_processes_end_with_the_one_that_launched_them() {
    let place = Place::new();
    let mut first = started(with(train(&place, "run", 100_000), &["--launch", "4"]));
    let start = Instant::now();
    let in_time = || assert!(start.elapsed() < Duration::from_secs(60), "it takes too long");
    let mut others = children_of(first.id());
    while others.len() < 3 {
        in_time();
        sleep(Duration::from_millis(5));
        others = children_of(first.id());
    }
    // At once, so that they may not have met yet.
    first.kill().expect("it can be killed");
    first.wait().expect("it ends");
    let is_there = |id: &String| state_and_parent(id).is_some_and(|(state, _)| state != "Z");
    while others.iter().any(is_there) {
        in_time();
        sleep(Duration::from_millis(20));
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_launched_rank_that_dies_at_its_start_is_not_waited_for() {
    let place = Place::new();
    let first = started(with(train(&place, "run", 100_000), &["--launch", "2"]));
    let start = Instant::now();
    let other = loop {
        assert!(start.elapsed() < Duration::from_secs(60), "nobody was launched");
        if let Some(other) = children_of(first.id()).pop() {
            break other;
        }
        sleep(Duration::from_millis(1));
    };
    assert!(Command::new("kill").args(["-KILL", &other]).status().expect("there is a kill").success());
    let said = last_words(&first.wait_with_output().expect("it ends"));
    assert!(said.contains("rank 0 cannot train with the others: rank 1 "), "{said}");
    // The limit is 600 s.
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
}

#[test]
fn ranks_that_train_something_else_are_refused_before_the_first_step() {
    let place = Place::new();
    let address = free_address();
    let first = node(train(&place, "run", 10), 0, &address, "60");
    let second = node(with(train(&place, "run", 10), &["--seed", "9"]), 1, &address, "60");
    for rank in [first, second] {
        let said = last_words(&rank.wait_with_output().expect("it ends"));
        assert!(said.contains("other settings or other data"), "{said}");
    }
    let logged = std::fs::read_to_string(place.path("run/metrics.jsonl")).unwrap_or_default();
    assert_eq!(logged, "");
}

/// What both ranks say at their end, which comes before the first step.
fn refused(place: &Place, first: Command, second: Command) -> String {
    let address = free_address();
    let ranks = [node(first, 0, &address, "60"), node(second, 1, &address, "60")];
    let said = ranks.map(|rank| last_words(&rank.wait_with_output().expect("it ends")));
    assert!(!place.path("unused").exists());
    said.concat()
}

fn assert_both_say(said: &str, reason: &str) {
    assert_eq!(said.matches(reason).count(), 2, "{said}");
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).expect("writable");
    for entry in std::fs::read_dir(from).expect("readable").flatten() {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            std::fs::copy(from, to).expect("writable");
        }
    }
}

#[test]
fn ranks_with_another_text_or_another_checkpoint_are_refused_before_the_first_step() {
    let place = Place::new();
    let elsewhere = Place::new();
    let text = std::fs::read_to_string(place.text()).expect("readable").replacen("the", "eht", 1);
    std::fs::write(elsewhere.text(), text).expect("writable");
    let said = refused(&place, train(&place, "new", 10), train(&elsewhere, "unused", 10));
    assert_both_say(&said, "other settings or other data");

    succeed(train(&place, "run", 10));
    succeed(with(train(&place, "seed", 10), &["--seed", "9"]));
    let resume = |run: &str| with(place.resume(run), &["--steps", "20"]);
    let step = |run: &str| place.path(run).join("checkpoints/step-00000010");
    copy(&place.path("run"), &place.path("behind"));
    std::fs::remove_dir_all(step("behind")).expect("it is there");
    assert_both_say(&refused(&place, resume("run"), resume("behind")), "starts after step 5, rank 0 after step 10");
    copy(&place.path("run"), &place.path("weights"));
    copy(&step("seed"), &step("weights"));
    assert_both_say(&refused(&place, resume("run"), resume("weights")), "starts from other weights than rank 0");
}

#[test]
#[cfg(target_os = "linux")]
fn a_launched_rank_speaks_for_rank_0_when_that_cannot() {
    let place = Place::new();
    for (signal, run, reason) in [
        ("-KILL", "killed", "rank 0 is gone, and with it this rank"),
        ("-STOP", "frozen", "rank 1 cannot train with the others: rank 0 has been silent for 2 s"),
    ] {
        let args = ["--launch", "3", "--rank-timeout", "1", "--set", "train.batch_size=6"];
        let mut first = started(with(train(&place, run, 100_000), &args));
        wait_for_checkpoint(&place, run);
        let (id, others) = (first.id().to_string(), children_of(first.id()));
        assert_eq!(others.len(), 2);
        assert!(Command::new("kill").args([signal, &id]).status().expect("there is a kill").success());
        let is_there = |id: &String| state_and_parent(id).is_some_and(|(state, _)| state != "Z");
        let start = Instant::now();
        while others.iter().any(is_there) {
            assert!(start.elapsed() < Duration::from_secs(60), "they are still there");
            sleep(Duration::from_millis(20));
        }
        first.kill().expect("it can be killed");
        let said = first.wait_with_output().expect("it ends").stderr;
        let said = String::from_utf8_lossy(&said);
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.starts_with("error: ") && said.contains(reason), "{said}");
    }
}

#[test]
fn a_loss_that_is_not_finite_is_one_line_of_all_launched_ranks() {
    let place = Place::new();
    let args =
        ["--launch", "2", "--set", "optim.lr=1e30", "--set", "optim.min_lr=1e30", "--set", "optim.warmup_steps=0"];
    let said = fail(with(train(&place, "run", 50), &args));
    assert!(said.contains("is not finite"), "{said}");
}

#[test]
fn what_ranks_cannot_share_is_one_line_and_leaves_no_directory() {
    let place = Place::new();
    let cases: [(&[&str], &str); 7] = [
        (&["--devices", "0,1,2"], "train.batch_size 4 cannot be split over 3 ranks"),
        (&["--devices", "0,1", "--set", "moe.router=expert-choice"], "expert choice cannot run on several ranks"),
        (&["--launch", "2", "--devices", "0,1"], "a CPU is one device"),
        (&["--launch", "2", "--devices", "0,1,2"], "--devices names 3 devices for 2 processes"),
        (&["--launch", "2", "--set", "moe.capacity_factor=1.0"], "moe.capacity_factor cannot be used on several ranks"),
        (&["--node", "2", "--nodes", "2", "--coordinator", "localhost:9"], "of 2 ranks, counted from 0, it is none"),
        (&["--node", "1", "--nodes", "2", "--coordinator", "nowhere"], "write host:port"),
    ];
    for (args, reason) in cases {
        let said = fail(with(place.train("run", 3), args));
        assert!(said.contains(reason), "{args:?}: {said}");
        assert!(!place.path("run").exists(), "{args:?}");
    }
    let usage = output(with(place.train("run", 3), &["--nodes", "2"]));
    assert_eq!(usage.status.code(), Some(2));
}
