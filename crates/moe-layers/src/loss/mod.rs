//! Auxiliary losses: pure functions from a [`Routing`](crate::Routing) to `[1]`, unweighted.

mod balance;
mod z;

pub use balance::{BalanceConvention, load_balance_loss, load_balance_loss_pooled};
pub use z::router_z_loss;
