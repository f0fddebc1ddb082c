//! Ranks that are threads of one process, over `burn-collective`.

use std::marker::PhantomData;
use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorPrimitive};
use burn_collective::{
    CollectiveConfig, CollectiveError, PeerId, ReduceOperation, all_reduce, broadcast, register, reset_collective,
};

use super::watch::{Patience, Watcher};
use super::{Collective, RankError, Watch};

/// `burn-collective` has one group for a backend in a process.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The threads of one training. While it lives, another one waits.
///
/// Dropping it ends the exchange: whoever waits for another rank gets an error.
pub struct ThreadGroup<I: Backend> {
    num_ranks: usize,
    watcher: Watcher,
    _alone: MutexGuard<'static, ()>,
    backend: PhantomData<I>,
}

impl<I: Backend> ThreadGroup<I> {
    /// For so many ranks, which wait for each other as long as `watch` says, or for ever.
    pub fn open(num_ranks: usize, watch: Option<Watch>) -> Self {
        // A thread that panicked has left nothing behind that the reset does not clear.
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        reset_collective::<I>();
        Self { num_ranks, watcher: Watcher::start::<I>(num_ranks, watch), _alone: alone, backend: PhantomData }
    }

    /// The place of a rank, to be taken in its own thread.
    pub fn seat(&self, rank: usize) -> Seat<I> {
        Seat { rank, num_ranks: self.num_ranks, patience: self.watcher.patience(rank), backend: PhantomData }
    }
}

impl<I: Backend> Drop for ThreadGroup<I> {
    fn drop(&mut self) {
        reset_collective::<I>();
    }
}

/// A rank's part in the exchange. Dropping it, as a panic does, ends the exchange for all.
pub struct Seat<I: Backend> {
    rank: usize,
    num_ranks: usize,
    patience: Patience,
    backend: PhantomData<I>,
}

impl<I: Backend> Drop for Seat<I> {
    fn drop(&mut self) {
        reset_collective::<I>();
    }
}

impl<I: Backend> Seat<I> {
    /// Waits until every rank has taken its seat.
    ///
    /// # Errors
    ///
    /// What `burn-collective` says.
    pub fn take(self, device: &I::Device) -> Result<Self, RankError> {
        let config = CollectiveConfig::default().with_num_devices(self.num_ranks);
        let registered = self.patience.wait(|| register::<I>(self.peer(), device.clone(), config));
        registered.map_err(|error| self.error(error))?;
        Ok(self)
    }

    fn peer(&self) -> PeerId {
        self.rank.into()
    }

    fn error(&self, error: CollectiveError) -> RankError {
        let reason = || match error {
            CollectiveError::LocalServerMissing | CollectiveError::RegisterNotFirstOperation => {
                "another rank has ended".into()
            }
            other => format!("{other:?}"),
        };
        RankError { rank: self.rank, reason: self.patience.reason().unwrap_or_else(reason) }
    }

    /// What `root` has, on the device of `values`.
    fn received(&self, root: usize, values: &Tensor<I, 1>) -> Result<Tensor<I, 1>, CollectiveError> {
        let own = (root == self.rank).then(|| primitive(values.clone()));
        // burn-collective 0.21 leaves it on the sender's device for whoever calls first.
        broadcast::<I>(self.peer(), own).map(|received| tensor(received).to_device(&values.device()))
    }
}

impl<I: Backend> Collective<I> for Seat<I> {
    fn rank(&self) -> usize {
        self.rank
    }

    fn num_ranks(&self) -> usize {
        self.num_ranks
    }

    /// `burn-collective`'s own sum takes the ranks in the order of a hash map, another one every time; of two that makes no difference.
    fn sum(&self, values: Tensor<I, 1>) -> Result<Tensor<I, 1>, RankError> {
        let sum = self.patience.wait(|| match self.num_ranks {
            1 => Ok(values),
            2 => all_reduce::<I>(self.peer(), primitive(values), ReduceOperation::Sum).map(tensor),
            _ => {
                let each = (0..self.num_ranks).map(|rank| self.received(rank, &values));
                each.reduce(|sum, next| Ok(sum? + next?)).expect("there are ranks")
            }
        });
        sum.map_err(|error| self.error(error))
    }
}

fn primitive<I: Backend>(tensor: Tensor<I, 1>) -> I::FloatTensorPrimitive {
    tensor.into_primitive().tensor()
}

