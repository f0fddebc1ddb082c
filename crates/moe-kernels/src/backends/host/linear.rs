//! The product of rows with one matrix on tensors of the CPU backends.

use burn::tensor::TensorMetadata;
use burn::tensor::ops::FloatTensor;

use super::{HostBackend, HostTensor, all_f32};
use crate::cpu::{Mat, add_product, product};
use crate::portable;

pub(in crate::backends) fn linear<B: HostBackend>(x: FloatTensor<B>, weight: FloatTensor<B>) -> FloatTensor<B> {
    if !all_f32::<B>(&[&x, &weight]) {
        return B::float_matmul(x, weight);
    }
    let ([rows, d_in], [_, d_out]) = (x.shape().dims(), weight.shape().dims());
    let (x, weight) = (x.contiguous(), weight.contiguous());
    let values = product(Mat::new(x.values(), rows, d_in), Mat::new(weight.values(), d_in, d_out));
    HostTensor::from_values(values, [rows, d_out].into())
}

pub(in crate::backends) fn linear_onto<B: HostBackend>(
    base: FloatTensor<B>,
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
) -> FloatTensor<B> {
    if !all_f32::<B>(&[&base, &x, &weight]) {
        return B::float_add(base, B::moe_linear(x, weight));
    }
    let ([rows, d_in], [_, d_out]) = (x.shape().dims(), weight.shape().dims());
    let (mut base, x, weight) = (base.contiguous(), x.contiguous(), weight.contiguous());
    add_product(base.values_mut(), Mat::new(x.values(), rows, d_in), Mat::new(weight.values(), d_in, d_out));
    base
}

pub(in crate::backends) fn backward_x<B: HostBackend>(grad: FloatTensor<B>, weight: FloatTensor<B>) -> FloatTensor<B> {
    if !all_f32::<B>(&[&grad, &weight]) {
        return portable::linear_backward_x::<B>(grad, weight);
    }
    let ([rows, d_out], [d_in, _]) = (grad.shape().dims(), weight.shape().dims());
    let (grad, weight) = (grad.contiguous(), weight.contiguous());
    let values = product(Mat::new(grad.values(), rows, d_out), Mat::new(weight.values(), d_in, d_out).t());
    HostTensor::from_values(values, [rows, d_in].into())
}

pub(in crate::backends) fn backward_weight<B: HostBackend>(x: FloatTensor<B>, grad: FloatTensor<B>) -> FloatTensor<B> {
    if !all_f32::<B>(&[&x, &grad]) {
        return portable::linear_backward_weight::<B>(x, grad);
    }
    let ([rows, d_in], [_, d_out]) = (x.shape().dims(), grad.shape().dims());
    let (x, grad) = (x.contiguous(), grad.contiguous());
    let values = product(Mat::new(x.values(), rows, d_in).t(), Mat::new(grad.values(), rows, d_out));
    HostTensor::from_values(values, [d_in, d_out].into())
}
