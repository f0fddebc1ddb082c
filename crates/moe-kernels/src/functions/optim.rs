//! What an optimizer does to every parameter.

use burn::tensor::Tensor;
use burn::tensor::ops::FloatTensor;

use super::{check_dtypes, primitive, tensor};
use crate::{AdamWStep, ChangeScale, MoeBackend, RunScale};

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
    stepped(param, grad, moments, step, None)
}

/// [`adamw_step`] of which each slice keeps its factor's part: `old + factor * (new - old)`. The moments are those of the whole step, and
/// a factor of 1 gives the same bits.
///
/// On a CPU backend it is the same single pass. Without gradient: for the inner backend of an autodiff one.
///
/// # Shapes
///
/// - param, grad, moments: the same, of any rank
///
/// # Panics
///
/// As [`adamw_step`], and when the factors are neither one nor one for each slice along an axis that exists, or of another dtype than `param`.
pub fn adamw_step_scaled<B: MoeBackend, const D: usize>(
    param: Tensor<B, D>,
    grad: Tensor<B, D>,
    moments: [Tensor<B, D>; 2],
    step: &AdamWStep,
    scale: ChangeScale<B>,
) -> (Tensor<B, D>, [Tensor<B, D>; 2]) {
    let ChangeScale { factors, axis, spares_decay } = scale;
    let (shape, [count]) = (param.shape(), factors.dims());
    assert!(axis < D, "adamw_step_scaled: there is no axis {axis} in {D} dimensions");
    assert!(count == 1 || count == shape[axis], "adamw_step_scaled: {count} factors for an axis of {}", shape[axis]);
    check_dtypes("adamw_step_scaled: parameter and factors", [param.dtype(), factors.dtype()]);
    let numbers = shape.num_elements();
    let run = if count == 1 { numbers } else { shape.iter().skip(axis + 1).product() };
    // Of nothing no run can be taken.
    let scale = (numbers > 0).then(|| RunScale { factors: primitive(factors), run, spares_decay });
    stepped(param, grad, moments, step, scale)
}

fn stepped<B: MoeBackend, const D: usize>(
    param: Tensor<B, D>,
    grad: Tensor<B, D>,
    moments: [Tensor<B, D>; 2],
    step: &AdamWStep,
    scale: Option<RunScale<FloatTensor<B>>>,
) -> (Tensor<B, D>, [Tensor<B, D>; 2]) {
    let shape = param.shape();
    for tensor in [&grad, &moments[0], &moments[1]] {
        assert_eq!(tensor.shape(), shape, "adamw_step: parameter, gradient and moments must have one shape");
    }
    assert!(step.time > 0, "adamw_step: steps are counted from 1");
    let moments = moments.map(|moment| primitive(flat(moment)));
    let stepped = B::moe_adamw_step(primitive(flat(param)), primitive(flat(grad)), moments, step, scale);
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
