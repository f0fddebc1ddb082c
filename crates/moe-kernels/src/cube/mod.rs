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
//! | [`grouped`] | a tile of one expert per cube, found through a map made on the device; on Hopper, tiles come by bulk copies |
//!
//! # What has been verified, and what has not
//!
//! CI runs every kernel that the adapter can run on wgpu under lavapipe, Mesa's software adapter: values, gradients, two
//! runs bit for bit, with and without Fusion, in f32 and f16. That adapter has neither bf16 nor matrix units, and says
//! nothing about speed. For ROCm and for Metal's own shader language the suite is compiled (`cargo xtask check features`) and has
//! not run.
//!
//! On an NVIDIA H200 (2026-11-27; `benchmarks/h200/2026-11-27`, the log has the details) every kernel on matrix units was compared with the
//! naive one in bf16, all three products. On the shapes G (`T` 16384, `D` 2048, `F` 1024, `E` 64, `K` 8) and H (`T` 4096, `D` 4096, `F` 14336, `E` 8,
//! `K` 2) the six products of a layer take place at these rates, in TFLOP/s, PyTorch 2.11 and burn taking turns with us:
//!
//! | bf16 | G | H |
//! |---|---|---|
//! | tiles of bulk copies, [`BulkTile::LARGE`](grouped::BulkTile::LARGE) | 390 to 416 | 346 to 426 |
//! | as part of cuBLAS' dense rate | 0.51 to 0.59 | 0.43 to 0.56 |
//! | as part of `torch.nn.functional.grouped_mm` | 0.58 to 0.65 | 0.53 to 0.63 |
//! | over burn's own dense product, least tuning | 1.6 to 2.5 | 1.5 to 3.5 |
//!
//! [`MatrixTile::BROAD`](grouped::MatrixTile::BROAD), the fastest without bulk copies, reached 162 to 186 at G on an H100 the day before.
//! Half of the dense rate, the first aim, is reached in nine products of twelve; those below it are the two outer products and `dz W_in^T` at H.
//!
//! The way to 70 %: the loop is one `mma` after the other with its loads between them, no register is spilled, and what is left is the instruction itself,
//! which on Hopper has less than two thirds of the rate of the warp-group one (`wgmma`) that cuBLAS uses. CubeCL 0.10 does not have that one, nor a way to write it
//! by hand; shared memory and barriers of this kernel are already as it wants them. For the outer products at H, where each expert has few rows,
//! it is the end of a tile: cubes that stay and take one tile after the other would write one while they multiply the next.
//!
//! A part of the suite has run there: of 189 tests 95 passed and 35 failed before time was up; what failed was mended afterwards (rows of no expert in
//! expert-parallel layers were read at the wrong place, some tests asked more than TF32 gives) and has not run again. *No tokens*: burn's own
//! operations on CUDA take no empty tensor, which leaves the device unusable to the process; ours do, without autodiff's sums around them.
//!
//! What a next run on a GPU has to show:
//!
//! - the whole suite, `cargo xtask gpu-bundle` and `run.sh`;
//! - a skewed load, f32 products at the same shapes, whole layers beside Hugging Face's;
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
