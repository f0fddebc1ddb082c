//! Routers: tokens in, [`Routing`](crate::Routing) out; one algorithm a file.

mod top_k;

pub use top_k::{TopKRouter, TopKRouterConfig};
