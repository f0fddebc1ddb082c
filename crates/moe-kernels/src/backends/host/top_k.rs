//! Top-K on tensors of the CPU backends.

use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{Int, Tensor, TensorData, TensorMetadata};

use super::{HostBackend, HostTensor, all_f32};
use crate::{cpu, portable};

pub(in crate::backends) fn indices<B: HostBackend>(scores: FloatTensor<B>, k: usize) -> IntTensor<B> {
    if !all_f32::<B>(&[&scores]) {
        return portable::top_k_indices::<B>(scores, k);
    }
    let [num_tokens, num_experts] = scores.shape().dims();
    let (device, scores) = (B::float_device(&scores), scores.contiguous());
    let mut chosen = vec![0; num_tokens * k];
    cpu::top_k(scores.values(), num_experts, k, &mut chosen);
    Tensor::<B, 2, Int>::from_data(TensorData::new(chosen, [num_tokens, k]), &device).into_primitive()
}

pub(in crate::backends) fn backward<B: HostBackend>(
    grad: FloatTensor<B>,
    indices: IntTensor<B>,
    num_experts: usize,
) -> FloatTensor<B> {
    if !all_f32::<B>(&[&grad]) {
        return portable::top_k_backward::<B>(grad, indices, num_experts);
    }
    let ([num_tokens, k], grad) = (grad.shape().dims(), grad.contiguous());
    let chosen: Vec<i64> = Tensor::<B, 2, Int>::from_primitive(indices).into_data().iter().collect();
    let mut grad_scores = vec![0.0; num_tokens * num_experts];
    cpu::top_k_backward(grad.values(), &chosen, k, num_experts, &mut grad_scores);
    HostTensor::from_values(grad_scores, [num_tokens, num_experts].into())
}

pub(in crate::backends) fn unchosen<B: HostBackend>(scores: FloatTensor<B>, indices: IntTensor<B>) -> FloatTensor<B> {
    if !all_f32::<B>(&[&scores]) {
        return portable::unchosen::<B>(scores, indices);
    }
    let ([num_tokens, num_experts], scores) = (scores.shape().dims(), scores.contiguous());
    let chosen: Vec<i64> = Tensor::<B, 2, Int>::from_primitive(indices).into_data().iter().collect();
    let mut rest = scores.values().to_vec();
    cpu::clear_chosen(&chosen, num_experts, &mut rest);
    HostTensor::from_values(rest, [num_tokens, num_experts].into())
}
