//! Loops over slices for the CPU backends: written so that the compiler vectorises them, split over threads by rows.

mod activation;
mod exp;
pub(crate) mod expert_ffn;
mod gated;
mod gemm;
mod top_k;
pub(crate) mod unset;

pub(crate) use activation::{gelu, gelu_backward, swiglu, swiglu_backward};
pub(crate) use top_k::{top_k, top_k_backward};
