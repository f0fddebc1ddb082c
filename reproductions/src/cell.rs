//! One run of a study, as plain data: what it is, and what came out.

use excitation_optim::{Control, ExcitationConfig, Variant};
use moe_models::mlp::{HiddenInit, TopKMlpConfig};
use serde::{Deserialize, Deserializer, Serialize};

use crate::cifar::{CLASSES, PIXELS};

/// Optimizers of the paper's study \[S\].
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Base {
    Sgd,
    Adam,
    RmsProp,
    AdaGrad,
}

/// What scales the steps.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Method {
    /// Nothing.
    Plain,
    /// The paper's method.
    Excited(Variant),
    /// One of its controls.
    Control(Variant, Control),
}

/// Everything that decides a run. Two cells that are equal give the same numbers on the same backend.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub(crate) struct Cell {
    /// The table of the report that it belongs to.
    pub(crate) table: String,
    /// The row of that table; runs of one row differ in their seed only.
    pub(crate) row: String,
    pub(crate) base: Base,
    pub(crate) method: Method,
    pub(crate) gamma: f64,
    pub(crate) lr: f64,
    pub(crate) batch: usize,
    pub(crate) epochs: usize,
    pub(crate) depth: usize,
    /// Share of the units that do not survive.
    pub(crate) sparsity: f64,
    pub(crate) skips: bool,
    pub(crate) he: bool,
    pub(crate) seed: u64,
}

/// What a run measured. Per layer from the first hidden layer on.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub(crate) struct Outcome {
    /// Of the test set, in percent.
    #[serde(deserialize_with = "null_as_nan")]
    pub(crate) accuracy: f64,
    /// The same after each epoch.
    #[serde(deserialize_with = "nulls_as_nan")]
    pub(crate) accuracy_by_epoch: Vec<f64>,
    /// Mean cross-entropy of the last epoch, nats.
    #[serde(deserialize_with = "null_as_nan")]
    pub(crate) train_loss: f64,
    /// `mean_i phi_i`, mean over layers and probed steps.
    #[serde(deserialize_with = "null_as_nan")]
    pub(crate) mean_factor: f64,
    /// `sum_i u_i phi_i / sum_i u_i`, mean over layers and probed steps.
    #[serde(deserialize_with = "null_as_nan")]
    pub(crate) weighted_factor: f64,
    /// Norm of the step over that of the bare optimizer's from the same place, mean over probed steps.
    #[serde(deserialize_with = "null_as_nan")]
    pub(crate) step_ratio: f64,
    /// Gini-Simpson index `1 - sum_c p_c^2` of the classes a unit survives for, mean over the units that do.
    #[serde(deserialize_with = "nulls_as_nan")]
    pub(crate) gini_simpson: Vec<f64>,
    /// Units that survive for no picture of the test set.
    pub(crate) dead_units: Vec<usize>,
    /// Busiest unit over the mean, on the test set.
    #[serde(deserialize_with = "nulls_as_nan")]
    pub(crate) load_ratio: Vec<f64>,
    /// Wall time of the training.
    #[serde(deserialize_with = "null_as_nan")]
    pub(crate) seconds: f64,
}

/// JSON has no NaN, which a run that diverged is full of: it is written as `null`.
fn null_as_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

fn nulls_as_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f64>, D::Error> {
    let values = Vec::<Option<f64>>::deserialize(deserializer)?;
    Ok(values.into_iter().map(|value| value.unwrap_or(f64::NAN)).collect())
}

/// A line of the results.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub(crate) struct Finished {
    pub(crate) cell: Cell,
    pub(crate) outcome: Outcome,
}

impl Cell {
    pub(crate) fn network(&self) -> TopKMlpConfig {
        let initializer = if self.he { HiddenInit::He } else { HiddenInit::Framework };
        TopKMlpConfig::new(PIXELS, CLASSES)
            .with_num_hidden(self.depth)
            .with_sparsity(self.sparsity)
            .with_skips(self.skips)
            .with_initializer(initializer)
    }

    /// The bare optimizer is the method with `gamma = 0`, which touches nothing.
    pub(crate) fn excitation(&self) -> ExcitationConfig {
        let config = ExcitationConfig::new().with_gamma(self.gamma).with_seed(self.seed);
        match self.method {
            Method::Plain => config.with_gamma(0.0),
            Method::Excited(variant) => config.with_variant(variant),
            Method::Control(variant, control) => config.with_variant(variant).with_control(Some(control)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grid;

    #[test]
    fn a_run_that_diverged_can_be_written_and_read() {
        let mut run = grid::tests::finished(grid::headline(grid::tests::SETTING), 10.0, f64::NAN);
        run.outcome.gini_simpson = vec![0.5, f64::NAN];
        let back: Finished = serde_json::from_str(&serde_json::to_string(&run).expect("plain data")).expect("its own");
        assert!(back.outcome.step_ratio.is_nan() && back.outcome.gini_simpson[1].is_nan());
        assert_eq!((back.outcome.accuracy, back.outcome.gini_simpson[0]), (10.0, 0.5));
    }

    #[test]
    fn a_cell_survives_json_and_plain_means_gamma_zero() {
        for cell in grid::study(&grid::Scale::Cpu.settings(), grid::tests::SETTING) {
            let back: Cell = serde_json::from_str(&serde_json::to_string(&cell).expect("plain data")).expect("its own");
            assert_eq!(back, cell);
            assert_eq!(cell.method == Method::Plain, cell.excitation().gamma == 0.0);
        }
    }
}
