//! Expert parallelism: the experts of one layer on several devices ([Lepikhin et al., 2020](https://arxiv.org/abs/2006.16668),
//! section 3.2).
//!
//! Each of `N` ranks has a range of the experts and tokens of its own. Tokens are routed where they are; their rows go to the ranks that own
//! their experts, are computed there, and come back. Both ways are an all-to-all, [`AllToAll`].
//!
//! ```
//! use burn::backend::Flex;
//! use burn::tensor::{Distribution, Tensor};
//! use moe_layers::MoeConfig;
//! use moe_layers::parallel::{ExpertPlacement, InProcess, ShardedExperts};
//!
//! let devices = vec![Default::default(); 3]; // of a CPU there is one, so here it is three ranks
//! let moe = MoeConfig::new(16, 32, 8, 2).init::<Flex>(&devices[0]);
//! let placement = ExpertPlacement::even(8, 3)?; // 3, 3 and 2 experts
//! let experts = ShardedExperts::split(&moe.experts, &placement, &devices);
//! let exchange = InProcess::new(devices.clone())?;
//!
//! let input = Tensor::<Flex, 3>::random([2, 10, 16], Distribution::Default, &devices[0]);
//! let (out, ()) = moe.forward_with(input.clone(), |tokens, routing| {
//!     (experts.forward_one(tokens, routing, &exchange), ())
//! });
//! let on_one = moe.forward(input).output;
//! assert!((out.output - on_one).abs().max().into_scalar() < 1e-6);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! With tokens on every rank, data parallel beside expert parallel, [`ShardedExperts::forward`] takes a batch for each. Router and whatever
//! else is not an expert then are copies on every rank, whose gradients have to be summed over the ranks; those of the experts are sums
//! over all tokens already.
//!
//! # What crosses
//!
//! For a row that leaves its rank, in numbers of the tokens' dtype, `D` the width of a token:
//!
//! | | forward | backward |
//! |---|---|---|
//! | to the owner of the expert | `D`, and 1 for its gate | `D` |
//! | back | `D` | `D`, and 1 for its gate |
//!
//! A token that two experts of the same rank share crosses twice. With balanced experts `(N - 1) / N` of the `T * K` rows leave. [`Counted`] counts
//! them; `docs/scaling.md` plans with this formula.
//!
//! # Values and gradients
//!
//! Those of one device: the products are the same, and the rows of an expert are summed in the order of ranks and tokens, which is
//! that of one batch made of all. The outputs of a token's experts are added up in the order of its choices, not in that of the experts, so with
//! more than two of them the last bits of outputs, and of the gradients of tokens, may differ; those of parameters and gates are the same where
//! a backend's products do not depend on how many rows there are (on a CPU: with one thread). An expert without rows gets a gradient of zero.
//!
//! # Between devices of one process
//!
//! [`InProcess`] moves rows with `Tensor::to_device`. In burn 0.21 that works between devices of CUDA alone (through NCCL; nobody has tried it
//! here): burn-cubecl asks every runtime for what CUDA's has. Between two devices of wgpu the numbers are lost without an error, so
//! [`InProcess::new`] tries first.
//!
//! # Between processes
//!
//! burn 0.21 has no all-to-all (burn-collective: all-reduce, reduce, broadcast), so the only implementation here is [`InProcess`]. Another one
//! speaks for one rank, has [`ShardedExperts::shard`] make that rank's experts, and needs three things:
//!
//! - `exchange_counts`: an all-to-all of a few integers. It is called before any rows are sent, so that every rank knows how
//!   many come from whom.
//! - `exchange_rows`: concatenate what there is to send, send, receive `expected` rows from each. As an op of autodiff with one input and one
//!   output, whose backward pass is the same exchange with sent and expected swapped.
//! - The backward pass of every rank must come to the same exchanges: a rank has to have at least one token, and to take its output into
//!   its loss. `tests/tests/expert_parallel.rs` has such an implementation between threads, each with a graph and a backward pass of its own.
//!
//! # What is not here
//!
//! Default vectors (`default-moe` serves its experts itself), tokens sent once to a rank instead of once for each expert, and anything that
//! overlaps the exchange with work.

mod exchange;
mod forward;
mod placement;
mod sharded;
mod traffic;

pub use exchange::{AllToAll, InProcess, Pairs, UnreachableDevice};
pub use forward::Batch;
pub use placement::{ExpertPlacement, PlacementError};
pub use sharded::ShardedExperts;
pub use traffic::{Counted, Sent};
