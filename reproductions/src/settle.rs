//! The learning rate and the epochs of the study, which the paper does not tell \[U\]: those whose plain runs come closest to its
//! plain results.

use crate::cell::Finished;
use crate::grid::{LARGE, SMALL};

/// Test accuracy of plain SGD at 90 % sparsity in the paper, percent \[S\]: at batch 512 and at batch 16.
pub(crate) const PAPER_LARGE: f64 = 41.01;
pub(crate) const PAPER_SMALL: f64 = 53.73;

/// A result this close to the paper's counts as the same, in points.
const CLOSE: f64 = 1.0;

/// What all runs of the study have in common.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Setting {
    /// Learning rate of SGD.
    pub(crate) lr: f64,
    /// Passes over the training set.
    pub(crate) epochs: usize,
}

/// A setting and how close its plain runs come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Settled {
    pub(crate) setting: Setting,
    /// Accuracy at batch 512 and at batch 16; that of batch 16 is NaN without a run.
    pub(crate) large: f64,
    pub(crate) small: f64,
}

impl Settled {
    /// Whether one setting does both.
    pub(crate) fn does_both(&self) -> bool {
        self.large_distance() <= CLOSE && self.small_distance() <= CLOSE
    }

    fn large_distance(&self) -> f64 {
        (self.large - PAPER_LARGE).abs()
    }

    fn small_distance(&self) -> f64 {
        (self.small - PAPER_SMALL).abs()
    }
}

/// Of the rates and epochs that the search saw: among those close to the paper at batch 512, the closest at batch 16; if none is
/// close, the closest at batch 512.
pub(crate) fn settle(finished: &[Finished]) -> Option<Settled> {
    let seen = seen(finished);
    let by = |distance: fn(&Settled) -> f64| move |a: &&Settled, b: &&Settled| distance(a).total_cmp(&distance(b));
    let close: Vec<Settled> = seen.iter().filter(|one| one.large_distance() <= CLOSE).copied().collect();
    let best = close.iter().min_by(by(Settled::small_distance));
    best.or_else(|| seen.iter().min_by(by(Settled::large_distance))).copied()
}

/// Every rate and number of epochs of the search.
fn seen(finished: &[Finished]) -> Vec<Settled> {
    let searched = |batch| finished.iter().filter(move |run| run.cell.table == "search" && run.cell.batch == batch);
    let mut seen = Vec::new();
    for run in searched(LARGE) {
        let small = searched(SMALL).find(|small| small.cell.lr == run.cell.lr);
        for (index, &large) in run.outcome.accuracy_by_epoch.iter().enumerate() {
            let small = small.and_then(|run| run.outcome.accuracy_by_epoch.get(index));
            let setting = Setting { lr: run.cell.lr, epochs: index + 1 };
            seen.push(Settled { setting, large, small: small.copied().unwrap_or(f64::NAN) });
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grid::tests::finished;
    use crate::grid::{Scale, search};

    fn searched(batch: usize, lr: f64, accuracies: &[f64]) -> Finished {
        let cells = search(&Scale::Cpu.settings());
        let cell = cells.into_iter().find(|cell| (cell.batch, cell.lr) == (batch, lr)).expect("a run of the search");
        let mut run = finished(cell, accuracies[accuracies.len() - 1], 1.0);
        run.outcome.accuracy_by_epoch = accuracies.to_vec();
        run
    }

    #[test]
    fn among_the_close_ones_at_512_the_closest_at_16_is_settled() {
        let runs = [
            searched(512, 0.1, &[30.0, 41.0, 45.0]),
            searched(16, 0.1, &[40.0, 48.0, 50.0]),
            searched(512, 0.3, &[40.5, 46.0, 48.0]),
            searched(16, 0.3, &[53.0, 54.0, 55.0]),
        ];
        let settled = settle(&runs).expect("a search");
        assert_eq!(settled.setting, Setting { lr: 0.3, epochs: 1 });
        assert!(settled.does_both());
        let settled = settle(&runs[..2]).expect("a search");
        assert_eq!((settled.setting, settled.does_both()), (Setting { lr: 0.1, epochs: 2 }, false));
    }

    #[test]
    fn if_none_is_close_the_closest_at_512_is_settled() {
        let settled = settle(&[searched(512, 0.01, &[20.0, 25.0, 28.0])]).expect("a search");
        assert_eq!((settled.setting.epochs, settled.large), (3, 28.0));
        assert!(settled.small.is_nan() && !settled.does_both());
        assert_eq!(settle(&[]), None);
    }
}
