//! Routers: tokens in, [`Routing`] out; one algorithm a file, all behind [`Router`].
//!
//! | [`RouterRule`] | paper | who chooses | what a decision costs beside `[T, D] x [D, E]` | when to use it |
//! |---|---|---|---|---|
//! | [`TopK`](RouterRule::TopK) | [Shazeer et al., 2017](https://arxiv.org/abs/1701.06538) | a token, by softmax | top-K | the default: Mixtral, OLMoE, Qwen3-MoE |
//! | [`NoisyTopK`](RouterRule::NoisyTopK) | [Shazeer et al., 2017](https://arxiv.org/abs/1701.06538); [Riquelme et al., 2021](https://arxiv.org/abs/2106.05974) | a token, by a noisy softmax | noise, a second product if it is learned | exploration early in training; V-MoE; with the importance and load losses of [either](crate::ImportanceConvention) |
//! | [`Sigmoid`](RouterRule::Sigmoid) | [DeepSeek-AI, 2024](https://arxiv.org/abs/2412.19437); [Wang et al., 2024](https://arxiv.org/abs/2408.15664) | a token, by a biased sigmoid, within groups | one vector per step | balance without a loss that pulls on the model; many fine experts: DeepSeek-V3 |
//! | [`Sinkhorn`](RouterRule::Sinkhorn) | [Clark et al., 2022](https://arxiv.org/abs/2202.01169) | a token, by a balanced assignment of the batch | two products with vectors per iteration | balance from the first step, at the price of another choice in evaluation |
//! | [`Relu`](RouterRule::Relu) | [Wang et al., 2025](https://arxiv.org/abs/2412.14711) | a token, as many as it likes | one number read from the device | a differentiable choice: ReMoE |
//! | [`ExpertChoice`](RouterRule::ExpertChoice) | [Zhou et al., 2022](https://arxiv.org/abs/2202.09368) | an expert, its best tokens | top-K of `T K / E` along the tokens, on CubeCL in as many passes; one number read | even load by construction; vision and encoders, never a causal model |
//! | [`Hash`](RouterRule::Hash) | [Roller et al., 2021](https://arxiv.org/abs/2106.04426) | the token's id | a look-up, no product | a baseline: what learning to route is worth |
//! | [`SoftMoe`](crate::SoftMoe), a layer of its own | [Puigcerver et al., 2023](https://arxiv.org/abs/2308.00951) | nobody: experts work on averages of tokens | products `[T, D] x [D, E P]` and two with averages, two softmaxes | all is differentiable, even load; vision and encoders, never a causal model |
//!
//! | | capacity | [default vectors](https://docs.rs/default-moe) | excitation | balance loss |
//! |---|---|---|---|---|
//! | top-K, noisy, sigmoid, Sinkhorn | yes | yes, but not for what a capacity dropped | yes | yes |
//! | ReLU | yes | no: who is not chosen has gate zero | yes | its own L1; set the coefficient of others to 0 |
//! | expert choice | no need | no: nobody says which experts a token did not choose | factor 1, as all have equal counts | constant |
//! | hash | yes | no: there is no router to learn | yes | constant |
//! | [`SoftMoe`](crate::SoftMoe) | no need | no: nothing is chosen | no: nothing is chosen | none |

mod expert_choice;
mod hash;
mod load;
mod members;
mod noisy_top_k;
pub mod optimizer;
mod relu;
mod rule;
pub(crate) mod scores;
mod sigmoid;
mod sinkhorn;
mod top_k;

#[cfg(test)]
mod tests;

pub use expert_choice::ExpertChoiceRouter;
pub use hash::{HashOptions, HashRouter};
pub use load::ExpertLoad;
pub use noisy_top_k::{NoisyTopKOptions, NoisyTopKRouter};
pub use relu::{ReluOptions, ReluRouter};
pub use rule::{RouterConfig, RouterRule};
pub use sigmoid::{SigmoidOptions, SigmoidRouter};
pub use sinkhorn::{SinkhornOptions, SinkhornRouter, sinkhorn};
pub use top_k::{TopKRouter, TopKRouterConfig};

use burn::module::{Module, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};
use moe_kernels::{MoeBackend, divide_rows, sum_dim, unchosen};

use crate::Routing;

/// A router of any kind. Created by [`RouterConfig`].
#[derive(Module, Debug)]
pub enum Router<B: Backend> {
    /// Softmax, then the `K` largest.
    TopK(TopKRouter<B>),
    /// The same with noise in training passes.
    NoisyTopK(NoisyTopKRouter<B>),
    /// Sigmoids with a selection bias.
    Sigmoid(SigmoidRouter<B>),
    /// A balanced assignment in training passes.
    Sinkhorn(SinkhornRouter<B>),
    /// Every expert with a positive score.
    Relu(ReluRouter<B>),
    /// Experts choose tokens.
    ExpertChoice(ExpertChoiceRouter<B>),
    /// The id of the token decides.
    Hash(HashRouter<B>),
}

impl<B: MoeBackend> Router<B> {
    /// The decision about `tokens` `[T, D]`.
    ///
    /// # Panics
    ///
    /// Panics when the tokens do not have width `D`, and for a [`Hash`](Self::Hash) router, which needs
    /// [`forward_ids`](Self::forward_ids).
    pub fn forward(&self, tokens: Tensor<B, 2>) -> Routing<B> {
        match self {
            Self::TopK(router) => router.forward(tokens),
            Self::NoisyTopK(router) => router.forward(tokens),
            Self::Sigmoid(router) => router.forward(tokens),
            Self::Sinkhorn(router) => router.forward(tokens),
            Self::Relu(router) => router.forward(tokens),
            Self::ExpertChoice(router) => router.forward(tokens),
            Self::Hash(_) => panic!("Router: a hash router needs the ids of the tokens, see forward_ids"),
        }
    }

