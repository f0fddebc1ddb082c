//! A run that is killed at any moment and resumed gives the losses of one that was not, bit for bit.

mod common;

use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use common::{Place, last_checkpoint, metrics, output, succeed};
use serde_json::Value;

const STEPS: usize = 240;
const KILLS: usize = 12;

/// What must not depend on interruptions: all but the time.
fn comparable(records: &[Value]) -> Vec<Value> {
    let strip = |record: &Value| {
        let mut record = record.clone();
        record.as_object_mut().expect("an object").remove("tokens_per_s");
        record
    };
    records.iter().map(strip).collect()
}

#[test]
fn a_killed_and_resumed_run_equals_an_undisturbed_one() {
    let place = Place::new();
    let start = std::time::Instant::now();
    succeed(place.train("undisturbed", STEPS));
    let whole = start.elapsed();

    // The moments are spread over a run's length by the golden ratio, so they fall in any phase of a step.
    let moment = |kill: usize| whole.mul_f64((kill as f64 * 0.618_034).fract() * 0.7 + 0.05);
    let mut killed = 0;
    for kill in 0..KILLS {
        let begun = place.path("killed/config.json").exists();
        let mut command = if begun { place.resume("killed") } else { place.train("killed", STEPS) };
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program starts");
        sleep(moment(kill).max(Duration::from_millis(30)));
        child.kill().expect("it can be killed");
        killed += usize::from(!child.wait().expect("it ends").success());
    }
    assert!(killed > 0, "no run was killed before its end");

    let command =
        if place.path("killed/config.json").exists() { place.resume("killed") } else { place.train("killed", STEPS) };
    assert!(succeed(command).contains(&format!("final: steps={STEPS} ")));
    assert_eq!(
        comparable(&metrics(&place.path("killed"))),
        comparable(&metrics(&place.path("undisturbed"))),
        "after {killed} kills"
    );
}

#[test]
fn a_finished_run_goes_on_when_it_gets_more_steps() {
    let place = Place::new();
    succeed(place.train("run", 10));
    let before = metrics(&place.path("run"));
    let mut command = place.resume("run");
    command.args(["--steps", "15"]);
    succeed(command);
    let after = metrics(&place.path("run"));
    assert_eq!((after.len(), last_checkpoint(&place.path("run"))), (15, Some(15)));
    assert_eq!(comparable(&after[..10]), comparable(&before));
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
    let second = output(place.resume("run"));
    first.kill().expect("it can be killed");
    first.wait().expect("it ends");
    let message = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{message}");
    assert!(message.contains("in use by another program"), "{message}");
}
