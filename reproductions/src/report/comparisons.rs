//! The comparisons that decide: the claims, and what was said against them.

use std::fmt::Write;

use super::differences;
use crate::cell::Finished;
use crate::statistics::{half_width, mean};

/// Rows of two tables that have the same seeds.
struct Comparison {
    question: &'static str,
    this: Row,
    that: Row,
}

/// A table, and the rows of it that are meant.
#[derive(Clone, Copy)]
enum Row {
    Named(&'static str, &'static str),
    /// The best one that begins and ends so.
    Best(&'static str, &'static str, &'static str),
}

use Row::{Best, Named};

const COMPARISONS: [Comparison; 14] = [
    of("the claim", Named("headline", "ZeroSum"), Named("headline", "plain")),
    of("the claim", Named("headline", "PositiveSum"), Named("headline", "plain")),
    of(
        "is it a larger step?",
        Named("headline", "ZeroSum"),
        Named("headline", "plain, rate x u-weighted factor of ZeroSum"),
    ),
    of("is it a larger step?", Named("headline", "ZeroSum"), Named("headline", "plain, rate x step norm of ZeroSum")),
    of(
        "is it a larger step?",
        Named("headline", "PositiveSum"),
        Named("headline", "plain, rate x mean factor of PositiveSum"),
    ),
    of(
        "is it a larger step?",
        Named("headline", "PositiveSum"),
        Named("headline", "plain, rate x u-weighted factor of PositiveSum"),
    ),
    of(
        "is it a larger step?",
        Named("headline", "PositiveSum"),
        Named("headline", "plain, rate x step norm of PositiveSum"),
    ),
    of("which experts, or any?", Named("headline", "ZeroSum"), Named("headline", "RandomBoost of ZeroSum")),
    of("which experts, or any?", Named("headline", "PositiveSum"), Named("headline", "GlobalExp of PositiveSum")),
    of("each at its best rate", Best("rates", "", ", ZeroSum"), Best("rates", "", ", plain")),
    of("each at its best rate", Best("rates", "", ", PositiveSum"), Best("rates", "", ", plain")),
    of("a small batch instead", Named("headline", "ZeroSum"), Best("batch", "batch 16, ", ", plain")),
    of("a small batch instead", Named("headline", "PositiveSum"), Best("batch", "batch 16, ", ", plain")),
    of(
        "no gain at a small batch",
        Best("batch", "batch 16, ", ", PositiveSum"),
        Best("batch", "batch 16, ", ", plain"),
    ),
];

const fn of(question: &'static str, this: Row, that: Row) -> Comparison {
    Comparison { question, this, that }
}

/// Those that there are runs for.
pub(super) fn section(finished: &[Finished]) -> String {
    let rows: String = COMPARISONS.iter().filter_map(|comparison| comparison.line(finished)).collect();
    if rows.is_empty() {
        return rows;
    }
    format!(
        "\n## What decides\n\nDifference in points over the same seeds.\n\n\
         | question | this | that | seeds | this minus that | |\n|---|---|---|---|---|---|\n{rows}{}",
        specialisation(finished)
    )
}

impl Comparison {
    fn line(&self, finished: &[Finished]) -> Option<String> {
        let (this, that) = (self.this.find(finished)?, self.that.find(finished)?);
        let differences = differences(&this.1, &that.1);
        let half = half_width(&differences)?;
        let middle = mean(&differences);
        let verdict = match () {
            () if middle - half > 0.0 => "better",
            () if middle + half < 0.0 => "worse",
            () => "no difference shown",
        };
        let Self { question, .. } = self;
        let (this, that, seeds) = (this.0, that.0, differences.len());
        Some(format!("| {question} | {this} | {that} | {seeds} | {middle:+.2} ± {half:.2} | {verdict} |\n"))
    }
}

impl Row {
    /// The name and the runs of the row.
    fn find(self, finished: &[Finished]) -> Option<(String, Vec<&Finished>)> {
        let runs = |table: &str, row: &str| -> Vec<&Finished> {
            finished.iter().filter(|run| run.cell.table == table && run.cell.row == row).collect()
        };
        match self {
            Named(table, row) => Some((row.to_string(), runs(table, row))).filter(|(_, runs)| !runs.is_empty()),
            Best(table, start, end) => {
                let named = finished.iter().filter(|run| {
                    run.cell.table == table && run.cell.row.starts_with(start) && run.cell.row.ends_with(end)
                });
                let accuracy =
                    |row: &str| mean(&runs(table, row).iter().map(|run| run.outcome.accuracy).collect::<Vec<_>>());
                let best = named.map(|run| run.cell.row.as_str()).max_by(|a, b| accuracy(a).total_cmp(&accuracy(b)))?;
                Some((best.to_string(), runs(table, best)))
            }
        }
    }
}

/// Whether idle units freeze, and whether the rich get richer.
fn specialisation(finished: &[Finished]) -> String {
    let mut text = String::from(
        "\nIdle units frozen, busy ones busier? Means over the seeds of the headline.\n\n\
         | | dead units of 512 | load ratio | Gini-Simpson |\n|---|---|---|---|\n",
    );
    for name in ["plain", "ZeroSum", "PositiveSum", "ExpDiff"] {
        if let Some((_, runs)) = Named("headline", name).find(finished) {
            let of = |value: fn(&Finished) -> f64| mean(&runs.iter().map(|run| value(run)).collect::<Vec<_>>());
            let dead = of(|run| run.outcome.dead_units.iter().sum::<usize>() as f64);
            let load = of(|run| mean(&run.outcome.load_ratio));
            let gini = of(|run| mean(&run.outcome.gini_simpson));
            let _ = writeln!(text, "| {name} | {dead:.1} | {load:.2} | {gini:.3} |");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::Cell;
    use crate::grid::{headline, tests::SETTING, tests::finished};

    fn runs(table: &str, row: &str, accuracies: [f64; 3]) -> Vec<Finished> {
        let cell = |seed| Cell { table: table.into(), row: row.into(), seed, ..headline(SETTING) };
        accuracies.iter().enumerate().map(|(seed, &accuracy)| finished(cell(seed as u64), accuracy, 1.0)).collect()
    }

    #[test]
    fn a_difference_is_taken_seed_by_seed_and_judged_by_its_interval() {
        let better = [runs("headline", "plain", [40.0, 41.0, 42.0]), runs("headline", "ZeroSum", [45.0, 46.0, 47.1])];
        let text = section(&better.concat());
        assert!(text.contains("| the claim | ZeroSum | plain | 3 | +5.03 ± 0.14 | better |"), "{text}");
        let same = [runs("headline", "plain", [40.0, 41.0, 42.0]), runs("headline", "ZeroSum", [45.0, 36.0, 42.0])];
        assert!(section(&same.concat()).contains("no difference shown"));
        assert_eq!(section(&[]), "");
    }

    #[test]
    fn each_arm_is_compared_at_its_own_best_rate() {
        let text = section(
            &[
                runs("rates", "rate 0.1, plain", [40.0, 40.0, 40.0]),
                runs("rates", "rate 0.3, plain", [47.0, 47.0, 47.0]),
                runs("rates", "rate 0.1, ZeroSum", [46.0, 46.0, 46.0]),
                runs("rates", "rate 0.3, ZeroSum", [30.0, 30.0, 30.0]),
            ]
            .concat(),
        );
        assert!(text.contains("| rate 0.1, ZeroSum | rate 0.3, plain | 3 | -1.00 ± 0.00 | worse |"), "{text}");
    }
}
