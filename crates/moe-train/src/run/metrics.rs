//! `metrics.jsonl`: one JSON object for every logged step.
//!
//! A line is written with one write, so a kill can at most cut the last line short; reading leaves
//! such a line out and opening for writing removes it. JSON has no NaN or infinity: they are
//! written as `null` and read back as NaN.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

use default_moe::DefaultVectorStats;
use moe_layers::RoutingStats;
use serde::{Deserialize, Deserializer, Serialize};

use super::files::{self, FileError};

/// One logged training step.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct StepRecord {
    /// Optimizer steps done, from 1.
    pub step: usize,
    /// Tokens trained on so far; a vision model makes several of an image.
    pub tokens: u64,
    /// Cross-entropy of the training batch in nats per token, or per image.
    #[serde(deserialize_with = "null_as_nan")]
    pub loss: f64,
    /// Load-balance loss, unweighted, summed over the layers.
    #[serde(deserialize_with = "null_as_nan")]
    pub balance_loss: f64,
    /// Router z-loss, unweighted, summed over the layers.
    #[serde(deserialize_with = "null_as_nan")]
    pub z_loss: f64,
    /// Learning rate of this step.
    #[serde(deserialize_with = "null_as_nan")]
    pub lr: f64,
    /// Global norm of the gradient before clipping.
    #[serde(deserialize_with = "null_as_nan")]
    pub grad_norm: f64,
    /// Training speed since the last logged step.
    #[serde(deserialize_with = "null_as_nan")]
    pub tokens_per_s: f64,
    /// One entry for every MoE layer, in the order of the model.
    pub layers: Vec<LayerRecord>,
    /// Held-out cross-entropy in nats per token or per image, where this step validated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_loss: Option<f64>,
    /// Held-out cross-entropy in bits per byte of text, where this step validated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_bpb: Option<f64>,
    /// Part of the held-out images whose class was found, where this step validated a vision model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_accuracy: Option<f64>,
}

/// The routing of one MoE layer at one step.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(from = "LayerFields")]
pub struct LayerRecord {
    /// Index of the layer in the model.
    pub layer: usize,
    /// Its statistics, flattened into the same JSON object.
    #[serde(flatten)]
    pub stats: RoutingStats,
    /// Its default vectors over the step, in a model that has them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<DefaultVectorStats>,
    /// What excitation multiplied the step of each expert by, `[E]`; empty without excitation.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub factors: Vec<f64>,
}

impl LayerRecord {
    /// `sum_i n_i phi_i / sum_i n_i` with the counts `n` and factors `phi`: what the step of a busy expert was multiplied by.
    /// NaN without excitation.
    pub fn mean_factor(&self) -> f64 {
        let counts = self.stats.expert_counts.iter().map(|&n| n as f64);
        let sum: f64 = counts.clone().zip(&self.factors).map(|(n, phi)| n * phi).sum();
        if self.factors.is_empty() { f64::NAN } else { sum / counts.sum::<f64>() }
    }
}

impl StepRecord {
    /// The highest load ratio (most loaded expert over the mean) of all MoE layers.
    pub fn load_ratio(&self) -> Option<f64> {
        self.layers.iter().map(|layer| layer.stats.load_ratio).reduce(f64::max)
    }

    /// Experts without a token, over all MoE layers.
    pub fn dead_experts(&self) -> Option<usize> {
        self.layers.iter().map(|layer| layer.stats.dead_experts).reduce(usize::saturating_add)
    }

    /// Entropy of the router in nats, mean over the MoE layers.
    pub fn router_entropy(&self) -> Option<f64> {
        let sum = self.layers.iter().map(|layer| layer.stats.router_entropy).reduce(|a, b| a + b);
        sum.map(|sum| sum / self.layers.len() as f64)
    }
}

/// A [`LayerRecord`] as it is read: every number may be `null`.
#[derive(Deserialize)]
struct LayerFields {
    layer: usize,
    expert_counts: Vec<u64>,
    load_ratio: Option<f64>,
    dead_experts: usize,
    load_entropy: Option<f64>,
    router_entropy: Option<f64>,
    gate_mass: Option<f64>,
    #[serde(default)]
    drop_rate: f64,
    default: Option<DefaultFields>,
    #[serde(default)]
    factors: Vec<f64>,
}

/// A [`DefaultVectorStats`] as it is read.
#[derive(Deserialize)]
struct DefaultFields {
    norms: Vec<Option<f64>>,
    moved: Option<f64>,
    target_norm: Option<f64>,
    share: Option<f64>,
}

