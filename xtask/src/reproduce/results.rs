//! `results.jsonl`: one line for each run that has ended and been measured.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::grid::Run;
use crate::Result;
use crate::files::at;

/// The results there are, and the file that further ones go to.
pub(crate) struct Results {
    path: PathBuf,
    lines: Vec<Value>,
}

impl Results {
    /// Reads the file; one that is not there holds none. A last line that was cut short is left out and written over.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let text = if path.exists() { at(path, fs::read_to_string(path))? } else { String::new() };
        let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        let parse = |(i, line): (usize, &str)| {
            serde_json::from_str(line).map_err(|error| format!("{}, line {}: {error}", path.display(), i + 1))
        };
        let lines = whole.lines().enumerate().map(parse).collect::<Result<_>>()?;
        if whole.len() < text.len() {
            at(path, fs::write(path, whole))?;
        }
        Ok(Self { path: path.to_path_buf(), lines })
    }

    /// Whether the run has a result.
    pub(crate) fn has(&self, run: &Run) -> bool {
        self.find(run).is_some()
    }

    /// The result of the run of that name and as many steps.
    pub(crate) fn find(&self, run: &Run) -> Option<&Value> {
        let name = run.name();
        self.lines.iter().find(|line| line["run"] == name && line["steps"] == run.steps)
    }

    /// Appends a result with one write.
    pub(crate) fn add(&mut self, result: Value) -> Result<()> {
        let mut file = at(&self.path, OpenOptions::new().create(true).append(true).open(&self.path))?;
        at(&self.path, file.write_all(format!("{result}\n").as_bytes()))?;
        self.lines.push(result);
        Ok(())
    }
}

/// The line of a run: losses by way of evaluation, in nats per token, the last record of its metrics, and the commit of the program, where it is known.
/// Without losses: training stopped because a number was not finite.
pub(crate) fn line(run: &Run, losses: Option<Map<String, Value>>, last: &Value, commit: Option<&str>) -> Value {
    let layers: Vec<Value> = last["layers"].as_array().into_iter().flatten().map(layer).collect();
    json!({
        "run": run.name(),
        "arm": run.arm.name(),
        "experts": run.experts.name,
        "lr": run.lr,
        "seed": run.seed,
        "steps": run.steps,
        "commit": commit,
        "diverged": losses.is_none(),
        "loss": losses,
        "train_loss": last["loss"],
        "tokens_per_s": last["tokens_per_s"],
        "layers": layers,
    })
}

fn layer(record: &Value) -> Value {
    json!({
        "layer": record["layer"],
        "load_ratio": record["load_ratio"],
        "dead_experts": record["dead_experts"],
        "router_entropy": record["router_entropy"],
        "default": record["default"],
    })
}

#[cfg(test)]
mod tests {
    use super::super::Scale;
    use super::super::default_moe::grid;
    use super::*;

    fn file(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("xtask-results-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        dir.join("results.jsonl")
    }

    #[test]
    fn results_come_back_and_a_cut_line_does_not_count() {
        let (path, runs) = (file("cut"), grid(Scale::Cpu, None));
        let mut results = Results::open(&path).unwrap();
        let losses = Map::from_iter([("top-k".to_string(), json!(1.25))]);
        let last = json!({"loss": 1.5, "layers": [{"layer": 1, "load_ratio": 1.1, "expert_counts": [1, 2]}]});
        results.add(line(&runs[0], Some(losses), &last, None)).unwrap();
        let whole = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{whole}{{\"run\": \"8c")).unwrap();

        let results = Results::open(&path).unwrap();
        assert!(results.has(&runs[0]) && !results.has(&runs[1]));
        let found = results.find(&runs[0]).unwrap();
        assert_eq!((&found["loss"]["top-k"], &found["diverged"]), (&json!(1.25), &json!(false)));
        assert_eq!(found["layers"][0]["load_ratio"], 1.1);
        assert_eq!(fs::read_to_string(&path).unwrap(), whole);
    }

    #[test]
    fn a_result_of_other_steps_does_not_count() {
        let path = file("steps");
        let [full, short] = [None, Some(10)].map(|steps| grid(Scale::Cpu, steps)[0]);
        assert_eq!((full.name(), full.steps), (short.name(), 800));
        let mut results = Results::open(&path).unwrap();
        let add = |results: &mut Results, run: &Run| {
            results.add(line(run, None, &json!({"loss": 1.5}), Some("abc"))).unwrap()
        };
        add(&mut results, &short);
        assert!(results.has(&short) && !results.has(&full));
        add(&mut results, &full);
        let found = Results::open(&path).unwrap();
        assert_eq!(found.find(&short).map(|line| &line["steps"]), Some(&json!(10)));
        let full = found.find(&full).unwrap();
        assert_eq!((&full["steps"], &full["commit"]), (&json!(800), &json!("abc")));
    }

    /// An error, or a report of what is still there; never a panic.
    #[test]
    fn changed_lines_are_an_error_or_make_a_report() {
        let (path, runs) = (file("changed"), grid(Scale::Cpu, None));
        let mut results = Results::open(&path).unwrap();
        let last = json!({"loss": 1.5, "layers": [{"layer": 1, "load_ratio": 1.1, "default": {"norms": [0.5], "moved": 0.1}}]});
        for run in &runs[..4] {
            let losses = Map::from_iter([("top-k".to_string(), json!(1.25)), ("frozen".to_string(), json!(1.5))]);
            results.add(line(run, Some(losses), &last, None)).unwrap();
        }
        let whole = fs::read(&path).unwrap();
        let mut refused = 0;
        let mut state = 1u64;
        let mut random = |below: usize| {
            // Knuth's constants of MMIX: any order will do.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        for _ in 0..1500 {
            let mut bytes = whole.clone();
            let at = random(bytes.len());
            match random(5) {
                0 => bytes.truncate(at),
                1 => bytes[at] ^= 1 << random(8),
                2 => drop(bytes.splice(at..at + 1, *b"999999999999999999")),
                3 => drop(bytes.splice(at..at + 1, *b"[[[[null]]")),
                _ => bytes.extend_from_within(at..),
            }
            fs::write(&path, bytes).unwrap();
            match Results::open(&path) {
                Ok(results) => assert!(!super::super::report::markdown(&results, Scale::Cpu, None).is_empty()),
                Err(message) => refused += usize::from(message.contains("results.jsonl")),
            }
        }
        assert!(refused > 0, "no change was ever noticed");
    }

    #[test]
    fn a_line_that_is_no_result_is_named() {
        let path = file("bad");
        fs::write(&path, "{}\nnonsense\n").unwrap();
        assert!(Results::open(&path).err().unwrap().contains("line 2"));
    }
}
