//! Routing, permutation and grouped expert products as backend-generic [burn](https://burn.dev) ops.
//!
//! burn's `Backend` trait has no grouped matrix product, and its general ops make routing slow: `topk` sorts fully,
//! indexing has a scatter as its gradient. This crate adds the few ops a Mixture-of-Experts layer needs as an
//! extension trait, [`MoeBackend`], with handwritten backward passes, and as functions on `Tensor`:
//!
//! | function | forward | backward |
//! |---|---|---|
//! | [`top_k`] | the `K` largest of each row, lower index first on a tie | gradient to the chosen scores only |
//! | [`unchosen`] | zero at the chosen scores of each row | the same op |
//! | [`ExpertPlan::new`] | counting sort of the `T * K` slots by expert | none: integers |
//! | [`dispatch_rows`] | row `r` is the token of the `r`-th sorted slot | gather and a sum over `K` |
//! | [`grouped_matmul`], [`grouped_matmul_transposed`], [`grouped_outer`] | each expert's rows times its own matrix, its transpose, or other rows | each one's gradients are the other two |
//! | [`swiglu`] | `silu(gate) * up` in one op | saves its input only |
//! | [`gelu`] | `x * cdf(x)`, exact | exact (burn 0.21's own is that of the tanh approximation on most backends) |
//! | [`combine_rows`] | gather and a gate-weighted sum over `K` | gather; row-wise dot for the gates |
//! | [`expert_ffn`] | all of it between the router and the residual in one op | keeps the pre-activation only |
//! | [`expert_ffn_summing`] | with each expert's outputs summed over the batch | the same; the sums are constants |
//! | [`rms_norm`], [`layer_norm`] | rows to mean square (or variance) 1, gain, shift | saves its inputs only |
//! | [`softmax_rows`], [`log_sum_exp_rows`] | of each row | from the output; from the input |
//! | [`cross_entropy_rows`] | `log sum exp - logit of the target` | softmax minus one-hot, in one pass |
//! | [`linear`], [`linear_transposed`], [`linear_onto`] | rows times one matrix, added to something or not | two products |
//! | [`rotary`] | turns pairs of channels | turns them back; saves nothing |
//! | [`causal_attention`] | in blocks, grouped queries | saves inputs, output and one number per row of scores |
//! | [`adamw_step`], [`adamw_step_scaled`], [`sum_of_squares`] | the optimizer's passes over the parameters | none |
//!
//! No step adds into memory in an order that depends on scheduling, so two runs give the same bits on a backend
//! whose own ops do.
//!
//! ```
//! use burn::backend::Flex;
//! use burn::tensor::Tensor;
//! use moe_kernels::{ExpertPlan, combine_rows, dispatch_rows, grouped_matmul, top_k};
//!
//! let device = Default::default();
//! let tokens = Tensor::<Flex, 2>::ones([3, 4], &device);
//! let scores = Tensor::<Flex, 2>::from_data([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.3, 0.3, 0.4]], &device);
//! let weight = Tensor::<Flex, 3>::ones([3, 4, 5], &device);
//!
//! let (gates, experts) = top_k(scores, 2);
//! let plan = ExpertPlan::new(experts, 3);
//! let rows = grouped_matmul(dispatch_rows(tokens, &plan), weight, &plan);
//! let output = combine_rows(rows, gates, &plan);
//! assert_eq!(output.dims(), [3, 5]);
//! assert_eq!(plan.counts().into_data().iter::<i64>().sum::<i64>(), 6);
//! ```
//!
//! # Which op when
//!
//! - A feed-forward network of experts as everybody has it: [`expert_ffn`]. It is the fastest and keeps the least.
//! - Something of your own between the products, or an expert that is not two matrices: [`dispatch_rows`], any number of
//!   [`grouped_matmul`]s, [`combine_rows`]. Between dispatch and combine the rows of an expert lie side by side, `offsets`
//!   of the [`ExpertPlan`] say where; every op on rows works there.
//! - Products for a backward pass or an optimizer of your own: [`grouped_matmul_transposed`] and [`grouped_outer`].
//! - Around the layer, where burn's element-wise code on a CPU is scalar or keeps much: [`linear`], [`rms_norm`], [`softmax_rows`],
//!   [`cross_entropy_rows`], [`rotary`], [`causal_attention`], [`adamw_step`].
//! - Around a whole training step on a CPU: [`with_threads_awake`]. The smaller the model, the more it matters.
//! - Below about 16 rows for an expert the time goes into reading its weights; no op here changes that.
//!
//! # What is computed, read and kept
//!
//! SwiGLU experts, `R = T * K` rows, in numbers of 4 bytes for f32. No arrangement of the work needs fewer products:
//!
//! | product | shape | FLOPs | numbers read and written |
//! |---|---|---|---|
//! | forward, in | `[R, D] x [D, 2F]` | `4RDF` | `RD + 2EDF + 2RF` |
//! | forward, out | `[R, F] x [F, D]` | `2RDF` | `RF + EDF + RD` |
//! | backward, hidden | `[R, D] x [D, F]` | `2RDF` | `RD + EDF + RF` |
//! | backward, tokens | `[R, 2F] x [2F, D]` | `4RDF` | `2RF + 2EDF + RD` |
//! | gradient of `w_in` | `[D, R] x [R, 2F]` | `4RDF` | `RD + 2RF + 2EDF` |
//! | gradient of `w_out` | `[F, R] x [R, D]` | `2RDF` | `RF + RD + EDF` |
//!
//! Together `6RDF` FLOPs forward and `18RDF` with backward. These products alone, timed, are the floor that
//! `cargo xtask bench layer` compares a layer with. An expert with `n` rows does `2n` FLOPs for each number of its weights that is
//! read, so the products are bound by arithmetic from about a hundred rows on, and by memory below.
//!
//! Kept between the passes, at `T` 2048, `D` 512, `F` 128, `K` 8:
//!
//! | what is kept | numbers | f32 |
//! |---|---|---|
//! | tokens and pre-activation: [`expert_ffn`] | `TD + 2RF` | 21 MB |
//! | the activation `[R, F]` and the experts' output `[R, D]` as well | `TD + 3RF + RD` | 63 MB |
//! | the ops one by one: sorted tokens, pre-activation, activation, output | `3RF + 2RD` | 92 MB |
//!
//! beside gates and indices. `tests/tests/saved_bytes.rs` counts the first row with an allocator: at most 1.1 times that.
//!
//! # Backends
//!
//! Choose the implementations with cargo features: `flex` (default), `ndarray`, `cube` (every CubeCL runtime, with
//! and without Fusion). `Autodiff<B, C>` works over all of them, under both checkpointing strategies.
//!
//! - **CPU** (`flex`, `ndarray`), f32: loops over slices around the products of the `gemm` crate, vectorised for the processor at
//!   hand (AVX-512 where there is), spread over rayon's threads. [`expert_ffn`] shares the rows by experts first and then by
//!   tokens, and reads a weight once for each 1024 rows of a part. On as many threads as a token has experts, or four, its backward
//!   pass takes such a block through all products at once: the activation and the gradient of the pre-activation stay in its caches.
//! - **CPU**, f64, f16, bf16: the portable bodies, made of burn's own ops, one matrix product per expert. They are right,
//!   and several times slower.
//! - **CubeCL**: the ops of a layer are kernels of the `cube` module (GELU is made of burn's element-wise ops), under Fusion each is one
//!   operation of the stream: nothing is read on the host, forward or backward, so a layer never waits for the device. The
//!   one exception is top-K of f64 scores. An expert index out of range cannot panic there; it counts as the last expert.
//!   The ops around the layer (norms, softmax, attention, ..) are the portable bodies there.
//! - **Any other backend** of burn (LibTorch, Candle) has no implementation yet. It takes an empty `impl MoeBackend for ..` in this crate, whose
//!   default bodies read routing indices on the host.
//!
//! Letters in shapes: `T` tokens, `K` experts per token, `E` experts, `R = T * K` rows, `D`, `I`, `O` widths, `F` the width
//! inside an expert.

