//! Gradients of the product of rows with one matrix.

use burn::tensor::ops::FloatTensor;

use crate::MoeBackend;

pub(crate) fn linear_backward_x<B: MoeBackend>(grad: FloatTensor<B>, weight: FloatTensor<B>) -> FloatTensor<B> {
    B::moe_matmul(grad, B::float_transpose(weight))
}

pub(crate) fn linear_backward_weight<B: MoeBackend>(x: FloatTensor<B>, grad: FloatTensor<B>) -> FloatTensor<B> {
    B::moe_matmul(B::float_transpose(x), grad)
}
