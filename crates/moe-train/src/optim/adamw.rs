//! AdamW with the whole update as one op.
//!
//! burn's own AdamW is a dozen passes over every parameter, each with a new tensor. This one has the same state, hence
//! the same records, and the same rounding; on a CPU backend it is one pass in place.

use burn::optim::{AdamWState, AdaptiveMomentumState, LearningRate, SimpleOptimizer};
use burn::tensor::Tensor;
use moe_kernels::{AdamWStep, ChangeScale, MoeBackend, adamw_step, adamw_step_scaled};

/// AdamW ([Loshchilov and Hutter, 2019](https://arxiv.org/abs/1711.05101)) without the variants of burn's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FusedAdamW {
    /// Decay of the first moment.
    pub beta_1: f32,
    /// Decay of the second moment.
    pub beta_2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Decoupled decay.
    pub weight_decay: f32,
}

impl<B: MoeBackend> SimpleOptimizer<B> for FusedAdamW {
    type State<const D: usize> = AdamWState<B, D>;

    fn step<const D: usize>(
        &self,
        lr: LearningRate,
        tensor: Tensor<B, D>,
        grad: Tensor<B, D>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<B, D>, Option<Self::State<D>>) {
        let (tensor, state) = self.step_scaled(lr, tensor, grad, state, None);
        (tensor, Some(state))
    }

    fn to_device<const D: usize>(mut state: Self::State<D>, device: &B::Device) -> Self::State<D> {
        state.momentum = state.momentum.to_device(device);
        state
    }
}

impl FusedAdamW {
    /// [`SimpleOptimizer::step`] of which the parameter keeps the part that `scale` says, slice by slice; all of it without one.
    pub(super) fn step_scaled<B: MoeBackend, const D: usize>(
        &self,
        lr: LearningRate,
        tensor: Tensor<B, D>,
        grad: Tensor<B, D>,
        state: Option<AdamWState<B, D>>,
        scale: Option<ChangeScale<B>>,
    ) -> (Tensor<B, D>, AdamWState<B, D>) {
        let AdaptiveMomentumState { time, moment_1, moment_2, .. } = match state {
            Some(state) => state.momentum,
            None => AdaptiveMomentumState::new(0, tensor.zeros_like(), tensor.zeros_like()),
        };
        let Self { beta_1, beta_2, epsilon, weight_decay } = *self;
        let step =
            AdamWStep { lr, beta_1, beta_2, epsilon, weight_decay, time: time.saturating_add(1), grad_factor: 1.0 };
        let moments = [moment_1, moment_2];
        let (tensor, [moment_1, moment_2]) = match scale {
            None => adamw_step(tensor, grad, moments, &step),
            Some(scale) => adamw_step_scaled(tensor, grad, moments, &step, scale),
        };
        (tensor, AdamWState::new(AdaptiveMomentumState::new(step.time, moment_1, moment_2)))
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::{Flex, NdArray};
    use burn::optim::AdamWConfig;
    use burn::tensor::{DType, Distribution};

    use super::*;

    const ADAMW: FusedAdamW = FusedAdamW { beta_1: 0.9, beta_2: 0.99, epsilon: 1e-8, weight_decay: 0.1 };
    const LR: f64 = 3e-2;

    /// Several steps of ours and of burn's from the same numbers.
    fn side_by_side<B: MoeBackend>(dtype: DType) {
        let device = Default::default();
        let random = || Tensor::<B, 2>::random([37, 19], Distribution::Normal(0.0, 1.0), &device).cast(dtype);
        let theirs = AdamWConfig::new().with_beta_1(0.9).with_beta_2(0.99).with_epsilon(1e-8).with_weight_decay(0.1);
        let theirs = theirs.build();
        let (mut ours, mut ours_state) = (random(), None);
        let (mut expected, mut expected_state) = (ours.clone(), None);
        for step in 1..=6 {
            let grad = random();
            (ours, ours_state) = SimpleOptimizer::<B>::step(&ADAMW, LR, ours, grad.clone(), ours_state);
            (expected, expected_state) = SimpleOptimizer::<B>::step(&theirs, LR, expected, grad, expected_state);
            assert_eq!(ours.to_data(), expected.to_data(), "step {step}");
            let [ours, expected] = [&ours_state, &expected_state].map(|state| {
                let momentum = &state.as_ref().expect("there is a state after a step").momentum;
                (momentum.time, momentum.moment_1.to_data(), momentum.moment_2.to_data())
            });
            assert_eq!(ours, expected, "moments of step {step}");
        }
    }

    #[test]
    fn parameters_and_moments_are_bit_equal_to_those_of_burn() {
        side_by_side::<Flex>(DType::F32);
        side_by_side::<NdArray>(DType::F32);
    }

    #[test]
    fn so_they_are_where_no_loop_of_our_own_exists() {
        side_by_side::<Flex>(DType::F64);
    }

    #[test]
    fn a_step_works_in_place_on_what_nobody_else_holds() {
        let device = Default::default();
        let ones = || Tensor::<Flex, 2>::ones([5, 7], &device);
        let place = |tensor: &Tensor<Flex, 2>| tensor.clone().into_primitive().tensor().bytes().as_ptr();
        let (param, state) = SimpleOptimizer::<Flex>::step(&ADAMW, LR, ones(), ones(), None);
        let before = place(&param);
        let (param, state) = SimpleOptimizer::<Flex>::step(&ADAMW, LR, param, ones(), state);
        assert_eq!(place(&param), before);

        let held = param.clone();
        let (param, _) = SimpleOptimizer::<Flex>::step(&ADAMW, LR, param, ones(), state);
        assert_ne!(place(&param), place(&held));
        assert_ne!(param.into_data(), held.into_data());
    }
}
