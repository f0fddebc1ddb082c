//! What moves rows between ranks.

use std::fmt;
use std::ops::Range;

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

/// A value for every pair of a rank that the caller speaks for and any rank: `[local rank][any rank]`.
pub type Pairs<T> = Vec<Vec<T>>;

/// The two collectives of an expert-parallel layer: each rank has something for every rank, and afterwards something from
/// every rank.
///
/// A caller speaks for one rank or for several. In one process that drives all devices it speaks for all of them
/// ([`InProcess`]); where each rank is a thread or a process, for its own, and then every rank has to make the same calls in the
/// same order, as with any collective. [`the module`](super) says what such an implementation needs.
pub trait AllToAll<B: Backend> {
    /// Number of ranks, `N`.
    fn num_ranks(&self) -> usize;

    /// The ranks that this caller speaks for, each with the same place in every list below.
    fn local_ranks(&self) -> Range<usize>;

    /// Exchanges numbers of rows: `counts[l][d]` are what local rank `l` has for each expert of rank `d`; returned at `[l][s]` is
    /// what rank `s` has for each expert of local rank `l`.
    fn exchange_counts(&self, counts: Pairs<Vec<usize>>) -> Pairs<Vec<usize>>;

    /// Exchanges rows: `rows[l][d]` `[n, W]` go from local rank `l` to rank `d`; returned at `[l][s]` is what rank `s` sent to
    /// local rank `l`, on the device of that rank, with `expected[l][s]` rows.
    ///
    /// Differentiable: the gradient of what came from `s` goes back to `s`. Tensors may have no rows.
    fn exchange_rows(&self, rows: Pairs<Tensor<B, 2>>, expected: &Pairs<usize>) -> Pairs<Tensor<B, 2>>;
}

/// All ranks are devices of one process, driven by one thread: rows move with `Tensor::to_device`.
///
/// The same device may be there several times.
#[derive(Clone, Debug)]
pub struct InProcess<B: Backend> {
    devices: Vec<B::Device>,
}

impl<B: Backend> InProcess<B> {
    /// Rank `i` is `devices[i]`. Sends a few numbers to each device that is not the first one, and looks at them there.
    ///
    /// # Errors
    ///
    /// When they do not arrive: with burn 0.21 between two devices of wgpu or ROCm, where `Tensor::to_device` leaves memory as it was.
    pub fn new(devices: Vec<B::Device>) -> Result<Self, UnreachableDevice> {
        match devices.iter().position(|device| !reaches::<B>(&devices[0], device)) {
            Some(rank) => Err(UnreachableDevice { rank }),
            None => Ok(Self { devices }),
        }
    }

    /// The device of each rank.
    pub fn devices(&self) -> &[B::Device] {
        &self.devices
    }
}

/// A tensor that was sent to a device is not the same there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnreachableDevice {
    /// Which.
    pub rank: usize,
}

impl fmt::Display for UnreachableDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rank = self.rank;
        write!(
            f,
            "tensors do not arrive on device {rank} from device 0: this backend moves none between devices; use one"
        )
    }
}

impl std::error::Error for UnreachableDevice {}

/// The sender's copy lives until the other one is read, which else might find the numbers in memory that was freed.
fn reaches<B: Backend>(from: &B::Device, to: &B::Device) -> bool {
    if from == to {
        return true;
    }
    let numbers = TensorData::from([3.0f32, -1.0, 4.0, 1.5]);
    let sent = Tensor::<B, 1>::from_data(numbers.clone(), from);
    let arrived = sent.clone().to_device(to).try_into_data();
    drop(sent);
    arrived.is_ok_and(|arrived| arrived.iter::<f32>().eq(numbers.iter::<f32>()))
}

impl<B: Backend> AllToAll<B> for InProcess<B> {
    fn num_ranks(&self) -> usize {
        self.devices.len()
    }

    fn local_ranks(&self) -> Range<usize> {
        0..self.devices.len()
    }

    fn exchange_counts(&self, counts: Pairs<Vec<usize>>) -> Pairs<Vec<usize>> {
        transpose(counts)
    }

    fn exchange_rows(&self, rows: Pairs<Tensor<B, 2>>, expected: &Pairs<usize>) -> Pairs<Tensor<B, 2>> {
        let received = transpose(rows).into_iter().zip(&self.devices);
        let received: Pairs<_> =
            received.map(|(parts, device)| parts.into_iter().map(|part| part.to_device(device)).collect()).collect();
        check_rows(&received, expected);
        received
    }
}

/// `[source][destination]` to `[destination][source]`.
fn transpose<T>(pairs: Pairs<T>) -> Pairs<T> {
    let num_ranks = pairs.len();
    let mut transposed: Pairs<T> = (0..num_ranks).map(|_| Vec::with_capacity(num_ranks)).collect();
    for parts in pairs {
        assert_eq!(parts.len(), num_ranks, "AllToAll: every rank must have a part for each of {num_ranks} ranks");
        transposed.iter_mut().zip(parts).for_each(|(received, part)| received.push(part));
    }
    transposed
}

fn check_rows<B: Backend>(received: &Pairs<Tensor<B, 2>>, expected: &Pairs<usize>) {
    let rows = |parts: &Vec<Tensor<B, 2>>| parts.iter().map(|part| part.dims()[0]).collect::<Vec<_>>();
    let found: Pairs<usize> = received.iter().map(rows).collect();
    assert_eq!(&found, expected, "AllToAll: other numbers of rows came than were expected");
}

#[cfg(test)]
mod tests {
    use burn::backend::{Autodiff, Flex};

    use super::*;

    type B = Autodiff<Flex>;

    fn exchange(ranks: usize) -> InProcess<B> {
        InProcess::new(vec![Default::default(); ranks]).expect("one device")
    }

    fn rows(n: usize, value: f32) -> Tensor<B, 2> {
        Tensor::full([n, 2], value, &Default::default())
    }

    #[test]
    fn counts_go_where_they_are_addressed() {
        let counts = vec![vec![vec![1, 2], vec![3]], vec![vec![4, 5], vec![6]]];
        assert_eq!(exchange(2).exchange_counts(counts), [[vec![1, 2], vec![4, 5]], [vec![3], vec![6]]]);
    }

    #[test]
    fn the_gradient_of_a_row_goes_back_to_its_sender() {
        let sent = [rows(1, 1.0).require_grad(), rows(2, 2.0).require_grad()];
        let pairs = vec![vec![rows(1, 0.0), sent[0].clone()], vec![sent[1].clone(), rows(0, 0.0)]];
        let received = exchange(2).exchange_rows(pairs, &vec![vec![1, 2], vec![1, 0]]);
        let loss = received[1][0].clone().sum() * 3.0 + received[0][1].clone().sum() * 5.0;
        let grads = loss.backward();
        let grad = |i: usize| sent[i].grad(&grads).expect("tracked").into_data();
        grad(0).assert_eq(&rows(1, 3.0).into_data(), true);
        grad(1).assert_eq(&rows(2, 5.0).into_data(), true);
    }

    #[test]
    #[should_panic(expected = "other numbers of rows came than were expected")]
    fn rows_that_nobody_expects_panic() {
        exchange(1).exchange_rows(vec![vec![rows(2, 0.0)]], &vec![vec![3]]);
    }

    #[test]
    #[should_panic(expected = "a part for each of 2 ranks")]
    fn a_rank_without_a_part_for_another_panics() {
        exchange(2).exchange_counts(vec![vec![vec![1]], vec![vec![1], vec![1]]]);
    }
}
