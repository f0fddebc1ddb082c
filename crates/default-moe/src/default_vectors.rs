//! The state of the method: one vector per expert, which stands in for what the expert would have said.

use burn::module::{Module, Param, ParamId};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};

use crate::{DefaultOptions, DefaultUpdate, Evaluation, Form};

impl DefaultOptions {
    /// Vectors of zeros for `num_experts` experts of width `d_model`.
    ///
    /// # Panics
    ///
    /// Panics unless `0 <= beta < 1`.
    pub fn init<B: Backend>(&self, num_experts: usize, d_model: usize, device: &B::Device) -> DefaultVectors<B> {
        assert!((0.0..1.0).contains(&self.beta), "DefaultOptions: beta = {} must be in 0.0..1.0", self.beta);
        let zeros = Tensor::<B, 2>::zeros([num_experts, d_model], (device, state_dtype::<B>(device)));
        DefaultVectors {
            values: Param::initialized(ParamId::new(), zeros.set_require_grad(false)),
            options: self.clone(),
            measuring: false,
        }
    }
}

/// f32 whatever the activations are: at `beta = 0.999` bf16 would lose the increments \[D\]. f64 on a backend of f64.
fn state_dtype<B: Backend>(device: &B::Device) -> DType {
    let default = Tensor::<B, 1>::empty([1], device).dtype();
    if default == DType::F64 { DType::F64 } else { DType::F32 }
}

/// Running averages of the experts' outputs, `Ehat`. Created by [`DefaultOptions::init`].
///
/// They are a parameter without a gradient: saved, loaded and moved with the module, visited by its visitors, left alone
/// by an optimizer. Nothing writes them but [`absorb`](Self::absorb).
#[derive(Module, Debug)]
pub struct DefaultVectors<B: Backend> {
    /// `Ehat`, `[E, D]`, f32 (f64 on a backend of f64), zero at the start, no bias correction \[C\].
    pub values: Param<Tensor<B, 2>>,
    #[module(skip)]
    options: DefaultOptions,
    measuring: bool,
}

impl<B: Backend> DefaultVectors<B> {
    /// How they are updated and used.
    pub fn options(&self) -> &DefaultOptions {
        &self.options
    }

    /// The same vectors, evaluated in another way: nothing is trained anew.
    pub fn with_evaluation(mut self, evaluation: Evaluation) -> Self {
        self.options.evaluation = evaluation;
        self
    }

    /// The same vectors, used in another form.
    pub fn with_form(mut self, form: Form) -> Self {
        self.options.form = form;
        self
    }

    /// Whether a pass also measures [`DefaultMoeOutput::energy`](crate::DefaultMoeOutput::energy).
    pub fn with_measuring(mut self, measuring: bool) -> Self {
        self.measuring = measuring;
        self
    }

    pub(crate) fn is_measuring(&self) -> bool {
        self.measuring
    }

    /// The vectors after `update`, which do not become those of the module: `beta * Ehat + (1 - beta) * m`, and unchanged
    /// where an expert served no token \[D\].
    ///
    /// # Shapes
    ///
    /// - output: `[E, D]`
    ///
    /// # Panics
    ///
    /// Panics when the update is of another shape.
    pub fn updated(&self, update: &DefaultUpdate<B>) -> Tensor<B, 2> {
        let (old, beta) = (self.constant(), self.options.beta);
        let [num_experts, _] = old.dims();
        assert_eq!(update.sums.dims(), old.dims(), "DefaultVectors: the update must be [E, D], as the vectors are");
        assert_eq!(update.weights.dims(), [num_experts], "DefaultVectors: the divisors of the update must be [E]");
        let idle: Tensor<B, 2> = update.weights.clone().unsqueeze_dim(1);
        let idle = idle.lower_equal_elem(0.0).expand(old.dims());
        let moved = old.clone() * beta + update.means().cast(old.dtype()) * (1.0 - beta);
        moved.mask_where(idle, old)
    }

    /// Makes the vectors those after `update`: once per training step, with the updates of all its micro-batches,
    /// devices and ranks merged.
    ///
    /// # Panics
    ///
    /// Panics when the update is of another shape.
    pub fn absorb(&mut self, update: &DefaultUpdate<B>) {
        let values = self.updated(update).set_require_grad(false);
        self.values = self.values.clone().map(|_| values);
    }

