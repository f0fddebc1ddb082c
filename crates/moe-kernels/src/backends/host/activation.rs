//! SwiGLU and GELU on tensors of the CPU backends.

use burn::tensor::TensorMetadata;

use super::{HostBackend, HostTensor, all_f32};
use crate::{cpu, portable};

pub(in crate::backends) fn swiglu<B: HostBackend>(input: B::FloatTensorPrimitive) -> B::FloatTensorPrimitive {
    if !all_f32::<B>(&[&input]) {
        return portable::swiglu::<B>(input);
    }
    let ([rows, width], input) = (input.shape().dims::<2>(), input.contiguous());
    let mut output = vec![0.0; rows * width / 2];
    if !output.is_empty() {
        cpu::swiglu(input.values(), &mut output, width / 2);
    }
    HostTensor::from_values(output, [rows, width / 2].into())
}

pub(in crate::backends) fn swiglu_backward<B: HostBackend>(
    input: B::FloatTensorPrimitive,
    grad: B::FloatTensorPrimitive,
) -> B::FloatTensorPrimitive {
    if !all_f32::<B>(&[&input, &grad]) {
        return portable::swiglu_backward::<B>(input, grad);
    }
    let ([rows, width], input, grad) = (input.shape().dims::<2>(), input.contiguous(), grad.contiguous());
    let mut output = vec![0.0; rows * width];
    if !output.is_empty() {
        cpu::swiglu_backward(input.values(), grad.values(), &mut output, width / 2);
    }
    HostTensor::from_values(output, [rows, width].into())
}

pub(in crate::backends) fn gelu<B: HostBackend>(input: B::FloatTensorPrimitive) -> B::FloatTensorPrimitive {
    if !all_f32::<B>(&[&input]) {
        return portable::gelu::<B>(input);
    }
    let (shape, input) = (input.shape(), input.contiguous());
    let mut output = vec![0.0; shape.num_elements()];
    cpu::gelu(input.values(), &mut output);
    HostTensor::from_values(output, shape)
}

pub(in crate::backends) fn gelu_backward<B: HostBackend>(
    input: B::FloatTensorPrimitive,
    grad: B::FloatTensorPrimitive,
) -> B::FloatTensorPrimitive {
    if !all_f32::<B>(&[&input, &grad]) {
        return portable::gelu_backward::<B>(input, grad);
    }
    let (shape, input, grad) = (input.shape(), input.contiguous(), grad.contiguous());
    let mut output = vec![0.0; shape.num_elements()];
    cpu::gelu_backward(input.values(), grad.values(), &mut output);
    HostTensor::from_values(output, shape)
}
