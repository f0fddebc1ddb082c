//! The arithmetic of scaling what a step changed.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

/// How changes are scaled: in burn's own operations ([`BurnOps`]), unless a crate knows a faster way on its backend.
pub trait ScaleChange<I: Backend> {
    /// `new + (old - new) * (1 - phi)`, which is `old + phi * (new - old)` \[S\] written so that a factor of 1 leaves `new` as it is,
    /// bit for bit.
    ///
    /// # Shapes
    ///
    /// - old, new: the same; on one device
    /// - factors: `[E]`, a `phi` for each slice along `axis`, or `[1]`, for all of it; of the dtype of `new`
    fn scale_change<const D: usize>(
        &self,
        old: Tensor<I, D>,
        new: Tensor<I, D>,
        factors: Tensor<I, 1>,
        axis: usize,
    ) -> Tensor<I, D>;
}

/// Three passes, each of which may overwrite an operand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BurnOps;

impl<I: Backend> ScaleChange<I> for BurnOps {
    fn scale_change<const D: usize>(
        &self,
        old: Tensor<I, D>,
        new: Tensor<I, D>,
        factors: Tensor<I, 1>,
        axis: usize,
    ) -> Tensor<I, D> {
        let mut shape = [1; D];
        shape[axis] = factors.dims()[0];
        let missing = factors.neg().add_scalar(1.0).reshape(shape);
        let change = old.sub(new.clone()).mul(missing);
        new.add(change)
    }
}
