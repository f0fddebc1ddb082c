//! What a run leaves, without what must differ between two runs: times, and the ids that burn draws.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::burn_record::{self, Values};
use crate::Result;
use crate::files::{self, at};

/// Files that must be the same to the last byte. Of all others the names are compared, and what they mean.
const SAME: [&str; 4] = ["config.json", "context.json", "tokenizer.json", "classes.json"];

/// A finished run.
#[derive(PartialEq)]
pub(super) struct Outcome {
    /// Each line of the metrics.
    records: Vec<String>,
    /// Every file by its path in the run, with its content if that must be the same.
    files: BTreeMap<PathBuf, Option<Vec<u8>>>,
    /// States and values of all checkpoints, by the path of the file.
    checkpoints: BTreeMap<PathBuf, Values>,
    /// What the program said last.
    last_line: String,
}

impl Outcome {
    pub(super) fn read(run: &Path, stdout: &str) -> Result<Self> {
        let (mut outcome_files, mut checkpoints) = (BTreeMap::new(), BTreeMap::new());
        for path in files::below(run)? {
            let name = path.strip_prefix(run).unwrap_or(&path).to_path_buf();
            let same = SAME.iter().any(|same| name == Path::new(same));
            if name.ends_with("state.json") {
                checkpoints.extend(checkpoint(run, name.parent().unwrap_or(Path::new("")))?);
            }
            outcome_files.insert(name, if same { Some(at(&path, fs::read(&path))?) } else { None });
        }
        let last_line = without_speed(stdout.lines().last().unwrap_or_default());
        Ok(Self { records: records(run)?, files: outcome_files, checkpoints, last_line })
    }

    /// The first difference of `run`, in words; `self` is what it should be.
    pub(super) fn difference(&self, run: &Self) -> Option<String> {
        records_difference(&self.records, &run.records)
            .or_else(|| map_difference("the file", &self.files, &run.files))
            .or_else(|| checkpoints_difference(&self.checkpoints, &run.checkpoints))
            .or_else(|| {
                let same = self.last_line == run.last_line;
                (!same).then(|| format!("the last line is `{}` instead of `{}`", run.last_line, self.last_line))
            })
    }

    /// What is wrong with a run that was just killed: a record that is not that of the same step here, or one that is
    /// missing though a checkpoint of a later step is there.
    pub(super) fn interim_difference(&self, records: &[String], newest: Option<usize>) -> Option<String> {
        let there = &self.records[..records.len().min(self.records.len())];
        let missing = || {
            let newest = newest.filter(|newest| records.len() < *newest)?;
            Some(format!("{} records are there, and a checkpoint of step {newest}", records.len()))
        };
        records_difference(there, records).or_else(missing)
    }

    /// How much is compared.
    pub(super) fn size(&self) -> Value {
        let values: usize = self.checkpoints.values().map(Values::len).sum();
        let bytes: usize = self.checkpoints.values().flat_map(Values::values).map(Vec::len).sum();
        json!({
            "records": self.records.len(),
            "files": self.files.len(),
            "checkpoints": self.checkpoints.len() / 3,
            "values_in_checkpoints": values,
            "bytes_of_values": bytes,
        })
    }
}

/// The whole lines of the metrics, one for every step, without the speed.
pub(super) fn records(run: &Path) -> Result<Vec<String>> {
    let path = run.join("metrics.jsonl");
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = at(&path, fs::read_to_string(&path))?;
    let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
    whole.lines().map(|line| Ok(without(parse(&path, line)?, &["tokens_per_s"]).to_string())).collect()
}

fn parse(path: &Path, text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|error| format!("{}: {error}", path.display()))
}

/// An object without some of its fields.
fn without(mut value: Value, fields: &[&str]) -> Value {
    if let Some(object) = value.as_object_mut() {
        object.retain(|name, _| !fields.contains(&name.as_str()));
    }
    value
}

fn without_speed(line: &str) -> String {
    line.split(' ').filter(|word| !word.contains("_per_s=")).collect::<Vec<_>>().join(" ")
}

/// The state, model and optimizer in the folder `name` of a run, by the path of the file.
fn checkpoint(run: &Path, name: &Path) -> Result<[(PathBuf, Values); 3]> {
    let [state, model, optimizer] = ["state.json", "model.mpk", "optim.mpk"].map(|file| name.join(file));
    let read = |file: &Path| at(&run.join(file), fs::read(run.join(file)));
    let named = |file: &Path, error: String| format!("{}: {error}", run.join(file).display());
    let mut stored: Value = serde_json::from_slice(&read(&state)?).map_err(|error| named(&state, error.to_string()))?;
    // Sizes and checksums of the files are left out: they depend on the ids.
    let stored = without(stored["state"].take(), &["seconds"]);
    let stored = Values::from([(String::new(), stored.to_string().into_bytes())]);
    let (values, ids) = burn_record::model(&read(&model)?).map_err(|error| named(&model, error))?;
    let moments = burn_record::optimizer(&read(&optimizer)?, &ids).map_err(|error| named(&optimizer, error))?;
    Ok([(state, stored), (model, values), (optimizer, moments)])
}

