//! The two that train.

use std::path::Path;

use moe_train::backend::{Device, Training};
use moe_train::data::Batch;
use moe_train::trainer::{NotFinite, StepSettings, Trainee};
use serde_json::{Value, json};

use super::preset::{CLIP_NORM, LR, Sizes, VOCAB};
use crate::clock::{Time, timed};
use crate::data::mixed;
use crate::error::{Error, Result};
use crate::session::{TORCH_DEVICE, wait};
use crate::torch::{Peer, Script};

/// Seed of the bytes; `torch/step.py` has the same.
const DATA: u64 = 1;

/// Our model in training.
pub(super) struct Ours<'a> {
    /// Empty only while a step is taken.
    trainee: Option<Trainee<Training>>,
    batch: Batch,
    parameters: u64,
    device: &'a Device,
}

impl<'a> Ours<'a> {
    pub(super) fn new(sizes: &Sizes, device: &'a Device) -> Self {
        let config = sizes.config();
        let trainee = Some(Trainee::new(&config, device));
        Self { trainee, batch: batch(sizes), parameters: config.model.num_params(), device }
    }

    pub(super) fn parameters(&self) -> u64 {
        self.parameters
    }

    /// Takes one step; its loss is that before the update.
    pub(super) fn step(&mut self) -> Result<(Time, f64)> {
        let settings = StepSettings { lr: LR, clip_norm: CLIP_NORM, with_stats: false };
        let trainee = self.trainee.take().expect("a trainee between steps");
        let batch = std::iter::once(self.batch.clone());
        let (stepped, time) = timed(|| {
            let stepped = trainee.step(batch, &settings, self.device);
            wait::<Training>(self.device).map(|()| stepped)
        });
        let (trainee, outcome) = stepped?.map_err(|NotFinite(what)| Error::new(format!("our {what} is not finite")))?;
        self.trainee = Some(trainee);
        Ok((time, outcome.cross_entropy))
    }
}

/// Sequences of random bytes, and the same moved on by one.
fn batch(sizes: &Sizes) -> Batch {
    let bytes: Vec<u32> = (0..sizes.batch * (sizes.context + 1)).map(|i| mixed(i, DATA) % VOCAB as u32).collect();
    let sequences = || bytes.chunks(sizes.context + 1);
    Batch {
        inputs: sequences().flat_map(|sequence| &sequence[..sizes.context]).copied().collect(),
        targets: sequences().flat_map(|sequence| &sequence[1..]).copied().collect(),
        batch_size: sizes.batch,
        seq_len: sizes.context,
    }
}

/// PyTorch's model in training.
pub(super) struct TorchSide {
    peer: Peer,
    /// Versions, parameters, and which implementations were tried and taken.
    pub(super) facts: Value,
}

impl TorchSide {
    pub(super) fn start(python: &Path, sizes: &Sizes, threads: usize) -> Result<Self> {
        let mut peer = Peer::start(python, Script::Step)?;
        let mut question = json!(sizes);
        let more = json!({
            "do": "set up", "vocab": VOCAB, "lr": LR, "clip_norm": CLIP_NORM, "threads": threads, "device": TORCH_DEVICE,
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            question[key] = value.clone();
        }
        let facts = peer.ask(&question)?;
        Ok(Self { peer, facts })
    }

    /// # Errors
    ///
    /// When PyTorch's model has another number of parameters: it would be another model.
    pub(super) fn check_parameters(&self, ours: u64) -> Result<()> {
        match self.facts["parameters"].as_u64() {
            Some(theirs) if theirs == ours => Ok(()),
            theirs => Err(Error::new(format!("the models differ: ours has {ours} parameters, PyTorch's {theirs:?}"))),
        }
    }

    pub(super) fn step(&mut self) -> Result<(Time, f64)> {
        let answer = self.peer.ask(&json!({"do": "step"}))?;
        let loss = answer["loss"].as_f64().ok_or_else(|| Error::new("PyTorch's loss is not finite"))?;
        let time = serde_json::from_value(answer).map_err(|error| Error::of("PyTorch's times", error))?;
        Ok((time, loss))
    }
}

/// What one side's steps came to.
#[derive(Default)]
pub(super) struct Steps {
    /// Of the steps that count.
    pub(super) times: Vec<Time>,
    /// Of all steps.
    pub(super) losses: Vec<f64>,
}

impl Steps {
    pub(super) fn add(&mut self, (time, loss): (Time, f64), counts: bool) {
        self.losses.push(loss);
        if counts {
            self.times.push(time);
        }
    }

    /// # Errors
    ///
    /// When the loss on the one batch did not fall: then these were no training steps.
    pub(super) fn check(self, whose: &str) -> Result<Self> {
        match (self.losses.first(), self.losses.last()) {
            (Some(first), Some(last)) if last < first => Ok(self),
            ends => Err(Error::new(format!("wrong result, so nothing is reported: {whose} loss went from {ends:?}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TINY: Sizes =
        Sizes { layers: 2, width: 32, heads: 2, context: 12, batch: 3, experts: 4, top_k: 2, expert_width: 16 };

    #[test]
    fn targets_are_the_inputs_moved_on_by_one() {
        let batch = batch(&TINY);
        assert_eq!((batch.num_tokens(), batch.inputs.len(), batch.targets.len()), (36, 36, 36));
        assert!(
            batch.inputs.chunks(12).zip(batch.targets.chunks(12)).all(|(input, target)| input[1..] == target[..11])
        );
    }

    #[test]
    fn our_steps_lower_the_loss() {
        let device = Default::default();
        let (mut ours, mut steps) = (Ours::new(&TINY, &device), Steps::default());
        for _ in 0..6 {
            steps.add(ours.step().unwrap(), true);
        }
        let steps = steps.check("ours").unwrap();
        assert!((steps.losses[0] - (VOCAB as f64).ln()).abs() < 0.2, "{:?}", steps.losses);
        assert_eq!(steps.times.len(), 6);
    }

    #[test]
    fn a_loss_that_does_not_fall_is_refused() {
        let steps = |losses: &[f64]| Steps { times: vec![], losses: losses.to_vec() };
        assert!(steps(&[5.0, 4.0]).check("ours").is_ok());
        for losses in [&[5.0, 5.0][..], &[5.0, f64::NAN], &[]] {
            assert!(steps(losses).check("ours").is_err(), "{losses:?}");
        }
    }
}
