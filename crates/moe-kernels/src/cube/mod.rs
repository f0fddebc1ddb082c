//! CubeCL kernels and their launches, for every CubeCL runtime.
//!
//! Functions on [`CubeTensor`](burn_cubecl::tensor::CubeTensor), one per op of [`MoeBackend`](crate::MoeBackend);
//! none of them reads a tensor on the host, so a layer never waits for the device. Sums are taken in f32 (f64 for f64)
//! in an order that the sizes decide, without atomics: two runs give the same bits.

mod activation;
pub mod grouped;
mod launch;
mod plan;
mod rows;
mod top_k;

pub use activation::{swiglu, swiglu_backward};
pub use plan::{PlanTensors, plan};
pub use rows::{combine, combine_backward_gates, combine_backward_rows, dispatch, dispatch_backward};
pub use top_k::top_k_indices;