    /// [`forward`](Self::forward) for tokens of known ids `[T]`, which a [`Hash`](Self::Hash) router looks at and no other.
    ///
    /// # Panics
    ///
    /// Panics when the tokens do not have width `D`; under a [`Hash`](Self::Hash) router, which sees no more of them than their
    /// number, when there are not `T` ids, or as [`HashRouter::forward`].
    pub fn forward_ids(&self, tokens: Tensor<B, 2>, ids: Tensor<B, 1, Int>) -> Routing<B> {
        match self {
            Self::Hash(router) => {
                let (found, expected) = (ids.dims()[0], tokens.dims()[0]);
                assert_eq!(found, expected, "Router: there must be one id for each token");
                router.forward(ids)
            }
            router => router.forward(tokens),
        }
    }

    /// A loss that belongs to the rule, weighted, `[1]`: the L1 loss of a [`Relu`](Self::Relu) router.
    pub fn own_loss(&self, routing: &Routing<B>) -> Option<Tensor<B, 1>> {
        match self {
            Self::Relu(router) => Some(router.l1_loss(routing)),
            _ => None,
        }
    }

    /// The gates that the experts which a token did not choose would have, `[T, E]`, zero for those it chose: what stands before
    /// their default vectors.
    ///
    /// # Panics
    ///
    /// Panics with what [`default_vectors_error`](RouterRule::default_vectors_error) says of the rule, where that is something.
    pub fn gates_of_unchosen(&self, routing: &Routing<B>) -> Tensor<B, 2> {
        if let Some(error) = self.rule_without_options().default_vectors_error() {
            panic!("Router: {error}");
        }
        let gates = unchosen(routing.scores.clone(), routing.experts.clone());
        let gates = match self.normalizes_gates() {
            // Exactly the scores of the chosen and zeros, without a gather, whose gradient would be a scatter.
            true => divide_rows(gates.clone(), sum_dim(routing.scores.clone() - gates, 1) + scores::TINY),
            false => gates,
        };
        match self {
            Self::Sigmoid(router) if router.scale() != 1.0 => gates * router.scale(),
            _ => gates,
        }
    }
}

impl<B: Backend> Router<B> {
    /// The linear map `[D, E]`; none of a [`Hash`](Self::Hash) router.
    pub fn weight(&self) -> Option<&Param<Tensor<B, 2>>> {
        Some(match self {
            Self::TopK(router) => &router.weight,
            Self::NoisyTopK(router) => &router.weight,
            Self::Sigmoid(router) => &router.weight,
            Self::Sinkhorn(router) => &router.weight,
            Self::Relu(router) => &router.weight,
            Self::ExpertChoice(router) => &router.weight,
            Self::Hash(_) => return None,
        })
    }

    /// [`weight`](Self::weight), to be replaced.
    pub fn weight_mut(&mut self) -> Option<&mut Param<Tensor<B, 2>>> {
        Some(match self {
            Self::TopK(router) => &mut router.weight,
            Self::NoisyTopK(router) => &mut router.weight,
            Self::Sigmoid(router) => &mut router.weight,
            Self::Sinkhorn(router) => &mut router.weight,
            Self::Relu(router) => &mut router.weight,
            Self::ExpertChoice(router) => &mut router.weight,
            Self::Hash(_) => return None,
        })
    }

    /// Whether the gates of a token are divided by their sum.
    pub fn normalizes_gates(&self) -> bool {
        match self {
            Self::TopK(router) => router.normalizes_gates(),
            Self::NoisyTopK(router) => router.normalizes_gates(),
            Self::Sigmoid(router) => router.normalizes_gates(),
            Self::Sinkhorn(router) => router.normalizes_gates(),
            Self::Relu(_) | Self::ExpertChoice(_) | Self::Hash(_) => false,
        }
    }

    /// Whether a gate is the score of its expert as it stands.
    pub fn gates_are_scores(&self) -> bool {
        let scale = if let Self::Sigmoid(router) = self { router.scale() } else { 1.0 };
        !self.normalizes_gates() && scale == 1.0
    }

    /// Whether a training step must tell the router the load of its experts: [`absorb`](Self::absorb) then does something.
    pub fn absorbs_load(&self) -> bool {
        matches!(self, Self::Sigmoid(_) | Self::Relu(_))
    }

    /// Moves what a training step moves beside the weights: a selection bias, the weight of an L1 loss. Once per step, with the
    /// loads of its micro-batches, devices and ranks merged.
    ///
    /// # Panics
    ///
    /// Panics when the load is of another number of experts, under a rule that looks at it: where
    /// [`absorbs_load`](Self::absorbs_load).
    pub fn absorb(&mut self, load: &ExpertLoad<B>) {
        match self {
            Self::Sigmoid(router) => router.absorb(load),
            Self::Relu(router) => router.absorb(load),
            _ => {}
        }
    }

    fn rule_without_options(&self) -> RouterRule {
        match self {
            Self::TopK(_) => RouterRule::TopK,
            Self::NoisyTopK(_) => RouterRule::NoisyTopK(NoisyTopKOptions::new()),
            Self::Sigmoid(_) => RouterRule::Sigmoid(SigmoidOptions::new()),
            Self::Sinkhorn(_) => RouterRule::Sinkhorn(SinkhornOptions::new()),
            Self::Relu(_) => RouterRule::Relu(ReluOptions::new()),
            Self::ExpertChoice(_) => RouterRule::ExpertChoice,
            Self::Hash(_) => RouterRule::Hash(HashOptions::new()),
        }
    }
}
