//! Bodies made of burn's own ops, right on every backend: what a faster implementation falls back to.

mod activation;
mod attention;
mod expert_ffn;
mod expert_sums;
mod grouped;
mod linear;
mod norm;
mod optim;
mod reduce;
mod rotary;
mod routing;
mod rows;
mod softmax;

pub(crate) use activation::*;
pub(crate) use attention::*;
pub(crate) use expert_ffn::*;
pub(crate) use expert_sums::*;
pub(crate) use grouped::*;
pub(crate) use linear::*;
pub(crate) use norm::*;
pub(crate) use optim::*;
pub(crate) use reduce::*;
pub(crate) use rotary::*;
pub(crate) use routing::*;
pub(crate) use rows::*;
pub(crate) use softmax::*;

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor, TensorData, TensorPrimitive};

use crate::MoeBackend;

/// Zeros; those of an empty shape are no operation: CUDA refuses a kernel of no blocks, and Fusion may put it into one kernel with others, that
/// then runs for nobody.
pub(crate) fn zeros<B: Backend, const D: usize>(shape: [usize; D], device: &B::Device, dtype: DType) -> Tensor<B, D> {
    match shape.contains(&0) {
        true => Tensor::from_data(TensorData::zeros::<f32, _>(shape), (device, dtype)),
        false => Tensor::zeros(shape, (device, dtype)),
    }
}

pub(crate) fn wrap<B: Backend, const D: usize>(primitive: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

pub(crate) fn unwrap<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> FloatTensor<B> {
    tensor.into_primitive().tensor()
}

/// See [`MoeBackend::moe_matmul`].
fn matmul<B: MoeBackend, const D: usize>(lhs: Tensor<B, D>, rhs: Tensor<B, D>) -> Tensor<B, D> {
    wrap(B::moe_matmul(unwrap(lhs), unwrap(rhs)))
}

/// What numbers of `dtype` are summed in: f32, or f64 for f64.
fn accumulator(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}
