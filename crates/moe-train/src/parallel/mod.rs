//! Data parallel training: the rows of every micro-batch are split over ranks, which stay equal because everything that is not a row's own is
//! shared.
//!
//! A rank is a thread ([`ThreadGroup`]) or a process ([`Node`]) with a device, a copy of model and optimizer, and its rows of every
//! micro-batch. What it shares, and when:
//!
//! | in the forward pass | after the last micro-batch |
//! |---|---|
//! | the share of the tokens of each expert, in the balance losses | gradients, then clipped by their global norm |
//! | importance and load, in the losses of that name | losses and statistics that are logged |
//! | what the pass found out about default vectors | counts by which Excitation scales, loads by which routers balance themselves |
//!
//! So a step of several ranks is that of one device on all their rows, up to the order of sums in f32, and two runs of the same layout are
//! equal bit for bit: sums are taken in the order of the ranks. Rank 0 alone validates, logs and writes checkpoints, which are those of any
//! other run: a run goes on with another number of ranks. Which rows a step sees depends on seed and step.
//!
//! Not every router can: see [`check`].

mod group;
mod nodes;
mod packed;
mod processes;
mod threads;
mod watch;

use moe_models::lm::LmMoeConfig;

use crate::config::ConfigError;

pub use group::{Collective, Group, RankError};
pub use nodes::{Hello, Node, NodeSeat};
pub(crate) use packed::Packed;
pub use processes::{FAREWELL, Processes};
pub use threads::{Seat, ThreadGroup};
pub use watch::Watch;

/// Who trains.
#[derive(Debug)]
pub enum Party<'a, D> {
    /// A thread on each of these devices, which may be one device several times. At least one. They wait for each other as long as the watch says, or
    /// for ever.
    Threads(&'a [D], Option<Watch>),
    /// Processes. This one is rank 0 of them and has this device; the others [`follow`](crate::trainer::follow).
    Nodes(&'a NodeSeat, &'a D),
}

impl<'a, D> Party<'a, D> {
    /// How many ranks there are.
    pub fn num_ranks(&self) -> usize {
        match self {
            Self::Threads(devices, _) => devices.len(),
            Self::Nodes(seat, _) => seat.num_ranks,
        }
    }

    /// That of rank 0.
    ///
    /// # Panics
    ///
    /// Panics without a device.
    pub fn device(&self) -> &'a D {
        match self {
            Self::Threads(devices, _) => devices.first().expect("Party: there must be a device to train on"),
            Self::Nodes(_, device) => device,
        }
    }
}

/// Whether models with such MoE layers can be trained by several ranks that split `batch_size` rows.
///
/// # Errors
///
/// Rows that cannot be split evenly, and layers in which the tokens of a batch are compared or draw from a generator that ranks share: a rank would
/// decide about its part as no device would about the whole.
pub fn check(moe: Option<&LmMoeConfig>, batch_size: usize, num_ranks: usize) -> Result<(), ConfigError> {
    if num_ranks == 1 {
        return Ok(());
    }
    if !batch_size.is_multiple_of(num_ranks) {
        let fault = format!(
            "train.batch_size {batch_size} cannot be split over {num_ranks} ranks: choose a multiple of {num_ranks}"
        );
        return Err(ConfigError::Contradiction(fault));
    }
    let Some(moe) = moe else { return Ok(()) };
    if let Some(error) = moe.rule(1).ranks_error() {
        return Err(ConfigError::Contradiction(error.into()));
    }
    if moe.capacity_factor > 0.0 {
        let fault = "moe.capacity_factor cannot be used on several ranks: what is dropped depends on all tokens of a batch, of which a rank sees a part";
        return Err(ConfigError::Contradiction(fault.into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use moe_models::lm::{LmMoeConfig, RouterKind};

    use super::*;

    fn fault(moe: &LmMoeConfig, batch_size: usize, num_ranks: usize) -> Option<String> {
        check(Some(moe), batch_size, num_ranks).err().map(|error| error.to_string())
    }

    #[test]
    #[should_panic(expected = "Party: there must be a device to train on")]
    fn a_party_without_a_device_panics() {
        Party::<()>::Threads(&[], None).device();
    }

    #[test]
    fn rows_are_split_evenly_or_not_at_all() {
        let moe = LmMoeConfig::new(8, 2, 16);
        assert_eq!([(12, 1), (12, 4), (7, 1)].map(|(rows, ranks)| fault(&moe, rows, ranks)), [None, None, None]);
        assert!(fault(&moe, 12, 5).is_some_and(|fault| fault.contains("train.batch_size 12")));
        assert!(check(None, 3, 2).is_err());
    }

    #[test]
    fn routers_that_look_at_the_whole_batch_stay_on_one_rank() {
        let with = |router| LmMoeConfig::new(8, 2, 16).with_router(router);
        let shared = [RouterKind::TopK, RouterKind::Default, RouterKind::Sigmoid, RouterKind::Relu, RouterKind::Hash];
        for router in shared {
            assert_eq!(fault(&with(router), 4, 2), None, "{router:?}");
        }
        for router in [RouterKind::NoisyTopK, RouterKind::Sinkhorn, RouterKind::ExpertChoice] {
            assert!(fault(&with(router), 4, 2).is_some_and(|fault| fault.contains("several ranks")), "{router:?}");
            assert_eq!(fault(&with(router), 4, 1), None);
        }
        assert!(fault(&with(RouterKind::TopK).with_capacity_factor(1.0), 4, 2).is_some());
    }
}
