//! Loops over slices for the CPU backends: written so that the compiler vectorises them, split over threads by rows.

mod activation;
mod attention;
mod awake;
mod exp;
pub(crate) mod expert_ffn;
mod gated;
mod gated_sums;
mod gemm;
mod grouped;
mod lanes;
mod linear;
mod norm;
mod optim;
mod rotary;
mod rows;
mod softmax;
mod top_k;
mod transpose;
pub(crate) mod unset;

pub(crate) use activation::{gelu, gelu_backward, swiglu, swiglu_backward};
pub(crate) use attention::{AttentionInputs, AttentionSaved, AttentionShape, attention, attention_backward};
pub(crate) use awake::with_threads_awake;
pub(crate) use gemm::Mat;
pub(crate) use grouped::{grouped_matmul, grouped_outer};
pub(crate) use linear::{add_product, product};
pub(crate) use norm::{NormSpec, norm, norm_backward};
pub(crate) use optim::{adamw, sum_of_squares};
pub(crate) use rotary::{Angles, rotate};
pub(crate) use rows::{combine, combine_backward_gates, combine_backward_rows, dispatch};
pub(crate) use softmax::{
    cross_entropy, cross_entropy_backward, log_sum_exp, log_sum_exp_backward, softmax, softmax_backward,
};
pub(crate) use top_k::{clear_chosen, top_k, top_k_backward};

#[cfg(test)]
mod tests;
