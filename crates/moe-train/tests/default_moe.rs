//! A run with default vectors: what it logs, shows and measures.

mod common;

use std::fs;

use common::{Place, metrics, program, succeed};

#[test]
fn a_run_with_default_vectors_logs_shows_and_measures_them() {
    let place = Place::new();
    let mut command = place.train("run", 20);
    for setting in ["moe.router=default", "moe.default.rule=mean", "moe.default.beta=0.8", "moe.top_k=1"] {
        command.args(["--set", setting]);
    }
    succeed(command);
    let run = place.path("run");

    let last = metrics(&run).pop().expect("there are records");
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

#[test]
fn a_run_without_them_says_nothing_about_them() {
    let place = Place::new();
    succeed(place.train("run", 5));
    assert!(metrics(&place.path("run"))[0]["layers"][0].get("default").is_none());
    let report = fs::read_to_string(place.path("run").join("report.html")).expect("there is a report");
    assert!(!report.contains("default vectors"));
}
