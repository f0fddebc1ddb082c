//! The kills that were made, and the record of a campaign.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::moment::Pace;
use super::scenario::{CHECKPOINT_EVERY, STEPS, Scenario};
use super::sight::Phase;
use crate::files::at;
use crate::{Result, machine};

/// One kill.
pub(super) struct Kill {
    /// Name of the run.
    pub(super) run: String,
    pub(super) phase: Phase,
    /// Whether a last line of the metrics was cut short.
    pub(super) torn_line: bool,
    /// Newest checkpoint and last record afterwards.
    pub(super) checkpoint: Option<usize>,
    pub(super) records: usize,
}

/// A run that came to its end, or one that failed.
pub(super) struct Finished {
    pub(super) run: String,
    pub(super) kills: usize,
    /// What was found; none is what is hoped for.
    pub(super) fault: Option<String>,
}

/// What a campaign has seen so far.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) kills: Vec<Kill>,
    pub(super) runs: Vec<Finished>,
    /// A line for each scenario: its call and its pace.
    undisturbed: Vec<Value>,
}

impl Tally {
    pub(super) fn note_undisturbed(&mut self, scenario: &Scenario, pace: &Pace, compared: &Value) {
        self.undisturbed.push(json!({
            "name": scenario.name,
            "call": scenario.line(),
            "compared": compared,
            "pace": pace.line(),
        }));
    }

    pub(super) fn faults(&self) -> usize {
        self.runs.iter().filter(|run| run.fault.is_some()).count()
    }

    fn of(&self, phase: Phase) -> usize {
        self.kills.iter().filter(|kill| kill.phase == phase).count()
    }

    /// The sums, for people.
    pub(super) fn summary(&self) -> String {
        let phases = Phase::ALL.map(|phase| format!("{:>6}  {}\n", self.of(phase), phase.name())).concat();
        let runs = self.runs.len();
        let faults = self.faults();
        format!(
            "{} kills in {runs} runs:\n{phases}{} runs resumed and equal the undisturbed one, {faults} do not",
            self.kills.len(),
            runs - faults
        )
    }

    /// Writes everything as JSON, a line for each kill.
    pub(super) fn write(&self, path: &Path, seed: u64, extra: &[String]) -> Result<()> {
        let phases: serde_json::Map<_, _> =
            Phase::ALL.map(|phase| (phase.name().into(), self.of(phase).into())).into_iter().collect();
        let torn = self.kills.iter().filter(|kill| kill.torn_line).count();
        let head = json!({
            "machine": machine::here(),
            "seed": seed,
            "steps": STEPS,
            "checkpoint_every": CHECKPOINT_EVERY,
            "arguments": extra,
            "undisturbed": self.undisturbed,
            "kills_in_all": self.kills.len(),
            "phases": phases,
            "lines_cut_short": torn,
            "runs_in_all": self.runs.len(),
            "faults": self.faults(),
        });
        let head = format!("{head:#}");
        let head = head.trim_end_matches(['\n', '}']);
        let (runs, kills) = (lines(&self.runs, Finished::json), lines(&self.kills, Kill::json));
        at(path, fs::write(path, format!("{head},\n  \"runs\": [\n{runs}\n  ],\n  \"kills\": [\n{kills}\n  ]\n}}\n")))
    }
}

fn lines<T>(items: &[T], json: impl Fn(&T) -> Value) -> String {
    items.iter().map(|item| format!("    {}", json(item))).collect::<Vec<_>>().join(",\n")
}

impl Kill {
    fn json(&self) -> Value {
        json!({
            "run": self.run,
            "phase": self.phase.name(),
            "checkpoint": self.checkpoint,
            "records": self.records,
        })
    }
}

impl Finished {
    fn json(&self) -> Value {
        json!({"run": self.run, "kills": self.kills, "fault": self.fault})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally() -> Tally {
        let kill = |phase, records| Kill { run: "lm-1".into(), phase, torn_line: false, checkpoint: Some(3), records };
        let run = |run: &str, fault: Option<&str>| Finished { run: run.into(), kills: 1, fault: fault.map(Into::into) };
        Tally {
            kills: vec![kill(Phase::Writing, 6), kill(Phase::Step, 5), kill(Phase::Writing, 3)],
            runs: vec![run("lm-1", None), run("vit-2", Some("line 3"))],
            undisturbed: Vec::new(),
        }
    }

    #[test]
    fn the_summary_counts_phases_and_faults() {
        let summary = tally().summary();
        assert!(summary.starts_with("3 kills in 2 runs:\n"), "{summary}");
        assert!(summary.contains("     2  writing a checkpoint\n     0  removing"), "{summary}");
        assert!(summary.ends_with("1 runs resumed and equal the undisturbed one, 1 do not"), "{summary}");
    }

    #[test]
    fn the_record_is_json_with_a_line_for_each_kill() {
        let path = std::env::temp_dir().join(format!("xtask-tally-{}.json", std::process::id()));
        tally().write(&path, 5, &["--devices".into()]).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let record: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!((&record["kills_in_all"], &record["faults"]), (&json!(3), &json!(1)));
        assert_eq!(record["kills"].as_array().unwrap().len(), 3);
        assert_eq!(text.lines().filter(|line| line.contains("\"phase\":")).count(), 3);
    }
}
