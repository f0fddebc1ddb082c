//! The optimizer's arithmetic, in the order of burn's own AdamW.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;

use super::{unwrap, wrap};
use crate::{AdamWStep, RunScale};

pub(crate) fn adamw_step<B: Backend>(
    param: FloatTensor<B>,
    grad: FloatTensor<B>,
    [first, second]: [FloatTensor<B>; 2],
    step: &AdamWStep,
    scale: Option<RunScale<FloatTensor<B>>>,
) -> [FloatTensor<B>; 3] {
    let grad = wrap::<B, 1>(grad);
    let grad = if step.grad_factor == 1.0 { grad } else { grad.mul_scalar(step.grad_factor) };
    let first = wrap::<B, 1>(first).mul_scalar(step.beta_1) + grad.clone().mul_scalar(1.0 - step.beta_1);
    let second = wrap::<B, 1>(second).mul_scalar(step.beta_2) + grad.square().mul_scalar(1.0 - step.beta_2);

    let [correction_1, correction_2] = step.corrections();
    let root = second.clone().div_scalar(correction_2).sqrt().add_scalar(step.epsilon);
    let delta = first.clone().div_scalar(correction_1) / root;
    let new = |param: Tensor<B, 1>| param.mul_scalar(step.decay()) - delta.mul_scalar(step.lr);
    let param = wrap::<B, 1>(param);
    let param = match scale {
        None => new(param),
        Some(scale) => {
            let old = if scale.spares_decay { param.clone().mul_scalar(step.decay()) } else { param.clone() };
            keep(old, new(param), scale)
        }
    };
    [param, first, second].map(unwrap)
}

/// `new + (old - new) * (1 - factor)`: the part of the change that each run keeps, all of it bit for bit where the factor is 1.
fn keep<B: Backend>(old: Tensor<B, 1>, new: Tensor<B, 1>, scale: RunScale<FloatTensor<B>>) -> Tensor<B, 1> {
    let (factors, run) = (wrap::<B, 1>(scale.factors), scale.run);
    let ([count], [num_experts]) = (old.dims(), factors.dims());
    let [old, new] = [old, new].map(|x| x.reshape([count / (num_experts * run), num_experts, run]));
    let missing = factors.neg().add_scalar(1.0).reshape([1, num_experts, 1]);
    let undone = (old - new.clone()) * missing;
    (new + undone).reshape([count])
}

pub(crate) fn sum_of_squares<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    unwrap(wrap::<B, 1>(x).square().sum())
}
