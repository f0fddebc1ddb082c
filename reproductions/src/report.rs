//! The report: a function of the finished runs and the scale.

mod comparisons;
mod plots;

use std::fmt::Write;

pub(crate) use plots::plots;

use crate::cell::{Finished, Outcome};
use crate::settle::{PAPER_LARGE, PAPER_SMALL, Settled};
use crate::statistics::{interval, is_confused, mean};

/// What the paper shows, at its own unknown settings.
const PAPER: &str = "\
| the paper \\[S\\] | plain | excited |
|---|---|---|
| SGD, batch 512, 90 % sparsity, 4 layers of 128 | 41.01 % | 46.58 % |
| the same at batch 16 | 53.73 % | about 53.2 % |
";

/// Tables in their order, with what is said of each.
const TABLES: [(&str, &str); 7] = [
    ("search", "One seed each: accuracy after the last epoch. The setting is chosen from all epochs."),
    ("headline", "SGD, batch 512, 90 % sparsity, 4 hidden layers; controls, and plain runs at matched rates."),
    ("rates", "Every arm at the same rates."),
    ("batch", "Other batch sizes, at the rate of the headline and at the two below it of those searched."),
    ("sparsity", "Other shares of units that do not survive."),
    ("optimizer", "Other optimizers at batch 512, each at its usual rate, and at the rate matched on the step norm."),
    ("confusion", "Deep networks. Where plain runs were confused, the matched rate as well."),
];

/// The report as Markdown.
pub(crate) fn render(finished: &[Finished], settled: Option<Settled>) -> String {
    let mut text = format!("# Excitation on CIFAR-10\n\n{PAPER}\n{}{READING}", setting(settled));
    text += &comparisons::section(finished);
    for (name, about) in TABLES {
        let runs: Vec<&Finished> = finished.iter().filter(|run| run.cell.table == name).collect();
        if !runs.is_empty() {
            let _ = write!(text, "\n## {name}\n\n{about}\n\n{}{HEAD}", picture(name));
            for row in unique(runs.iter().map(|run| run.cell.row.as_str())) {
                let _ = writeln!(text, "{}", line(row, &runs));
            }
        }
    }
    text
}

