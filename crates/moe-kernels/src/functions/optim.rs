//! What an optimizer does to every parameter.

use burn::tensor::Tensor;

use super::{primitive, tensor};
use crate::{AdamWStep, MoeBackend};

/// One step of AdamW; returns the new parameter and its moments `[first, second]`, which start at zero.
///
/// On a CPU backend one pass over memory, in place where nobody else holds a tensor. Without gradient: for the inner
/// backend of an autodiff one.
///
/// # Shapes
///
/// - all tensors: the same, of any rank
///
/// # Panics
///
/// Panics when shapes differ or `time` is 0.
pub fn adamw_step<B: MoeBackend, const D: usize>(
    param: Tensor<B, D>,
    grad: Tensor<B, D>,
    moments: [Tensor<B, D>; 2],
    step: &AdamWStep,
) -> (Tensor<B, D>, [Tensor<B, D>; 2]) {
    let shape = param.shape();
    for tensor in [&grad, &moments[0], &moments[1]] {
        assert_eq!(tensor.shape(), shape, "adamw_step: parameter, gradient and moments must have one shape");
    }
    assert!(step.time > 0, "adamw_step: steps are counted from 1");
    let moments = moments.map(|moment| primitive(flat(moment)));
    let stepped = B::moe_adamw_step(primitive(flat(param)), primitive(flat(grad)), moments, step);
    let [param, first, second] = stepped.map(|stepped| tensor::<B, 1>(stepped).reshape(shape.clone()));
    (param, [first, second])
}

/// The sum of the squares of all numbers, in the dtype of `x`.
///
/// # Shapes
///
/// - x: any
/// - output: `[1]`
pub fn sum_of_squares<B: MoeBackend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, 1> {
    tensor(B::moe_sum_of_squares(primitive(flat(x))))
}

fn flat<B: MoeBackend, const D: usize>(tensor: Tensor<B, D>) -> Tensor<B, 1> {
    let count = tensor.shape().num_elements();
    tensor.reshape([count])
}