fn number(value: Option<f64>) -> f64 {
    value.unwrap_or(f64::NAN)
}

impl From<DefaultFields> for DefaultVectorStats {
    fn from(fields: DefaultFields) -> Self {
        Self {
            norms: fields.norms.into_iter().map(number).collect(),
            moved: number(fields.moved),
            target_norm: number(fields.target_norm),
            share: number(fields.share),
        }
    }
}

impl From<LayerFields> for LayerRecord {
    fn from(fields: LayerFields) -> Self {
        Self {
            layer: fields.layer,
            stats: RoutingStats {
                expert_counts: fields.expert_counts,
                load_ratio: number(fields.load_ratio),
                dead_experts: fields.dead_experts,
                load_entropy: number(fields.load_entropy),
                router_entropy: number(fields.router_entropy),
                gate_mass: number(fields.gate_mass),
                drop_rate: fields.drop_rate,
            },
            default: fields.default.map(DefaultVectorStats::from),
            factors: fields.factors,
        }
    }
}

fn null_as_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(number(Option::deserialize(deserializer)?))
}

/// Why `metrics.jsonl` could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The file itself.
    #[error(transparent)]
    File(#[from] FileError),
    /// A complete line that is no [`StepRecord`].
    #[error(
        "line {line} of {} is not a record of a training step: {source}; \
         repair or remove that line",
        path.display()
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// Its number, from 1.
        line: usize,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A record of an earlier step than the one before it.
    #[error("line {line} of {} is of an earlier step than the line before: repair or remove the wrong one", path.display())]
    Order {
        /// The file.
        path: PathBuf,
        /// The number of the later line, from 1.
        line: usize,
    },
}

/// Reads all complete records; a file that does not exist holds none.
pub fn read_metrics(path: &Path) -> Result<Vec<StepRecord>, MetricsError> {
    let (records, _) = scan(path)?;
    Ok(records.into_iter().map(|(_, record)| record).collect())
}

/// The records with the offset in bytes at which each begins, and where the last one ends.
fn scan(path: &Path) -> Result<(Vec<(u64, StepRecord)>, u64), MetricsError> {
    let bytes = match files::read(path) {
        Err(error) if error.is_not_found() => Vec::new(),
        result => result?,
    };
    let lines: Vec<&[u8]> = bytes.split_inclusive(|&byte| byte == b'\n').collect();
    let (mut records, mut offset) = (Vec::with_capacity(lines.len()), 0);
    for (index, line) in lines.iter().enumerate() {
        match serde_json::from_slice(line) {
            // Without its newline the record may be a number cut short that still parses.
            // The last line: what a kill or a power cut left of a write. Without its newline the record may be a number cut short that still
            // parses.
            _ if !line.ends_with(b"\n") => break,
            Ok(record) if follows(&record, records.last()) => records.push((offset, record)),
            Ok(_) => return Err(MetricsError::Order { path: path.to_path_buf(), line: index + 1 }),
            Err(source) => {
                let path = path.to_path_buf();
                return Err(MetricsError::Line { path, line: index + 1, source });
            }
        }
        offset += line.len() as u64;
    }
    Ok((records, offset))
}

/// Whether `record` may stand behind the last one.
fn follows(record: &StepRecord, last: Option<&(u64, StepRecord)>) -> bool {
    last.is_none_or(|(_, last)| record.step > last.step)
}

/// `metrics.jsonl` open for appending.
#[derive(Debug)]
pub(crate) struct MetricsLog {
    path: PathBuf,
    file: File,
    len: u64,
    last_step: Option<usize>,
}

impl MetricsLog {
    /// Opens or creates the file and removes a last line that was cut short.
    pub(crate) fn open(path: PathBuf) -> Result<Self, MetricsError> {
        let (records, len) = scan(&path)?;
        let last_step = records.last().map(|(_, record)| record.step);
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(FileError::at("open", &path))?;
        let mut log = Self { path, file, len, last_step };
        log.cut(len)?;
        Ok(log)
    }

    /// The step of the last record.
    pub(crate) fn last_step(&self) -> Option<usize> {
        self.last_step
    }

    /// Appends one record with a single write.
    pub(crate) fn append(&mut self, record: &StepRecord) -> Result<(), MetricsError> {
        let mut line = serde_json::to_vec(record).expect("a record has string keys only");
        line.push(b'\n');
        if let Err(error) = self.file.write_all(&line) {
            // Best effort: the error that is reported is the first one.
            let _ = self.file.set_len(self.len);
            return Err(FileError::at("write", &self.path)(error).into());
        }
        self.len += line.len() as u64;
        self.last_step = Some(record.step);
        Ok(())
    }

