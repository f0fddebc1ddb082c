//! Default MoE for [burn](https://burn.dev): a sparse Mixture-of-Experts layer whose router is trained as if every
//! expert had run.
//!
//! A top-K router learns about the experts it chose and nothing about the others. Here a running average of each expert's
//! outputs, its *default vector*, stands in where the expert did not run, in the forward pass and so in the router's
//! gradient ([Panda, Baherwani et al., 2025](https://arxiv.org/abs/2504.12463)). The price is one product
//! `[T, E] x [E, D]` and a vector per expert.
//!
//! ```
//! use burn::backend::{Autodiff, Flex};
//! use burn::tensor::{Distribution, Tensor};
//! use default_moe::DefaultMoeConfig;
//! use moe_layers::MoeConfig;
//!
//! type B = Autodiff<Flex>;
//! let device = Default::default();
//! let mut layer = DefaultMoeConfig::new(MoeConfig::new(64, 128, 8, 1)).init::<B>(&device);
//!
//! let hidden = Tensor::<B, 3>::random([2, 16, 64], Distribution::Default, &device); // [batch, sequence, d_model]
//! let out = layer.forward(hidden);
//! let loss = out.output.square().mean() + out.losses.weighted();
//! let gradients = loss.backward(); // .. the optimizer's step, and once for each step:
//! layer.absorb(&out.update.expect("a pass with gradients leaves an update"));
//! ```
//!
//! # Ours and the paper's
//!
//! | ours | the paper's | what it is |
//! |---|---|---|
//! | `T`, `E`, `K`, `D` | `B`, `N`, `K`, `d_model` | tokens, experts, experts per token, width |
//! | `probs` `[T, E]` | `pi = softmax(W x)` | over all experts, before top-K, not renormalised \[C\] |
//! | `experts` `[T, K]` | `A` | the chosen |
//! | [`DefaultVectors::values`] `[E, D]` | `Ehat` | the default vectors |
//! | [`DefaultOptions::beta`] | `beta` | part of a vector that a step keeps |
//! | [`DefaultUpdate::means`] `[E, D]` | `m` | what a step moves the vectors towards |
//!
//! - Output \[C\]: `y = sum_i pi_i * (E_i(x) if i in A else Ehat_i)`, forward and backward.
//! - Router gradient, with `v_i = E_i(x)` or `Ehat_i` and `g` the gradient of `y`: `dL/dlogit_i = pi_i (g.v_i - g.y)`. Top-K
//!   alone gives `pi_i (1[i in A] g.E_i - g.y)`.
//! - An expert in `A` receives `pi_i g`; one that was not chosen receives nothing: the vectors are constants for autodiff
//!   \[C caption, D\].
//! - Update \[C\]: `Ehat_i <- beta Ehat_i + (1 - beta) m_i`, zero at the start, no bias correction; `m_i` is [`UpdateRule`].
//!   Without tokens `Ehat_i` stays \[D\]. It is kept in f32 \[D\].
//! - Order \[C\]: the chosen experts run, the averages update, the updated averages fill in.
//!
//! Labels: \[C\] read in the paper or its authors' material, \[S\] second-hand, \[D\] our decision where nothing public settles
//! it, \[U\] unknown.
//!
//! Ours alone, beside what is marked \[D\]: gates divided by the mass of the chosen (`normalize_gates`), where the vectors'
//! weights are divided by the same mass, `y = sum_i (pi_i / s) v_i` with `s = sum_A pi`, so that the router's gradient is
//! `(pi_i / s) (g.v_i - 1[i in A] g.y)`; evaluation with plain top-K; [`DefaultVectors::forward_training_reduced`].
//!
//! # Under which routers
//!
//! The fill needs two things of a router: a gate that an expert would have had though it was not chosen, and a token that did the
//! choosing. So top-K, noisy top-K, sigmoid and Sinkhorn routers take default vectors (the paper has top-K \[C\]): the gate of an expert
//! that was not chosen is its score, divided and scaled as the gates of the chosen are, and shares are scores, before both \[D\]. A selection
//! bias, noise and balancing have a say in the choice, not in the fill beyond the scores themselves. The others refuse them:
//!
//! - *ReLU*: who is not chosen has a negative logit and so the gate zero. The fill would be zero, and its gradient too. Nor is one
//!   missing: experts come and go at gate zero, so the output does not jump with the choice.
//! - *expert choice*: experts take tokens. That an expert did not take a token says that others wanted it more, not that the token preferred
//!   another expert; a vector in its place would give every token all experts and undo the fixed load, which is the point of the rule.
//! - *hash*: the choice has no scores, so there is neither a weight for a vector nor a router that could learn from its gradient.
//!
//! # State
//!
//! A forward pass changes nothing. It works out the vectors as its batch updates them, uses them, and hands back the
//! sums they came from, a [`DefaultUpdate`]; a training step merges those of its passes and absorbs them once. Hence
//! validation, a second forward pass and activation recomputation cannot update anything, whatever thread they run on, and
//! the vectors are right under
//!
//! - *gradient accumulation*: [`DefaultUpdate::merge`] over the micro-batches;
//! - *several devices or threads*: the same, after [`DefaultUpdate::to_device`];
//! - *data parallel*: one all-reduce of [`DefaultUpdate::into_matrix`], `[E, D + 1]`, per layer; or let the reduction of the
//!   gradients do it, [`optimizer`].
//!
//! Sums and divisors are added, not means averaged. What differs from one large batch \[D\]: each pass fills in with
//! vectors that its own tokens have updated, since those of the other micro-batches are not known yet. Where that
//! matters across ranks, [`DefaultVectors::forward_training_reduced`] reduces before the vectors are used.
//!
//! # When it helps, and how to choose beta
//!
//! The paper's clearest effect is tolerance of a learning rate that is too high for top-K (8 experts, 1 active, at 9e-4:
//! 21.14 against 22.45 perplexity; at 7e-4 top-K is ahead, 21.13 against 21.21) \[C\]. At its own settings it gains 0.52 (32
//! experts, 4 active) to 0.01 (32 experts, 1 active) of a perplexity near 22 \[C\], 0.024 nats at most: at a rate that suits top-K expect no
//! more. Where the rate is too high for top-K the difference is larger, 0.060 nats there \[C\] and 0.064 here (below).
//!
//! It costs little \[ours\]: a training step of the preset `small` is 0.7 % slower on a CPU (95 % interval 0.4 to 0.8), the training pass of a layer
//! by itself 1.3 to 2.9 % (record in `benchmarks/xeon-2-cores/2026-11-27`), and its forward pass 3.4 to 5.4 %: most where there are many small experts, for the
//! product `[T, E] x [E, D]` is `E / (3 K F)` of the FLOPs of the experts. A backward pass keeps about two `E * D` more.
//!
//! Seen here \[ours\], on a model of 4 layers after 0.8 million tokens (`cargo xtask reproduce default-moe`, 8 experts, 1 active): at
//! the rate that is best for both, 0.023 nats *worse* than top-K (8 pairs, 95 % interval 0.016 to 0.030); at twice that rate
//! 0.064 better (0.004 to 0.124). The form that acts in the backward pass only was level with top-K at the good rate. A model trained with
//! vectors needs them: evaluated as plain top-K it is 0.29 nats worse. Loads were less even than top-K's, so keep the balance loss. With the experts
//! excited as well (the crate `excitation-optim`, 3 pairs) nothing was gained.
//!
//! With [`UpdateRule::Weighted`] beta hardly matters \[C\]: leave it. With [`UpdateRule::Mean`] the paper's values are 0.9 (8
//! experts, 1 or 2 active), 0.65, 0.95 and 0.999 (32 experts; 1, 2 and 4 active) \[C\]. A vector follows its expert over about
//! `1 / (1 - beta)` steps; one with few tokens in a step needs a longer memory.
//!
//! The vector of an expert that is never chosen stays in the sum for ever \[D\]: watch dead experts and
//! [`DefaultVectorStats::norms`] against [`DefaultVectorStats::target_norm`]. Combined with an optimizer that scales an
//! expert's step by its load, counts come from the routing, never from filled slots; a scale that freezes idle experts would
//! ignore what the router is told about them.

#![forbid(unsafe_code)]

mod default_moe;
mod default_vectors;
pub mod optimizer;
mod options;
mod pass;
mod stats;
mod update;

pub use default_moe::{DefaultMoe, DefaultMoeConfig};
pub use default_vectors::DefaultVectors;
pub use options::{DefaultOptions, Evaluation, Form, UpdateRule};
pub use pass::DefaultMoeOutput;
pub use stats::DefaultVectorStats;
pub use update::DefaultUpdate;
