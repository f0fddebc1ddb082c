//! One stretch of training: where it stands, what is due after a step, and how fast it goes.

use std::marker::PhantomData;
use std::rc::Rc;
use std::time::Instant;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use excitation_optim::FindExperts;
use moe_kernels::AutodiffMoeBackend;

use super::error::TrainError;
use super::finite::is_finite;
use super::step::{NotFinite, StepError, StepOutcome, StepSettings, Trainee};
use super::summary::{Summary, per_second};
use super::task::{Course, Pace, Task, Validation};
use crate::backend;
use crate::model::Trainable;
use crate::optim::{ModelExperts, lr_at};
use crate::parallel::{Group, Hello, Node, NodeSeat};
use crate::run::{StepRecord, Subject, TrainState};

/// Training between two starts of the program.
pub(super) struct Session<'a, B: AutodiffMoeBackend, M, T> {
    task: &'a T,
    course: Course<'a>,
    device: &'a B::Device,
    state: TrainState,
    /// Step of the last checkpoint.
    checkpoint: Option<usize>,
    /// The other ranks, if there are any.
    group: Option<Rc<Group<B>>>,
    /// Tokens and seconds at the last record.
    recorded: (u64, f64),
    model: PhantomData<M>,
}

impl<'a, B, M, T> Session<'a, B, M, T>
where
    B: AutodiffMoeBackend,
    M: Trainable<B>,
    T: Task<B, M>,
    ModelExperts: FindExperts<M>,
{
    pub(super) fn new(task: &'a T, device: &'a B::Device, state: TrainState, checkpoint: Option<usize>) -> Self {
        let recorded = (state.tokens, state.seconds);
        Self { task, course: task.course(), device, checkpoint, group: None, recorded, state, model: PhantomData }
    }

    /// Takes the following steps as one rank among others.
    pub(super) fn join(&mut self, group: Rc<Group<B>>) {
        self.group = Some(group);
    }

    /// Joins the processes that train the same from `model`.
    pub(super) fn meet(&mut self, seat: &NodeSeat, model: &M) -> Result<(), TrainError> {
        let hello = Hello {
            program: format!("moe-train {} on {}", env!("CARGO_PKG_VERSION"), backend::NAME),
            settings: self.task.settings(),
            step: self.state.step,
            weights: checksum(model),
        };
        self.join(Group::new(Node::meet(seat, &hello)?));
        Ok(())
    }

    /// Takes all steps that are left, and leaves nothing behind.
    pub(super) fn follow(&mut self, mut trainee: Trainee<B, M>) -> Result<(), TrainError> {
        while !self.is_done() {
            trainee = self.train_step(trainee)?.0;
            if self.is_checkpoint_due() {
                self.note_checkpoint();
            }
        }
        Ok(())
    }

    /// Lets go of the other ranks.
    pub(super) fn leave(&mut self) {
        self.group = None;
    }

    /// Optimizer steps done.
    pub(super) fn step(&self) -> usize {
        self.state.step
    }

    /// Optimizer steps of the whole run.
    pub(super) fn total_steps(&self) -> usize {
        self.course.pace.steps
    }

    pub(super) fn state(&self) -> &TrainState {
        &self.state
    }

    pub(super) fn is_done(&self) -> bool {
        self.state.step >= self.total_steps()
    }

    pub(super) fn summary(&self) -> Summary {
        Summary::new(&self.state, self.task.subject(), !self.is_done())
    }

    /// Takes the next step and counts it, with its tokens and its time.
    pub(super) fn train_step(&mut self, trainee: Trainee<B, M>) -> Result<(Trainee<B, M>, StepOutcome), TrainError> {
        let started = Instant::now();
        let (course, step) = (&self.course, self.state.step);
        B::seed(self.device, noise_seed(course.seed, step));
        let settings = StepSettings {
            lr: self.lr(step),
            clip_norm: course.optim.clip_norm,
            with_stats: Due::after(&course.pace, step + 1).record,
        };
        let batches = (0..course.pace.grad_accumulation).map(|micro| self.task.batch(step, micro));
        let stepped = match &self.group {
            None => trainee.step(batches, &settings, self.device).map_err(StepError::from),
            Some(group) => trainee.step_among(group, batches, &settings, self.device),
        };
        let stepped = stepped.map_err(|error| match error {
            StepError::NotFinite(NotFinite(what)) => self.not_finite(what, step + 1),
            StepError::Ranks(error) => TrainError::Ranks(error),
        })?;
        self.state.step += 1;
        self.state.tokens += self.course.pace.tokens as u64;
        self.state.seconds += started.elapsed().as_secs_f64();
        Ok(stepped)
    }

    fn not_finite(&self, what: &'static str, step: usize) -> TrainError {
        TrainError::NotFinite { what, step, lr: self.lr(step - 1), checkpoint: self.checkpoint }
    }

    /// Refuses a model that a checkpoint must not hold: a step of finite numbers may still leave others.
    pub(super) fn check_parameters(&self, model: &M) -> Result<(), TrainError> {
        if is_finite(model) { Ok(()) } else { Err(self.not_finite("sum of the parameters", self.state.step)) }
    }

    /// The record of the step just taken, with a validation if one is due; `None` when none is due.
    pub(super) fn record(&mut self, outcome: StepOutcome, model: &M) -> Result<Option<StepRecord>, TrainError> {
        let due = Due::after(&self.course.pace, self.state.step);
        let valid = due.validation.then(|| self.validate(model));
        if valid.as_ref().is_some_and(|valid| !valid.loss.is_finite()) {
            return Err(self.not_finite("held-out loss", self.state.step));
        }
        let judged_by_accuracy = self.task.subject() != Subject::Text;
        let record = || StepRecord {
            step: self.state.step,
            tokens: self.state.tokens,
            loss: outcome.cross_entropy,
            balance_loss: outcome.balance,
            z_loss: outcome.z,
            lr: self.lr(self.state.step - 1),
            grad_norm: outcome.grad_norm,
            tokens_per_s: self.speed_since_last_record(),
            layers: outcome.layers,
            valid_loss: valid.as_ref().map(|valid| valid.loss),
            valid_bpb: valid.as_ref().filter(|_| !judged_by_accuracy).map(|valid| valid.score),
            valid_accuracy: valid.as_ref().filter(|_| judged_by_accuracy).map(|valid| valid.score),
        };
        Ok(due.record.then(record))
    }

    pub(super) fn is_checkpoint_due(&self) -> bool {
        Due::after(&self.course.pace, self.state.step).checkpoint
    }

    pub(super) fn note_checkpoint(&mut self) {
        self.checkpoint = Some(self.state.step);
    }

    fn lr(&self, step: usize) -> f64 {
        lr_at(self.course.optim, self.course.pace.steps, step)
    }

    /// Loss and score on what is held out.
    fn validate(&mut self, model: &M) -> Validation {
        let result = self.task.validate(&model.valid(), self.device);
        let best = self.state.best_valid_loss.unwrap_or(f64::INFINITY);
        self.state.best_valid_loss = Some(best.min(result.loss));
        self.state.last_valid = Some((result.loss, result.score));
        result
    }

    fn speed_since_last_record(&mut self) -> f64 {
        let now = (self.state.tokens, self.state.seconds);
        let (tokens, seconds) = std::mem::replace(&mut self.recorded, now);
        per_second(now.0 - tokens, now.1 - seconds)
    }
}

