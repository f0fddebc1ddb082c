//! The ops on tensors: shapes are checked here, once, for every backend.

mod activation;
mod expert_ffn;
mod grouped;
mod routing;
mod rows;

pub use activation::{gelu, swiglu};
pub use expert_ffn::expert_ffn;
pub use grouped::grouped_matmul;
pub use routing::top_k;
pub use rows::{combine_rows, dispatch_rows};

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorPrimitive};

fn primitive<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> FloatTensor<B> {
    tensor.into_primitive().tensor()
}

fn tensor<B: Backend, const D: usize>(primitive: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}
