//! Grouped matrix products on tensors of the CPU backends.

use burn::tensor::TensorMetadata;
use burn::tensor::ops::FloatTensor;

use super::{HostBackend, HostTensor, all_f32};
use crate::{ExpertPlan, cpu, portable};

pub(in crate::backends) fn matmul<B: HostBackend>(
    rows: FloatTensor<B>,
    weight: FloatTensor<B>,
    plan: &ExpertPlan<B>,
    transposed: bool,
) -> FloatTensor<B> {
    if !all_f32::<B>(&[&rows, &weight]) {
        return portable::grouped_matmul::<B>(rows, weight, plan, transposed);
    }
    let [_, height, width] = weight.shape().dims();
    let [d_in, d_out] = if transposed { [width, height] } else { [height, width] };
    let (rows, weight, plan) = (rows.contiguous(), weight.contiguous(), plan.on_host());
    let output = cpu::grouped_matmul(&plan, rows.values(), weight.values(), [d_in, d_out], transposed);
    HostTensor::from_values(output, [plan.num_rows(), d_out].into())
}

pub(in crate::backends) fn outer<B: HostBackend>(
    lhs: FloatTensor<B>,
    rhs: FloatTensor<B>,
    plan: &ExpertPlan<B>,
) -> FloatTensor<B> {
    if !all_f32::<B>(&[&lhs, &rhs]) {
        return portable::grouped_outer::<B>(lhs, rhs, plan);
    }
    let ([_, d_in], [_, d_out]) = (lhs.shape().dims::<2>(), rhs.shape().dims::<2>());
    let (lhs, rhs, plan) = (lhs.contiguous(), rhs.contiguous(), plan.on_host());
    let output = cpu::grouped_outer(&plan, lhs.values(), rhs.values(), [d_in, d_out]);
    HostTensor::from_values(output, [plan.num_experts(), d_in, d_out].into())
}
