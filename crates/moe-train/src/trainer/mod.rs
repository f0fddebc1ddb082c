//! The training loop.
//!
//! Steps are optimizer steps. Step `s` (from 0) sees micro-batches that are a pure function of (seed, s, micro-batch),
//! at a learning rate that is a pure function of s; so model, optimizer and the number of steps done are all there is
//! to save, and a resumed run repeats the losses of one that never stopped, bit for bit on a deterministic backend.
//!
//! A record is logged after the first step, every `log_every` steps, with every validation and after the last step. Its
//! losses, gradient norm and statistics are those of the step itself (means over its micro-batches), not of the steps
//! since the last record: a mean over an interval would depend on where a resumed run began. Only `tokens_per_s` is of
//! the interval, training time alone: neither validation nor checkpoints.
//!
//! The order at the end of a step is log, checkpoint, interrupt. So the metrics up to a checkpoint's step are
//! always there, and those behind it are removed when the run is resumed from it.
//!
//! [`train`] runs the loop; a [`Trainee`] takes single steps, for who brings batches and a loop of their own.
//!
//! `docs/decisions/0002-own-training-loop.md` says why this is not burn's `Learner`.

mod default_updates;
mod error;
mod exchange;
mod finite;
mod initial;
mod ranks;
mod router_loads;
mod session;
mod step;
mod summary;
mod task;

#[cfg(test)]
mod ranks_tests;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod vit_tests;

use std::slice;

use excitation_optim::FindExperts;
use moe_kernels::AutodiffMoeBackend;
use moe_models::vit::Vit;

use crate::config::TrainConfig;
use crate::data::TextData;
use crate::images::{ImageData, VitTrainConfig};
use crate::model::Trainable;
use crate::optim::ModelExperts;
use crate::parallel::{NodeSeat, Party};
use crate::progress::Progress;
use crate::run::{CheckpointError, Checkpoints, Run, TrainState};

pub use error::TrainError;
pub use initial::InitError;
pub(crate) use initial::{InitialWeights, becomes_experts};
pub use step::{NotFinite, Optim, StepError, StepOutcome, StepSettings, Trainee};
pub use summary::Summary;

use ranks::take_steps_together;
use session::Session;
use task::{ImageTask, Task, TextTask};

/// Trains `config.model` on `data` up to `config.train.steps`, from the latest checkpoint of `run` if it has one.
///
/// Writes metrics and checkpoints into `run` and shows every record to `progress`. Ends after the last step or, with
/// a checkpoint, after the step in which `progress` was interrupted.
///
/// # Errors
///
/// [`TrainError`] when a loss, the norm of the gradients or a parameter is not finite, or the run directory cannot be read or written.
pub fn train<B: AutodiffMoeBackend>(
    config: &TrainConfig,
    data: &TextData,
    run: &mut Run,
    progress: &mut dyn Progress,
    device: &B::Device,
) -> Result<Summary, TrainError> {
    train_on::<B>(config, data, run, progress, Party::Threads(slice::from_ref(device), None))
}

/// [`train`] by the ranks of `party`: see [`parallel`](crate::parallel).
///
/// # Errors
///
/// As there, when a rank ends early, without a device, and settings that [`parallel::check`](crate::parallel::check) refuses.
pub fn train_on<B: AutodiffMoeBackend>(
    config: &TrainConfig,
    data: &TextData,
    run: &mut Run,
    progress: &mut dyn Progress,
    party: Party<'_, B::Device>,
) -> Result<Summary, TrainError> {
    config.check_ranks(party.num_ranks())?;
    let device = party.device();
    let initial = config.train.init_from.as_ref().map(|dir| || InitialWeights::open(config, dir)?.load(device));
    let new = Trainee::<B>::new(config, device);
    run_task(&TextTask { config, data }, new, initial, run, progress, party)
}

/// The part of a rank that is not 0 in [`train_on`] with [`Party::Nodes`]: from the latest of `checkpoints`, which are the run's, if there is one. It writes nothing.
///
/// # Errors
///
/// As [`train_on`] with [`Party::Nodes`], and when rank 0 ends early.
pub fn follow<B: AutodiffMoeBackend>(
    config: &TrainConfig,
    data: &TextData,
    checkpoints: Option<&Checkpoints>,
    device: &B::Device,
    seat: &NodeSeat,
) -> Result<(), TrainError> {
    config.check_ranks(seat.num_ranks)?;
    let initial = config.train.init_from.as_ref().map(|dir| || InitialWeights::open(config, dir)?.load(device));
    let new = Trainee::<B>::new(config, device);
    follow_task(&TextTask { config, data }, new, initial, checkpoints, device, seat)
}

/// [`train`] for a vision model.
///
/// # Errors
///
/// As there.
pub fn train_vit<B: AutodiffMoeBackend>(
    config: &VitTrainConfig,
    data: &ImageData,
    run: &mut Run,
    progress: &mut dyn Progress,
    device: &B::Device,
) -> Result<Summary, TrainError> {
    train_vit_on::<B>(config, data, run, progress, Party::Threads(slice::from_ref(device), None))
}

