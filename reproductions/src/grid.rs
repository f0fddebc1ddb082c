//! Which runs the study of Excitation consists of, in stages: later ones depend on what earlier ones gave.
//!
//! 1. **search**: the paper's learning rate and epochs are not known \[U\]; see the module `settle`.
//! 2. **study**: the paper's comparisons and controls, the same rate, epochs and seeds in all arms; then every arm at several rates.
//! 3. **matched**: the plain optimizer with the rate times the mean factor, the u-weighted factor and the ratio of step norms that
//!    the excited runs of stage 2 had: the controls that decide.
//! 4. **confusion**: deep networks; then, where plain runs were confused, the plain optimizer at the rate matched on the step norm.

use clap::ValueEnum;
use excitation_optim::{Control, Variant};

use crate::cell::{Base, Cell, Finished, Method, Outcome};
use crate::settle::Setting;
use crate::statistics::{is_confused, mean};

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
    /// Epochs of a run of the search, and so the most that it can settle.
    pub(crate) search_epochs: usize,
    /// Epochs of a deep network.
    pub(crate) confusion_epochs: usize,
    /// Learning rates of SGD that are tried, in all arms.
    pub(crate) rates: Vec<f64>,
    /// Seeds of the headline, and of everything else.
    pub(crate) headline_seeds: u64,
    pub(crate) seeds: u64,
    pub(crate) depths: Vec<usize>,
}

impl Scale {
    /// As on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Smoke => "smoke",
        }
    }

    pub(crate) fn settings(self) -> Settings {
        match self {
            Self::Cpu => Settings {
                search_epochs: 10,
                confusion_epochs: 5,
                rates: vec![0.01, 0.03, 0.1, 0.3, 1.0],
                headline_seeds: 5,
                seeds: 3,
                depths: vec![4, 8, 16, 24],
            },
            Self::Smoke => Settings {
                search_epochs: 1,
                confusion_epochs: 1,
                rates: vec![0.1],
                headline_seeds: 1,
                seeds: 1,
                depths: vec![4, 24],
            },
        }
    }
}

/// Batch of the headline, and the small one where the paper shows no gain.
pub(crate) const LARGE: usize = 512;
pub(crate) const SMALL: usize = 16;

pub(crate) const VARIANTS: [(&str, Variant); 3] =
    [("ZeroSum", Variant::ZeroSum), ("PositiveSum", Variant::PositiveSum), ("ExpDiff", Variant::ExpDiff)];

const CONTROLS: [(&str, Control); 3] =
    [("GlobalExp", Control::GlobalExp), ("RandomBoost", Control::RandomBoost), ("Inverted", Control::Inverted)];

/// The plain run of the headline: SGD, batch 512, 90 % sparsity, 4 hidden layers.
pub(crate) fn headline(setting: Setting) -> Cell {
    Cell {
        table: "headline".into(),
        row: "plain".into(),
        base: Base::Sgd,
        method: Method::Plain,
        gamma: 1.0,
        lr: setting.lr,
        batch: LARGE,
        epochs: setting.epochs,
        depth: 4,
        sparsity: 0.9,
        skips: false,
        he: false,
        seed: 0,
    }
}

/// Stage 1.
pub(crate) fn search(settings: &Settings) -> Vec<Cell> {
    let epochs = settings.search_epochs;
    let cell = |batch: usize, lr: f64| {
        let row = format!("batch {batch}, rate {lr}");
        Cell { table: "search".into(), row, batch, ..headline(Setting { lr, epochs }) }
    };
    let rates = |batch| settings.rates.iter().map(move |&lr| cell(batch, lr));
    [SMALL, LARGE].into_iter().flat_map(rates).collect()
}

