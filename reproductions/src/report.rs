//! Tables of finished runs, beside the paper's numbers.

use std::fmt::Write;

use crate::cell::{Finished, Outcome};

/// What the paper shows, at its own unknown settings.
const PAPER: &str = "\
| the paper \\[S\\] | plain | excited |
|---|---|---|
| SGD, batch 512, 90 % sparsity, 4 layers of 128 | 41.01 % | 46.58 % |
| the same at batch 16 | 53.73 % | about 53.2 % |
";

/// Accuracy at most this close to chance, 10 %, is confusion \[D\]; in points.
const CONFUSED: f64 = 2.0;

/// The report as Markdown: a function of the runs alone.
pub(crate) fn render(finished: &[Finished]) -> String {
    let mut text =
        format!("# Excitation on CIFAR-10\n\n{PAPER}\nIntervals are 95 % of the mean over seeds (Student's t).\n");
    for table in unique(finished.iter().map(|run| run.cell.table.as_str())) {
        let runs: Vec<&Finished> = finished.iter().filter(|run| run.cell.table == table).collect();
        let _ = write!(text, "\n## {table}\n\n{HEAD}");
        for row in unique(runs.iter().map(|run| run.cell.row.as_str())) {
            let runs: Vec<&Finished> = runs.iter().copied().filter(|run| run.cell.row == row).collect();
            let _ = writeln!(text, "{}", line(row, &runs));
        }
    }
    text
}

const HEAD: &str = "\
| run | rate | seeds | accuracy % | confused | train loss | mean factor | u-weighted | step norm | Gini-Simpson | dead units | load ratio | s |
|---|---|---|---|---|---|---|---|---|---|---|---|---|
";

fn line(row: &str, runs: &[&Finished]) -> String {
    let column = |value: fn(&Outcome) -> f64| runs.iter().map(|run| value(&run.outcome)).collect::<Vec<f64>>();
    let accuracy = column(|outcome| outcome.accuracy);
    let confused = accuracy.iter().filter(|accuracy| (*accuracy - 10.0).abs() <= CONFUSED).count();
    let of = |value| mean(&column(value));
    format!(
        "| {row} | {:.4} | {} | {} | {confused} | {:.3} | {:.3} | {:.3} | {:.3} | {:.3} | {:.1} | {:.2} | {:.0} |",
        runs[0].cell.lr,
        runs.len(),
        interval(&accuracy),
        of(|outcome| outcome.train_loss),
        of(|outcome| outcome.mean_factor),
        of(|outcome| outcome.weighted_factor),
        of(|outcome| outcome.step_ratio),
        of(|outcome| mean(&outcome.gini_simpson)),
        of(|outcome| outcome.dead_units.iter().sum::<usize>() as f64),
        of(|outcome| mean(&outcome.load_ratio)),
        of(|outcome| outcome.seconds),
    )
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

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// `mean +- half width`; the mean alone for one value.
fn interval(values: &[f64]) -> String {
    match half_width(values) {
        Some(half) => format!("{:.2} ± {half:.2}", mean(values)),
        None => format!("{:.2}", mean(values)),
    }
}

/// Two-sided 95 % quantiles of Student's t for 1 to 9 degrees of freedom.
const T_95: [f64; 9] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262];

fn half_width(values: &[f64]) -> Option<f64> {
    let t = T_95.get(values.len().checked_sub(2)?)?;
    let (mean, n) = (mean(values), values.len() as f64);
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0);
    Some(t * (variance / n).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::Cell;
    use crate::grid::{Scale, headline, tests::finished};

    #[test]
    fn a_row_is_the_mean_over_its_seeds_with_an_interval() {
        let cell = |seed| Cell { seed, ..headline(&Scale::Cpu.settings()) };
        let runs: Vec<_> = [40.0, 42.0].iter().enumerate().map(|(i, &a)| finished(cell(i as u64), a, 1.0)).collect();
        let text = render(&runs);
        // Standard deviation sqrt(2), over sqrt(2), times 12.706.
        assert!(text.contains("| plain | 0.0030 | 2 | 41.00 ± 12.71 | 0 |"), "{text}");
        assert!(text.contains("46.58 %") && text.contains("## headline"));
    }

    #[test]
    fn runs_within_two_points_of_chance_are_confused() {
        let runs = [finished(headline(&Scale::Cpu.settings()), 11.9, 1.0)];
        assert!(render(&runs).contains("| 1 | 11.90 | 1 |"), "{}", render(&runs));
    }
}
