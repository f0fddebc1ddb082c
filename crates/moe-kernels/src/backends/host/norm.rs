//! Normalisation of rows on tensors of the CPU backends.

use burn::tensor::TensorMetadata;
use burn::tensor::backend::BackendTypes;

use super::{HostBackend, HostTensor, all_f32};
use crate::cpu::{self, NormSpec};
use crate::portable;

type Float<B> = <B as BackendTypes>::FloatTensorPrimitive;

pub(in crate::backends) fn norm<B: HostBackend>(
    x: Float<B>,
    gamma: Float<B>,
    beta: Option<Float<B>>,
    epsilon: f64,
) -> Float<B> {
    if !all_f32::<B>(&[&x, &gamma, beta.as_ref().unwrap_or(&gamma)]) {
        return portable::norm::<B>(x, gamma, beta, epsilon);
    }
    let (shape, x, gamma) = (x.shape(), x.contiguous(), gamma.contiguous());
    let beta = beta.map(HostTensor::contiguous);
    let beta = beta.as_ref().map(HostTensor::values);
    let spec = NormSpec { gamma: gamma.values(), beta, epsilon: epsilon as f32 };
    HostTensor::from_values(cpu::norm(x.values(), spec), shape)
}

pub(in crate::backends) fn norm_backward<B: HostBackend>(
    x: Float<B>,
    gamma: Float<B>,
    center: bool,
    epsilon: f64,
    grad: Float<B>,
) -> [Float<B>; 3] {
    if !all_f32::<B>(&[&x, &gamma, &grad]) {
        return portable::norm_backward::<B>(x, gamma, center, epsilon, grad);
    }
    let (shape, x, gamma, grad) = (x.shape(), x.contiguous(), gamma.contiguous(), grad.contiguous());
    let gain = gamma.values();
    // The values of a shift have no part in any gradient.
    let spec = NormSpec { gamma: gain, beta: center.then_some(gain), epsilon: epsilon as f32 };
    let (dx, mut dgamma) = cpu::norm_backward(x.values(), spec, grad.values());
    let dbeta = dgamma.split_off(gain.len());
    let channels = |values: Vec<f32>| Float::<B>::from_values(values, gamma.shape());
    [HostTensor::from_values(dx, shape), channels(dgamma), channels(dbeta)]
}
