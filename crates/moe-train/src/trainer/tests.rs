//! Properties of whole runs.

use std::path::Path;

use burn::backend::{Autodiff, Flex};
use excitation_optim::{Control, Variant};
use moe_models::lm::RouterKind;
use tempfile::TempDir;

use super::testing::{config, data};
use super::{Summary, TrainError, train};
use crate::config::{Dtype, TrainConfig};
use crate::progress::Progress;
use crate::run::{Run, StepRecord, read_metrics};

type AD = Autodiff<Flex>;

/// Difference of a loss near 4 after seven steps with 8 bits of mantissa, nats.
const BF16_LOSS: f64 = 0.05;

/// Relative, f32.
const FACTOR: f64 = 1e-6;

/// A progress display that shows nothing and interrupts after a step.
#[derive(Default)]
pub(super) struct Silent {
    pub(super) records: Vec<usize>,
    pub(super) interrupt_at: Option<usize>,
}

impl Progress for Silent {
    fn start(&mut self, _step: usize, _steps: usize) {}

    fn step(&mut self, record: &StepRecord, _steps: usize) {
        self.records.push(record.step);
    }

    fn finish(&mut self) {}

    fn interrupted(&self) -> bool {
        self.interrupt_at.is_some_and(|step| self.records.last() >= Some(&step))
    }
}

fn run_in(dir: &Path, config: &TrainConfig, progress: &mut Silent) -> Result<Summary, TrainError> {
    let mut run = match dir.exists() {
        true => Run::open(dir).expect("the run opens").0,
        false => Run::create(dir, config).expect("the run directory is new"),
    };
    train::<AD>(config, &data(), &mut run, progress, &Default::default())
}

/// The records without what depends on the clock.
pub(super) fn losses(dir: &Path) -> Vec<StepRecord> {
    let mut records = read_metrics(&dir.join("metrics.jsonl")).expect("metrics");
    records.iter_mut().for_each(|record| record.tokens_per_s = 0.0);
    records
}

pub(super) fn copy_run(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("a run") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        match path.is_dir() {
            true => copy_run(&path, &target),
            false => drop(std::fs::copy(&path, &target).expect("a copy")),
        }
    }
}

/// A copy of a finished run as a kill after its checkpoint of step 10 would leave it: with later metrics, but without
/// a later checkpoint.
fn cut_after_step_10(from: &Path, to: &Path) {
    copy_run(from, to);
    std::fs::remove_dir_all(to.join("checkpoints/step-00000012")).expect("the last checkpoint");
}

/// A run of `config` that stopped after its first step. Runs that are compared with each other start from copies of one: all
/// threads of a program share the generator that draws the first weights.
pub(super) fn begun(config: &TrainConfig) -> (TempDir, std::path::PathBuf) {
    let (parent, dir) = new_dir();
    let mut stop = Silent { interrupt_at: Some(1), ..Silent::default() };
    assert!(run_in(&dir, config, &mut stop).expect("a clean stop").interrupted);
    (parent, dir)
}

pub(super) fn new_dir() -> (TempDir, std::path::PathBuf) {
    let parent = tempfile::tempdir().expect("a temporary directory");
    let dir = parent.path().join("run");
    (parent, dir)
}

#[test]
fn training_lowers_the_loss_and_records_what_is_due() {
    let (_parent, dir) = new_dir();
    let mut config = config();
    config.train.steps = 40;
    let mut progress = Silent::default();
    let summary = run_in(&dir, &config, &mut progress).expect("training");
    let records = losses(&dir);
    let (first, last) = (&records[0], &records[records.len() - 1]);
    assert!(last.loss < 0.7 * first.loss, "{} -> {}", first.loss, last.loss);
    assert_eq!((first.step, last.step), (1, 40));
    assert_eq!(progress.records, records.iter().map(|record| record.step).collect::<Vec<_>>());
    assert_eq!((summary.steps, summary.tokens, summary.interrupted), (40, 40 * 2 * 2 * 8, false));
    assert_eq!((last.valid_loss, last.valid_bpb), (Some(summary.valid_loss), Some(summary.valid_score)));
    assert!(summary.tokens_per_s > 0.0);
    assert_eq!((last.lr, last.tokens), (config.optim.min_lr, summary.tokens));
    assert_eq!(last.layers.len(), 1);
    assert_eq!(last.layers[0].stats.expert_counts.iter().sum::<u64>(), 2 * 2 * 8 * 2);
}

#[test]
fn a_resumed_run_repeats_the_unbroken_one_bit_for_bit() {
    let (_parent, unbroken) = new_dir();
    let (_other, resumed) = new_dir();
    run_in(&unbroken, &config(), &mut Silent::default()).expect("training");
    cut_after_step_10(&unbroken, &resumed);
    let mut progress = Silent::default();
    let summary = run_in(&resumed, &config(), &mut progress).expect("training");
    assert_eq!(progress.records, [12]);
    assert_eq!(losses(&resumed), losses(&unbroken));
    assert_eq!(summary.tokens, 12 * 2 * 2 * 8);
}

