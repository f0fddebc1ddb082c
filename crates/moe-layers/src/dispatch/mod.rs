//! How tokens reach their experts: siblings with one signature, chosen by the caller.

mod capacity;
mod dense;
mod grouped;

pub use capacity::{Capacity, DropPolicy};
pub use dense::dense;
pub use grouped::grouped;
