//! Dispatch and combine on tensors of the CPU backends.

use burn::tensor::TensorMetadata;
use burn::tensor::ops::FloatTensor;

use super::{HostBackend, HostTensor, all_f32};
use crate::{ExpertPlan, cpu, portable};

pub(in crate::backends) fn dispatch<B: HostBackend>(tokens: FloatTensor<B>, plan: &ExpertPlan<B>) -> FloatTensor<B> {
    if !all_f32::<B>(&[&tokens]) {
        return portable::dispatch::<B>(tokens, plan);
    }
    let ([_, width], tokens) = (tokens.shape().dims(), tokens.contiguous());
    matrix::<B>(cpu::dispatch(&plan.on_host(), tokens.values(), width), width)
}

pub(in crate::backends) fn dispatch_backward<B: HostBackend>(
    grad: FloatTensor<B>,
    plan: &ExpertPlan<B>,
) -> FloatTensor<B> {
    if !all_f32::<B>(&[&grad]) {
        return portable::dispatch_backward::<B>(grad, plan);
    }
    let ([_, width], grad) = (grad.shape().dims(), grad.contiguous());
    matrix::<B>(cpu::combine(&plan.on_host(), grad.values(), None, plan.top_k(), width), width)
}

pub(in crate::backends) fn combine<B: HostBackend>(
    rows: FloatTensor<B>,
    gates: FloatTensor<B>,
    plan: &ExpertPlan<B>,
) -> FloatTensor<B> {
    if !all_f32::<B>(&[&rows, &gates]) {
        return portable::combine::<B>(rows, gates, plan);
    }
    let ([_, width], rows, gates) = (rows.shape().dims(), rows.contiguous(), gates.contiguous());
    matrix::<B>(cpu::combine(&plan.on_host(), rows.values(), Some(gates.values()), plan.top_k(), width), width)
}

pub(in crate::backends) fn combine_backward_rows<B: HostBackend>(
    grad: FloatTensor<B>,
    gates: FloatTensor<B>,
    plan: &ExpertPlan<B>,
) -> FloatTensor<B> {
    if !all_f32::<B>(&[&grad, &gates]) {
        return portable::combine_backward_rows::<B>(grad, gates, plan);
    }
    let ([_, width], grad, gates) = (grad.shape().dims(), grad.contiguous(), gates.contiguous());
    matrix::<B>(cpu::combine_backward_rows(&plan.on_host(), grad.values(), gates.values(), width), width)
}

pub(in crate::backends) fn combine_backward_gates<B: HostBackend>(
    grad: FloatTensor<B>,
    rows: FloatTensor<B>,
    plan: &ExpertPlan<B>,
) -> FloatTensor<B> {
    if !all_f32::<B>(&[&grad, &rows]) {
        return portable::combine_backward_gates::<B>(grad, rows, plan);
    }
    let ([_, width], grad, rows) = (grad.shape().dims(), grad.contiguous(), rows.contiguous());
    matrix::<B>(cpu::combine_backward_gates(&plan.on_host(), grad.values(), rows.values(), width), plan.top_k())
}

/// Rows of `width` numbers.
fn matrix<B: HostBackend>(values: Vec<f32>, width: usize) -> FloatTensor<B> {
    let rows = values.len() / width;
    HostTensor::from_values(values, [rows, width].into())
}