fn excited() -> TrainConfig {
    let mut config = config();
    (config.optim.excitation, config.optim.control) = (Some(Variant::PositiveSum), Some(Control::RandomBoost));
    config
}

#[test]
fn a_resumed_excited_run_repeats_the_unbroken_one_bit_for_bit() {
    let (_parent, unbroken) = new_dir();
    let (_other, resumed) = new_dir();
    run_in(&unbroken, &excited(), &mut Silent::default()).expect("training");
    cut_after_step_10(&unbroken, &resumed);
    run_in(&resumed, &excited(), &mut Silent::default()).expect("training");
    assert_eq!(losses(&resumed), losses(&unbroken));
}

#[test]
fn recorded_factors_follow_from_the_recorded_counts_of_all_micro_batches() {
    let (_parent, dir) = new_dir();
    let mut config = excited();
    (config.optim.control, config.optim.excitation) = (None, Some(Variant::ZeroSum));
    run_in(&dir, &config, &mut Silent::default()).expect("training");
    for layer in losses(&dir).iter().flat_map(|record| &record.layers) {
        let counts = &layer.stats.expert_counts;
        let mean = counts.iter().sum::<u64>() as f64 / counts.len() as f64;
        assert_eq!(layer.factors.len(), counts.len());
        for (factor, &count) in layer.factors.iter().zip(counts) {
            assert!((factor - count as f64 / mean).abs() <= FACTOR * factor, "{layer:?}");
        }
    }
}

#[test]
fn excitation_changes_the_losses_and_with_gamma_zero_it_does_not() {
    let (_start, begun) = begun(&config());
    let losses_with = |config: &TrainConfig| {
        let (_parent, dir) = new_dir();
        copy_run(&begun, &dir);
        run_in(&dir, config, &mut Silent::default()).expect("training");
        losses(&dir).into_iter().map(|record| record.loss).collect::<Vec<_>>()
    };
    let plain = losses_with(&config());
    assert_ne!(losses_with(&excited()), plain);
    let mut off = excited();
    off.optim.gamma = 0.0;
    assert_eq!(losses_with(&off), plain);
}

#[test]
fn a_resumed_run_with_default_vectors_repeats_the_unbroken_one_bit_for_bit() {
    let (_parent, unbroken) = new_dir();
    let (_other, resumed) = new_dir();
    let mut config = config();
    config.model.moe.router = RouterKind::Default;
    run_in(&unbroken, &config, &mut Silent::default()).expect("training");
    cut_after_step_10(&unbroken, &resumed);
    run_in(&resumed, &config, &mut Silent::default()).expect("training");
    let records = losses(&unbroken);
    assert_eq!(losses(&resumed), records);
    let last = records.last().and_then(|record| record.layers[0].default.as_ref()).expect("default vectors");
    assert!(last.norm() > 0.0 && last.moved > 0.0 && last.share > 0.0);
    assert_eq!(last.norms.len(), config.model.moe.num_experts);
}

/// With a capacity: what routers remember is as after an unbroken run. (`tests/routers.rs` has the one that draws noise, from a
/// generator that all threads of a program share.)
#[test]
fn a_resumed_run_repeats_the_unbroken_one_bit_for_bit_with_every_router() {
    use RouterKind::{ExpertChoice, Hash, Relu, Sigmoid, Sinkhorn};
    for router in [Sigmoid, Sinkhorn, Relu, ExpertChoice, Hash] {
        let (_parent, unbroken) = new_dir();
        let (_other, resumed) = new_dir();
        let mut config = config();
        config.model.moe.router = router;
        config.model.moe.capacity_factor = 1.25;
        (config.model.moe.sigmoid.rate, config.model.moe.relu.l1_coef) = (0.05, 1e-3);
        run_in(&unbroken, &config, &mut Silent::default()).expect("training");
        cut_after_step_10(&unbroken, &resumed);
        run_in(&resumed, &config, &mut Silent::default()).expect("training");
        let records = losses(&unbroken);
        assert_eq!(losses(&resumed), records, "{router:?}");
        let (first, last) = (&records[0], &records[records.len() - 1]);
        assert!(last.loss < first.loss, "{router:?}: {} is not below {}", last.loss, first.loss);
        let dropped = records.iter().any(|record| record.layers[0].stats.drop_rate > 0.0);
        assert_eq!(dropped, router != ExpertChoice, "{router:?}: who has a capacity drops something in 12 steps");
    }
}

/// Validating more often changes neither the losses nor the vectors of the training steps.
#[test]
fn validation_does_not_move_default_vectors() {
    let mut config = config();
    config.model.moe.router = RouterKind::Default;
    (config.train.log_every, config.train.valid_every) = (1, 12);
    let (_parent, rarely) = begun(&config);
    let (_other, often) = new_dir();
    copy_run(&rarely, &often);
    run_in(&rarely, &config, &mut Silent::default()).expect("training");
    config.train.valid_every = 1;
    run_in(&often, &config, &mut Silent::default()).expect("training");
    let without_validation = |dir: &Path| {
        let mut records = losses(dir);
        records.iter_mut().for_each(|record| (record.valid_loss, record.valid_bpb) = (None, None));
        records
    };
    assert_eq!(without_validation(&often), without_validation(&rarely));
}

