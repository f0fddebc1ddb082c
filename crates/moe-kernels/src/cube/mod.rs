//! CubeCL kernels and their launches, for every CubeCL runtime.
//!
//! Functions on [`CubeTensor`](burn_cubecl::tensor::CubeTensor), one per op of [`MoeBackend`](crate::MoeBackend);
//! none of them reads a tensor on the host, so a layer never waits for the device (one exception: top-K of f64 scores,
//! for which `MoeBackend` takes the portable body, since the kernel ranks f32). Sums are taken in f32 (f64 for f64)
//! in an order that the sizes decide, without atomics: two runs give the same bits.
//!
//! | module | how |
//! |---|---|
//! | top-K | eight units share a row and find its best column `K` times |
//! | plan | counting sort: blocks of slots counted by expert, two scans, one scatter into unique places |
//! | rows | one unit per vector of the output; the gates' gradient is a dot product shared by 32 units |
//! | activation | one unit per vector |
//! | [`grouped`] | a tile of one expert per cube, found through a map made on the device |
//!
//! # What has been verified, and what has not
//!
//! CI runs every kernel that the adapter can run on wgpu under lavapipe, Mesa's software adapter: values, gradients, two
//! runs bit for bit, with and without Fusion, in f32 and f16. That adapter has neither bf16 nor matrix units, and says
//! nothing about speed: **no time on any GPU is claimed.** For ROCm and for Metal's own shader language the suite is
//! compiled (`cargo xtask check features`) and has not run. What a first run on a GPU (an H200, say) has to show:
//!
//! - the suite, `cargo xtask gpu-bundle` and `run.sh`, where bf16 and matrix units are among the cases; the same command
//!   runs the benchmarks named next and writes their records;
//! - bf16 grouped products, forward and both gradients, at `T` 16384, `D` 2048, `F` 1024, `E` 64, `K` 8 and at 8 experts of
//!   `D` 4096, `F` 14336, `K` 2, as a share of the device's measured dense bf16 rate, beside one matrix product per
//!   expert of burn's own, and which tile shape wins in each case;
//! - f32 products at the same shapes, against the device's f32 rate;
//! - routing (top-K and plan), dispatch, combine and SwiGLU, as a share of the memory bandwidth;
//! - skewed loads: half of all rows with one expert, as tiles of one expert bound the time of the weight's gradient.
//!
//! Expected to be next after that: asynchronous copies into shared memory in place of registers, and warp-group
//! instructions on Hopper, which the portable fragment interface does not reach.

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
