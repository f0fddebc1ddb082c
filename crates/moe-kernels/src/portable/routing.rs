//! Top-K and the counting sort on the host: one read of `[T, E]` scores and one of `[T, K]` indices per layer.

use std::sync::Arc;

use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{Int, Tensor, TensorData};

use super::{unwrap, wrap, zeros};
use crate::host_plan::HostPlan;
use crate::host_reads::note_host_read;
use crate::{ExpertPlan, MoeBackend};

pub(crate) fn top_k_indices<B: Backend>(scores: FloatTensor<B>, k: usize) -> IntTensor<B> {
    let scores = wrap::<B, 2>(scores);
    let ([num_tokens, num_experts], device) = (scores.dims(), scores.device());
    note_host_read();
    let scores: Vec<f64> = scores.into_data().iter::<f64>().collect();

    let mut chosen = Vec::with_capacity(num_tokens * k);
    for row in scores.chunks_exact(num_experts) {
        push_best(row, k, &mut chosen);
    }
    int_tensor::<B, 2>(chosen, [num_tokens, k], &device).into_primitive()
}

/// Appends the indices of the `k` largest values of `row`, best first, by insertion into a list of at most `k`. A NaN is
/// below every number.
fn push_best(row: &[f64], k: usize, chosen: &mut Vec<i32>) {
    let above = |a: i32, b: i32| {
        let (a, b) = (row[a as usize], row[b as usize]);
        a > b || (b.is_nan() && !a.is_nan())
    };
    let start = chosen.len();
    for candidate in 0..row.len() as i32 {
        let beaten = chosen[start..].iter().position(|&i| above(candidate, i));
        let place = beaten.map_or(chosen.len(), |p| start + p);
        if place - start < k {
            chosen.insert(place, candidate);
            chosen.truncate(start + k);
        }
    }
}

/// burn's gather, which CUDA refuses without tokens.
pub(crate) fn top_k_values<B: Backend>(scores: FloatTensor<B>, indices: IntTensor<B>) -> FloatTensor<B> {
    let (scores, indices) = (wrap::<B, 2>(scores), Tensor::<B, 2, Int>::from_primitive(indices));
    match indices.dims() {
        [0, top_k] => unwrap(zeros::<B, 2>([0, top_k], &scores.device(), scores.dtype())),
        _ => unwrap(scores.gather(1, indices)),
    }
}

/// Column `e` of the gradient is that of the slot that chose `e`, or zero: one comparison per slot and expert.
pub(crate) fn top_k_backward<B: Backend>(
    grad: FloatTensor<B>,
    indices: IntTensor<B>,
    num_experts: usize,
) -> FloatTensor<B> {
    let (grad, indices) = (wrap::<B, 2>(grad), Tensor::<B, 2, Int>::from_primitive(indices));
    // Not of the gradient: without tokens, one that burn has broadcast on CubeCL arrives with one row.
    let [num_tokens, top_k] = indices.dims();
    let shape = [num_tokens, num_experts];
    if num_tokens == 0 {
        return unwrap(zeros::<B, 2>(shape, &grad.device(), grad.dtype()));
    }
    let columns = Tensor::<B, 1, Int>::arange(0..num_experts as i64, &grad.device()).unsqueeze::<2>().expand(shape);
    let of_slot = |k: usize| {
        let elsewhere = indices.clone().narrow(1, k, 1).expand(shape).not_equal(columns.clone());
        grad.clone().narrow(1, k, 1).expand(shape).mask_fill(elsewhere, 0.0)
    };
    unwrap((1..top_k).fold(of_slot(0), |sum, k| sum + of_slot(k)))
}

/// The chosen scores taken off: what is left of one is exactly zero.
pub(crate) fn unchosen<B: MoeBackend>(scores: FloatTensor<B>, indices: IntTensor<B>) -> FloatTensor<B> {
    let [_, num_experts] = wrap::<B, 2>(scores.clone()).dims();
    let chosen = B::moe_top_k_values(scores.clone(), indices.clone());
    B::float_sub(scores, B::moe_top_k_backward(chosen, indices, num_experts))
}

pub(crate) fn plan<B: Backend>(experts: IntTensor<B>, num_experts: usize) -> ExpertPlan<B> {
    let experts = Tensor::<B, 2, Int>::from_primitive(experts);
    let ([num_tokens, top_k], device) = (experts.dims(), experts.device());
    note_host_read();
    let experts: Vec<usize> = experts.into_data().iter::<i64>().map(|e| e as usize).collect();
    let host = HostPlan::new(&experts, top_k, num_experts);

    let rows = [host.num_rows()];
    let indices = |indices: Vec<u32>| int_tensor(indices.into_iter().map(|i| i as i32).collect(), rows, &device);
    ExpertPlan {
        num_tokens,
        top_k,
        num_experts,
        partial: false,
        offsets: int_tensor(host.offsets.iter().map(|&o| o as i32).collect(), [num_experts + 1], &device),
        slot_of_row: indices(host.slot_of_row.clone()),
        row_of_slot: indices(host.row_of_slot()),
        token_of_row: indices(host.token_of_row.clone()),
        host: Some(Arc::new(host)),
    }
}

fn int_tensor<B: Backend, const D: usize>(
    values: Vec<i32>,
    shape: [usize; D],
    device: &B::Device,
) -> Tensor<B, D, Int> {
    Tensor::from_data(TensorData::new(values, shape), device)
}