#[test]
fn an_interrupted_run_stops_with_a_checkpoint_and_goes_on_bit_for_bit() {
    let mut config = config();
    config.train.log_every = 1;
    let (_parent, unbroken) = new_dir();
    let (_other, resumed) = new_dir();
    run_in(&unbroken, &config, &mut Silent::default()).expect("training");
    cut_after_step_10(&unbroken, &resumed);
    let mut stop = Silent { interrupt_at: Some(11), ..Silent::default() };
    let summary = run_in(&resumed, &config, &mut stop).expect("a clean stop");
    assert_eq!((summary.steps, summary.interrupted), (11, true));
    assert!(resumed.join("checkpoints/step-00000011").exists());
    let summary = run_in(&resumed, &config, &mut Silent::default()).expect("training");
    assert_eq!((summary.steps, summary.interrupted), (12, false));
    assert_eq!(losses(&resumed), losses(&unbroken));
}

#[test]
fn bf16_activations_train_the_same_f32_weights() {
    let (_parent, full) = new_dir();
    let (_other, half) = new_dir();
    let mut config = config();
    let of_f32 = run_in(&full, &config, &mut Silent::default()).expect("training");
    // The same initial weights: those of the f32 run's first checkpoint.
    copy_run(&full, &half);
    for step in ["step-00000010", "step-00000012"] {
        std::fs::remove_dir_all(half.join("checkpoints").join(step)).expect("a checkpoint");
    }
    config.train.dtype = Dtype::Bf16;
    let of_bf16 = run_in(&half, &config, &mut Silent::default()).expect("training");
    assert_ne!(of_bf16.valid_loss, of_f32.valid_loss);
    assert!((of_bf16.valid_loss - of_f32.valid_loss).abs() < BF16_LOSS, "{of_bf16} against {of_f32}");
}

#[test]
fn a_finished_run_does_nothing_more_and_reports_the_same() {
    let (_parent, dir) = new_dir();
    let first = run_in(&dir, &config(), &mut Silent::default()).expect("training");
    let mut progress = Silent::default();
    let second = run_in(&dir, &config(), &mut progress).expect("nothing to do");
    assert!(progress.records.is_empty());
    assert_eq!(first, second);
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_and_keeps_its_checkpoints() {
    let (_parent, dir) = new_dir();
    let mut config = config();
    run_in(&dir, &config, &mut Silent { interrupt_at: Some(3), ..Silent::default() }).expect("a clean stop");
    (config.optim.lr, config.optim.min_lr) = (f64::MAX, f64::MAX);
    match run_in(&dir, &config, &mut Silent::default()) {
        Err(TrainError::NotFinite { step, checkpoint, .. }) => {
            assert!(step > 3, "{step}");
            assert_eq!(checkpoint, Some(3));
        }
        other => panic!("expected a loss that is not finite, got {other:?}"),
    }
    let checkpoints = std::fs::read_dir(dir.join("checkpoints")).expect("checkpoints");
    let steps = checkpoints
        .filter(|entry| entry.as_ref().is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("step-")));
    assert_eq!(steps.count(), 1);
}

/// Nothing of a step that was refused is in what the run goes on from.
#[test]
fn after_a_step_that_was_not_finite_default_vectors_go_on_from_the_checkpoint() {
    let mut config = config();
    config.model.moe.router = RouterKind::Default;
    let (_parent, undisturbed) = begun(&config);
    let (_other, disturbed) = new_dir();
    copy_run(&undisturbed, &disturbed);
    let mut endless = config.clone();
    (endless.optim.lr, endless.optim.min_lr) = (f64::MAX, f64::MAX);
    assert!(matches!(run_in(&disturbed, &endless, &mut Silent::default()), Err(TrainError::NotFinite { .. })));
    for dir in [&undisturbed, &disturbed] {
        run_in(dir, &config, &mut Silent::default()).expect("training");
    }
    assert_eq!(losses(&disturbed), losses(&undisturbed));
}

/// A step of finite gradients with an endless rate; nothing but the checkpoint or the validation looks at what it left.
#[test]
fn parameters_that_are_not_finite_are_measured_or_kept_in_no_checkpoint() {
    let mut config = config();
    (config.optim.lr, config.optim.min_lr, config.optim.warmup_steps) = (f64::MAX, f64::MAX, 0);
    config.train.valid_every = config.train.steps;
    for (validates, expected) in [(false, "sum of the parameters"), (true, "held-out loss")] {
        let (_parent, dir) = new_dir();
        if validates {
            config.train.valid_every = 1;
        }
        let mut stop = Silent { interrupt_at: Some(1), ..Silent::default() };
        match run_in(&dir, &config, &mut stop) {
            Err(TrainError::NotFinite { what, step, checkpoint, .. }) => {
                assert_eq!((what, step, checkpoint), (expected, 1, None));
            }
            other => panic!("expected a number that is not finite, got {other:?}"),
        }
        assert!(!dir.join("checkpoints/step-00000001").exists());
    }
}