const READING: &str = "
Intervals are 95 % of the mean over seeds (Student's t). `against plain` is the mean difference from the plain runs of the same
setting and seeds, in points. `confused` counts runs within 2 points of chance. `mean factor`, `u-weighted` and `step norm` are what
the excitation multiplied, averaged over 20 steps of each run: the factors' mean, their mean weighted by utilization, and the length
of the whole step over that of the bare optimizer from the same place. Gini-Simpson, dead units (of all layers together) and load
ratio (busiest unit over the mean) are those of the test set.
";

fn setting(settled: Option<Settled>) -> String {
    let Some(settled) = settled else {
        return "The rate and the epochs were given, not searched.\n".into();
    };
    let Settled { setting, large, small } = settled;
    let both = match settled.does_both() {
        true => "One setting does both.",
        false => "No setting of the search does both.",
    };
    format!(
        "The paper's rate and epochs are not known. Of those searched, rate {} after {} epochs is settled on: plain SGD reaches \
         {large:.2} % at batch 512 (paper: {PAPER_LARGE}) and {small:.2} % at batch 16 (paper: {PAPER_SMALL}). {both}\n",
        setting.lr, setting.epochs
    )
}

fn picture(table: &str) -> String {
    match ["headline", "rates", "confusion"].contains(&table) {
        true => format!("![{table}]({table}.svg)\n\n"),
        false => String::new(),
    }
}

const HEAD: &str = "\
| run | rate | seeds | accuracy % | against plain | confused | train loss | mean factor | u-weighted | step norm | Gini-Simpson | dead units | load ratio | s |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|
";

fn line(row: &str, table: &[&Finished]) -> String {
    let runs: Vec<&Finished> = table.iter().copied().filter(|run| run.cell.row == row).collect();
    let column = |value: fn(&Outcome) -> f64| runs.iter().map(|run| value(&run.outcome)).collect::<Vec<f64>>();
    let accuracy = column(|outcome| outcome.accuracy);
    let confused = accuracy.iter().filter(|accuracy| is_confused(**accuracy)).count();
    let of = |value, digits| number(mean(&column(value)), digits);
    let measured = [
        of(|outcome| outcome.train_loss, 3),
        of(|outcome| outcome.mean_factor, 3),
        of(|outcome| outcome.weighted_factor, 3),
        of(|outcome| outcome.step_ratio, 3),
        of(|outcome| mean(&outcome.gini_simpson), 3),
        of(|outcome| outcome.dead_units.iter().sum::<usize>() as f64, 1),
        of(|outcome| mean(&outcome.load_ratio), 2),
        of(|outcome| outcome.seconds, 0),
    ];
    format!(
        "| {row} | {:.4} | {} | {} | {} | {confused} | {} |",
        runs[0].cell.lr,
        runs.len(),
        interval(&accuracy),
        against_plain(&runs, table),
        measured.join(" | "),
    )
}

/// `-` for what there is none of.
fn number(value: f64, digits: usize) -> String {
    if value.is_finite() { format!("{value:.digits$}") } else { "-".into() }
}

fn against_plain(runs: &[&Finished], table: &[&Finished]) -> String {
    let plain = plain_of(&runs[0].cell.row);
    let differences = differences(runs, &table.iter().copied().filter(|run| run.cell.row == plain).collect::<Vec<_>>());
    if plain == runs[0].cell.row || differences.is_empty() { "-".into() } else { interval(&differences) }
}

/// Accuracy of the runs less that of the others, seed by seed.
fn differences(runs: &[&Finished], others: &[&Finished]) -> Vec<f64> {
    let same_seed = |run: &Finished| others.iter().find(|other| other.cell.seed == run.cell.seed);
    runs.iter().filter_map(|run| Some(run.outcome.accuracy - same_seed(run)?.outcome.accuracy)).collect()
}

/// The row of the plain runs of the same setting.
fn plain_of(row: &str) -> String {
    let setting = match row.find("plain, rate x") {
        Some(start) => &row[..start],
        None => &row[..row.rfind(", ").map_or(0, |comma| comma + 2)],
    };
    format!("{setting}plain")
}

/// In the order in which they appear.
fn unique<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = Vec::new();
    names.for_each(|name| {
        if !seen.contains(&name) {
            seen.push(name);
        }
    });
    seen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::Cell;
    use crate::grid::{headline, tests::SETTING, tests::finished};

    fn run(row: &str, seed: u64, accuracy: f64) -> Finished {
        finished(Cell { row: row.into(), seed, ..headline(SETTING) }, accuracy, 1.0)
    }

    #[test]
    fn a_row_is_the_mean_over_its_seeds_beside_the_plain_runs_of_the_same_seeds() {
        let runs = [run("plain", 0, 40.0), run("plain", 1, 42.0), run("ZeroSum", 1, 45.0), run("ZeroSum", 0, 43.0)];
        let text = render(&runs, None);
        assert!(text.contains("| plain | 0.1000 | 2 | 41.00 ± 12.71 | - | 0 |"), "{text}");
        assert!(text.contains("| ZeroSum | 0.1000 | 2 | 44.00 ± 12.71 | 3.00 ± 0.00 | 0 |"), "{text}");
        assert!(text.contains("46.58 %") && text.contains("## headline") && text.contains("not searched"));
    }

    #[test]
    fn runs_within_two_points_of_chance_are_confused() {
        let text = render(&[run("plain", 0, 11.9)], None);
        assert!(text.contains("| 1 | 11.90 | - | 1 |"), "{text}");
    }

    #[test]
    fn what_a_diverged_run_has_none_of_is_a_dash() {
        let runs = [finished(headline(SETTING), 10.0, f64::NAN)];
        assert!(render(&runs, None).contains("| - | 1 | 1.500 | - | - | - | 0.500 |"), "{}", render(&runs, None));
    }

    #[test]
    fn every_row_has_its_plain_one() {
        for (row, plain) in [
            ("ZeroSum", "plain"),
            ("plain, rate x step norm of ZeroSum", "plain"),
            ("batch 16, ZeroSum", "batch 16, plain"),
            ("depth 8, SGD, skips, He, PositiveSum", "depth 8, SGD, skips, He, plain"),
            ("depth 8, SGD, skips, He, plain, rate x step norm of ZeroSum", "depth 8, SGD, skips, He, plain"),
        ] {
            assert_eq!(plain_of(row), plain);
        }
    }

    #[test]
    fn what_was_settled_is_said() {
        let text = render(&[], Some(Settled { setting: SETTING, large: 41.5, small: 50.0 }));
        assert!(
            text.contains("rate 0.1 after 10 epochs") && text.contains("No setting of the search does both"),
            "{text}"
        );
    }
}