    /// The vectors as a constant for autodiff, also when somebody has asked all parameters for gradients.
    pub(crate) fn constant(&self) -> Tensor<B, 2> {
        self.values.val().set_require_grad(false)
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::{Autodiff, Flex};
    use burn::optim::{AdamWConfig, GradientsParams, Optimizer};
    use burn::record::{BinBytesRecorder, FullPrecisionSettings, Recorder};
    use burn::tensor::Tolerance;

    use super::*;

    type AD = Autodiff<Flex>;

    /// Relative, f32.
    const TOLERANCE: f32 = 1e-6;

    fn vectors<B: Backend>(beta: f64) -> DefaultVectors<B> {
        DefaultOptions::new().with_beta(beta).init(3, 2, &Default::default())
    }

    fn update<B: Backend>(sums: [[f32; 2]; 3], weights: [f32; 3]) -> DefaultUpdate<B> {
        let device = Default::default();
        DefaultUpdate { sums: Tensor::from_data(sums, &device), weights: Tensor::from_data(weights, &device) }
    }

    fn some<B: Backend>() -> DefaultUpdate<B> {
        update([[2.0, 4.0], [3.0, -6.0], [0.0, 0.0]], [2.0, 3.0, 0.0])
    }

    #[test]
    fn they_start_at_zero_without_bias_correction() {
        let mut vectors = vectors::<Flex>(0.75);
        vectors.values.to_data().assert_eq(&[[0.0; 2]; 3].into(), false);
        vectors.absorb(&some());
        vectors.values.to_data().assert_eq(&[[0.25, 0.5], [0.25, -0.5], [0.0, 0.0]].into(), false);
    }

    #[test]
    fn an_expert_without_tokens_keeps_its_average_bit_for_bit() {
        let mut vectors = vectors::<Flex>(0.9);
        vectors.absorb(&update([[0.1, 0.7], [0.3, 0.3], [0.9, 0.1]], [0.3, 0.7, 0.1]));
        let before = vectors.values.to_data();
        vectors.absorb(&update([[0.0; 2]; 3], [0.0; 3]));
        vectors.values.to_data().assert_eq(&before, true);
    }

    #[test]
    fn updated_changes_nothing() {
        let vectors = vectors::<Flex>(0.5);
        let after = vectors.updated(&some()).into_data();
        vectors.values.to_data().assert_eq(&[[0.0; 2]; 3].into(), false);
        after.assert_eq(&[[0.5, 1.0], [0.5, -1.0], [0.0, 0.0]].into(), false);
    }

    #[test]
    fn increments_survive_a_beta_close_to_one() {
        // bf16 would stay at 1 for ever: its neighbours are 0.996 and 1.008.
        let mut vectors = vectors::<Flex>(0.999);
        vectors.values = vectors.values.map(|v| v.ones_like());
        vectors.absorb(&update([[2.0, 2.0]; 3], [1.0; 3]));
        vectors.values.to_data().assert_approx_eq::<f32>(&[[1.001f32; 2]; 3].into(), Tolerance::relative(TOLERANCE));
    }

    #[test]
    fn a_record_keeps_every_bit_and_no_gradient_is_asked_for() {
        let mut trained = vectors::<AD>(0.9);
        trained.absorb(&some());
        let recorder = BinBytesRecorder::<FullPrecisionSettings>::default();
        let bytes = Recorder::<AD>::record(&recorder, trained.clone().into_record(), ()).expect("a record");
        let record = Recorder::<AD>::load(&recorder, bytes, &Default::default()).expect("its bytes");
        let loaded = vectors::<AD>(0.9).load_record(record);
        loaded.values.to_data().assert_eq(&trained.values.to_data(), true);
        assert!(!loaded.values.is_require_grad() && !trained.values.is_require_grad());
    }

    #[test]
    fn an_optimizer_leaves_them_alone() {
        let mut trained = vectors::<AD>(0.9);
        trained.absorb(&some());
        let before = trained.values.to_data();
        let mut optimizer = AdamWConfig::new().with_weight_decay(0.5).init();
        let loss = trained.values.val().sum() + Tensor::<AD, 1>::ones([1], &Default::default()).require_grad();
        let grads = GradientsParams::from_grads(loss.backward(), &trained);
        let after: DefaultVectors<AD> = optimizer.step(0.1, trained, grads);
        after.values.to_data().assert_eq(&before, true);
    }

    #[test]
    fn they_fork_with_the_module_and_then_are_its_own() {
        let mut trained = vectors::<AD>(0.9);
        let other = trained.clone().fork(&Default::default());
        trained.absorb(&some());
        other.values.to_data().assert_eq(&[[0.0; 2]; 3].into(), false);
    }

    #[test]
    #[should_panic(expected = "beta = 1 must be in 0.0..1.0")]
    fn vectors_that_never_move_panic() {
        vectors::<Flex>(1.0);
    }

    #[test]
    #[should_panic(expected = "must be [E, D]")]
    fn an_update_of_another_layer_panics() {
        vectors::<Flex>(0.9).absorb(&DefaultUpdate::empty([4, 2], DType::F32, &Default::default()));
    }

    #[test]
    #[should_panic(expected = "the divisors of the update must be [E]")]
    fn an_update_with_another_number_of_divisors_panics() {
        let weights = Tensor::ones([1], &Default::default());
        vectors::<Flex>(0.9).absorb(&DefaultUpdate { weights, ..some() });
    }

    #[test]
    #[should_panic(expected = "beta = -0.5 must be in 0.0..1.0")]
    fn vectors_with_a_negative_beta_panic() {
        vectors::<Flex>(-0.5);
    }
}
