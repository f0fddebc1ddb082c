//! The optimizer's passes on tensors of the CPU backends.

use burn::tensor::TensorMetadata;
use burn::tensor::backend::BackendTypes;

use super::{HostBackend, HostTensor, all_f32};
use crate::{AdamWStep, cpu, portable};

type Float<B> = <B as BackendTypes>::FloatTensorPrimitive;

pub(in crate::backends) fn adamw_step<B: HostBackend>(
    param: Float<B>,
    grad: Float<B>,
    moments: [Float<B>; 2],
    step: &AdamWStep,
) -> [Float<B>; 3] {
    let [first, second] = moments;
    if !all_f32::<B>(&[&param, &grad, &first, &second]) {
        return portable::adamw_step::<B>(param, grad, [first, second], step);
    }
    let grad = grad.contiguous();
    let [mut param, mut first, mut second] = [param, first, second].map(HostTensor::contiguous);
    cpu::adamw(param.values_mut(), grad.values(), [first.values_mut(), second.values_mut()], step);
    [param, first, second]
}

pub(in crate::backends) fn scale_change<B: HostBackend>(
    old: Float<B>,
    new: Float<B>,
    factors: Float<B>,
    run: usize,
) -> Float<B> {
    if !all_f32::<B>(&[&old, &new, &factors]) {
        return portable::scale_change::<B>(old, new, factors, run);
    }
    let [old, mut new, factors] = [old, new, factors].map(HostTensor::contiguous);
    cpu::scale_change(old.values(), new.values_mut(), factors.values(), run);
    new
}

pub(in crate::backends) fn sum_of_squares<B: HostBackend>(x: Float<B>) -> Float<B> {
    if !all_f32::<B>(&[&x]) {
        return portable::sum_of_squares::<B>(x);
    }
    let x = x.contiguous();
    debug_assert_eq!(x.shape().num_dims(), 1);
    HostTensor::from_values(vec![cpu::sum_of_squares(x.values()) as f32], [1].into())
}
