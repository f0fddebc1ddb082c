//! Auxiliary losses: pure functions from a [`Routing`](crate::Routing) to `[1]`, unweighted.

mod balance;
mod importance;
mod z;

pub use balance::{BalanceConvention, load_balance_loss, load_balance_loss_pooled, sequence_balance_loss};
pub use importance::{ImportanceConvention, importance_loss, load_loss};
pub use z::router_z_loss;

use burn::tensor::{Int, Tensor};
use moe_kernels::MoeBackend;

use crate::Routing;

/// The loss of an empty batch.
fn zero<B: MoeBackend>(routing: &Routing<B>) -> Tensor<B, 1> {
    // From data, as all of an empty decision.
    Tensor::from_data([0.0], (&routing.probs.device(), routing.probs.dtype()))
}

/// 1 in the column of the expert of each row of `[N, 1]`, `[N, E]`, a constant in the dtype of the routing; a row of zeros for nobody.
fn one_hot<B: MoeBackend>(experts: Tensor<B, 2, Int>, routing: &Routing<B>) -> Tensor<B, 2> {
    let ([rows, _], columns) = (experts.dims(), routing.num_experts());
    let numbers = Tensor::<B, 1, Int>::arange(0..columns as i64, &experts.device()).unsqueeze::<2>();
    let chosen = experts.repeat_dim(1, columns).equal(numbers.repeat_dim(0, rows));
    chosen.float().cast(routing.probs.dtype())
}