    /// Removes every record of a step later than `step`.
    pub(crate) fn truncate_after(&mut self, step: usize) -> Result<(), MetricsError> {
        let (records, end) = scan(&self.path)?;
        let kept = records.iter().position(|(_, record)| record.step > step).unwrap_or(records.len());
        self.last_step = records[..kept].last().map(|(_, record)| record.step);
        self.cut(records.get(kept).map_or(end, |(offset, _)| *offset))?;
        Ok(())
    }

    /// Waits until everything written so far is on the disk.
    pub(crate) fn sync(&self) -> Result<(), FileError> {
        self.file.sync_data().map_err(FileError::at("write", &self.path))
    }

    fn cut(&mut self, len: u64) -> Result<(), FileError> {
        self.len = len;
        self.file.set_len(len).map_err(FileError::at("truncate", &self.path))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;

    use super::*;

    /// A record with two MoE layers of four experts.
    pub(crate) fn record(step: usize) -> StepRecord {
        let stats = RoutingStats {
            expert_counts: vec![10, 20, 0, 34],
            load_ratio: 2.125,
            dead_experts: 1,
            load_entropy: 0.7,
            router_entropy: 1.1,
            gate_mass: 0.8,
            drop_rate: 0.1,
        };
        StepRecord {
            step,
            tokens: 32 * step as u64,
            loss: 5.0 / step as f64,
            balance_loss: 1.02,
            z_loss: 0.3,
            lr: 1e-3,
            grad_norm: 0.53,
            tokens_per_s: 6512.4,
            layers: [1, 3]
                .map(|layer| LayerRecord { layer, stats: stats.clone(), default: None, factors: Vec::new() })
                .into(),
            valid_loss: None,
            valid_bpb: None,
            valid_accuracy: None,
        }
    }

    fn log(dir: &Path) -> MetricsLog {
        MetricsLog::open(dir.join("metrics.jsonl")).unwrap()
    }

    fn steps(dir: &Path) -> Vec<usize> {
        let records = read_metrics(&dir.join("metrics.jsonl")).unwrap();
        records.iter().map(|record| record.step).collect()
    }

    #[test]
    fn records_come_back_as_they_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut validated = record(2);
        (validated.valid_loss, validated.valid_bpb) = (Some(1.0 / 3.0), Some(0.1 + 0.2));
        let written = vec![record(1), validated];
        for record in &written {
            log(dir.path()).append(record).unwrap();
        }
        assert_eq!(read_metrics(&dir.path().join("metrics.jsonl")).unwrap(), written);
    }

    #[test]
    fn default_vectors_come_back_and_are_absent_without_them() {
        let dir = tempfile::tempdir().unwrap();
        let mut with = record(1);
        let stats = DefaultVectorStats { norms: vec![0.5, 0.25], moved: 0.1, target_norm: 0.7, share: 0.3 };
        with.layers[0].default = Some(stats);
        log(dir.path()).append(&with).unwrap();
        let path = dir.path().join("metrics.jsonl");
        assert_eq!(read_metrics(&path).unwrap(), [with.clone()]);
        assert!(!fs::read_to_string(&path).unwrap().contains("null"));

        with.step = 2;
        with.layers[0].default.as_mut().unwrap().norms[1] = f64::INFINITY;
        log(dir.path()).append(&with).unwrap();
        let read = read_metrics(&path).unwrap().remove(1).layers.remove(0).default.unwrap();
        assert!(read.norms[0] == 0.5 && read.norms[1].is_nan());
    }

    #[test]
    fn layers_are_summed_up_and_absent_without_moe() {
        let mut record = record(1);
        record.layers[1].stats.load_ratio = 3.5;
        record.layers[1].stats.router_entropy = 0.9;
        assert_eq!(record.load_ratio(), Some(3.5));
        assert_eq!(record.dead_experts(), Some(2));
        assert_eq!(record.router_entropy(), Some(1.0));
        record.layers.clear();
        assert_eq!((record.load_ratio(), record.dead_experts()), (None, None));
        assert_eq!(record.router_entropy(), None);
    }