/// Stage 2.
pub(crate) fn study(settings: &Settings, setting: Setting) -> Vec<Cell> {
    let start = headline(setting);
    let mut cells = with_seeds(headline_rows(&start), settings.headline_seeds);
    let rest =
        [rates(&start, &settings.rates), batches(&start, &settings.rates), sparsities(&start), optimizers(&start)];
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

/// The three arms of most tables.
pub(crate) const ARMS: [(&str, Method); 3] = [
    ("plain", Method::Plain),
    ("ZeroSum", Method::Excited(Variant::ZeroSum)),
    ("PositiveSum", Method::Excited(Variant::PositiveSum)),
];

/// Plain, ZeroSum and PositiveSum.
fn arms(table: &str, setting: &str, start: &Cell) -> Vec<Cell> {
    let cell = |(arm, method)| Cell { table: table.into(), row: format!("{setting}, {arm}"), method, ..start.clone() };
    ARMS.map(cell).to_vec()
}

fn rates(start: &Cell, rates: &[f64]) -> Vec<Cell> {
    rates.iter().flat_map(|&lr| arms("rates", &format!("rate {lr}"), &Cell { lr, ..start.clone() })).collect()
}

/// At the rate of the headline, too high for some, and at the two below it.
fn batches(start: &Cell, rates: &[f64]) -> Vec<Cell> {
    let from = rates.iter().filter(|&&lr| lr <= start.lr).count().saturating_sub(3);
    let rates: Vec<f64> = rates.iter().copied().filter(|&lr| lr <= start.lr).skip(from).collect();
    let rows = |batch: usize, lr: f64| {
        arms("batch", &format!("batch {batch}, rate {lr}"), &Cell { batch, lr, ..start.clone() })
    };
    [SMALL, 128].into_iter().flat_map(|batch| rates.iter().flat_map(move |&lr| rows(batch, lr))).collect()
}

fn sparsities(start: &Cell) -> Vec<Cell> {
    let rows = |sparsity: f64| {
        arms("sparsity", &format!("sparsity {:.0} %", 100.0 * sparsity), &Cell { sparsity, ..start.clone() })
    };
    [0.1, 0.5].into_iter().flat_map(rows).collect()
}

/// At burn's settings but the rate, which is the usual one of each.
const OPTIMIZERS: [(&str, Base, f64); 3] =
    [("Adam", Base::Adam, 1e-3), ("RMSProp", Base::RmsProp, 1e-3), ("AdaGrad", Base::AdaGrad, 1e-2)];

fn optimizers(start: &Cell) -> Vec<Cell> {
    let rows = |(name, base, lr)| arms("optimizer", name, &Cell { base, lr, ..start.clone() });
    OPTIMIZERS.into_iter().flat_map(rows).collect()
}

/// One number of an outcome.
type Measure = fn(&Outcome) -> f64;

const STEP_NORM: (&str, Measure) = ("step norm", |outcome| outcome.step_ratio);

const KINDS: [(&str, Measure); 3] = [
    ("mean factor", |outcome| outcome.mean_factor),
    ("u-weighted factor", |outcome| outcome.weighted_factor),
    STEP_NORM,
];

/// Rates closer to the plain one than this are the plain one: the mean factor of ZeroSum is 1.
const SAME_RATE: f64 = 0.01;

/// Stage 3: one row per variant and kind of matching, at the mean of the variant's runs.
pub(crate) fn matched(settings: &Settings, setting: Setting, finished: &[Finished]) -> Vec<Cell> {
    let start = headline(setting);
    let mut rows = Vec::new();
    for (variant, _) in VARIANTS {
        for kind in KINDS {
            rows.extend(matched_to(variant, variant, kind, &start, finished));
        }
    }
    let mut cells = with_seeds(rows, settings.headline_seeds);
    let mut rows = Vec::new();
    for (name, base, lr) in OPTIMIZERS {
        let start = Cell { table: "optimizer".into(), base, lr, ..start.clone() };
        for (variant, _) in &VARIANTS[..2] {
            let matched = matched_to(&format!("{name}, {variant}"), variant, STEP_NORM, &start, finished);
            rows.extend(matched.map(|cell| Cell { row: format!("{name}, {}", cell.row), ..cell }));
        }
    }
    cells.extend(with_seeds(rows, settings.seeds));
    cells
}

/// The plain optimizer of `start` at its rate times what the runs of the row `like`, of the same table, had.
fn matched_to(like: &str, name: &str, kind: (&str, Measure), start: &Cell, finished: &[Finished]) -> Option<Cell> {
    let runs = finished.iter().filter(|run| run.cell.table == start.table && run.cell.row == like);
    let values: Vec<f64> = runs.map(|run| kind.1(&run.outcome)).filter(|value| value.is_finite()).collect();
    let factor = mean(&values);
    let row = format!("plain, rate x {} of {name}", kind.0);
    let cell = Cell { row, method: Method::Plain, lr: start.lr * factor, ..start.clone() };
    (factor.is_finite() && (factor - 1.0).abs() > SAME_RATE).then_some(cell)
}

/// A deep network: the plain run of its three arms, and what is common to their rows.
struct Deep {
    name: String,
    start: Cell,
}

fn deep(settings: &Settings, setting: Setting) -> Vec<Deep> {
    let start = headline(Setting { epochs: settings.confusion_epochs, ..setting });
    let mut all = Vec::new();
    for &depth in &settings.depths {
        for (base_name, base, lr) in [("SGD", Base::Sgd, start.lr), OPTIMIZERS[0]] {
            for (skips, he) in [(false, false), (false, true), (true, false), (true, true)] {
                let skip = if skips { "skips" } else { "no skips" };
                let init = if he { "He" } else { "framework" };
                let name = format!("depth {depth}, {base_name}, {skip}, {init}");
                let start = Cell { table: "confusion".into(), depth, base, lr, skips, he, ..start.clone() };
                all.push(Deep { name, start });
            }
        }
    }
    all
}

/// Stage 4: depth, skips, optimizer and initialisation.
pub(crate) fn confusion(settings: &Settings, setting: Setting) -> Vec<Cell> {
    let rows = deep(settings, setting).iter().flat_map(|deep| arms("confusion", &deep.name, &deep.start)).collect();
    with_seeds(rows, settings.seeds)
}

/// Where a plain run was confused: whether a rate matched on the step norm of an excited run does what excitation does.
pub(crate) fn matched_confusion(settings: &Settings, setting: Setting, finished: &[Finished]) -> Vec<Cell> {
    let mut rows = Vec::new();
    for Deep { name, start } in deep(settings, setting) {
        let plain = format!("{name}, plain");
        let of_row = |run: &&Finished| run.cell.table == "confusion" && run.cell.row == plain;
        if finished.iter().filter(of_row).any(|run| is_confused(run.outcome.accuracy)) {
            for (variant, _) in &VARIANTS[..2] {
                let matched = matched_to(&format!("{name}, {variant}"), variant, STEP_NORM, &start, finished);
                rows.extend(matched.map(|cell| Cell { row: format!("{name}, {}", cell.row), ..cell }));
            }
        }
    }
    with_seeds(rows, settings.seeds)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const SETTING: Setting = Setting { lr: 0.1, epochs: 10 };

    pub(crate) fn finished(cell: Cell, accuracy: f64, factor: f64) -> Finished {
        let outcome = Outcome {
            accuracy,
            accuracy_by_epoch: vec![accuracy; cell.epochs],
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
    fn every_arm_of_a_row_has_the_same_seeds_and_no_run_is_there_twice() {
        let settings = Scale::Cpu.settings();
        let cells = [study(&settings, SETTING), confusion(&settings, SETTING)].concat();
        let seeds = |row: &str| cells.iter().filter(|cell| cell.row == row).map(|cell| cell.seed).collect::<Vec<_>>();
        assert_eq!(seeds("plain"), [0, 1, 2, 3, 4]);
        assert_eq!(seeds("ZeroSum"), seeds("Inverted of PositiveSum"));
        assert_eq!(seeds("depth 24, Adam, skips, He, PositiveSum"), [0, 1, 2]);
        for (i, cell) in cells.iter().enumerate() {
            assert!(!cells[..i].contains(cell), "{cell:?}");
        }
    }

    #[test]
    fn matched_rates_are_the_rate_times_what_the_excited_runs_had() {
        let settings = Scale::Cpu.settings();
        let excited = |factor| finished(Cell { row: "ZeroSum".into(), ..headline(SETTING) }, 45.0, factor);
        let cells = matched(&settings, SETTING, &[excited(2.0), excited(4.0)]);
        assert_eq!(cells.len(), 3 * 5);
        assert!(cells.iter().all(|cell| (cell.lr - 0.3).abs() < 1e-12 && cell.method == Method::Plain));
        assert!(matched(&settings, SETTING, &[excited(1.0)]).is_empty(), "the plain rate is there already");
    }

    #[test]
    fn an_optimizer_is_matched_to_its_own_excited_runs() {
        let adam =
            Cell { table: "optimizer".into(), row: "Adam, ZeroSum".into(), base: Base::Adam, ..headline(SETTING) };
        let cells = matched(&Scale::Cpu.settings(), SETTING, &[finished(adam, 45.0, 3.0)]);
        assert_eq!(cells.len(), 3);
        assert!(cells.iter().all(|cell| cell.base == Base::Adam && (cell.lr - 3e-3).abs() < 1e-12));
        assert_eq!(cells[0].row, "Adam, plain, rate x step norm of ZeroSum");
    }

    #[test]
    fn confused_plain_runs_and_no_others_are_matched() {
        let settings = Scale::Cpu.settings();
        let of = |row: &str, accuracy, factor| {
            let mut cells = confusion(&settings, SETTING).into_iter();
            finished(cells.find(|cell| cell.row == row).expect("a row of the grid"), accuracy, factor)
        };
        let confused = of("depth 8, SGD, no skips, He, plain", 10.0, 1.0);
        let learning = of("depth 8, SGD, skips, He, plain", 35.0, 1.0);
        let excited = of("depth 8, SGD, no skips, He, PositiveSum", 30.0, 2.0);
        let other = of("depth 8, SGD, skips, He, PositiveSum", 38.0, 2.0);
        let cells = matched_confusion(&settings, SETTING, &[confused, learning, excited, other]);
        assert_eq!(cells.len(), 3);
        for cell in cells {
            assert_eq!(cell.row, "depth 8, SGD, no skips, He, plain, rate x step norm of PositiveSum");
            assert!((cell.lr - 0.2).abs() < 1e-12 && cell.he && !cell.skips && cell.depth == 8 && cell.epochs == 5);
        }
    }
}
