//! Auxiliary losses: pure functions from a [`Routing`](crate::Routing) to `[1]`, unweighted.

mod balance;
mod importance;
mod z;

pub use balance::{BalanceConvention, load_balance_loss, load_balance_loss_pooled, sequence_balance_loss};
pub use importance::{importance_loss, load_loss};
pub use z::router_z_loss;

use burn::tensor::Tensor;
use moe_kernels::MoeBackend;

use crate::Routing;

/// The loss of an empty batch.
fn zero<B: MoeBackend>(routing: &Routing<B>) -> Tensor<B, 1> {
    // From data, as all of an empty decision.
    Tensor::from_data([0.0], (&routing.probs.device(), routing.probs.dtype()))
}
