//! Gradients of the product of rows with one matrix.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;

pub(crate) fn linear_backward_x<B: Backend>(grad: FloatTensor<B>, weight: FloatTensor<B>) -> FloatTensor<B> {
    B::float_matmul(grad, B::float_transpose(weight))
}

pub(crate) fn linear_backward_weight<B: Backend>(x: FloatTensor<B>, grad: FloatTensor<B>) -> FloatTensor<B> {
    B::float_matmul(B::float_transpose(x), grad)
}
