//! Router z-loss: keeps the router's logits small.

use burn::tensor::Tensor;
use moe_kernels::{MoeBackend, log_sum_exp_rows};

use super::zero;
use crate::Routing;

/// `(1 / T) * sum_t (log sum_e exp(logit_te))^2`, `[1]`, f32
/// ([Zoph et al., 2022](https://arxiv.org/abs/2202.08906), eq. 5); 0 for an empty batch.
pub fn router_z_loss<B: MoeBackend>(routing: &Routing<B>) -> Tensor<B, 1> {
    if routing.num_tokens() == 0 {
        return zero(routing);
    }
    let log_sum_exp = log_sum_exp_rows(routing.logits.clone());
    log_sum_exp.powi_scalar(2).sum() / routing.num_tokens() as f64
}
