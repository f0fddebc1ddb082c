//! Mixture-of-Experts layers for [burn](https://burn.dev): routers, stacked experts, dropless dispatch, losses and
//! statistics, generic over the backend.
//!
//! # Replace a feed-forward block
//!
//! Three lines: the configuration, the call, and the losses added to yours.
//!
//! ```
//! use burn::backend::Flex;
//! use burn::tensor::{Distribution, Tensor};
//! use moe_layers::MoeConfig;
//!
//! let device = Default::default();
//! let hidden = Tensor::<Flex, 3>::random([2, 16, 64], Distribution::Default, &device); // [batch, sequence, d_model]
//!
//! let moe = MoeConfig::new(64, 128, 8, 2).init::<Flex>(&device); // d_model, d_hidden, num_experts, top_k
//! let out = moe.forward(hidden);
//! let (hidden, auxiliary_loss) = (out.output, out.losses.weighted());
//!
//! assert_eq!(hidden.dims(), [2, 16, 64]);
//! assert_eq!(auxiliary_loss.dims(), [1]);
//! ```
//!
//! What the router decided is a value, [`Routing`]: losses and statistics are functions of it, nothing is kept in
//! the module.
//!
//! ```
//! # use burn::backend::Flex;
//! # use burn::tensor::{Distribution, Tensor};
//! # use moe_layers::{MoeConfig, RoutingStats};
//! # let device = Default::default();
//! # let moe = MoeConfig::new(64, 128, 8, 2).init::<Flex>(&device);
//! # let out = moe.forward(Tensor::<Flex, 2>::random([32, 64], Distribution::Default, &device));
//! let stats = RoutingStats::from_routing(&out.routing);
//! assert_eq!(stats.expert_counts.iter().sum::<u64>(), 32 * 2); // exact: nothing is dropped
//! println!("busiest expert: {:.2} x the mean, {} idle", stats.load_ratio, stats.dead_experts);
//! ```
//!
//! # Parts
//!
//! | part | what it is |
//! |---|---|
//! | [`TopKRouter`] | softmax over all experts, then top-K; renormalised on request; always in f32 |
//! | [`router`] | the other routers, and a table of when to use which |
//! | [`Experts`] | weights stacked as `[E, D, F]`: SwiGLU, GELU or ReLU, with or without biases |
//! | [`Moe::shared`] | shared experts: a [`DenseFeedForward`] beside them that every token passes through, with or without a gate |
//! | [`dispatch::grouped`] | dropless: sort by expert, grouped products, combine; no padding |
//! | [`dispatch::dense`] | every expert on every token: slow, obvious, the oracle of the tests |
//! | [`dispatch::Capacity`] | slots beyond the capacity of an expert are dropped, by one of three policies |
//! | [`SoftMoe`] | experts work on averages of tokens: no choice, nothing dropped |
//! | [`load_balance_loss`], [`router_z_loss`], [`importance_loss`], [`load_loss`] | auxiliary losses, each naming its convention |
//! | [`upcycle`] | a dense feed-forward network becomes a layer of experts |
//! | [`parallel`] | the experts of a layer on several devices, with an all-to-all between them |
//! | [`RoutingStats`] | counts, load ratio, idle experts, entropies, gate mass |
//! | `metrics`, a feature | some of them as metrics of burn's `Learner`, with its dashboard |
//!
//! # Data types
//!
//! Parameters and routing are f32. Tokens may be bf16 or f16 where the backend has them: weights are cast at use,
//! so the f32 parameters are the master weights of mixed-precision training.
//!
//! Letters in shapes: `T` tokens, `D` d_model, `F` d_hidden, `E` experts, `K` experts per token, `R = T * K`.

#![forbid(unsafe_code)]

pub mod dispatch;
mod experts;
mod loss;
#[cfg(feature = "metrics")]
pub mod metrics;
mod moe;
pub mod parallel;
pub mod ranks;
pub mod router;
mod routing;
mod soft_moe;
mod stats;
pub mod upcycle;

pub use experts::{Activation, DenseFeedForward, DenseFeedForwardConfig, Experts, ExpertsConfig, activate, project};
pub use loss::{
    BalanceConvention, ImportanceConvention, importance_loss, load_balance_loss, load_balance_loss_pooled, load_loss,
    router_z_loss, sequence_balance_loss,
};
pub use moe::{Moe, MoeConfig, MoeLosses, MoeOutput};
pub use moe_kernels::{AutodiffMoeBackend, ExpertPlan, MoeBackend};
pub use router::{ExpertLoad, Router, RouterConfig, RouterRule, TopKRouter, TopKRouterConfig};
pub use routing::{RouterNoise, Routing};
pub use soft_moe::{SoftMoe, SoftMoeConfig};
pub use stats::RoutingStats;
