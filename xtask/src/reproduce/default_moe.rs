//! The grid of the Default MoE study: which runs, and which of them are compared.

use super::Scale;
use super::grid::{Arm, E8C1, E32C4, Experts, Run, Size};

/// Bytes of novels, 4 layers, 0.8 million tokens: one to three minutes on one core.
const CPU: Size = Size {
    active_width: 384,
    steps: 800,
    eval_batches: 128,
    settings: &[
        "model.norm=layer",
        "model.d_model=128",
        "model.num_layers=4",
        "model.d_hidden=384",
        "model.max_seq_len=128",
        "optim.beta2=0.95",
        "train.batch_size=8",
        "train.seq_len=128",
        "train.valid_batches=16",
        "train.checkpoint_every=200",
        "train.keep_last=1",
        "train.sample_tokens=0",
    ],
};

/// 6 layers of width 512, 16 million tokens a run.
const GPU: Size = Size {
    active_width: 1536,
    steps: 500,
    eval_batches: 64,
    settings: &[
        "model.norm=layer",
        "model.d_model=512",
        "model.num_layers=6",
        "model.num_heads=8",
        "model.d_hidden=1536",
        "model.max_seq_len=512",
        "optim.beta2=0.95",
        "train.batch_size=64",
        "train.seq_len=512",
        "train.valid_batches=4",
        "train.checkpoint_every=500",
        "train.keep_last=1",
        "train.sample_tokens=0",
    ],
};

/// Learning rates at which both arms are tried, `SWEEP_SEEDS` each. The study's two rates are among them.
pub(crate) const RATES: [f64; 5] = [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2];
pub(crate) const SWEEP_SEEDS: u64 = 2;
/// A good rate for top-K.
pub(crate) const GOOD: f64 = 4e-3;
/// One too high for it.
pub(crate) const HIGH: f64 = 1.6e-2;

/// Pairs of runs with the same seeds, at one rate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pairing {
    pub(crate) title: &'static str,
    pub(crate) arm: Arm,
    pub(crate) experts: Experts,
    pub(crate) lr: f64,
    pub(crate) seeds: u64,
}

const fn pairing(title: &'static str, arm: Arm, experts: Experts, lr: f64, seeds: u64) -> Pairing {
    Pairing { title, arm, experts, lr, seeds }
}

/// What is compared with top-K; the first two answer the study's question.
pub(crate) const PAIRINGS: [Pairing; 5] = [
    pairing("weighted, good rate", Arm::Weighted, E8C1, GOOD, 8),
    pairing("weighted, rate too high", Arm::Weighted, E8C1, HIGH, 4),
    pairing("plain mean, good rate", Arm::Mean, E8C1, GOOD, 3),
    pairing("backward only, good rate", Arm::BackwardOnly, E8C1, GOOD, 3),
    pairing("weighted, 32 experts top 4", Arm::Weighted, E32C4, GOOD, 3),
];

fn size(scale: Scale) -> &'static Size {
    match scale {
        Scale::Cpu => &CPU,
        Scale::Gpu => &GPU,
    }
}

/// Every run once; seeds of a pair beside each other, so that a grid that is stopped has whole pairs.
pub(crate) fn grid(scale: Scale) -> Vec<Run> {
    let size = size(scale);
    let mut runs: Vec<Run> = Vec::new();
    let mut add = |arm, experts, lr, seed| {
        let run = Run { arm, experts, lr, seed, size };
        if !runs.contains(&run) {
            runs.push(run);
        }
    };
    for (lr, seed) in RATES.iter().flat_map(|&lr| (0..SWEEP_SEEDS).map(move |seed| (lr, seed))) {
        add(Arm::TopK, E8C1, lr, seed);
        add(Arm::Weighted, E8C1, lr, seed);
    }
    for Pairing { arm, experts, lr, seeds, .. } in PAIRINGS {
        for seed in 0..seeds {
            add(Arm::TopK, experts, lr, seed);
            add(arm, experts, lr, seed);
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_run_is_there_once_and_has_its_pair() {
        let grid = grid(Scale::Cpu);
        let names: BTreeSet<String> = grid.iter().map(Run::name).collect();
        assert_eq!(names.len(), grid.len());
        for run in &grid {
            let pair = Run { arm: Arm::TopK, ..*run };
            assert!(names.contains(&pair.name()), "{} has no pair", run.name());
        }
        let at = |arm, lr| grid.iter().filter(|run| (run.arm, run.lr, run.experts) == (arm, lr, E8C1)).count();
        assert!(at(Arm::Weighted, GOOD) >= 8 && at(Arm::Weighted, HIGH) >= 4 && at(Arm::Mean, GOOD) == 3);
    }

    #[test]
    fn the_rates_of_the_study_are_among_those_tried() {
        assert!(RATES.contains(&GOOD) && RATES.contains(&HIGH) && GOOD < HIGH);
    }
}