mod activation;
mod adamw;
mod backends;
#[cfg(feature = "cpu")]
#[expect(unsafe_code, reason = "memory that is written before it is read, and calls of gemm, which takes pointers")]
mod cpu;
#[cfg(feature = "cube")]
#[expect(
    unsafe_code,
    reason = "kernels compare indices themselves and are launched without CubeCL's own checks of each access"
)]
pub mod cube;
mod ffn;
mod functions;
mod host_plan;
mod host_reads;
mod ops;
mod plan;
mod portable;

#[doc(hidden)]
pub mod reference;

pub use activation::Activation;
pub use adamw::{AdamWStep, ChangeScale, RunScale};
pub use ffn::{FfnGrads, FfnNeeds, FfnSaved, FfnSummed, FfnWeights};
pub use functions::{
    adamw_step, adamw_step_scaled, causal_attention, chosen, combine_rows, cross_entropy_rows, dispatch_rows,
    divide_rows, expert_ffn, expert_ffn_summing, gelu, grouped_matmul, grouped_matmul_transposed, grouped_outer,
    layer_norm, linear, linear_onto, linear_transposed, log_sum_exp_rows, rms_norm, rotary, softmax_rows, sum_dim,
    sum_of_squares, swiglu, top_k, unchosen, with_threads_awake,
};
#[doc(hidden)]
pub use host_reads::host_reads;
pub use ops::{AutodiffMoeBackend, MoeBackend};
pub use plan::ExpertPlan;
