//! Training steps of a preset of `moe-train` with plain top-K and with default vectors.

use moe_models::lm::RouterKind;
use moe_train::backend::{Device, Training};
use moe_train::config::TrainConfig;
use moe_train::data::Batch;
use moe_train::trainer::{NotFinite, StepSettings, Trainee};

use super::Comparison;
use crate::args::CommonArgs;
use crate::clock::{Clock, Time, timed};
use crate::data::bytes;
use crate::error::{Error, Result};
use crate::session::wait;

/// Learning rate, the same in every step.
const LR: f64 = 1e-3;

pub(super) fn compare(preset: &str, clock: Clock, args: &CommonArgs, device: &Device) -> Result<Comparison> {
    let mut arms = [Arm::new(preset, RouterKind::TopK, device)?, Arm::new(preset, RouterKind::Default, device)?];
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..args.warm_up() + args.rounds() {
        for (arm, times) in arms.iter_mut().zip(&mut times) {
            let time = arm.step()?;
            if round >= args.warm_up() {
                times.push(time);
            }
        }
    }
    let [top_k, default] = times;
    let comparison = Comparison::new(format!("step of `{preset}`"), clock, &top_k, &default);
    Ok(Comparison { state_bytes: Some(arms[1].state_bytes), ..comparison })
}

/// A model in training.
struct Arm<'a> {
    /// Empty only while a step is taken.
    trainee: Option<Trainee<Training>>,
    batch: Batch,
    clip_norm: f64,
    device: &'a Device,
    state_bytes: u64,
}

impl<'a> Arm<'a> {
    fn new(preset: &str, router: RouterKind, device: &'a Device) -> Result<Self> {
        let mut config = TrainConfig::preset(preset).map_err(Error::new)?;
        config.model.moe.router = router;
        let numbers = config.model.num_moe_layers() * config.model.moe.num_experts * config.model.d_model;
        let clip_norm = config.optim.clip_norm;
        let trainee = Some(Trainee::new(&config, device));
        let batch = bytes(&config);
        Ok(Self { trainee, batch, clip_norm, device, state_bytes: 4 * numbers as u64 })
    }

    fn step(&mut self) -> Result<Time> {
        let settings = StepSettings { lr: LR, clip_norm: self.clip_norm, with_stats: false };
        let trainee = self.trainee.take().expect("a trainee between steps");
        let batch = std::iter::once(self.batch.clone());
        let (stepped, time) = timed(|| {
            let stepped = trainee.step(batch, &settings, self.device);
            wait::<Training>(self.device).map(|()| stepped)
        });
        let (trainee, _) = stepped?.map_err(|NotFinite(what)| Error::new(format!("the {what} is not finite")))?;
        self.trainee = Some(trainee);
        Ok(time)
    }
}
