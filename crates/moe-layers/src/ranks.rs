//! Sums over the ranks of a data-parallel run, where a forward pass needs them.
//!
//! Most of what ranks share can wait for the end of a step: gradients, loads, losses. Two things cannot, because they are not linear in the
//! tokens: the share of the tokens that an expert serves, by which a balance loss weighs probabilities, and averages that are used in the
//! very pass that updates them. Both ask [`mean_over_ranks`], which is the identity unless the pass runs [`among_ranks`].
//!
//! The ranks of a run are a property of the thread that runs a pass, not an argument of every layer between the loop and the loss: a layer
//! of a user's own gets a loss that is right on several ranks without a word about them.

use std::any::Any;
use std::cell::RefCell;
use std::rc::Rc;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

/// How one rank reaches the others.
pub trait Ranks<B: Backend> {
    /// The mean of `values` over all ranks, element by element, the same bits on every rank. Every rank calls this for the same sequence of
    /// shapes.
    ///
    /// # Shapes
    ///
    /// - values, output: `[N]`, constants, on one device
    fn mean(&self, values: Tensor<B, 1>) -> Tensor<B, 1>;
}

thread_local! {
    /// An `Rc<dyn Ranks<B>>` of the backend that the thread trains on.
    static RANKS: RefCell<Option<Box<dyn Any>>> = const { RefCell::new(None) };
}

/// Runs `pass` as that of one rank among `ranks`, on this thread. Every rank has as many tokens.
pub fn among_ranks<B: Backend, T>(ranks: Rc<dyn Ranks<B>>, pass: impl FnOnce() -> T) -> T {
    let outer = RANKS.replace(Some(Box::new(ranks)));
    let _restore = Restore(outer);
    pass()
}

/// Puts back what was there before, also after a panic.
struct Restore(Option<Box<dyn Any>>);

impl Drop for Restore {
    fn drop(&mut self) {
        RANKS.set(self.0.take());
    }
}

/// Whether this thread runs a pass among ranks.
pub fn has_ranks() -> bool {
    RANKS.with_borrow(Option::is_some)
}

/// The mean of constants over the ranks of the run, or `values` where there is one.
///
/// # Shapes
///
/// - values: any; no gradient passes
pub fn mean_over_ranks<B: Backend, const D: usize>(values: Tensor<B, D>) -> Tensor<B, D> {
    let ranks = RANKS.with_borrow(|ranks| ranks.as_ref()?.downcast_ref::<Rc<dyn Ranks<B>>>().cloned());
    let Some(ranks) = ranks else { return values };
    let shape = values.shape();
    let count = shape.num_elements();
    ranks.mean(values.detach().reshape([count])).reshape(shape)
}

/// `values` in the gradient, their mean over the ranks in value: of a function of the mean, every rank then has its part of the gradient, and
/// the mean of these parts over the ranks is the whole.
pub(crate) fn with_mean_over_ranks<B: Backend>(values: Tensor<B, 1>) -> Tensor<B, 1> {
    if !has_ranks() {
        return values;
    }
    let constant = values.clone().detach();
    let difference = mean_over_ranks(constant.clone()) - constant;
    values + difference
}

#[cfg(test)]
mod tests {
    use burn::backend::{Autodiff, Flex};
    use burn::tensor::TensorData;

    use super::*;

    type AD = Autodiff<Flex>;

    /// The other rank has these numbers, always.
    struct Other([f32; 2]);

    impl<B: Backend> Ranks<B> for Other {
        fn mean(&self, values: Tensor<B, 1>) -> Tensor<B, 1> {
            let other = Tensor::from_data(TensorData::from(self.0), &values.device());
            (values + other) / 2.0
        }
    }

    fn numbers<B: Backend>(tensor: Tensor<B, 1>) -> Vec<f32> {
        tensor.into_data().to_vec().expect("f32")
    }

    fn mine<B: Backend>() -> Tensor<B, 1> {
        Tensor::from_data(TensorData::from([1.0f32, 2.0]), &Default::default())
    }

    #[test]
    fn without_ranks_nothing_changes() {
        assert_eq!(numbers(mean_over_ranks(mine::<Flex>())), [1.0, 2.0]);
        assert_eq!(numbers(with_mean_over_ranks(mine::<Flex>())), [1.0, 2.0]);
    }

    #[test]
    fn ranks_are_those_of_the_innermost_pass_and_of_its_backend() {
        let ranks = |others| Rc::new(Other(others)) as Rc<dyn Ranks<Flex>>;
        among_ranks(ranks([3.0, 0.0]), || {
            assert_eq!(numbers(mean_over_ranks(mine::<Flex>())), [2.0, 1.0]);
            assert_eq!(numbers(mean_over_ranks(mine::<AD>())), [1.0, 2.0]);
            among_ranks(ranks([1.0, 4.0]), || assert_eq!(numbers(mean_over_ranks(mine::<Flex>())), [1.0, 3.0]));
            assert_eq!(numbers(mean_over_ranks(mine::<Flex>())), [2.0, 1.0]);
        });
        assert_eq!(numbers(mean_over_ranks(mine::<Flex>())), [1.0, 2.0]);
    }

    #[test]
    fn a_panic_leaves_no_ranks_behind() {
        let panicked = std::thread::spawn(|| {
            let pass = || among_ranks(Rc::new(Other([9.0; 2])) as Rc<dyn Ranks<Flex>>, || panic!("inside"));
            let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(pass)).is_err();
            (caught, numbers(mean_over_ranks(mine::<Flex>())))
        });
        assert_eq!(panicked.join().expect("caught inside"), (true, vec![1.0, 2.0]));
    }

    #[test]
    fn the_gradient_is_that_at_the_mean() {
        let values = mine::<AD>().require_grad();
        let square = among_ranks(Rc::new(Other([3.0, 0.0])) as Rc<dyn Ranks<AD>>, || {
            with_mean_over_ranks(values.clone()).powi_scalar(2).sum()
        });
        assert_eq!(numbers(square.clone()), [5.0]);
        let grads = square.backward();
        assert_eq!(numbers(values.grad(&grads).expect("tracked")), [4.0, 2.0]);
    }
}