/// CRC-32 of all parameters of a model.
pub(super) fn checksum<B: Backend, M: Module<B>>(model: &M) -> u32 {
    struct Checksum(crc32fast::Hasher);
    impl<B: Backend> ModuleVisitor<B> for Checksum {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            self.0.update(param.val().into_data().as_bytes());
        }
    }
    let mut checksum = Checksum(crc32fast::Hasher::new());
    model.visit(&mut checksum);
    checksum.0.finalize()
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
    fn after(pace: &Pace, step: usize) -> Self {
        let last = step == pace.steps;
        let every = |interval: usize| last || step.is_multiple_of(interval);
        let validation = every(pace.valid_every);
        Self {
            record: step == 1 || validation || every(pace.log_every),
            validation,
            checkpoint: every(pace.checkpoint_every),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::LoopConfig;
    use crate::trainer::testing::config;

    #[test]
    fn intervals_the_first_and_the_last_step_are_recorded() {
        let pace = Pace::of_text(&LoopConfig {
            steps: 11,
            log_every: 4,
            valid_every: 6,
            checkpoint_every: 5,
            ..config().train
        });
        let steps = |pick: fn(&Due) -> bool| -> Vec<usize> {
            (1..=11).filter(|&step| pick(&Due::after(&pace, step))).collect()
        };
        assert_eq!(steps(|due| due.record), [1, 4, 6, 8, 11]);
        assert_eq!(steps(|due| due.validation), [6, 11]);
        assert_eq!(steps(|due| due.checkpoint), [5, 10, 11]);
    }
}
