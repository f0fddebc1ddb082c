//! A run with default vectors: what it logs, shows and measures.

mod common;

use std::fs;

use common::{Place, metrics, program, succeed};
use serde_json::Value;

/// Relative, f32.
const FIFTH: f64 = 1e-5;

#[test]
fn a_run_with_default_vectors_logs_shows_and_measures_them() {
    let place = Place::new();
    let mut command = place.train("run", 20);
    for setting in ["moe.router=default", "moe.default.rule=mean", "moe.default.beta=0.8", "moe.top_k=1"] {
        command.args(["--set", setting]);
    }
    succeed(command);
    let run = place.path("run");

    let records = metrics(&run);
    assert_moved_by_a_fifth(&records[0]);
    let last = records.last().expect("there are records");
    let default = &last["layers"][0]["default"];
    assert_eq!(default["norms"].as_array().map(Vec::len), Some(4));
    for key in ["moved", "target_norm", "share"] {
        assert!(default[key].as_f64().is_some_and(|value| value > 0.0), "{key} in {default}");
    }
    let report = fs::read_to_string(run.join("report.html")).expect("there is a report");
    for part in ["Norm of the default vectors", "Moved in a step", "Share of the output"] {
        assert!(report.contains(part), "{part}");
    }

    let loss = |evaluation: &[&str]| {
        let mut command = program();
        command.arg("eval").arg("--run").arg(&run).args(evaluation);
        succeed(command).lines().last().expect("there is output").to_string()
    };
    let (as_configured, frozen) = (loss(&[]), loss(&["--default-vectors", "frozen"]));
    assert_eq!(as_configured, frozen);
    assert_ne!(loss(&["--default-vectors", "top-k"]), frozen);
}

/// The first step moves the vectors from zero by `1 - beta` of the way, those of the experts that served a token.
fn assert_moved_by_a_fifth(first: &Value) {
    let layer = &first["layers"][0];
    let numbers = |list: &Value| list.as_array().expect("a list").iter().filter_map(Value::as_f64).collect::<Vec<_>>();
    let busy = numbers(&layer["expert_counts"]).iter().filter(|&&count| count > 0.0).count();
    let norms: f64 = numbers(&layer["default"]["norms"]).iter().sum();
    let expected = 0.2 * layer["default"]["target_norm"].as_f64().expect("a number") * busy as f64;
    assert_eq!(first["step"], 1);
    assert!((norms - expected).abs() < FIFTH * expected, "{norms} instead of {expected}");
}

#[test]
fn a_run_without_them_says_nothing_about_them() {
    let place = Place::new();
    succeed(place.train("run", 5));
    assert!(metrics(&place.path("run"))[0]["layers"][0].get("default").is_none());
    let report = fs::read_to_string(place.path("run").join("report.html")).expect("there is a report");
    assert!(!report.contains("default vectors"));
}
