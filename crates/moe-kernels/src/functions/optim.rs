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

/// Scales what a step changed, slice by slice: `new + (old - new) * (1 - factor)`, which is `old + factor * (new - old)` written so
/// that a factor of 1 leaves `new` as it is, bit for bit.
///
/// On a CPU backend one pass over memory, in place where nobody else holds `new`. Without gradient: for the inner backend of an
/// autodiff one.
///
/// # Shapes
///
/// - old, new: the same, of any rank
/// - factors: `[E]`, one for each slice along `axis`, or `[1]`, for all of it
///
/// # Panics
///
/// Panics when shapes or dtypes differ, there is no such axis, or it has another length than `factors`.
pub fn scale_change<B: MoeBackend, const D: usize>(
    old: Tensor<B, D>,
    new: Tensor<B, D>,
    factors: Tensor<B, 1>,
    axis: usize,
) -> Tensor<B, D> {
    let (shape, [count]) = (new.shape(), factors.dims());
    assert_eq!(old.shape(), shape, "scale_change: old and new must have one shape");
    assert!(axis < D, "scale_change: there is no axis {axis} in {D} dimensions");
    assert!(count == 1 || count == shape[axis], "scale_change: {count} factors for an axis of {}", shape[axis]);
    let dtypes = [old.dtype(), factors.dtype()];
    assert_eq!(dtypes, [new.dtype(); 2], "scale_change: old, factors and new must have one dtype");
    let numbers = shape.num_elements();
    if numbers == 0 {
        return new;
    }
    let run = if count == 1 { numbers } else { shape.iter().skip(axis + 1).product() };
    let scaled = B::moe_scale_change(primitive(flat(old)), primitive(flat(new)), primitive(factors), run);
    tensor::<B, 1>(scaled).reshape(shape)
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
