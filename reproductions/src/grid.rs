//! Which runs the study of Excitation consists of, in three stages: later ones depend on what earlier ones gave.
//!
//! 1. **search**: the paper's learning rates and epochs are not known \[U\]; the rate is taken whose plain SGD comes closest to
//!    the paper's plain result at batch 512.
//! 2. **study**: the paper's comparisons and controls, the same rate and seeds in all arms.
//! 3. **matched**: plain SGD with the rate times the mean factor, the u-weighted factor and the ratio of step norms that the
//!    excited runs of stage 2 had: the controls that decide.

use clap::ValueEnum;
use excitation_optim::{Control, Variant};

use crate::cell::{Base, Cell, Finished, Method, Outcome};

/// Test accuracy of plain SGD at batch 512 and 90 % sparsity in the paper, percent \[S\].
pub(crate) const PAPER_PLAIN: f64 = 41.01;

/// How much of it.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    /// Everything, for two CPU cores.
    Cpu,
    /// One seed and one epoch of everything: whether it runs.
    Smoke,
}

/// What a scale means.
pub(crate) struct Settings {
    pub(crate) epochs: usize,
    pub(crate) rates: Vec<f64>,
    /// Seeds of the headline, and of everything else.
    pub(crate) headline_seeds: u64,
    pub(crate) seeds: u64,
    pub(crate) depths: Vec<usize>,
}

impl Scale {
    pub(crate) fn settings(self) -> Settings {
        match self {
            Self::Cpu => Settings {
                epochs: 10,
                rates: vec![0.003, 0.01, 0.03, 0.1, 0.3],
                headline_seeds: 5,
                seeds: 3,
                depths: vec![4, 8, 16, 24],
            },
            Self::Smoke => Settings { epochs: 1, rates: vec![0.1], headline_seeds: 1, seeds: 1, depths: vec![4, 24] },
        }
    }
}

const VARIANTS: [(&str, Variant); 3] =
    [("ZeroSum", Variant::ZeroSum), ("PositiveSum", Variant::PositiveSum), ("ExpDiff", Variant::ExpDiff)];

const CONTROLS: [(&str, Control); 3] =
    [("GlobalExp", Control::GlobalExp), ("RandomBoost", Control::RandomBoost), ("Inverted", Control::Inverted)];

/// The plain run of the headline: SGD, batch 512, 90 % sparsity, 4 hidden layers.
pub(crate) fn headline(settings: &Settings) -> Cell {
    Cell {
        table: "headline".into(),
        row: "plain".into(),
        base: Base::Sgd,
        method: Method::Plain,
        gamma: 1.0,
        lr: settings.rates[0],
        batch: 512,
        epochs: settings.epochs,
        depth: 4,
        sparsity: 0.9,
        skips: false,
        he: false,
        seed: 0,
    }
}

/// Stage 1.
pub(crate) fn search(settings: &Settings) -> Vec<Cell> {
    let cell = |&lr: &f64| Cell { table: "search".into(), row: format!("plain, rate {lr}"), lr, ..headline(settings) };
    settings.rates.iter().map(cell).collect()
}

/// The rate that the search settles.
pub(crate) fn settled_rate(finished: &[Finished]) -> Option<f64> {
    let searched = finished.iter().filter(|run| run.cell.table == "search");
    let distance = |run: &&Finished| (run.outcome.accuracy - PAPER_PLAIN).abs();
    searched.min_by(|a, b| distance(a).total_cmp(&distance(b))).map(|run| run.cell.lr)
}

/// Stage 2.
pub(crate) fn study(settings: &Settings, lr: f64) -> Vec<Cell> {
    let start = Cell { lr, ..headline(settings) };
    let mut cells = with_seeds(headline_rows(&start), settings.headline_seeds);
    let rest = [batches(&start), sparsities(&start), optimizers(&start), confusion(&start, &settings.depths)];
    cells.extend(with_seeds(rest.concat(), settings.seeds));
    cells
}

fn with_seeds(rows: Vec<Cell>, seeds: u64) -> Vec<Cell> {
    (0..seeds).flat_map(|seed| rows.iter().map(move |row| Cell { seed, ..row.clone() })).collect()
}

fn headline_rows(start: &Cell) -> Vec<Cell> {
    let excited = VARIANTS.map(|(name, variant)| (name.to_string(), Method::Excited(variant)));
    let controls = CONTROLS.iter().flat_map(|&(name, control)| {
        let of = |(variant_name, variant)| (format!("{name} of {variant_name}"), Method::Control(variant, control));
        [VARIANTS[0], VARIANTS[1]].map(of)
    });
    let methods = [("plain".to_string(), Method::Plain)].into_iter().chain(excited).chain(controls);
    methods.map(|(row, method)| Cell { row, method, ..start.clone() }).collect()
}

/// Plain, ZeroSum and PositiveSum.
fn arms(table: &str, setting: &str, start: &Cell) -> Vec<Cell> {
    let excited = [VARIANTS[0], VARIANTS[1]].map(|(name, variant)| (name, Method::Excited(variant)));
    let arms = [("plain", Method::Plain)].into_iter().chain(excited);
    let cell = |(arm, method)| Cell { table: table.into(), row: format!("{setting}, {arm}"), method, ..start.clone() };
    arms.map(cell).collect()
}

