//! The optimizer's passes on tensors of the CPU backends.

use burn::tensor::TensorMetadata;
use burn::tensor::backend::BackendTypes;

use super::{HostBackend, HostTensor, all_f32};
use crate::{AdamWStep, RunScale, cpu, portable};

type Float<B> = <B as BackendTypes>::FloatTensorPrimitive;

pub(in crate::backends) fn adamw_step<B: HostBackend>(
    param: Float<B>,
    grad: Float<B>,
    moments: [Float<B>; 2],
    step: &AdamWStep,
    scale: Option<RunScale<Float<B>>>,
) -> [Float<B>; 3] {
    let [first, second] = moments;
    let is_f32 = scale.as_ref().is_none_or(|scale| all_f32::<B>(&[&scale.factors]));
    if !is_f32 || !all_f32::<B>(&[&param, &grad, &first, &second]) {
        return portable::adamw_step::<B>(param, grad, [first, second], step, scale);
    }
    let grad = grad.contiguous();
    let [mut param, mut first, mut second] = [param, first, second].map(HostTensor::contiguous);
    let scale = scale.map(|RunScale { factors, run, spares_decay }| RunScale {
        factors: factors.contiguous(),
        run,
        spares_decay,
    });
    let scale = scale.as_ref().map(|scale| RunScale {
        factors: scale.factors.values(),
        run: scale.run,
        spares_decay: scale.spares_decay,
    });
    cpu::adamw(param.values_mut(), grad.values(), [first.values_mut(), second.values_mut()], step, scale);
    [param, first, second]
}

pub(in crate::backends) fn sum_of_squares<B: HostBackend>(x: Float<B>) -> Float<B> {
    if !all_f32::<B>(&[&x]) {
        return portable::sum_of_squares::<B>(x);
    }
    let x = x.contiguous();
    debug_assert_eq!(x.shape().num_dims(), 1);
    HostTensor::from_values(vec![cpu::sum_of_squares(x.values()) as f32], [1].into())
}
