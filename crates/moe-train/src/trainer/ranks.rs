//! The loop on several ranks, each in a thread of its own.

use std::any::Any;
use std::thread::{self, ScopedJoinHandle};

use excitation_optim::FindExperts;
use moe_kernels::AutodiffMoeBackend;

use super::error::TrainError;
use super::session::{Session, checksum};
use super::step::Trainee;
use super::take_steps;
use super::task::Task;
use crate::model::Trainable;
use crate::optim::ModelExperts;
use crate::parallel::{Group, RankError, Seat, ThreadGroup, Watch};
use crate::progress::Progress;
use crate::run::{Run, TrainState};

/// Takes the steps of `session` on all `devices`. This thread is rank 0, which alone logs, validates and saves; the others take the same steps
/// from copies of `trainee` until they are done, or rank 0 is.
pub(super) fn take_steps_together<B, M, T>(
    task: &T,
    (devices, watch): (&[B::Device], Option<Watch>),
    trainee: Trainee<B, M>,
    session: &mut Session<'_, B, M, T>,
    run: &mut Run,
    progress: &mut dyn Progress,
) -> Result<(), TrainError>
where
    B: AutodiffMoeBackend,
    M: Trainable<B> + 'static,
    T: Task<B, M>,
    ModelExperts: FindExperts<M>,
{
    let group = ThreadGroup::<B::InnerBackend>::open(devices.len(), watch);
    // Before any of them waits for the others: memory may not suffice.
    let copies: Vec<_> = devices[1..].iter().map(|device| (device, trainee.copy_to(device))).collect();
    check_copies(&trainee, &devices[0], &copies)?;
    thread::scope(|scope| {
        let others: Vec<_> = (1..)
            .zip(copies)
            .map(|(rank, (device, copy))| {
                let (seat, state) = (group.seat(rank), session.state().clone());
                scope.spawn(move || follow(task, seat, copy, state, device))
            })
            .collect();
        let trained = group.seat(0).take(&devices[0]).map_err(TrainError::Ranks).and_then(|seat| {
            session.join(Group::new(seat));
            let joined = Leaving(session);
            take_steps(trainee, joined.0, run, progress)
        });
        // Rank 0 has left: whoever still waits for it gets an error, which is then nobody's fault.
        let ended: Vec<_> = others.into_iter().map(end).collect();
        match trained {
            Err(TrainError::Ranks(lost)) => {
                let causes = (1..).zip(ended).find_map(|(rank, ended)| ended.cause(rank));
                Err(causes.unwrap_or(TrainError::Ranks(lost)))
            }
            trained => trained,
        }
    })
}

/// Whether the weights have arrived on every device: burn 0.21 leaves memory as it was between two devices of wgpu.
fn check_copies<B, M>(
    trainee: &Trainee<B, M>,
    device: &B::Device,
    copies: &[(&B::Device, Trainee<B, M>)],
) -> Result<(), RankError>
where
    B: AutodiffMoeBackend,
    M: Trainable<B>,
{
    let elsewhere: Vec<_> = (1..).zip(copies).filter(|(_, (copied_to, _))| *copied_to != device).collect();
    if elsewhere.is_empty() {
        return Ok(());
    }
    let expected = checksum(&trainee.model);
    match elsewhere.into_iter().find(|(_, (_, copy))| checksum(&copy.model) != expected) {
        None => Ok(()),
        Some((rank, _)) => {
            let reason =
                "the weights do not arrive on its device: this backend moves nothing between devices, use --launch";
            Err(RankError { rank, reason: reason.into() })
        }
    }
}

/// Lets go of the other ranks at its end, also in a panic: they would wait for ever.
struct Leaving<'s, 'a, B, M, T>(&'s mut Session<'a, B, M, T>)
where
    B: AutodiffMoeBackend,
    M: Trainable<B>,
    T: Task<B, M>,
    ModelExperts: FindExperts<M>;

impl<B, M, T> Drop for Leaving<'_, '_, B, M, T>
where
    B: AutodiffMoeBackend,
    M: Trainable<B>,
    T: Task<B, M>,
    ModelExperts: FindExperts<M>,
{
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// The steps of a rank that is not 0.
fn follow<B, M, T>(
    task: &T,
    seat: Seat<B::InnerBackend>,
    trainee: Trainee<B, M>,
    state: TrainState,
    device: &B::Device,
) -> Result<(), TrainError>
where
    B: AutodiffMoeBackend,
    M: Trainable<B>,
    T: Task<B, M>,
    ModelExperts: FindExperts<M>,
{
    let mut session = Session::new(task, device, state, None);
    session.join(Group::new(seat.take(device)?));
    session.follow(trainee)
}

/// What became of a rank that is not 0.
enum Ended {
    Done,
    /// It lost the others, which is nobody's fault.
    Left,
    Failed(TrainError),
    /// With its message.
    Panicked(String),
}

impl Ended {
    /// The error of a rank that ended by itself.
    fn cause(self, rank: usize) -> Option<TrainError> {
        match self {
            Self::Done | Self::Left => None,
            Self::Failed(error) => Some(error),
            Self::Panicked(message) => {
                Some(TrainError::Ranks(RankError { rank, reason: format!("it panicked: {message}") }))
            }
        }
    }
}

fn end(thread: ScopedJoinHandle<'_, Result<(), TrainError>>) -> Ended {
    match thread.join() {
        Ok(Ok(())) => Ended::Done,
        Ok(Err(TrainError::Ranks(_))) => Ended::Left,
        Ok(Err(error)) => Ended::Failed(error),
        Err(panic) => Ended::Panicked(message(panic.as_ref()).into()),
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("unknown cause")
}
