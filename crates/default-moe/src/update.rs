//! What one forward pass found out about the experts: a value that is added up before anything changes.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use moe_layers::ranks::{has_ranks, mean_over_ranks};

/// Outputs of each expert summed over a batch, and what to divide the sums by.
///
/// Sums add up where means do not: the updates of the micro-batches of a step, of several devices or of the ranks of a
/// data-parallel run are [merged](Self::merge) (or all-reduced as one [matrix](Self::into_matrix)) and then
/// [absorbed](crate::DefaultVectors::absorb) once. A constant factor common to both parts changes nothing, so an
/// all-reduce may as well average.
///
/// Both are constants for autodiff, f32 (f64 if the tokens were).
#[derive(Debug, Clone)]
#[must_use = "default vectors move only when a step absorbs its update"]
pub struct DefaultUpdate<B: Backend> {
    /// Weighted sum of the outputs of each expert, `[E, D]`.
    pub sums: Tensor<B, 2>,
    /// Divisors, `[E]`: the sum of the weights or the number of tokens; 0 for an expert that served none.
    pub weights: Tensor<B, 1>,
}

impl<B: Backend> DefaultUpdate<B> {
    /// That of a batch without tokens: neutral in [`merge`](Self::merge).
    pub fn empty([num_experts, d_model]: [usize; 2], dtype: DType, device: &B::Device) -> Self {
        let options = (device, dtype);
        Self { sums: Tensor::zeros([num_experts, d_model], options), weights: Tensor::zeros([num_experts], options) }
    }

    /// That of the two batches together.
    ///
    /// # Panics
    ///
    /// Panics when they differ in `E` or `D`.
    pub fn merge(self, other: Self) -> Self {
        assert_eq!(self.sums.dims(), other.sums.dims(), "DefaultUpdate: sums [E, D] of two updates must agree");
        assert_eq!(self.weights.dims(), other.weights.dims(), "DefaultUpdate: divisors [E] of two updates must agree");
        Self { sums: self.sums + other.sums, weights: self.weights + other.weights }
    }

    /// Sums and, as the last column, divisors: `[E, D + 1]`, one tensor to all-reduce.
    pub fn into_matrix(self) -> Tensor<B, 2> {
        Tensor::cat(vec![self.sums, self.weights.unsqueeze_dim(1)], 1)
    }

    /// The inverse of [`into_matrix`](Self::into_matrix).
    ///
    /// # Panics
    ///
    /// Panics when the matrix has no column.
    pub fn from_matrix(matrix: Tensor<B, 2>) -> Self {
        let [num_experts, columns] = matrix.dims();
        assert!(columns > 0, "DefaultUpdate: a matrix [E, D + 1] has at least one column");
        let weights = matrix.clone().slice([0..num_experts, columns - 1..columns]).squeeze_dim(1);
        Self { sums: matrix.slice([0..num_experts, 0..columns - 1]), weights }
    }

    /// The mean over the ranks of the pass that this thread runs, see [`moe_layers::ranks`]; itself where there is one.
    pub(crate) fn over_ranks(self) -> Self {
        if !has_ranks() { self } else { Self::from_matrix(mean_over_ranks(self.into_matrix())) }
    }

    /// Moves it to `device`, where another device's update is to be merged with it.
    pub fn to_device(self, device: &B::Device) -> Self {
        Self { sums: self.sums.to_device(device), weights: self.weights.to_device(device) }
    }

    /// Sums over divisors, `[E, D]`; zero for an expert that served no token.
    pub fn means(&self) -> Tensor<B, 2> {
        let weights: Tensor<B, 2> = self.weights.clone().unsqueeze_dim(1);
        let idle = weights.clone().lower_equal_elem(0.0);
        self.sums.clone() / weights.mask_fill(idle, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;

    use super::*;

    fn update(sums: [[f32; 2]; 2], weights: [f32; 2]) -> DefaultUpdate<Flex> {
        let device = Default::default();
        DefaultUpdate { sums: Tensor::from_data(sums, &device), weights: Tensor::from_data(weights, &device) }
    }

    #[test]
    fn merged_means_are_means_over_all_tokens() {
        let merged = update([[2.0, 4.0], [0.0, 0.0]], [1.0, 0.0]).merge(update([[4.0, 5.0], [6.0, 2.0]], [2.0, 4.0]));
        merged.means().into_data().assert_eq(&[[2.0, 3.0], [1.5, 0.5]].into(), false);
    }

    #[test]
    fn an_idle_expert_has_a_mean_of_zero() {
        let means = update([[2.0, 4.0], [0.0, 0.0]], [2.0, 0.0]).means();
        means.into_data().assert_eq(&[[1.0, 2.0], [0.0, 0.0]].into(), false);
    }

    #[test]
    fn the_matrix_holds_everything() {
        let matrix = update([[1.0, 2.0], [3.0, 4.0]], [5.0, 6.0]).into_matrix();
        matrix.to_data().assert_eq(&[[1.0, 2.0, 5.0], [3.0, 4.0, 6.0]].into(), false);
        let back = DefaultUpdate::from_matrix(matrix);
        back.sums.into_data().assert_eq(&[[1.0, 2.0], [3.0, 4.0]].into(), false);
        back.weights.into_data().assert_eq(&[5.0, 6.0].into(), false);
    }

    #[test]
    fn the_update_of_no_tokens_is_neutral() {
        let some = update([[1.0, 2.0], [3.0, 4.0]], [5.0, 6.0]);
        let merged = some.clone().merge(DefaultUpdate::empty([2, 2], DType::F32, &Default::default()));
        merged.into_matrix().into_data().assert_eq(&some.into_matrix().into_data(), true);
    }

    #[test]
    #[should_panic(expected = "must agree")]
    fn updates_of_different_layers_do_not_merge() {
        let other = DefaultUpdate::empty([3, 2], DType::F32, &Default::default());
        let _ = update([[1.0, 2.0], [3.0, 4.0]], [5.0, 6.0]).merge(other);
    }

    #[test]
    #[should_panic(expected = "must agree")]
    fn updates_of_different_widths_do_not_merge() {
        let other = DefaultUpdate::empty([2, 3], DType::F32, &Default::default());
        let _ = update([[1.0, 2.0], [3.0, 4.0]], [5.0, 6.0]).merge(other);
    }

    #[test]
    #[should_panic(expected = "divisors [E] of two updates must agree")]
    fn divisors_of_different_layers_do_not_merge() {
        let (some, one) = (update([[1.0, 2.0], [3.0, 4.0]], [5.0, 6.0]), Tensor::ones([1], &Default::default()));
        let _ = some.clone().merge(DefaultUpdate { weights: one, ..some });
    }

    #[test]
    #[should_panic(expected = "a matrix [E, D + 1] has at least one column")]
    fn a_matrix_without_columns_panics() {
        let _ = DefaultUpdate::<Flex>::from_matrix(Tensor::zeros([2, 0], &Default::default()));
    }
}