fn batches(start: &Cell) -> Vec<Cell> {
    let rows = |batch| arms("batch", &format!("batch {batch}"), &Cell { batch, ..start.clone() });
    [16, 128].into_iter().flat_map(rows).collect()
}

fn sparsities(start: &Cell) -> Vec<Cell> {
    let rows = |sparsity: f64| {
        arms("sparsity", &format!("sparsity {:.0} %", 100.0 * sparsity), &Cell { sparsity, ..start.clone() })
    };
    [0.1, 0.5].into_iter().flat_map(rows).collect()
}

/// At burn's settings but the rate, which is the usual one of each.
fn optimizers(start: &Cell) -> Vec<Cell> {
    let rows = |(name, base, lr)| arms("optimizer", name, &Cell { base, lr, ..start.clone() });
    let bases = [("Adam", Base::Adam, 1e-3), ("RMSProp", Base::RmsProp, 1e-3), ("AdaGrad", Base::AdaGrad, 1e-2)];
    bases.into_iter().flat_map(rows).collect()
}

/// Depth, skips, optimizer and initialisation.
fn confusion(start: &Cell, depths: &[usize]) -> Vec<Cell> {
    let mut cells = Vec::new();
    for &depth in depths {
        for (base_name, base, lr) in [("SGD", Base::Sgd, start.lr), ("Adam", Base::Adam, 1e-3)] {
            for (skips, he) in [(false, false), (false, true), (true, false), (true, true)] {
                let skip = if skips { "skips" } else { "no skips" };
                let init = if he { "He" } else { "framework" };
                let setting = format!("depth {depth}, {base_name}, {skip}, {init}");
                cells.extend(arms("confusion", &setting, &Cell { depth, base, lr, skips, he, ..start.clone() }));
            }
        }
    }
    cells
}

/// One number of an outcome.
type Measure = fn(&Outcome) -> f64;

/// Stage 3: one row per variant and kind of matching, at the mean of the variant's runs.
pub(crate) fn matched(settings: &Settings, lr: f64, finished: &[Finished]) -> Vec<Cell> {
    let kinds: [(&str, Measure); 3] = [
        ("mean factor", |outcome| outcome.mean_factor),
        ("u-weighted factor", |outcome| outcome.weighted_factor),
        ("step norm", |outcome| outcome.step_ratio),
    ];
    let mut rows = Vec::new();
    for (name, _) in VARIANTS {
        for (kind, value) in kinds {
            if let Some(factor) = mean_of("headline", name, value, finished) {
                let row = format!("plain, rate x {kind} of {name}");
                rows.push(Cell { row, lr: lr * factor, ..headline(settings) });
            }
        }
    }
    with_seeds(rows, settings.headline_seeds)
}

fn mean_of(table: &str, row: &str, value: Measure, finished: &[Finished]) -> Option<f64> {
    let runs = finished.iter().filter(|run| run.cell.table == table && run.cell.row == row);
    let values: Vec<f64> = runs.map(|run| value(&run.outcome)).filter(|value| value.is_finite()).collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn finished(cell: Cell, accuracy: f64, factor: f64) -> Finished {
        let outcome = Outcome {
            accuracy,
            train_loss: 1.5,
            mean_factor: factor,
            weighted_factor: factor,
            step_ratio: factor,
            gini_simpson: vec![0.5],
            dead_units: vec![1],
            load_ratio: vec![2.0],
            seconds: 3.0,
        };
        Finished { cell, outcome }
    }

    #[test]
    fn the_rate_closest_to_the_paper_is_settled() {
        let cells = search(&Scale::Cpu.settings());
        let runs: Vec<_> = cells.into_iter().zip([20.0, 38.0, 40.5, 45.0, 50.0]).collect();
        let runs: Vec<_> = runs.into_iter().map(|(cell, accuracy)| finished(cell, accuracy, 1.0)).collect();
        assert_eq!(settled_rate(&runs), Some(0.03));
        assert_eq!(settled_rate(&[]), None);
    }

    #[test]
    fn every_arm_of_a_row_has_the_same_seeds_and_no_run_is_there_twice() {
        let cells = study(&Scale::Cpu.settings(), 0.1);
        let seeds = |row: &str| cells.iter().filter(|cell| cell.row == row).map(|cell| cell.seed).collect::<Vec<_>>();
        assert_eq!(seeds("plain"), [0, 1, 2, 3, 4]);
        assert_eq!(seeds("ZeroSum"), seeds("Inverted of PositiveSum"));
        for (i, cell) in cells.iter().enumerate() {
            assert!(!cells[..i].contains(cell), "{cell:?}");
        }
    }

    #[test]
    fn matched_rates_are_the_rate_times_what_the_excited_runs_had() {
        let settings = Scale::Cpu.settings();
        let excited = |factor| finished(Cell { row: "ZeroSum".into(), ..headline(&settings) }, 45.0, factor);
        let cells = matched(&settings, 0.1, &[excited(2.0), excited(4.0)]);
        assert_eq!(cells.len(), 3 * 5);
        assert!(cells.iter().all(|cell| (cell.lr - 0.3).abs() < 1e-12 && cell.method == Method::Plain));
    }
}
