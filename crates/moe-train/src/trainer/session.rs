//! One stretch of training: where it stands, what is due after a step, and how fast it goes.

use std::time::Instant;

use burn::module::AutodiffModule;
use moe_kernels::AutodiffMoeBackend;
use moe_models::lm::Lm;

use super::error::TrainError;
use super::step::{NotFinite, StepOutcome, StepSettings, Trainee};
use super::summary::{Summary, per_second};
use crate::config::{LoopConfig, TrainConfig};
use crate::data::{TextData, train_batch};
use crate::evaluate::evaluate;
use crate::optim::lr_at;
use crate::run::{StepRecord, TrainState};

/// Training between two starts of the program.
pub(super) struct Session<'a, B: AutodiffMoeBackend> {
    config: &'a TrainConfig,
    data: &'a TextData,
    device: &'a B::Device,
    state: TrainState,
    /// Step of the last checkpoint.
    checkpoint: Option<usize>,
    /// Tokens and seconds at the last record.
    recorded: (u64, f64),
}

impl<'a, B: AutodiffMoeBackend> Session<'a, B> {
    pub(super) fn new(
        config: &'a TrainConfig,
        data: &'a TextData,
        device: &'a B::Device,
        state: TrainState,
        checkpoint: Option<usize>,
    ) -> Self {
        Self { config, data, device, checkpoint, recorded: (state.tokens, state.seconds), state }
    }

    /// Optimizer steps done.
    pub(super) fn step(&self) -> usize {
        self.state.step
    }

    /// Optimizer steps of the whole run.
    pub(super) fn total_steps(&self) -> usize {
        self.config.train.steps
    }

    pub(super) fn state(&self) -> &TrainState {
        &self.state
    }

    pub(super) fn is_done(&self) -> bool {
        self.state.step >= self.total_steps()
    }

    pub(super) fn summary(&self) -> Summary {
        Summary::new(&self.state, !self.is_done())
    }

    /// Takes the next step and counts it, with its tokens and its time.
    pub(super) fn train_step(&mut self, trainee: Trainee<B>) -> Result<(Trainee<B>, StepOutcome), TrainError> {
        let started = Instant::now();
        let (config, step) = (self.config, self.state.step);
        B::seed(self.device, noise_seed(self.config.train.seed, self.state.step));
        let settings = StepSettings {
            lr: self.lr(step),
            clip_norm: config.optim.clip_norm,
            with_stats: Due::after(&config.train, step + 1).record,
        };
        let batches =
            (0..config.train.grad_accumulation).map(|micro| train_batch(&self.data.train, &config.train, step, micro));
        let stepped = trainee.step(batches, &settings, self.device).map_err(|NotFinite(what)| {
            TrainError::NotFinite { what, step: step + 1, lr: settings.lr, checkpoint: self.checkpoint }
        })?;
        self.state.step += 1;
        self.state.tokens += config.train.tokens_per_step() as u64;
        self.state.seconds += started.elapsed().as_secs_f64();
        Ok(stepped)
    }

    /// The record of the step just taken, with a validation if one is due; `None` when none is due.
    pub(super) fn record(&mut self, outcome: StepOutcome, model: &Lm<B>) -> Option<StepRecord> {
        let due = Due::after(&self.config.train, self.state.step);
        let valid = due.validation.then(|| self.validate(model));
        due.record.then(|| StepRecord {
            step: self.state.step,
            tokens: self.state.tokens,
            loss: outcome.cross_entropy,
            balance_loss: outcome.balance,
            z_loss: outcome.z,
            lr: self.lr(self.state.step - 1),
            grad_norm: outcome.grad_norm,
            tokens_per_s: self.speed_since_last_record(),
            layers: outcome.layers,
            valid_loss: valid.map(|(loss, _)| loss),
            valid_bpb: valid.map(|(_, bpb)| bpb),
        })
    }

    pub(super) fn is_checkpoint_due(&self) -> bool {
        Due::after(&self.config.train, self.state.step).checkpoint
    }

    pub(super) fn note_checkpoint(&mut self) {
        self.checkpoint = Some(self.state.step);
    }

    fn lr(&self, step: usize) -> f64 {
        lr_at(&self.config.optim, self.config.train.steps, step)
    }

    /// Loss and bits per byte on the held-out text.
    fn validate(&mut self, model: &Lm<B>) -> (f64, f64) {
        let config = &self.config.train;
        let batches = Some(config.valid_batches);
        let result = evaluate(&model.valid(), &self.data.valid, config, batches, self.device);
        let best = self.state.best_valid_loss.unwrap_or(f64::INFINITY);
        self.state.best_valid_loss = Some(best.min(result.loss));
        self.state.last_valid = Some((result.loss, result.bpb));
        (result.loss, result.bpb)
    }

    fn speed_since_last_record(&mut self) -> f64 {
        let now = (self.state.tokens, self.state.seconds);
        let (tokens, seconds) = std::mem::replace(&mut self.recorded, now);
        per_second(now.0 - tokens, now.1 - seconds)
    }
}

/// Seeds what a step draws, the noise of a router, so that a resumed run draws the same.
fn noise_seed(seed: u64, step: usize) -> u64 {
    /// Odd, so that no two steps get one seed; the golden ratio of 64 bits, as in SplitMix64.
    const STRIDE: u64 = 0x9e37_79b9_7f4a_7c15;
    seed ^ STRIDE.wrapping_mul(step as u64 + 1)
}

/// What happens after a step; a pure function of its number, so that a resumed run does the same.
#[derive(Debug, PartialEq, Eq)]
struct Due {
    record: bool,
    validation: bool,
    checkpoint: bool,
}

impl Due {
    /// After `step` steps of the run, from 1.
    fn after(config: &LoopConfig, step: usize) -> Self {
        let last = step == config.steps;
        let every = |interval: usize| last || step.is_multiple_of(interval);
        let validation = every(config.valid_every);
        Self {
            record: step == 1 || validation || every(config.log_every),
            validation,
            checkpoint: every(config.checkpoint_every),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trainer::testing::config;

    #[test]
    fn intervals_the_first_and_the_last_step_are_recorded() {
        let config = LoopConfig { steps: 11, log_every: 4, valid_every: 6, checkpoint_every: 5, ..config().train };
        let steps = |pick: fn(&Due) -> bool| -> Vec<usize> {
            (1..=11).filter(|&step| pick(&Due::after(&config, step))).collect()
        };
        assert_eq!(steps(|due| due.record), [1, 4, 6, 8, 11]);
        assert_eq!(steps(|due| due.validation), [6, 11]);
        assert_eq!(steps(|due| due.checkpoint), [5, 10, 11]);
    }
}
