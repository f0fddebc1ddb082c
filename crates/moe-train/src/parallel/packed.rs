//! Many tensors in one exchange.

use std::collections::VecDeque;

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Tensor};

use super::{Group, RankError};

/// Vectors with so many numbers are exchanged alone, so that they are in memory once more at most, and not all of them twice. In tests it is few, for
/// their models are small.
const ALONE: usize = if cfg!(test) { 64 } else { 1 << 20 };

/// Vectors that ranks take the mean of together: put in by one walk over what holds them, taken out by the same walk.
pub(crate) struct Packed<I: Backend> {
    tensors: VecDeque<Tensor<I, 1>>,
}

impl<I: Backend> Packed<I> {
    pub(crate) fn new() -> Self {
        Self { tensors: VecDeque::new() }
    }

    /// Adds a vector.
    pub(crate) fn push(&mut self, tensor: Tensor<I, 1>) {
        self.tensors.push_back(tensor);
    }

    /// Of the first walk: the mean of a large vector, a small one as it is, which is added.
    pub(crate) fn give<B>(&mut self, tensor: Tensor<I, 1>, group: &Group<B>) -> Tensor<I, 1>
    where
        B: AutodiffBackend<InnerBackend = I>,
    {
        if is_large(&tensor) {
            let dtype = tensor.dtype();
            return group.mean_of(tensor.cast(DType::F32)).cast(dtype);
        }
        self.push(tensor.clone());
        tensor
    }

    /// Of the second walk: a large vector as it is, the next one in the place of a small one.
    ///
    /// # Panics
    ///
    /// Panics when there is none.
    pub(crate) fn take(&mut self, tensor: Tensor<I, 1>) -> Tensor<I, 1> {
        if is_large(&tensor) { tensor } else { self.pop() }
    }

    /// Their means over the ranks in one exchange, in f32; each comes back in the dtype it had.
    ///
    /// # Errors
    ///
    /// The first error of the group.
    pub(crate) fn exchange<B: AutodiffBackend<InnerBackend = I>>(self, group: &Group<B>) -> Result<Self, RankError> {
        let kinds: Vec<_> = self.tensors.iter().map(|tensor| (tensor.dims()[0], tensor.dtype())).collect();
        let all = self.tensors.into_iter().map(|tensor| tensor.cast(DType::F32)).collect();
        let means = group.mean_of(Tensor::cat(all, 0));
        group.check()?;
        let mut start = 0;
        let tensors = kinds.into_iter().map(|(len, dtype)| {
            let tensor = means.clone().slice(start..start + len).cast(dtype);
            start += len;
            tensor
        });
        Ok(Self { tensors: tensors.collect() })
    }

    /// The next one, in the order in which they were put in.
    ///
    /// # Panics
    ///
    /// Panics when there is none.
    pub(crate) fn pop(&mut self) -> Tensor<I, 1> {
        self.tensors.pop_front().expect("as many come out as were put in")
    }
}

fn is_large<I: Backend>(tensor: &Tensor<I, 1>) -> bool {
    tensor.dims()[0] >= ALONE
}

#[cfg(test)]
mod tests {
    use burn::backend::{Autodiff, Flex};

    use super::super::Collective;
    use super::*;

    /// Two ranks, of which the other has ones; the second exchange fails.
    struct Ones(std::cell::Cell<usize>);

    impl Collective<Flex> for Ones {
        fn rank(&self) -> usize {
            0
        }

        fn num_ranks(&self) -> usize {
            2
        }

        fn sum(&self, values: Tensor<Flex, 1>) -> Result<Tensor<Flex, 1>, RankError> {
            match self.0.replace(self.0.get() + 1) {
                0 => Ok(values + 1.0),
                _ => Err(RankError { rank: 0, reason: "gone".into() }),
            }
        }
    }

    #[test]
    fn large_vectors_are_exchanged_alone() {
        let device = Default::default();
        let tensor = |len| Tensor::<Flex, 1>::full([len], 5.0, &device).cast(DType::F64);
        let group = Group::<Autodiff<Flex>>::new(Ones(Default::default()));
        let mut packed = Packed::new();
        let large = packed.give(tensor(ALONE), &group);
        large.to_data().assert_eq(&burn::tensor::TensorData::from([3.0f64; ALONE]), true);
        let small = packed.give(tensor(2), &group);
        small.to_data().assert_eq(&[5.0f64; 2].into(), true);
        packed.take(large).to_data().assert_eq(&burn::tensor::TensorData::from([3.0f64; ALONE]), true);
        packed.take(small).to_data().assert_eq(&[5.0f64; 2].into(), true);
        assert!(packed.tensors.is_empty());
    }

    #[test]
    fn vectors_come_back_in_order_and_errors_stay() {
        let device = Default::default();
        let tensor = |values: &[f32]| Tensor::<Flex, 1>::from_floats(values, &device);
        let group = Group::<Autodiff<Flex>>::new(Ones(Default::default()));
        let mut packed = Packed::new();
        packed.push(tensor(&[1.0, 3.0]));
        packed.push(tensor(&[5.0]).cast(DType::F64));
        let mut packed = packed.exchange(&group).expect("the first one works");
        packed.pop().into_data().assert_eq(&[1.0f32, 2.0].into(), true);
        packed.pop().into_data().assert_eq(&[3.0f64].into(), true);

        let mut again = Packed::new();
        again.push(tensor(&[1.0]));
        assert!(again.exchange(&group).is_err_and(|error| error.reason == "gone"));
        group.mean_of(tensor(&[7.0])).into_data().assert_eq(&[7.0f32].into(), true);
        assert!(group.check().is_err());
    }
}
