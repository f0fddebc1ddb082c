//! Softmax and its relatives on tensors of the CPU backends.

use burn::tensor::backend::BackendTypes;
use burn::tensor::{Int, Tensor, TensorMetadata};

use super::{HostBackend, HostTensor, all_f32};
use crate::{cpu, portable};

type Float<B> = <B as BackendTypes>::FloatTensorPrimitive;
type Ints<B> = <B as BackendTypes>::IntTensorPrimitive;

pub(in crate::backends) fn softmax<B: HostBackend>(x: Float<B>) -> Float<B> {
    if !all_f32::<B>(&[&x]) {
        return portable::softmax::<B>(x);
    }
    let ([_, width], mut x) = (x.shape().dims::<2>(), x.contiguous());
    cpu::softmax(x.values_mut(), width);
    x
}

pub(in crate::backends) fn softmax_backward<B: HostBackend>(output: Float<B>, grad: Float<B>) -> Float<B> {
    if !all_f32::<B>(&[&output, &grad]) {
        return portable::softmax_backward::<B>(output, grad);
    }
    let ([_, width], output, mut grad) = (output.shape().dims::<2>(), output.contiguous(), grad.contiguous());
    cpu::softmax_backward(output.values(), grad.values_mut(), width);
    grad
}

pub(in crate::backends) fn log_sum_exp<B: HostBackend>(x: Float<B>) -> Float<B> {
    if !all_f32::<B>(&[&x]) {
        return portable::log_sum_exp::<B>(x);
    }
    let ([rows, width], x) = (x.shape().dims::<2>(), x.contiguous());
    let mut output = vec![0.0; rows];
    cpu::log_sum_exp(x.values(), &mut output, width);
    HostTensor::from_values(output, [rows, 1].into())
}

pub(in crate::backends) fn log_sum_exp_backward<B: HostBackend>(x: Float<B>, grad: Float<B>) -> Float<B> {
    if !all_f32::<B>(&[&x, &grad]) {
        return portable::log_sum_exp_backward::<B>(x, grad);
    }
    let ([_, width], mut x, grad) = (x.shape().dims::<2>(), x.contiguous(), grad.contiguous());
    cpu::log_sum_exp_backward(x.values_mut(), grad.values(), width);
    x
}

pub(in crate::backends) fn cross_entropy<B: HostBackend>(logits: Float<B>, targets: Ints<B>) -> Float<B> {
    if !all_f32::<B>(&[&logits]) {
        return portable::cross_entropy::<B>(logits, targets);
    }
    let ([rows, width], logits) = (logits.shape().dims::<2>(), logits.contiguous());
    let mut output = vec![0.0; rows];
    cpu::cross_entropy(logits.values(), &indices::<B>(targets), &mut output, width);
    HostTensor::from_values(output, [rows].into())
}

pub(in crate::backends) fn cross_entropy_backward<B: HostBackend>(
    logits: Float<B>,
    targets: Ints<B>,
    grad: Float<B>,
) -> Float<B> {
    if !all_f32::<B>(&[&logits, &grad]) {
        return portable::cross_entropy_backward::<B>(logits, targets, grad);
    }
    let ([_, width], mut logits, grad) = (logits.shape().dims::<2>(), logits.contiguous(), grad.contiguous());
    cpu::cross_entropy_backward(logits.values_mut(), &indices::<B>(targets), grad.values(), width);
    logits
}

fn indices<B: HostBackend>(targets: Ints<B>) -> Vec<usize> {
    Tensor::<B, 1, Int>::from_primitive(targets).into_data().iter::<i64>().map(|target| target as usize).collect()
}
