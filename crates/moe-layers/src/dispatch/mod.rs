//! How tokens reach their experts: siblings with one signature, chosen by the caller.

mod dense;
mod grouped;

pub use dense::dense;
pub use grouped::grouped;
