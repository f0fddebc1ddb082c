//! The grid of the Default MoE study, and of Excitation beside it: which runs, and which of them are compared.

use super::Scale;
use super::grid::{Arm, E8C1, E32C4, Experts, Router, Run, Size, Step};

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

/// 6 layers of width 512, 5 million tokens a run, four runs side by side, for 25 minutes on one H200. How many of the grid's runs that is has not been
/// measured: on an H100, four runs were still compiling kernels after 3 minutes.
const GPU: Size = Size {
    active_width: 1536,
    steps: 300,
    eval_batches: 64,
    settings: &[
        "model.norm=layer",
        "model.d_model=512",
        "model.num_layers=6",
        "model.num_heads=8",
        "model.d_hidden=1536",
        "model.max_seq_len=512",
        "optim.beta2=0.95",
        "train.dtype=bf16",
        "train.batch_size=32",
        "train.seq_len=512",
        "train.valid_batches=4",
        "train.checkpoint_every=300",
        "train.keep_last=1",
        "train.sample_tokens=0",
    ],
};

/// Learning rates at which both arms are tried, `SWEEP_SEEDS` each. The study's two rates are among them.
pub(crate) const RATES: [f64; 5] = [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2];
pub(crate) const SWEEP_SEEDS: u64 = 2;
/// The rate that is best for top-K, and for default vectors, of those tried.
pub(crate) const GOOD: f64 = 2e-3;
/// One above it: top-K is 0.18 nats worse there.
pub(crate) const ABOVE: f64 = 4e-3;
/// One far too high.
pub(crate) const HIGH: f64 = 1.6e-2;

/// Pairs of runs with the same seeds, at one rate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pairing {
    pub(crate) title: &'static str,
    pub(crate) arm: Arm,
    pub(crate) against: Arm,
    pub(crate) experts: Experts,
    pub(crate) lr: f64,
    pub(crate) seeds: u64,
}

/// What is compared with plain top-K; the first two answer the study's question. `ABOVE` was thought to be the good rate until the
/// sweep over rates was in, so that on a CPU every arm was run at it too.
pub(crate) fn pairings(scale: Scale) -> Vec<Pairing> {
    let pair = |title, arm, experts, lr, seeds| Pairing { title, arm, against: Arm::TOP_K, experts, lr, seeds };
    let [mean, backward] = [Router::Mean, Router::BackwardOnly].map(Arm::of);
    let mut all = vec![
        pair("weighted, good rate", Arm::WEIGHTED, E8C1, GOOD, 8),
        pair("weighted, rate far too high", Arm::WEIGHTED, E8C1, HIGH, 4),
        pair("plain mean, good rate", mean, E8C1, GOOD, 3),
        pair("backward only, good rate", backward, E8C1, GOOD, 3),
        pair("weighted, 32 experts top 4, good rate", Arm::WEIGHTED, E32C4, GOOD, 3),
    ];
    if scale == Scale::Cpu {
        all.extend([
            pair("weighted, rate 2 x good", Arm::WEIGHTED, E8C1, ABOVE, 8),
            pair("plain mean, rate 2 x good", mean, E8C1, ABOVE, 3),
            pair("backward only, rate 2 x good", backward, E8C1, ABOVE, 3),
            pair("weighted, 32 experts top 4, rate 2 x good", Arm::WEIGHTED, E32C4, ABOVE, 3),
        ]);
    }
    all
}

/// Excitation with either router, against the same router without: at the good rate.
pub(crate) fn excited_pairings() -> Vec<Pairing> {
    let pair = |title, against: Arm, step| {
        let arm = against.excited(step);
        Pairing { title, arm, against, experts: E8C1, lr: GOOD, seeds: 3 }
    };
    vec![
        pair("top-K, ZeroSum", Arm::TOP_K, Step::ZeroSum),
        pair("top-K, PositiveSum", Arm::TOP_K, Step::PositiveSum),
        pair("top-K, GlobalExp", Arm::TOP_K, Step::GlobalExp),
        pair("default vectors, ZeroSum", Arm::WEIGHTED, Step::ZeroSum),
        pair("default vectors, PositiveSum", Arm::WEIGHTED, Step::PositiveSum),
        pair("default vectors, GlobalExp", Arm::WEIGHTED, Step::GlobalExp),
    ]
}

fn size(scale: Scale) -> &'static Size {
    match scale {
        Scale::Cpu => &CPU,
        Scale::Gpu => &GPU,
    }
}

/// Every run once, what answers the study's question first; seeds of a pair beside each other, so that a grid that is stopped has whole pairs. `steps`
/// replaces those of the scale.
pub(crate) fn grid(scale: Scale, steps: Option<usize>) -> Vec<Run> {
    let size = size(scale);
    let steps = steps.unwrap_or(size.steps);
    let mut runs: Vec<Run> = Vec::new();
    let mut add = |arm, experts, lr, seed| {
        let run = Run { arm, experts, lr, seed, steps, size };
        if !runs.contains(&run) {
            runs.push(run);
        }
    };
    let excited = if scale == Scale::Cpu { excited_pairings() } else { Vec::new() };
    for Pairing { arm, against, experts, lr, seeds, .. } in pairings(scale).into_iter().chain(excited) {
        for seed in 0..seeds {
            add(against, experts, lr, seed);
            add(arm, experts, lr, seed);
        }
    }
    for (lr, seed) in RATES.iter().flat_map(|&lr| (0..SWEEP_SEEDS).map(move |seed| (lr, seed))) {
        add(Arm::TOP_K, E8C1, lr, seed);
        add(Arm::WEIGHTED, E8C1, lr, seed);
    }
    runs
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_run_is_there_once_and_has_its_pair() {
        let grid = grid(Scale::Cpu, None);
        let names: BTreeSet<String> = grid.iter().map(Run::name).collect();
        assert_eq!(names.len(), grid.len());
        for run in &grid {
            let pair = Run { arm: Arm::TOP_K, ..*run };
            assert!(names.contains(&pair.name()), "{} has no pair", run.name());
        }
        let at = |arm, lr| grid.iter().filter(|run| (run.arm, run.lr, run.experts) == (arm, lr, E8C1)).count();
        assert!(at(Arm::WEIGHTED, GOOD) >= 8 && at(Arm::WEIGHTED, HIGH) >= 4 && at(Arm::of(Router::Mean), GOOD) == 3);
    }

    #[test]
    fn the_rates_of_the_study_are_among_those_tried() {
        assert!([GOOD, ABOVE, HIGH].iter().all(|rate| RATES.contains(rate)));
    }
}
