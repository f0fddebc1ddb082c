//! A small project as a user of burn would write it: own data, own model with a Mixture-of-Experts layer, burn's `Learner` with its
//! dashboard, and beside loss and accuracy what the router does.
//!
//! `dataset.rs` makes the data, `model.rs` is the model and its steps, `training.rs` sets up the `Learner`, `lines.rs` shows the metrics
//! where there is no terminal, and `tests.rs` runs the same tests on one backend after the other.

#![forbid(unsafe_code)]

mod dataset;
mod lines;
mod model;
#[cfg(test)]
mod tests;
mod training;

use std::process::ExitCode;

use burn::backend::Autodiff;
use moe_examples::Chosen;

use crate::dataset::{ARMS, Spiral};

/// Points that neither training nor validation has seen.
const TEST: Spiral = Spiral { len: 2048, seed: 3 };
/// Share of them that a trained model gets right at least.
const EXPECTED: f64 = 0.9;

fn main() -> ExitCode {
    let (device, directory) = (Default::default(), logs());
    let model = training::train::<Autodiff<Chosen>>(&directory, &device);
    let (accuracy, stats) = training::test(&model, TEST, &device);
    println!("accuracy on new points {:.1} %, by chance {:.1} %", 100.0 * accuracy, 100.0 / ARMS as f64);
    println!("points per expert {:?}, busiest {:.2} x the mean", stats.expert_counts, stats.load_ratio);
    println!("logs of every metric: {}", directory.display());
    if accuracy >= EXPECTED { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A new folder for each run, since burn adds to the logs that it finds.
fn logs() -> std::path::PathBuf {
    std::env::temp_dir().join(format!("moe-learner-{}", std::process::id()))
}