fn tensor<I: Backend>(primitive: I::FloatTensorPrimitive) -> Tensor<I, 1> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use burn::backend::Flex;

    use super::*;

    /// What every rank gets for the sum of what `of` gives each.
    fn sums(num_ranks: usize, of: fn(usize) -> Vec<f32>) -> Vec<Vec<f32>> {
        let group = ThreadGroup::<Flex>::open(num_ranks, None);
        std::thread::scope(|scope| {
            let ranks: Vec<_> = (0..num_ranks)
                .map(|rank| {
                    let seat = group.seat(rank);
                    scope.spawn(move || {
                        let device = Default::default();
                        let seat = seat.take(&device).expect("all come");
                        let sum =
                            || seat.sum(Tensor::from_floats(of(rank).as_slice(), &device)).expect("all are there");
                        let (first, second) = (sum().into_data(), sum().into_data());
                        assert_eq!(first, second);
                        // Nobody leaves before all have what they need.
                        seat.sum(Tensor::zeros([1], &device)).expect("all are there");
                        first.to_vec::<f32>().expect("f32")
                    })
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().expect("no panic")).collect()
        })
    }

    #[test]
    fn every_rank_has_the_sum_in_the_order_of_the_ranks() {
        // Added in another order, these lose the one: 1e8 + 1 is 1e8 in f32.
        let of = |rank: usize| vec![[1e8, -1e8, 1.0, 0.25][rank], rank as f32];
        assert_eq!(sums(1, of), [[1e8, 0.0]]);
        assert_eq!(sums(2, of), vec![vec![0.0, 1.0]; 2]);
        for _ in 0..8 {
            assert_eq!(sums(3, of), vec![vec![1.0, 3.0]; 3]);
            assert_eq!(sums(4, of), vec![vec![1.25, 6.0]; 4]);
        }
    }

    #[test]
    fn a_rank_that_leaves_is_an_error_for_those_who_wait() {
        let group = ThreadGroup::<Flex>::open(2, None);
        let seats = [0, 1].map(|rank| group.seat(rank));
        std::thread::scope(|scope| {
            let [first, second] = seats;
            let waits = scope.spawn(|| {
                let device = Default::default();
                let seat = first.take(&device).expect("both come");
                seat.sum(Tensor::ones([3], &device)).map(|_| ())
            });
            drop(second.take(&Default::default()).expect("both come"));
            let error = waits.join().expect("no panic").expect_err("alone");
            assert_eq!(error.to_string(), "rank 0 cannot train with the others: another rank has ended");
        });
    }
    /// Why rank 0 of two stops waiting, and how often `give_up` was called, when rank 1 does not come for so long.
    fn silence(silent_for: Duration) -> (String, usize) {
        static GIVEN_UP: AtomicUsize = AtomicUsize::new(0);
        let give_up = |error: RankError| {
            assert!(error.reason.contains("rank 1 has been silent"), "{error}");
            GIVEN_UP.fetch_add(1, Ordering::SeqCst);
        };
        let (before, limit) = (GIVEN_UP.load(Ordering::SeqCst), Duration::from_millis(400));
        let group = ThreadGroup::<Flex>::open(2, Some(Watch { limit, grace: limit, give_up }));
        let [first, second] = [0, 1].map(|rank| group.seat(rank));
        let reason = std::thread::scope(|scope| {
            let silent = scope.spawn(move || {
                let device = Default::default();
                let seat = second.take(&device).expect("both come");
                // Slow, but in time.
                std::thread::sleep(limit / 4);
                seat.sum(Tensor::ones([3], &device)).expect("both are there");
                std::thread::sleep(silent_for);
            });
            let device = Default::default();
            let seat = first.take(&device).expect("both come");
            seat.sum(Tensor::ones([3], &device)).expect("both are there");
            let started = Instant::now();
            let error = seat.sum(Tensor::ones([3], &device)).expect_err("alone");
            assert!(started.elapsed() < 3 * limit, "{:?}", started.elapsed());
            silent.join().expect("no panic");
            error.reason
        });
        drop(group);
        (reason, GIVEN_UP.load(Ordering::SeqCst) - before)
    }

    #[test]
    fn a_rank_that_hangs_is_named_in_time() {
        let reason = "rank 1 has been silent for 0.4 s (--rank-timeout)".to_string();
        assert_eq!(silence(Duration::from_millis(600)), (reason.clone(), 0), "it came back");
        assert_eq!(silence(Duration::from_millis(1600)), (reason, 1), "it hung for longer than the grace");
    }
}
