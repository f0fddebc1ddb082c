//! Top-K and the counting sort on the host: one read of `[T, E]` scores and one of `[T, K]` indices per layer.

use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{Int, Tensor, TensorData};

use super::wrap;
use crate::ExpertPlan;

pub(crate) fn top_k_indices<B: Backend>(scores: FloatTensor<B>, k: usize) -> IntTensor<B> {
    let scores = wrap::<B, 2>(scores);
    let ([num_tokens, num_experts], device) = (scores.dims(), scores.device());
    let scores: Vec<f64> = scores.into_data().iter::<f64>().collect();

    let mut chosen = Vec::with_capacity(num_tokens * k);
    for row in scores.chunks_exact(num_experts) {
        push_best(row, k, &mut chosen);
    }
    int_tensor::<B, 2>(chosen, [num_tokens, k], &device).into_primitive()
}

/// Appends the indices of the `k` largest values of `row`, best first, by insertion into a list of at most `k`.
fn push_best(row: &[f64], k: usize, chosen: &mut Vec<i32>) {
    let rank = |i: i32| {
        let value = row[i as usize];
        if value.is_nan() { f64::NEG_INFINITY } else { value }
    };
    let start = chosen.len();
    for candidate in 0..row.len() as i32 {
        let beaten = chosen[start..].iter().position(|&i| rank(candidate) > rank(i));
        let place = beaten.map_or(chosen.len(), |p| start + p);
        if place - start < k {
            chosen.insert(place, candidate);
            chosen.truncate(start + k);
        }
    }
}

pub(crate) fn plan<B: Backend>(experts: IntTensor<B>, num_experts: usize) -> ExpertPlan<B> {
    let experts = Tensor::<B, 2, Int>::from_primitive(experts);
    let ([num_tokens, top_k], device) = (experts.dims(), experts.device());
    let experts: Vec<usize> = experts.into_data().iter::<i64>().map(|e| e as usize).collect();

    let offsets = expert_offsets(&experts, num_experts);
    let (slot_of_row, row_of_slot) = counting_sort(&experts, &offsets);
    let token_of_row = slot_of_row.iter().map(|&slot| slot / top_k as i32).collect();

    let rows = [num_tokens * top_k];
    ExpertPlan {
        num_tokens,
        top_k,
        num_experts,
        offsets: int_tensor(offsets.iter().map(|&o| o as i32).collect(), [num_experts + 1], &device),
        slot_of_row: int_tensor(slot_of_row, rows, &device),
        row_of_slot: int_tensor(row_of_slot, rows, &device),
        token_of_row: int_tensor(token_of_row, rows, &device),
        host_offsets: Some(offsets.into()),
    }
}

fn expert_offsets(experts: &[usize], num_experts: usize) -> Vec<usize> {
    let mut offsets = vec![0; num_experts + 1];
    for &expert in experts {
        assert!(expert < num_experts, "expert index {expert} is not below num_experts = {num_experts}");
        offsets[expert + 1] += 1;
    }
    for e in 0..num_experts {
        offsets[e + 1] += offsets[e];
    }
    offsets
}

fn counting_sort(experts: &[usize], offsets: &[usize]) -> (Vec<i32>, Vec<i32>) {
    let mut next = offsets.to_vec();
    let mut slot_of_row = vec![0; experts.len()];
    let mut row_of_slot = vec![0; experts.len()];
    for (slot, &expert) in experts.iter().enumerate() {
        let row = next[expert];
        next[expert] += 1;
        slot_of_row[row] = slot as i32;
        row_of_slot[slot] = row as i32;
    }
    (slot_of_row, row_of_slot)
}

fn int_tensor<B: Backend, const D: usize>(
    values: Vec<i32>,
    shape: [usize; D],
    device: &B::Device,
) -> Tensor<B, D, Int> {
    Tensor::from_data(TensorData::new(values, shape), device)
}
