//! Runs with every router, from the command line.

mod common;

use std::fs;
use std::path::Path;

use common::{Place, checkpoint, fail, last_checkpoint, metrics, output, program, succeed};

fn with(mut command: std::process::Command, settings: &[&str]) -> std::process::Command {
    settings.iter().for_each(|setting| {
        command.args(["--set", setting]);
    });
    command
}

fn losses(run: &Path) -> Vec<String> {
    metrics(run).iter().map(|record| record["loss"].to_string()).collect()
}

#[test]
fn every_router_trains_evaluates_and_generates() {
    let settings: [&[&str]; 6] = [
        &["moe.router=noisy-top-k", "moe.load_coef=0.005", "moe.importance_coef=0.005"],
        &["moe.router=sigmoid", "moe.sigmoid.groups=2", "moe.sigmoid.top_groups=1", "moe.balance=sequence"],
        &["moe.router=sinkhorn", "moe.top_k=1", "moe.default_vectors=true"],
        &["moe.router=relu", "moe.relu.l1_coef=0.001", "moe.balance_coef=0"],
        &["moe.router=hash"],
        &["moe.capacity_factor=1", "moe.drop_policy=batch-priority"],
    ];
    for settings in settings {
        let place = Place::new();
        succeed(with(place.train("run", 20), settings));
        let run = place.path("run");
        let records = metrics(&run);
        let loss = |i: usize| records[i]["loss"].as_f64().expect("a number");
        assert!(loss(records.len() - 1) < loss(0), "{settings:?}");

        let mut eval = program();
        eval.arg("eval").arg("--run").arg(&run);
        succeed(eval);
        let mut generate = program();
        generate.arg("generate").arg("--run").arg(&run).args(["--prompt", "the ", "--tokens", "4"]);
        succeed(generate);
    }
}

/// The program is a process of its own, whose generator nobody else draws from.
#[test]
fn a_resumed_run_draws_the_noise_of_an_unbroken_one() {
    let place = Place::new();
    succeed(with(place.train("run", 12), &["moe.router=noisy-top-k", "train.keep_last=9"]));
    let run = place.path("run");
    let unbroken = losses(&run);
    for step in 6..=12 {
        let _ = fs::remove_dir_all(checkpoint(&run, step));
    }
    assert_eq!(last_checkpoint(&run), Some(5));
    succeed(place.resume("run"));
    assert_eq!(losses(&run), unbroken);
}

#[test]
fn a_causal_model_that_looks_ahead_is_warned_of() {
    let place = Place::new();
    let found = output(with(place.train("run", 2), &["moe.router=expert-choice"]));
    assert!(found.status.success());
    let stderr = String::from_utf8_lossy(&found.stderr);
    assert!(stderr.starts_with("warning: moe.router = \"expert-choice\" in a causal model"), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

#[test]
fn routers_that_cannot_be_are_refused() {
    let cases: [(&[&str], &str); 6] = [
        (&["moe.router=sigmoid", "moe.sigmoid.groups=3"], "groups = 3 must divide the number of experts, 4"),
        (&["moe.router=relu", "moe.default_vectors=true"], "default vectors have no meaning with a ReLU router"),
        (&["moe.router=hash", "moe.default_vectors=true"], "default vectors have no meaning with a hash router"),
        (&["moe.router=relu", "moe.balance=sequence"], "the balance of sequences needs tokens with K experts each"),
        (&["moe.load_coef=0.1"], "load_coef = 0.1 needs a router with noise"),
        (&["moe.capacity_factor=-1"], "moe.capacity_factor is -1"),
    ];
    for (settings, expected) in cases {
        let place = Place::new();
        let message = fail(with(place.train("run", 2), settings));
        assert!(message.contains(expected), "{message}");
        assert!(!place.path("run").exists());
    }
}
