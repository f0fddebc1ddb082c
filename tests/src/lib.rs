//! What the cross-backend suites share: the backends, the catalogue of routing cases, comparison.
//!
//! A suite is a list of functions generic over the backend; [`on_every_backend!`] turns each into one test per
//! enabled backend. `flex` runs a second time under gradient checkpointing; where a suite asks for it, a third time in f64,
//! which has no fast path, so that the portable bodies meet the same cases on a CPU.

mod alloc;
mod backends;
mod cases;
mod compare;
mod errors;
mod half;
mod torch_layer;

pub use alloc::{CountingAllocator, live_bytes, take_largest_piece, take_peak_bytes};
pub use backends::*;
pub use cases::{BENCHES, CASES, Case, GPU_BENCHES, LARGE_CASES, cases, takes_empty_tensors};
pub use compare::{
    ABSOLUTE, RELATIVE, assert_close, host, in_f64, no_rows, numeric_gradient, numeric_gradient_by_rows, random, tensor,
};
pub use errors::{note_error, relative_error};
pub use half::{HALF, assert_like_plain_ops, mean_square_error, rounded};
pub use torch_layer::{Compared, layer_beside_torch};