fn records_difference(expected: &[String], found: &[String]) -> Option<String> {
    if let Some(index) = (0..expected.len().min(found.len())).find(|&index| expected[index] != found[index]) {
        return Some(format!("line {} of the metrics is {} instead of {}", index + 1, found[index], expected[index]));
    }
    let (expected, found) = (expected.len(), found.len());
    (expected != found).then(|| format!("there are {found} lines of metrics instead of {expected}"))
}

fn checkpoints_difference(expected: &BTreeMap<PathBuf, Values>, found: &BTreeMap<PathBuf, Values>) -> Option<String> {
    // Names are the same by now.
    expected.iter().find_map(|(path, values)| {
        map_difference(&format!("{}: the value", path.display()), values, found.get(path).unwrap_or(&Values::new()))
    })
}

fn map_difference<K: Ord + std::fmt::Debug, V: PartialEq>(
    what: &str,
    expected: &BTreeMap<K, V>,
    found: &BTreeMap<K, V>,
) -> Option<String> {
    let missing = expected.iter().find(|(key, _)| !found.contains_key(key)).map(|(key, _)| (key, "is missing"));
    let surplus = found.keys().find(|key| !expected.contains_key(key)).map(|key| (key, "should not be there"));
    let other = || expected.iter().find(|(key, value)| found[key] != **value).map(|(key, _)| (key, "is another one"));
    let (key, verdict) = missing.or(surplus).or_else(other)?;
    Some(format!("{what} {key:?} {verdict}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome() -> Outcome {
        Outcome {
            records: vec!["1".into(), "2".into()],
            files: BTreeMap::from([("config.json".into(), Some(vec![1])), ("report.html".into(), None)]),
            checkpoints: BTreeMap::from([("model.mpk".into(), Values::from([(".a".into(), vec![1])]))]),
            last_line: "final: steps=2".into(),
        }
    }

    fn difference(change: impl FnOnce(&mut Outcome)) -> Option<String> {
        let mut changed = outcome();
        change(&mut changed);
        outcome().difference(&changed)
    }

    type Change = fn(&mut Outcome);

    #[test]
    fn a_change_of_anything_is_found_and_named() {
        assert_eq!(difference(|_| ()), None);
        let cases: [(Change, &str); 7] = [
            (|run| run.records[1] = "3".into(), "line 2 of the metrics is 3 instead of 2"),
            (|run| drop(run.records.pop()), "1 lines of metrics instead of 2"),
            (|run| drop(run.files.remove(Path::new("report.html"))), "\"report.html\" is missing"),
            (|run| drop(run.files.insert(".x.tmp".into(), None)), "\".x.tmp\" should not be there"),
            (|run| drop(run.files.insert("config.json".into(), Some(vec![2]))), "\"config.json\" is another one"),
            (
                |run| drop(run.checkpoints.get_mut(Path::new("model.mpk")).unwrap().insert(".a".into(), vec![2])),
                "model.mpk: the value \".a\" is another one",
            ),
            (|run| run.last_line = "final: steps=1".into(), "`final: steps=1` instead of `final: steps=2`"),
        ];
        for (change, expected) in cases {
            let found = difference(change).expect(expected);
            assert!(found.contains(expected), "{found}");
        }
    }

    #[test]
    fn a_killed_run_may_lack_records_behind_its_checkpoint_only() {
        let interim = |records: &[&str], newest| {
            let records: Vec<String> = records.iter().map(|record| record.to_string()).collect();
            outcome().interim_difference(&records, newest)
        };
        assert_eq!(interim(&["1"], Some(1)), None);
        assert_eq!(interim(&[], None), None);
        assert!(interim(&["1"], Some(2)).unwrap().contains("1 records are there, and a checkpoint of step 2"));
        assert!(interim(&["2"], None).unwrap().contains("line 1"));
        assert!(interim(&["1", "2", "2"], None).unwrap().contains("3 lines"));
    }

    #[test]
    fn times_are_left_out() {
        assert_eq!(without_speed("final: steps=3 loss=1 tokens_per_s=9"), "final: steps=3 loss=1");
        let value = serde_json::json!({"loss": 0.1, "tokens_per_s": 5});
        assert_eq!(without(value, &["tokens_per_s"]).to_string(), r#"{"loss":0.1}"#);
    }
}
