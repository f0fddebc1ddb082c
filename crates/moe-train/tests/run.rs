//! A whole run: training, what it leaves behind, evaluation, generation.

mod common;

use std::fs;

use common::{Place, metrics, program, succeed};

#[test]
fn a_run_trains_and_leaves_everything_behind() {
    let place = Place::new();
    let stdout = succeed(place.train("run", 30));
    let run = place.path("run");

    let last = stdout.lines().last().expect("there is output");
    for key in ["final: steps=30 ", " tokens=3840 ", " valid_loss=", " valid_bpb=", " tokens_per_s="] {
        assert!(last.contains(key), "{last}");
    }
    assert!(stdout.contains("sample at temperature"), "{stdout}");

    let records = metrics(&run);
    assert_eq!(records.len(), 30);
    for key in ["step", "tokens", "loss", "balance_loss", "z_loss", "lr", "grad_norm", "tokens_per_s", "layers"] {
        assert!(records[0].get(key).is_some(), "{key}");
    }
    for key in ["layer", "expert_counts", "load_ratio", "dead_experts", "load_entropy", "router_entropy", "gate_mass"] {
        assert!(records[0]["layers"][0].get(key).is_some(), "{key}");
    }
    let counts = records[0]["layers"][0]["expert_counts"].as_array().expect("a list");
    assert_eq!(counts.iter().filter_map(|n| n.as_u64()).sum::<u64>(), 4 * 32 * 2, "every slot is served");
    assert!(records[9].get("valid_loss").is_some() && records[9].get("valid_bpb").is_some());

    let loss = |i: usize| records[i]["loss"].as_f64().expect("a number");
    assert!(loss(29) < loss(0) - 0.5, "{} -> {}", loss(0), loss(29));
    let report = fs::read_to_string(run.join("report.html")).expect("there is a report");
    assert!(report.contains("<svg") && !report.contains("src=\"http"));
    assert!(run.join("config.json").is_file());
}

#[test]
fn the_same_seed_gives_the_same_losses_and_another_seed_does_not() {
    let place = Place::new();
    let losses = |out: &str, seed: &str| {
        let mut command = place.train(out, 6);
        command.args(["--seed", seed]);
        succeed(command);
        metrics(&place.path(out)).iter().map(|r| r["loss"].clone()).collect::<Vec<_>>()
    };
    let first = losses("a", "1");
    assert_eq!(first, losses("b", "1"));
    assert_ne!(first, losses("c", "2"));
}

#[test]
fn a_trained_model_is_evaluated_and_continues_a_prompt() {
    let place = Place::new();
    let summary = succeed(place.train("run", 10));
    let run = place.path("run");

    let command = |name: &str| {
        let mut command = program();
        command.arg(name).arg("--run").arg(&run);
        command
    };
    let mut eval = command("eval");
    eval.args(["--batches", "2"]);
    let eval = succeed(eval);
    let value = |text: &str, key: &str| {
        let start = text.rfind(key).unwrap_or_else(|| panic!("no {key} in {text}")) + key.len();
        text[start..].split_whitespace().next().expect("a value").parse::<f64>().expect("a number")
    };
    // The same two batches as the last validation, to the printed digits.
    assert!((value(&eval, " loss=") - value(&summary, " valid_loss=")).abs() < 2e-4, "{eval} {summary}");

    let generate = |seed: &str| {
        let mut generate = command("generate");
        generate.args(["--prompt", "an expert", "--tokens", "40", "--temperature", "0.9", "--top-p", "0.95"]);
        generate.args(["--seed", seed]);
        succeed(generate)
    };
    let sample = generate("3");
    assert!(sample.starts_with("an expert"), "{sample}");
    assert_eq!(sample, generate("3"));
    assert_ne!(sample, generate("4"));
}

#[test]
fn a_setting_and_a_configuration_file_reach_the_run() {
    let place = Place::new();
    fs::write(place.path("run.toml"), "[optim]\nlr = 0.004\n\n[moe]\nbalance_coef = 0.02\n").expect("writable");
    let mut command = place.train("run", 4);
    command.arg("--config").arg(place.path("run.toml")).args(["--set", "optim.clip_norm=0.5"]);
    succeed(command);
    let config = fs::read_to_string(place.path("run/config.json")).expect("there is a configuration");
    let config: serde_json::Value = serde_json::from_str(&config).expect("it is JSON");
    assert_eq!(config["optim"]["lr"], 0.004);
    assert_eq!(config["optim"]["clip_norm"], 0.5);
    assert_eq!(config["model"]["moe"]["balance_coef"], 0.02);
    assert_eq!(config["train"]["steps"], 4);
}

#[test]
fn excitation_is_a_setting_whose_factors_are_logged_and_reported() {
    let place = Place::new();
    let mut command = place.train("run", 4);
    command.args(["--set", "optim.excitation=positive-sum", "--set", "optim.gamma=1.0"]);
    succeed(command);
    let run = place.path("run");
    for record in metrics(&run) {
        let factors = record["layers"][0]["factors"].as_array().expect("a list").clone();
        assert_eq!(factors.len(), 4);
        assert!(factors.iter().all(|factor| factor.as_f64().is_some_and(|factor| factor >= 1.0)));
    }
    let report = fs::read_to_string(run.join("report.html")).expect("there is a report");
    assert!(report.contains("Largest factor"));
}

#[test]
fn an_unknown_excitation_is_refused_with_the_names_there_are() {
    let place = Place::new();
    let mut command = place.train("run", 4);
    command.args(["--set", "optim.excitation=more"]);
    let output = command.output().expect("the program starts");
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && message.contains("zero-sum") && message.contains("exp-diff"), "{message}");
}