    #[test]
    fn a_line_has_the_documented_keys_and_flat_layers() {
        let line = serde_json::to_value(record(1)).unwrap();
        let keys: Vec<_> = line.as_object().unwrap().keys().cloned().collect();
        let expected =
            ["balance_loss", "grad_norm", "layers", "loss", "lr", "step", "tokens", "tokens_per_s", "z_loss"];
        assert_eq!(keys, expected);
        assert_eq!(line["layers"][1]["layer"], 3);
        assert_eq!(line["layers"][1]["expert_counts"][3], 34);
    }

    #[test]
    fn factors_come_back_and_are_absent_without_excitation() {
        let dir = tempfile::tempdir().unwrap();
        let mut excited = record(1);
        excited.layers[1].factors = vec![1.5, 0.5];
        log(dir.path()).append(&excited).unwrap();
        let path = dir.path().join("metrics.jsonl");
        assert_eq!(read_metrics(&path).unwrap(), [excited]);
        assert_eq!(fs::read_to_string(&path).unwrap().matches("factors").count(), 1);
    }

    #[test]
    fn the_mean_factor_weighs_experts_by_their_counts() {
        let mut layer = record(1).layers.remove(0);
        assert!(layer.mean_factor().is_nan());
        (layer.stats.expert_counts, layer.factors) = (vec![3, 1], vec![1.5, 0.5]);
        assert_eq!(layer.mean_factor(), 1.25);
    }

    #[test]
    fn numbers_that_json_lacks_are_null_and_read_as_nan() {
        let dir = tempfile::tempdir().unwrap();
        let mut bad = record(1);
        (bad.loss, bad.grad_norm) = (f64::NAN, f64::INFINITY);
        bad.layers[0].stats.router_entropy = f64::NAN;
        bad.valid_loss = Some(f64::NAN);
        log(dir.path()).append(&bad).unwrap();
        let text = fs::read_to_string(dir.path().join("metrics.jsonl")).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert!(value["loss"].is_null() && value["grad_norm"].is_null());
        let read = &read_metrics(&dir.path().join("metrics.jsonl")).unwrap()[0];
        assert!(read.loss.is_nan() && read.layers[0].stats.router_entropy.is_nan());
        assert_eq!(read.layers[1], bad.layers[1]);
    }

    #[test]
    fn a_last_line_cut_short_is_ignored_and_removed_on_opening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        log(dir.path()).append(&record(1)).unwrap();
        let whole = serde_json::to_vec(&record(2)).unwrap();
        for len in [1, whole.len() / 2, whole.len()] {
            let mut bytes = fs::read(&path).unwrap();
            bytes.extend_from_slice(&whole[..len]);
            fs::write(&path, bytes).unwrap();
            assert_eq!(steps(dir.path()), [1]);
            log(dir.path());
            assert_eq!(fs::read(&path).unwrap().last(), Some(&b'\n'));
        }
        log(dir.path()).append(&record(2)).unwrap();
        assert_eq!(steps(dir.path()), [1, 2]);
    }

    #[test]
    fn truncation_removes_exactly_the_later_steps() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = log(dir.path());
        for step in [10, 20, 30, 40] {
            log.append(&record(step)).unwrap();
        }
        for (after, left) in [(40, vec![10, 20, 30, 40]), (35, vec![10, 20, 30]), (10, vec![10])] {
            log.truncate_after(after).unwrap();
            assert_eq!(log.last_step(), left.last().copied());
            assert_eq!(steps(dir.path()), left);
        }
        log.append(&record(20)).unwrap();
        assert_eq!(steps(dir.path()), [10, 20]);
        log.truncate_after(0).unwrap();
        assert!(steps(dir.path()).is_empty());
    }

    #[test]
    fn a_broken_line_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let good = |step| serde_json::to_string(&record(step)).unwrap();
        // Also as the last one: it is complete, so it was damaged later.
        for rest in [format!("{}\n", good(3)), String::new()] {
            fs::write(&path, format!("{}\n{{\"step\": 2}}\n{rest}", good(1))).unwrap();
            let text = read_metrics(&path).unwrap_err().to_string();
            assert!(text.contains("line 2 of ") && text.contains("repair or remove"), "{text}");
        }
    }

    #[test]
    fn a_step_out_of_order_is_an_error_and_costs_no_record() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let text = [10, 90, 30].map(|step| serde_json::to_string(&record(step)).unwrap() + "\n").concat();
        fs::write(&path, &text).unwrap();
        let error = MetricsLog::open(path.clone()).unwrap_err().to_string();
        assert!(error.starts_with("line 3 of ") && error.contains("earlier step"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
}
