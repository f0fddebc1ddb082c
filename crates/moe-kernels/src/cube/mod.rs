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
//! nothing about speed. For ROCm and for Metal's own shader language the suite is compiled (`cargo xtask check features`) and has
//! not run.
//!
//! On an NVIDIA H100 (2026-11-26, the log has the details) the kernels on matrix units were compared with the naive one in bf16, all three
//! products, and run twice bit for bit in f32, f16 and bf16; of the suite a part has run, because each kernel takes seconds to compile
//! there. At `T` 16384, `D` 2048, `F` 1024, `E` 64, `K` 8 the fastest tile, [`MatrixTile::BROAD`](grouped::MatrixTile::BROAD), reaches 162 to
//! 186 TFLOP/s in the six products of a layer: 0.57 to 1.55 times burn's own dense product as it is tuned at the lowest level
//! (`benchmarks/h100/2026-11-26/grouped-G.json`). cuBLAS was seen to reach 690 to 835 in dense products of the same FLOPs, by a script that is no
//! record: a quarter of that is reached, and the aim is a half.
//!
//! Expected to bring more, in this order: fragments loaded by `ldmatrix` for the plain `mma` instructions, which CubeCL offers
//! beside the portable ones used here; asynchronous copies into shared memory in place of registers, three or four stages deep;
//! warp-group instructions on Hopper, which CubeCL 0.10 does not have. What a next run on a GPU has to show:
//!
//! - the whole suite, `cargo xtask gpu-bundle` and `run.sh`, an empty batch included: on CUDA, burn 0.21 cannot make zeros of an empty shape;
//! - 8 experts of `D` 4096, `F` 14336, `K` 2, and a skewed load;
//! - f32 products at the same shapes, against the device's f32 rate;
//! - routing (top-K and plan), dispatch, combine and SwiGLU, as a share of the memory bandwidth.

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
