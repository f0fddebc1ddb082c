//! Bodies made of burn's own ops, right on every backend: what a faster implementation falls back to.

mod activation;
mod expert_ffn;
mod grouped;
mod routing;
mod rows;

pub(crate) use activation::*;
pub(crate) use expert_ffn::*;
pub(crate) use grouped::*;
pub(crate) use routing::*;
pub(crate) use rows::*;

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorPrimitive};

pub(crate) fn wrap<B: Backend, const D: usize>(primitive: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

pub(crate) fn unwrap<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> FloatTensor<B> {
    tensor.into_primitive().tensor()
}
