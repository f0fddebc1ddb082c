//! The kills that were made, and the record of a campaign.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::moment::Pace;
use super::scenario::{CHECKPOINT_EVERY, STEPS, Scenario};
use super::sight::Phase;
use super::victim::Victim;
use crate::files::at;
use crate::{Result, machine};

/// One kill.
pub(super) struct Kill {
    /// Name of the run.
    pub(super) run: String,
    pub(super) victim: Victim,
    /// Until nothing was left of the program.
    pub(super) took: Duration,
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

    /// Hits of this kind: how many, and the longest time until nothing was left.
    fn hits(&self, victim: Victim) -> Option<(usize, Duration)> {
        let times: Vec<_> = self.kills.iter().filter(|kill| kill.victim == victim).map(|kill| kill.took).collect();
        times.iter().max().map(|longest| (times.len(), *longest))
    }

    /// The sums, for people.
    pub(super) fn summary(&self) -> String {
        let phases = Phase::ALL.map(|phase| format!("{:>6}  {}\n", self.of(phase), phase.name())).concat();
        let line = |victim: Victim| {
            let (count, longest) = self.hits(victim)?;
            Some(format!("{count:>6}  {}, all ended within {:.1} s\n", victim.name(), longest.as_secs_f64()))
        };
        let victims: String = Victim::ALL.into_iter().filter_map(line).collect();
        let runs = self.runs.len();
        let faults = self.faults();
        format!(
            "{} kills in {runs} runs:\n{victims}{phases}{} runs resumed and equal the undisturbed one, {faults} do not",
            self.kills.len(),
            runs - faults
        )
    }

    /// Writes everything as JSON, a line for each kill.
    pub(super) fn write(&self, path: &Path, seed: u64, extra: &[String]) -> Result<()> {
        let phases: serde_json::Map<_, _> =
            Phase::ALL.map(|phase| (phase.name().into(), self.of(phase).into())).into_iter().collect();
        let victim = |victim: Victim| {
            let (count, longest) = self.hits(victim)?;
            Some((victim.name().into(), json!({"count": count, "longest_ms": longest.as_millis() as u64})))
        };
        let victims: serde_json::Map<_, _> = Victim::ALL.into_iter().filter_map(victim).collect();
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
            "victims": victims,
            "lines_cut_short": torn,
            "runs_in_all": self.runs.len(),
            "faults": self.faults(),
        });
        let head = format!("{head:#}");
        let head = head.strip_suffix("\n}").unwrap_or(&head);
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
            "victim": self.victim.name(),
            "ended_after_ms": self.took.as_millis() as u64,
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
        let kill = |phase, records| Kill {
            run: "lm-1".into(),
            victim: if records == 5 { Victim::FrozenOther } else { Victim::KilledFirst },
            took: Duration::from_millis(100 * records as u64),
            phase,
            torn_line: false,
            checkpoint: Some(3),
            records,
        };
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
        assert!(
            summary.starts_with("3 kills in 2 runs:\n     2  rank 0 killed, all ended within 0.6 s\n"),
            "{summary}"
        );
        assert!(summary.contains("     1  a launched rank frozen, all ended within 0.5 s\n"), "{summary}");
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
        assert_eq!(record["victims"]["rank 0 killed"], json!({"count": 2, "longest_ms": 600}));
        assert_eq!(record["kills"].as_array().unwrap().len(), 3);
        assert_eq!(text.lines().filter(|line| line.contains("\"phase\":")).count(), 3);
    }
}
