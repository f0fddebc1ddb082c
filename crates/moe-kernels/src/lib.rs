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
//! | [`rotary`] | turns pairs of channels | turns them back; saves nothing |
//! | [`causal_attention`] | in blocks, grouped queries | saves inputs, output and one number per row of scores |
//! | [`adamw_step`], [`sum_of_squares`] | the optimizer's passes over the parameters | none |
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
//! # Backends
//!
//! Choose the implementations with cargo features: `flex` (default), `ndarray`, `cube` (every CubeCL runtime, with
//! and without Fusion). `Autodiff<B, C>` works over all of them, under both checkpointing strategies. What a backend
//! does not bring itself is the portable body of the crate-private `portable` module, which calls the backend's own
//! matrix product once per expert, and reads routing indices on the host.
//!
//! On CubeCL the ops are kernels of the `cube` module (GELU is made of burn's element-wise ops), under Fusion
//! each is one operation of the stream: nothing is read on the host, forward or backward, so a layer never waits for
//! the device. An expert index out of range cannot panic there; it counts as the last expert.
//!
//! Letters in shapes: `T` tokens, `K` experts per token, `E` experts, `R = T * K` rows, `D`, `I`, `O` widths.

mod activation;
mod adamw;
mod backends;
#[cfg(feature = "cpu")]
mod cpu;
#[cfg(feature = "cube")]
pub mod cube;
mod ffn;
mod functions;
mod host_plan;
mod ops;
mod plan;
mod portable;

#[doc(hidden)]
pub mod reference;

pub use activation::Activation;
pub use adamw::AdamWStep;
pub use ffn::{FfnGrads, FfnNeeds, FfnSaved, FfnSummed, FfnWeights};
pub use functions::{
    adamw_step, causal_attention, combine_rows, cross_entropy_rows, dispatch_rows, expert_ffn, expert_ffn_summing,
    gelu, grouped_matmul, grouped_matmul_transposed, grouped_outer, layer_norm, log_sum_exp_rows, rms_norm, rotary,
    softmax_rows, sum_of_squares, swiglu, top_k, unchosen,
};
pub use ops::{AutodiffMoeBackend, MoeBackend};
pub use plan::ExpertPlan;