/// [`train_on`] for a vision model.
///
/// # Errors
///
/// As there.
pub fn train_vit_on<B: AutodiffMoeBackend>(
    config: &VitTrainConfig,
    data: &ImageData,
    run: &mut Run,
    progress: &mut dyn Progress,
    party: Party<'_, B::Device>,
) -> Result<Summary, TrainError> {
    config.check_ranks(party.num_ranks())?;
    let new = Trainee::<B, Vit<B>>::new_vit(config, party.device());
    run_task(&ImageTask::new(config, data), new, None::<fn() -> _>, run, progress, party)
}

/// [`follow`] for a vision model.
///
/// # Errors
///
/// As there.
pub fn follow_vit<B: AutodiffMoeBackend>(
    config: &VitTrainConfig,
    data: &ImageData,
    checkpoints: Option<&Checkpoints>,
    device: &B::Device,
    seat: &NodeSeat,
) -> Result<(), TrainError> {
    config.check_ranks(seat.num_ranks)?;
    let new = Trainee::<B, Vit<B>>::new_vit(config, device);
    follow_task(&ImageTask::new(config, data), new, None::<fn() -> _>, checkpoints, device, seat)
}

/// Trains from the latest checkpoint of `run`; without one `new`, or in the place of its model the one that `initial` returns.
fn run_task<B, M, T>(
    task: &T,
    new: Trainee<B, M>,
    initial: Option<impl FnOnce() -> Result<M, TrainError>>,
    run: &mut Run,
    progress: &mut dyn Progress,
    party: Party<'_, B::Device>,
) -> Result<Summary, TrainError>
where
    B: AutodiffMoeBackend,
    M: Trainable<B> + 'static,
    T: Task<B, M>,
    ModelExperts: FindExperts<M>,
{
    let device = party.device();
    let (trainee, mut session) =
        start(task, new, initial, |model, optim| run.load_latest(model, optim, device), device)?;
    run.truncate_metrics_after(session.step())?;
    if let Party::Nodes(seat, _) = &party {
        // Before anything takes over the terminal: until they have met, keys must end the program.
        session.meet(seat, &trainee.model)?;
    }
    progress.start(session.step(), session.total_steps());
    let trained = match party {
        Party::Threads([_], _) | Party::Nodes(..) => take_steps(trainee, &mut session, run, progress),
        Party::Threads(devices, watch) => {
            take_steps_together(task, (devices, watch), trainee, &mut session, run, progress)
        }
    };
    progress.finish();
    trained.map(|()| session.summary())
}

/// The steps of a rank that is a process and not rank 0.
fn follow_task<B, M, T>(
    task: &T,
    new: Trainee<B, M>,
    initial: Option<impl FnOnce() -> Result<M, TrainError>>,
    checkpoints: Option<&Checkpoints>,
    device: &B::Device,
    seat: &NodeSeat,
) -> Result<(), TrainError>
where
    B: AutodiffMoeBackend,
    M: Trainable<B>,
    T: Task<B, M>,
    ModelExperts: FindExperts<M>,
{
    let latest = |model, optim| match checkpoints {
        Some(checkpoints) => checkpoints.load_latest(model, optim, device),
        None => Ok(None),
    };
    let (trainee, mut session) = start(task, new, initial, latest, device)?;
    session.meet(seat, &trainee.model)?;
    session.follow(trainee)
}

fn take_steps<B, M, T>(
    mut trainee: Trainee<B, M>,
    session: &mut Session<'_, B, M, T>,
    run: &mut Run,
    progress: &mut dyn Progress,
) -> Result<(), TrainError>
where
    B: AutodiffMoeBackend,
    M: Trainable<B>,
    T: Task<B, M>,
    ModelExperts: FindExperts<M>,
{
    let mut interrupted = false;
    while !session.is_done() && !interrupted {
        let outcome;
        (trainee, outcome) = session.train_step(trainee)?;
        if let Some(record) = session.record(outcome, &trainee.model)? {
            run.log(&record)?;
            progress.step(&record, session.total_steps());
        }
        interrupted = progress.interrupted();
        if interrupted || session.is_checkpoint_due() {
            session.check_parameters(&trainee.model)?;
            run.save_checkpoint(&trainee.model, &trainee.optim, session.state())?;
            session.note_checkpoint();
        }
    }
    Ok(())
}

type Loaded<B, M> = (M, Optim<B, M>, TrainState);

type Started<'a, B, M, T> = (Trainee<B, M>, Session<'a, B, M, T>);

/// Model, optimizer and state of the latest checkpoint, or those of a new run.
fn start<'a, B, M, T>(
    task: &'a T,
    new: Trainee<B, M>,
    initial: Option<impl FnOnce() -> Result<M, TrainError>>,
    latest: impl FnOnce(M, Optim<B, M>) -> Result<Option<Loaded<B, M>>, CheckpointError>,
    device: &'a B::Device,
) -> Result<Started<'a, B, M, T>, TrainError>
where
    B: AutodiffMoeBackend,
    M: Trainable<B>,
    T: Task<B, M>,
    ModelExperts: FindExperts<M>,
{
    let Trainee { model, optim } = new;
    if let Some((model, optim, state)) = latest(model.clone(), optim.clone())? {
        let checkpoint = Some(state.step);
        let session = Session::new(task, device, state, checkpoint);
        return Ok((Trainee { model, optim: optim.starting_at(session.step()) }, session));
    }
    let session = Session::new(task, device, TrainState::default(), None);
    let model = match initial {
        Some(initial) => {
            // Not both in memory at once.
            drop(model);
            initial()?
        }
        None => model,
    };
    Ok((Trainee { model, optim }, session))
}
