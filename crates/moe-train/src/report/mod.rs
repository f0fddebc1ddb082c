//! `report.html`: what a run did, on one page that needs no other file.
//!
//! A pure function of `config.json`, `metrics.jsonl`, `context.json` and `classes.json`: the same run gives the
//! same page, and it can be written at any time, also while the run still trains.

mod axis;
mod charts;
mod classes;
mod heatmap;
mod html;
mod labels;
mod png;
mod svg;

use std::path::{Path, PathBuf};

use crate::{
    images::ClassLoad,
    run::{self, Context, FileError, ImageContext, MetricsError, RunConfig, RunError, StepRecord, Subject},
};

const REPORT_FILE: &str = "report.html";

/// Why no report could be written.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The run directory or its configuration.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The metrics.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The report itself.
    #[error(transparent)]
    File(#[from] FileError),
    /// There is nothing to report.
    #[error("{} has no logged step yet: train first, or wait for the first line of metrics.jsonl", dir.display())]
    Empty {
        /// The run directory.
        dir: PathBuf,
    },
}

/// Everything the page shows.
struct Report {
    name: String,
    config: RunConfig,
    /// In the order of their steps, at least one.
    records: Vec<StepRecord>,
    data: Data,
}

/// What is known of the data.
enum Data {
    Text(Option<Context>),
    Images(Option<ImageContext>, Vec<ClassLoad>),
}

/// Writes `report.html` into the run directory `dir`, replacing an earlier one; returns its path.
///
/// # Errors
///
/// A directory without a run or without a logged step, unreadable metrics, a full disk.
pub fn write_report(dir: &Path) -> Result<PathBuf, ReportError> {
    let report = Report::read(dir)?;
    let path = dir.join(REPORT_FILE);
    run::write_atomic(&path, html::page(&report).as_bytes())?;
    Ok(path)
}

impl Report {
    fn read(dir: &Path) -> Result<Self, ReportError> {
        let records = run::read_records(dir)?;
        let config = run::read_config(dir)?;
        if records.is_empty() {
            return Err(ReportError::Empty { dir: dir.to_path_buf() });
        }
        // "." and the like have no name of their own.
        let full = dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf());
        let name = full.file_name().unwrap_or(full.as_os_str()).to_string_lossy().into_owned();
        let data = match &config {
            RunConfig::Lm(_) => Data::Text(run::read_context(dir)?),
            RunConfig::Vit(_) => Data::Images(run::read_context(dir)?, run::read_class_loads(dir)?.unwrap_or_default()),
        };
        Ok(Self { name, config, records, data })
    }

    fn subject(&self) -> Subject {
        match &self.config {
            RunConfig::Lm(_) => Subject::Text,
            RunConfig::Vit(config) => config.subject(),
        }
    }

    /// That of a text, if it is known.
    fn context(&self) -> Option<&Context> {
        match &self.data {
            Data::Text(context) => context.as_ref(),
            Data::Images(..) => None,
        }
    }

    fn last(&self) -> &StepRecord {
        self.records.last().expect("a report has at least one record")
    }

    /// The last record with a validation.
    fn last_validated(&self) -> Option<&StepRecord> {
        self.records.iter().rfind(|record| record.valid_loss.is_some())
    }

    /// Bits per byte over nats per token, from a validation or from the context.
    fn bits_per_nat(&self) -> Option<f64> {
        let validated = self.last_validated();
        let measured = validated.and_then(|record| Some(record.valid_bpb? / record.valid_loss?));
        let known = || self.context().map(|context| 1.0 / context.nats_per_token(1.0));
        let usable = |ratio: &f64| ratio.is_finite() && *ratio > 0.0;
        measured.filter(usable).or_else(known).filter(usable)
    }
}

#[cfg(test)]
mod tests;
