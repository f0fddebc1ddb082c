//! The ranks of a run as one of them sees them.

use std::cell::RefCell;
use std::rc::Rc;

use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use moe_layers::ranks::Ranks;

/// Why ranks no longer reach each other.
#[derive(Clone, Debug, thiserror::Error)]
#[error("rank {rank} cannot train with the others: {reason}")]
pub struct RankError {
    /// Who noticed.
    pub rank: usize,
    /// What the transport said.
    pub reason: String,
}

/// How the tensors of a rank reach the others.
pub trait Collective<I: Backend> {
    /// Which of the ranks this is, from 0.
    fn rank(&self) -> usize;

    /// How many there are.
    fn num_ranks(&self) -> usize;

    /// The sum of the `values` of all ranks, taken in their order: the same bits everywhere and every time. Every rank calls this for the same
    /// sequence of shapes.
    ///
    /// # Shapes
    ///
    /// - values, output: `[N]`
    ///
    /// # Errors
    ///
    /// A rank that is gone or does not answer.
    fn sum(&self, values: Tensor<I, 1>) -> Result<Tensor<I, 1>, RankError>;
}

/// The ranks of a run, in the thread of one of them.
///
/// The first error ends the exchange: from then on values pass as they are, and [`check`](Self::check) says what happened. A forward pass has no
/// place for it.
pub struct Group<B: AutodiffBackend> {
    collective: Box<dyn Collective<B::InnerBackend>>,
    error: RefCell<Option<RankError>>,
}

impl<B: AutodiffBackend> Group<B> {
    /// Over this transport.
    pub fn new(collective: impl Collective<B::InnerBackend> + 'static) -> Rc<Self> {
        Rc::new(Self { collective: Box::new(collective), error: RefCell::new(None) })
    }

    /// Which of the ranks this is, from 0.
    pub fn rank(&self) -> usize {
        self.collective.rank()
    }

    /// How many there are.
    pub fn num_ranks(&self) -> usize {
        self.collective.num_ranks()
    }

    /// # Errors
    ///
    /// The first error of an exchange.
    pub fn check(&self) -> Result<(), RankError> {
        self.error.borrow().clone().map_or(Ok(()), Err)
    }

    /// The mean of `values` `[N]` over all ranks; as they are after an error.
    pub fn mean_of(&self, values: Tensor<B::InnerBackend, 1>) -> Tensor<B::InnerBackend, 1> {
        if self.error.borrow().is_some() {
            return values;
        }
        match self.collective.sum(values.clone()) {
            Ok(sum) => sum / self.num_ranks() as f64,
            Err(error) => {
                *self.error.borrow_mut() = Some(error);
                values
            }
        }
    }
}

impl<B: AutodiffBackend> Ranks<B> for Group<B> {
    fn mean(&self, values: Tensor<B, 1>) -> Tensor<B, 1> {
        Tensor::from_inner(self.mean_of(values.inner()))
    }
}
